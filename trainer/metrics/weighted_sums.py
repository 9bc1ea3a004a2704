"""Sums over the rows of all workers: all that metrics need that are means."""

import math
from collections.abc import Callable, Iterator

import numpy as np

from trainer.metrics.collectives import Collectives
from trainer.metrics.rows import Rows

_BLOCK_LOGITS = 1 << 18  # bounds the float64 copies


def blocks(rows: Rows) -> Iterator[Rows]:
    """The rows in pieces that are small enough for float64 copies, without their groups."""
    size = max(1, _BLOCK_LOGITS // math.prod(rows.logits.shape[1:]))
    for start in range(0, len(rows.logits), size):
        block = slice(start, start + size)
        yield Rows(rows.logits[block], rows.labels[block], rows.weights[block], None)


def weighted_sums(rows: Rows, comm: Collectives, *values: Callable[[Rows], np.ndarray]) -> list[float]:
    """Sums of weight * value over all workers' rows, in float64, and of the weights as the last. A collective.

    Takes a fixed amount of memory, a few MiB.

    Args:
        rows: this worker's rows.
        comm: this worker's view of the group.
        values: each gives the values ([rows] float64) of a block of rows.
    """
    sums = np.zeros(len(values) + 1)
    for block in blocks(rows):
        weights = block.weights.astype(np.float64)
        sums += [*(value(block) @ weights for value in values), weights.sum()]
    return comm.sum_array(sums).tolist()


def weighted_mean(rows: Rows, comm: Collectives, value: Callable[[Rows], np.ndarray]) -> float:
    """Sum of weight * value over that of the weights; NaN where there is no row. See weighted_sums."""
    total, weight = weighted_sums(rows, comm, value)
    return total / weight if weight > 0 else math.nan
