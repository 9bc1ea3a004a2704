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
        The values, whole-number ids outside of the range replaced by the nearest within it where the target's
        `oov_policy` allows it, and the positions [replaced] int64 of these.

    Raises:
        DataError: a value is out of its range; names the first one and its row.
    """
    if target.domain.allows_all(values):
        return values, np.zeros(0, np.int64)
    wrong = np.flatnonzero(~target.domain.allows(values))
    is_id = target.field in ("onehot", "multihot")
    whole = is_id & np.isfinite(values[wrong]) & (values[wrong] == np.floor(values[wrong]))
    refused = wrong if target.oov_policy == "error" else wrong[~whole]
    if len(refused):
        can_go_on = target.oov_policy == "error" and whole.all()
        way_out = "--oov_policy clip or drop lets main.py go on without them; " if can_go_on else ""
        raise DataError(
            f"{place.path}, row group {place.row_group}: column {target.name!r} has {len(refused)} unusable values, "
            f"the first {values[refused[0]].item()} in row {place.first_row + row_of(int(refused[0]))} of the file; "
            f"expected {target.expected}. {way_out}check_dataset.py lists them all."
        )
    return np.clip(values, target.domain.low, target.domain.high), wrong
