"""Reject invalid values, and replace out-of-range ids if the `oov_policy` says so."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from data.errors import DataError
from data.loading.targets import Target


class Place(NamedTuple):
    """Where values are stored, for messages.

    Attributes:
        path: path of the file.
        row_group: index of the row group in the file.
        first_row: index of the first row in the file.
    """

    path: Path
    row_group: int
    first_row: int


def refuse_nulls(
    target: Target, array: pa.Array, place: Place, row_of: Callable[[int], int] = lambda index: index
) -> None:
    """Raise a DataError if there are nulls, naming the row of the first one.

    Args:
        target: column that the values belong to.
        array: values of the column, or flattened items of its lists.
        place: where the values are stored.
        row_of: maps a position in `array` to its row; the identity unless the values are list items.
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
    """Check values against the domain of their column, and clip out-of-range ids if the `oov_policy` allows it.

    Args:
        target: column that the values belong to.
        values: [count] numbers.
        place: where the values are stored.
        row_of: maps a position in `values` to its row; the identity unless the values are list items.

    Returns:
        The [count] values with integral ids clipped to the domain, and the [replaced] int64 positions of these ids.

    Raises:
        DataError: if a value is out of range and cannot be replaced, naming the first one and its row.
    """
    if target.domain.allows_all(values):  # the usual case, and faster than `allows`
        return values, np.zeros(0, np.int64)
    wrong = np.flatnonzero(~target.domain.allows(values))
    # Only integral ids may be replaced: NaN or 1.5 is damage, not an unseen id.
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
