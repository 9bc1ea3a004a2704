"""Refuses values that no model can use, and replaces ids outside of their table where that is asked for."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from data.errors import DataError
from data.loading.targets import Target


class Place(NamedTuple):
    """Where values come from, for messages; `first_row` counts in the file."""

    path: Path
    row_group: int
    first_row: int


def refuse_nulls(
    target: Target, array: pa.Array, place: Place, row_of: Callable[[int], int] = lambda index: index
) -> None:
    """Raises a DataError for nulls, naming the first one's row.

    Args:
        target: whose values they are.
        array: the values, or the items of lists.
        place: where they come from.
        row_of: position among the values -> row.
    """
    if array.null_count == 0:
        return
    first = int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
    raise DataError(
        f"{place.path}, row group {place.row_group}: column {target.name!r} has nothing (null) in "
        f"{array.null_count} places, the first in row {place.first_row + row_of(first)} of the file; "
        f"expected {target.expected}. check_dataset.py lists them all."
    )


def usable_values(
    target: Target, values: np.ndarray, place: Place, row_of: Callable[[int], int] = lambda index: index
) -> tuple[np.ndarray, np.ndarray]:
    """Checks values against their range.

    Args:
        target: whose values they are.
        values: [count] numbers.
        place: where they come from.
        row_of: position among the values -> row.

    Returns:
        The values, ids outside of the range replaced by the nearest within it where the target's `oov_policy` allows
        it, and the positions [replaced] int64 of these.

    Raises:
        DataError: a value is out of its range; names the first one and its row.
    """
    if _is_in_range(target, values):
        return values, np.zeros(0, np.int64)
    wrong = np.flatnonzero(~_usable(target, values))
    if target.oov_policy == "error":
        is_id = target.field in ("onehot", "multihot")
        way_out = "--oov_policy clip or drop lets main.py go on without them; " if is_id else ""
        raise DataError(
            f"{place.path}, row group {place.row_group}: column {target.name!r} has {len(wrong)} unusable values, "
            f"the first {values[wrong[0]].item()} in row {place.first_row + row_of(int(wrong[0]))} of the file; "
            f"expected {target.expected}. {way_out}check_dataset.py lists them all."
        )
    return np.clip(values, target.low, target.high), wrong


def _usable(target: Target, values: np.ndarray) -> np.ndarray:
    numbers = values.astype(np.float64) if np.issubdtype(values.dtype, np.floating) else values
    good = (numbers >= target.low) & (numbers <= target.high)
    if target.is_whole:
        good &= numbers == np.floor(numbers)
    if target.may_miss:
        good |= np.isnan(numbers)
    return good


def _is_in_range(target: Target, values: np.ndarray) -> bool:
    is_float = np.issubdtype(values.dtype, np.floating)
    if target.may_miss and is_float:
        values = values[~np.isnan(values)]
    if not len(values):
        return True
    # Comparisons with NaN are false.
    if not (values.min().item() >= target.low and values.max().item() <= target.high):
        return False
    return not (target.is_whole and is_float) or bool(np.array_equal(values, np.floor(values)))
