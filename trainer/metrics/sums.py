"""Sort keys for float32 scores and for groups, and runs of equal rows in sorted columns."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from trainer.metrics.metric import Collectives, Rows, exchange_columns, splitters

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


_SIGN = np.uint32(1 << 31)


def rising_key(scores: np.ndarray) -> np.ndarray:
    """Returns integers in the order of the scores; equal scores, including 0.0 and -0.0, have equal keys.

    Read as integers, the bits of positive floats increase with their value and those of negative floats decrease: all
    bits of the latter are flipped, and the sign bit of the former. The 32 bits can be packed with others into 64; one
    sort of those is several times as fast as an argsort and the gathers after it.

    Args:
        scores: [rows] float32 without NaN.

    Returns:
        [rows] uint32.
    """
    bits = scores + np.float32(0)  # turns -0.0 into 0.0
    # The arithmetic shift gives all ones for negative scores and zeros for others.
    turned = (bits.view(np.int32) >> 31).view(np.uint32) | _SIGN
    return bits.view(np.uint32) ^ turned


def score_of_key(keys: np.ndarray) -> np.ndarray:
    """Returns the scores ([rows] float32) whose rising_key is `keys` ([rows] uint32)."""
    turned = ((keys >> 31) - np.uint32(1)) | _SIGN
    return (keys ^ turned).view(np.float32)


def run_starts(*columns: np.ndarray) -> np.ndarray:
    """Finds where a row differs from the previous one in any column.

    Args:
        columns: [rows] each, of equal length.

    Returns:
        [runs] int64 positions, starting with 0; empty if there are no rows.
    """
    changes = np.zeros(len(columns[0]), bool)
    changes[:1] = True
    for column in columns:
        changes[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(changes)


def sum_runs(values: np.ndarray, starts: np.ndarray, dtype: type[np.generic]) -> np.ndarray:
    """Sums `values` ([rows]) over the runs that begin at `starts`; returns [runs] of the given dtype."""
    if len(starts) == 0:
        return np.zeros(0, dtype)
    return np.add.reduceat(values, starts, dtype=dtype)


def sum_before(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Returns the sum of the values ([rows] int64 or float64) before each one in its run; runs begin at `starts`."""
    before = np.cumsum(values) - values
    return before - np.repeat(before[starts], np.diff(starts, append=len(values)))


def number_groups(group: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers the groups from 0.

    Args:
        group: [rows] int64.

    Returns:
        order: [rows] int64 positions that sort the rows by group.
        names: [groups] int64 IDs, increasing.
        numbers: [rows] uint64 group numbers in that order.
    """
    order = _order_of_groups(group)
    names = group[order]
    starts = run_starts(names)
    numbers = np.repeat(np.arange(len(starts), dtype=np.uint64), np.diff(starts, append=len(names)))
    return order, names[starts], numbers


def _order_of_groups(group: np.ndarray) -> np.ndarray:
    """Returns the positions [rows] int64 that sort by group.

    If the range of IDs is small enough, group and position are packed into one integer: as in rising_key, sorting those
    is several times as fast as an argsort.
    """
    if not len(group):
        return np.zeros(0, np.int64)
    bits, lowest = len(group).bit_length(), group.min()
    if (int(group.max()) - int(lowest)).bit_length() + bits > 64:
        return np.argsort(group)
    # Differences fit into 64 bits even if the subtraction wraps around.
    packed = (group - lowest).view(np.uint64)
    packed <<= np.uint64(bits)
    packed |= np.arange(len(group), dtype=np.uint64)
    packed.sort()
    packed &= np.uint64((1 << bits) - 1)
    return packed.view(np.int64)


MASS_OF_LARGEST = 2**22  # mass of the heaviest row; float64 sums of up to 2 ** 31 such rows are exact


class ScoreTable(NamedTuple):
    """One line per distinct score, by increasing score.

    Attributes:
        scores: [scores] float32.
        positive: [scores] float64, weight of the rows with label 1.
        negative: [scores] float64, weight of the rows with label 0.
        mass: [scores] float64, weight of all rows, each rounded to an integer multiple of the largest weight
            / MASS_OF_LARGEST and counted in such units; sums are exact in any order.
    """

    scores: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    mass: np.ndarray


@runtime_checkable
class ScoreMetric(Protocol):
    """A metric (see `trainer.metrics.Metric`) that can be computed from the score table."""

    def of_table(self, table: ScoreTable, rows: Rows, comm: Collectives) -> float:
        """Computes Metric.result, given the score table of the rows. A collective."""


def score_table(rows: Rows, comm: Collectives) -> ScoreTable:
    """Builds this worker's part of the table of all rows. A collective.

    Parts are in rank order, no score is in two of them, and workers get about equally many lines (at most an eighth
    more, plus one per worker). Takes about 60 bytes per row while it runs, up to 140 with several workers, less if
    scores are tied; a line of the table takes 28.
    """
    largest = comm.gather_rows(rows.weights.max(initial=0, keepdims=True)).max()
    table = _tabulate(rows, float(largest))
    return table if comm.size == 1 else _share_by_score(table, comm)


def _tabulate(rows: Rows, largest_weight: float) -> ScoreTable:
    """Builds this worker's own table."""
    # Score, weight and label in one integer, since sorting those is fast. The label is the sign of the weight.
    packed = rising_key(rows.logits).astype(np.uint64)
    packed <<= np.uint64(32)
    packed |= np.where(rows.labels > 0, -rows.weights, rows.weights).view(np.uint32)
    packed.sort()
    keys = (packed >> np.uint64(32)).astype(np.uint32)
    signed_weights = packed.astype(np.uint32).view(np.float32)
    del packed
    starts = run_starts(keys)
    return ScoreTable(
        score_of_key(keys[starts]),
        sum_runs(np.maximum(-signed_weights, 0), starts, np.float64),
        sum_runs(np.maximum(signed_weights, 0), starts, np.float64),
        sum_runs(np.rint(np.abs(signed_weights) / np.float64(largest_weight) * MASS_OF_LARGEST), starts, np.float64),
    )


def _share_by_score(table: ScoreTable, comm: Collectives) -> ScoreTable:
    """Returns this worker's lines of all workers' tables, with those of equal score joined. A collective."""
    (lowest,) = splitters((table.scores,), np.argsort, comm)
    ends = np.searchsorted(table.scores, lowest, side="left")
    counts = np.diff(ends, prepend=0, append=len(table.scores))
    received = exchange_columns(table, counts.tolist(), comm)
    order = np.argsort(received[0], kind="stable")  # merges the workers' sorted runs
    scores, *sums = (column[order] for column in received)
    starts = run_starts(scores)
    return ScoreTable(scores[starts], *(sum_runs(column, starts, np.float64) for column in sums))
