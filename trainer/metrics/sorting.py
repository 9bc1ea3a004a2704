"""Sort keys of float32 scores and of groups, runs of equal rows, and exchanges of sorted rows between workers."""

from collections.abc import Callable, Sequence

import numpy as np

from trainer.metrics.metric import Collectives

_SIGN = np.uint32(1 << 31)
_SAMPLES_PER_WORKER_PAIR = 16


def rising_key(scores: np.ndarray) -> np.ndarray:
    """Return integers in the order of the scores; equal scores, including 0.0 and -0.0, have equal keys.

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
    """Return the scores ([rows] float32) whose rising_key is `keys` ([rows] uint32)."""
    turned = ((keys >> 31) - np.uint32(1)) | _SIGN
    return (keys ^ turned).view(np.float32)


def run_starts(*columns: np.ndarray) -> np.ndarray:
    """Find where a row differs from the previous one in any column.

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
    """Sum `values` ([rows]) over the runs that begin at `starts`; return [runs] of the given dtype."""
    if len(starts) == 0:
        return np.zeros(0, dtype)
    return np.add.reduceat(values, starts, dtype=dtype)


def sum_before(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the sum of the values ([rows] int64 or float64) before each one in its run; runs begin at `starts`."""
    before = np.cumsum(values) - values
    return before - np.repeat(before[starts], np.diff(starts, append=len(values)))


def number_groups(group: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Assign numbers from 0 to the groups.

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
    """Return the positions [rows] int64 that sort by group.

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


def exchange_columns(columns: Sequence[np.ndarray], counts: Sequence[int], comm: Collectives) -> tuple[np.ndarray, ...]:
    """Exchange rows that are stored as columns.

    Args:
        columns: arrays of equal length, with rows sorted by receiving worker.
        counts: number of rows for each worker.
        comm: collectives of the group of workers.

    Returns:
        The columns of the received rows, in rank order of the senders.
    """
    return tuple(comm.exchange_rows(column, counts) for column in columns)


def splitters(
    columns: Sequence[np.ndarray], order: Callable[..., np.ndarray], comm: Collectives
) -> tuple[np.ndarray, ...]:
    """Estimate from a sample where to cut sorted rows into about equal parts, one per worker. A collective.

    Args:
        columns: sort columns of this worker's rows, arrays of equal length.
        order: returns the positions that sort such columns.
        comm: collectives of the group of workers.

    Returns:
        The same columns, each [workers - 1]: worker w gets the rows from splitter w - 1 (included) up to splitter w.
    """
    total = int(comm.sum_array(np.array([len(columns[0])], np.int64))[0])
    if total == 0:
        return tuple(np.zeros(comm.size - 1, column.dtype) for column in columns)
    # About 16 samples per pair of workers, so that parts stay balanced as the number of workers grows.
    stride = max(1, total // (_SAMPLES_PER_WORKER_PAIR * comm.size**2))
    samples = [comm.gather_rows(column[::stride]) for column in columns]
    places = order(*samples)[np.arange(1, comm.size) * len(samples[0]) // comm.size]
    return tuple(column[places] for column in samples)
