"""Weighted sums over the rows of all workers, for metrics that are means."""

import math
from collections.abc import Callable, Iterator

import numpy as np

from trainer.metrics.collectives import Collectives
from trainer.metrics.rows import Rows

_BLOCK_LOGITS = 1 << 18  # bounds the memory of float64 copies


def blocks(rows: Rows) -> Iterator[Rows]:
    """Yields the rows, without groups, in blocks small enough for float64 copies."""
    size = max(1, _BLOCK_LOGITS // math.prod(rows.logits.shape[1:]))
    for start in range(0, len(rows.logits), size):
        block = slice(start, start + size)
        yield Rows(rows.logits[block], rows.labels[block], rows.weights[block], None)


def weighted_sums(rows: Rows, comm: Collectives, *values: Callable[[Rows], np.ndarray]) -> list[float]:
    """Returns the float64 sums of weight * value over all workers' rows, followed by the sum of weights. A collective.

    Takes a fixed amount of memory, a few MiB.

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


def weighted_mean(rows: Rows, comm: Collectives, value: Callable[[Rows], np.ndarray]) -> float:
    """Returns the weighted mean of a value over all workers' rows; NaN if there are none. See weighted_sums."""
    total, weight = weighted_sums(rows, comm, value)
    return total / weight if weight > 0 else math.nan
