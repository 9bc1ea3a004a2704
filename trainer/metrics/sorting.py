"""Sort keys for float32 scores and for groups, and runs of equal rows in sorted columns."""

import numpy as np

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
