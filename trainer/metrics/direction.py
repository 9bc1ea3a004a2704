"""Direction of a metric: which of its values are better."""

import math
from enum import Enum


class Direction(Enum):
    """Where a metric moves as a model gets better."""

    LARGER = "larger"
    SMALLER = "smaller"
    NEAREST_1 = "nearest to 1"  # for ratios: 2 and 1/2 are equally far from 1

    def is_better(self, new: float, old: float | None) -> bool:
        """Returns whether `new` is strictly better than `old`. NaN never is, but others beat NaN and None."""
        if math.isnan(new):
            return False
        return old is None or math.isnan(old) or self._badness(new) < self._badness(old)

    def _badness(self, value: float) -> float:
        if self is Direction.LARGER:
            return -value
        if self is Direction.SMALLER:
            return value
        return max(value, 1 / value) if value > 0 else math.inf
