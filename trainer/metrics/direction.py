"""Which values of a metric are better."""

import math
from enum import Enum


class Direction(Enum):
    """Where a metric goes as a model gets better."""

    LARGER = "larger"
    SMALLER = "smaller"
    NEAREST_1 = "nearest to 1"  # of ratios: 2 is as far from 1 as 1/2 is

    def is_better(self, new: float, old: float | None) -> bool:
        """Whether `new` is strictly better than `old`. NaN never is; anything else is better than NaN and None."""
        if math.isnan(new):
            return False
        return old is None or math.isnan(old) or self._badness(new) < self._badness(old)

    def _badness(self, value: float) -> float:
        if self is Direction.LARGER:
            return -value
        if self is Direction.SMALLER:
            return value
        return max(value, 1 / value) if value > 0 else math.inf
