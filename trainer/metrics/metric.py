"""The interface of metrics, and weighted sums over the rows of all workers."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import ClassVar, Protocol, Self

import numpy as np

from trainer.metrics.rows import Rows

_BLOCK_LOGITS = 1 << 18  # bounds the memory of float64 copies


class Direction(Enum):
    """Where a metric moves as a model gets better."""

    LARGER = "larger"
    SMALLER = "smaller"
    NEAREST_1 = "nearest to 1"  # for ratios: 2 and 1/2 are equally far from 1

    def is_better(self, new: float, old: float | None) -> bool:
        """Return whether `new` is strictly better than `old`. NaN never is, but others beat NaN and None."""
        if math.isnan(new):
            return False
        return old is None or math.isnan(old) or self._badness(new) < self._badness(old)

    def is_no_worse(self, new: float, old: float, tolerance: float) -> bool:
        """Return whether `new` is worse than `old` by at most `tolerance`. NaN is worse than any number."""
        if math.isnan(new) or math.isnan(old):
            return math.isnan(old)
        return self._badness(new) <= self._badness(old) + tolerance

    def _badness(self, value: float) -> float:
        if self is Direction.LARGER:
            return -value
        if self is Direction.SMALLER:
            return value
        return max(value, 1 / value) if value > 0 else math.inf


class Collectives(Protocol):
    """The collectives that metrics need: a part of `trainer.comm.Comm`, which describes them."""

    rank: int
    size: int

    def sum_array(self, array: np.ndarray) -> np.ndarray: ...

    def gather_rows(self, rows: np.ndarray) -> np.ndarray: ...

    def exchange_rows(self, rows: np.ndarray, counts: Sequence[int]) -> np.ndarray: ...

    def broadcast_bytes(self, data: bytes | None) -> bytes: ...


class Metric(ABC):
    """A number computed from one task's rows, which are distributed over workers.

    A metric is stateless: an evaluation stores the rows of all metrics once. It is registered by the task types that
    list its class in their `metrics`; ranking metrics are made by name (see trainer/metrics/ranking.py).

    Attributes:
        name: key in the log, to which the name of a task is appended if there are several. Metrics of different task
            types that measure the same thing share a name and thereby title, direction, unit and headline.
        title: name in the report.
        direction: which values are better.
        unit: unit in the log's metadata; None for a plain number.
        headline: 0 for a metric that is only logged. Others are shown in the one-line summary of an evaluation, and
            by default the one with the largest number decides which checkpoint is the best.
        needs_group: whether the metric ranks the rows within groups; it is omitted if there are none.
    """

    name: str
    title: str
    direction: ClassVar[Direction]
    unit: ClassVar[str | None] = None
    headline: ClassVar[int] = 0
    needs_group: ClassVar[bool] = False

    @classmethod
    def create(cls, num_auc_thresholds: int) -> Self:
        """Create the metric from the evaluation's options. The number of thresholds is 0 for the exact AUC."""
        return cls()

    @abstractmethod
    def result(self, rows: Rows, comm: Collectives) -> float:
        """Compute the metric over the rows of all workers: a collective, with the same float on every worker.

        The result does not depend on the order of rows or on how they are distributed over workers (up to the rounding
        of float64 sums). NaN where the metric is undefined.

        Args:
            rows: this worker's rows of one task, with finite logits, labels that are valid for the task, and positive
                weights.
            comm: collectives of the group of workers.
        """

    def standard_error(self, rows: Rows, comm: Collectives, value: float) -> float:
        """Compute the standard error of the metric over the rows of all workers. A collective.

        Args:
            rows: this worker's rows, as for `result`.
            comm: collectives of the group of workers.
            value: what `result` has returned for the rows, not NaN.

        Returns:
            The same float on every worker; NaN for a metric without a standard error, and with fewer than two rows (or
            groups, for a mean over groups).
        """
        return math.nan


def blocks(rows: Rows) -> Iterator[Rows]:
    """Yield the rows, without groups, in blocks small enough for float64 copies."""
    size = max(1, _BLOCK_LOGITS // math.prod(rows.logits.shape[1:]))
    for start in range(0, len(rows.logits), size):
        block = slice(start, start + size)
        yield Rows(rows.logits[block], rows.labels[block], rows.weights[block], None)


def weighted_sums(rows: Rows, comm: Collectives, *values: Callable[[Rows], np.ndarray]) -> list[float]:
    """Return the float64 sums of weight * value over all workers' rows, followed by the sum of weights. A collective.

    It takes a fixed amount of memory, a few MiB.

    Args:
        rows: this worker's rows.
        comm: collectives of the group of workers.
        values: functions that return the values ([rows] float64) of a block of rows.
    """
    sums = np.zeros(len(values) + 1)
    for block in blocks(rows):
        weights = block.weights.astype(np.float64)
        sums += [*(value(block) @ weights for value in values), weights.sum()]
    return comm.sum_array(sums).tolist()


def error_of_ratio(
    rows: Rows,
    comm: Collectives,
    ratio: float,
    above: Callable[[Rows], np.ndarray],
    below: Callable[[Rows], np.ndarray] | None = None,
) -> float:
    """Return the standard error of (sum of w * a) / (sum of w * b) over independent rows. A collective.

        SE = sqrt(n / (n - 1) * sum of (w * (a - ratio * b))^2) / (sum of w * b)

    This is the delta method (Cochran, "Sampling Techniques", 1977, section 2.11), and for b = 1 and equal weights the
    usual standard error of a mean. Computing it takes a fixed amount of memory, a few MiB.

    Args:
        rows: this worker's rows.
        comm: collectives of the group of workers.
        ratio: the ratio over all rows.
        above: function that returns the values a ([rows] float64) of a block of rows.
        below: likewise for b; None for 1, the standard error of a weighted mean.
    """
    sums = np.zeros(3)
    for block in blocks(rows):
        weights = block.weights.astype(np.float64)
        divisor = np.ones(len(weights)) if below is None else below(block)
        deviations = weights * (above(block) - ratio * divisor)
        sums += np.array([deviations @ deviations, weights @ divisor, len(weights)])
    return error_of_sums(comm.sum_array(sums))


def error_of_sums(sums: np.ndarray) -> float:
    """Return sqrt(n / (n - 1) * squares) / weight from the sums of squares and of weights and n, [3] float64."""
    squares, weight, count = sums.tolist()
    return math.sqrt(squares * count / (count - 1)) / weight if count > 1 else math.nan


def weighted_mean(rows: Rows, comm: Collectives, value: Callable[[Rows], np.ndarray]) -> float:
    """Return the weighted mean of a value over all workers' rows; NaN if there are none. See weighted_sums."""
    total, weight = weighted_sums(rows, comm, value)
    return total / weight if weight > 0 else math.nan
