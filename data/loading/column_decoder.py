"""Turns columns as parquet holds them into the arrays of a `Batch`, and refuses values that no model can use."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from data.conversion.columns import describe_column, is_list
from data.errors import DataError
from data.loading.batch import PAD, Batch
from data.specification.feature_spec import Feature, FeatureSpec

# Rows that are turned from columns into rows at once: source and target stay in the processor's cache.
BLOCK_ROWS = 8192
INT64 = np.iinfo(np.int64)
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Target:
    """Where the values of a column go, and what they may be.

    Attributes:
        name: the column's.
        field: of `Batch`.
        slot: the column's first place in the field.
        width: places in the field; max_hotness for lists.
        low, high: smallest and largest value.
        is_whole: only whole numbers.
        may_miss: nulls and NaN are allowed.
        expected: what the values must be, in words.
    """

    name: str
    field: str
    slot: int = 0
    width: int = 1
    low: float = -LARGEST
    high: float = LARGEST
    is_whole: bool = False
    may_miss: bool = False
    expected: str = "a value"

    @property
    def expected_type(self) -> str:
        """The stored types that fit, in words."""
        return _TYPES[self.field][0]

    def accepts(self, stored: pa.DataType) -> bool:
        """Whether a column stored like this can be decoded."""
        return _TYPES[self.field][1](stored)


class Place(NamedTuple):
    """Where values come from, for messages; `first_row` counts in the file."""

    path: Path
    row_group: int
    first_row: int


class _Lists(NamedTuple):
    """A multi-hot column: its place in a row, the ids of all lists, and [rows + 1] where each list starts in them."""

    slot: int
    width: int
    ids: np.ndarray
    offsets: np.ndarray

    def count_longer(self) -> int:
        """How many lists have more than `width` ids."""
        return int(np.count_nonzero(np.diff(self.offsets) > self.width))


def batch_targets(spec: FeatureSpec, *, with_group: bool, extra_columns: Sequence[str] = ()) -> list[Target]:
    """The columns that make up a batch."""
    targets = [_id_target(spec, feature, "onehot", slot) for slot, feature in enumerate(spec.onehot)]
    slot = 0
    for feature in spec.multihot:
        targets.append(_id_target(spec, feature, "multihot", slot))
        slot += targets[-1].width
    for slot, feature in enumerate(spec.numerical):
        targets.append(Target(feature.name, "numerical", slot, expected=_float_in_words(spec, feature)))
    targets += [_label_target(spec, feature, slot) for slot, feature in enumerate(spec.labels)]
    if spec.sample_weight is not None:
        words = _float_in_words(spec, spec.sample_weight)
        targets.append(Target(spec.sample_weight.name, "weights", low=0, expected=words))
    if with_group and spec.map_feature is not None:
        words = describe_column(spec, spec.map_feature.name).expected
        targets.append(Target(spec.map_feature.name, "group", low=INT64.min, high=INT64.max, expected=words))
    return targets + [Target(name, "extra", slot) for slot, name in enumerate(extra_columns)]


def decode_table(table: pa.Table, targets: Sequence[Target], place: Place, out: Batch) -> dict[str, int]:
    """Writes the rows of a table to `out`, which has as many.

    Returns:
        How many lists were longer than max_hotness and were cut, by column.

    Raises:
        DataError: a value is missing or out of its range; names the file, the row and the value.
    """
    matrices: dict[str, list[tuple[int, np.ndarray]]] = {"onehot": [], "numerical": [], "labels": []}
    lists: dict[str, _Lists] = {}
    for target in targets:
        array = _one_array(table.column(target.name))
        if target.field == "multihot":
            lists[target.name] = _decode_lists(target, array, place)
        elif target.field == "extra":
            out.extra[target.slot][:] = _decode_extra(target, array, place)
        elif target.field in matrices:
            matrices[target.field].append((target.slot, _decode_numbers(target, array, place)))
        else:
            getattr(out, target.field)[:] = _decode_numbers(target, array, place)
    for field, columns in matrices.items():
        _copy_columns(columns, getattr(out, field))
    if lists:
        _fill_lists(list(lists.values()), out.multihot)
    return {name: column.count_longer() for name, column in lists.items()}


def extra_dtype(stored: pa.DataType) -> np.dtype:
    """The dtype in which a batch holds an extra column."""
    return np.dtype(object if _is_text(stored) else stored.to_pandas_dtype())


def _id_target(spec: FeatureSpec, feature: Feature, field: str, slot: int) -> Target:
    words = describe_column(spec, feature.name).expected
    high = (feature.cardinality or 0) - 1
    return Target(feature.name, field, slot, feature.max_hotness or 1, low=0, high=high, expected=words)


def _label_target(spec: FeatureSpec, feature: Feature, slot: int) -> Target:
    may_miss = feature.missing == "ignore"
    if feature.task == "regression":
        words = _float_in_words(spec, feature)
        return Target(feature.name, "labels", slot, may_miss=may_miss, expected=words)
    high = 1 if feature.task == "binary" else (feature.cardinality or 0) - 1
    words = describe_column(spec, feature.name).expected
    return Target(feature.name, "labels", slot, low=0, high=high, is_whole=True, may_miss=may_miss, expected=words)


def _float_in_words(spec: FeatureSpec, feature: Feature) -> str:
    return f"{describe_column(spec, feature.name).expected}, within the range of float32"


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _decode_numbers(target: Target, array: pa.Array, place: Place) -> np.ndarray:
    if not target.may_miss:
        _refuse_nulls(target, array, place)
    values = array.to_numpy(zero_copy_only=False)
    _check_range(target, values, place)
    return values


def _decode_extra(target: Target, array: pa.Array, place: Place) -> np.ndarray:
    if not _is_text(array.type):
        _refuse_nulls(target, array, place)
    return array.to_numpy(zero_copy_only=False)


def _decode_lists(target: Target, array: pa.Array, place: Place) -> _Lists:
    _refuse_nulls(target, array, place)
    if pa.types.is_fixed_size_list(array.type):
        offsets = np.arange(len(array) + 1) * array.type.list_size
        items = array.flatten()
    else:
        offsets = array.offsets.to_numpy()
        items = array.values.slice(offsets[0], offsets[-1] - offsets[0])
        offsets = offsets - offsets[0]

    def row_of(item: int) -> int:
        return int(np.searchsorted(offsets, item, side="right")) - 1

    _refuse_nulls(target, items, place, row_of)
    ids = items.to_numpy()
    _check_range(target, ids, place, row_of)
    return _Lists(target.slot, target.width, ids, offsets)


def _fill_lists(columns: Sequence[_Lists], matrix: np.ndarray) -> None:
    """Writes lists to their places in the rows of a matrix, each cut to its width or filled up with PAD."""
    for rows, places in _turned_blocks(matrix, sum(column.width for column in columns)):
        for slot, width, ids, offsets in columns:
            starts = offsets[rows].astype(np.intp)
            lengths = offsets[rows.start + 1 : rows.stop + 1] - starts
            for place in range(width):
                # Where a list has ended, any id is taken and all its bits set, which makes it PAD: a branch for each
                # value would be mispredicted too often.
                values = np.take(ids, starts + place, mode="clip").astype(np.int32) if len(ids) else PAD
                has_ended = (lengths <= place).astype(np.int32)
                np.bitwise_or(values, -has_ended, out=places[slot + place])


def _copy_columns(columns: list[tuple[int, np.ndarray]], matrix: np.ndarray) -> None:
    """Writes columns to their places in the rows of a matrix."""
    for rows, places in _turned_blocks(matrix, len(columns)):
        for slot, values in columns:
            places[slot] = values[rows]


def _turned_blocks(matrix: np.ndarray, given: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows of a matrix, and [places, rows] to write to: to turn it once is faster than to write with strides.

    Of the places, `given` are written; what others hold stays, as it comes from another column group.
    """
    turned = np.empty((matrix.shape[1], BLOCK_ROWS), matrix.dtype)
    for begin in range(0, len(matrix), BLOCK_ROWS):
        rows = slice(begin, min(begin + BLOCK_ROWS, len(matrix)))
        places = turned[:, : rows.stop - begin]
        if given < len(places):
            places[:] = matrix[rows].T
        yield rows, places
        matrix[rows] = places.T


def _refuse_nulls(
    target: Target, array: pa.Array, place: Place, row_of: Callable[[int], int] = lambda index: index
) -> None:
    if array.null_count == 0:
        return
    first = int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
    raise DataError(
        f"{place.path}, row group {place.row_group}: column {target.name!r} has nothing (null) in "
        f"{array.null_count} places, the first in row {place.first_row + row_of(first)} of the file; "
        f"expected {target.expected}. check_dataset.py lists them all."
    )


def _check_range(
    target: Target, values: np.ndarray, place: Place, row_of: Callable[[int], int] = lambda index: index
) -> None:
    if _is_in_range(target, values):
        return
    numbers = values.astype(np.float64) if np.issubdtype(values.dtype, np.floating) else values
    good = (numbers >= target.low) & (numbers <= target.high)
    if target.is_whole:
        good &= numbers == np.floor(numbers)
    if target.may_miss:
        good |= np.isnan(numbers)
    wrong = np.flatnonzero(~good)
    raise DataError(
        f"{place.path}, row group {place.row_group}: column {target.name!r} has {len(wrong)} unusable values, "
        f"the first {values[wrong[0]].item()} in row {place.first_row + row_of(int(wrong[0]))} of the file; "
        f"expected {target.expected}. check_dataset.py lists them all."
    )


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


def _is_integer_list(stored: pa.DataType) -> bool:
    return is_list(stored) and pa.types.is_integer(stored.value_type)


def _is_number(stored: pa.DataType) -> bool:
    return pa.types.is_integer(stored) or pa.types.is_floating(stored)


def _is_text(stored: pa.DataType) -> bool:
    return pa.types.is_string(stored) or pa.types.is_large_string(stored)


def _is_plain(stored: pa.DataType) -> bool:
    return _is_number(stored) or pa.types.is_boolean(stored) or _is_text(stored)


_TYPES: dict[str, tuple[str, Callable[[pa.DataType], bool]]] = {
    "onehot": ("integers", pa.types.is_integer),
    "multihot": ("lists of integers", _is_integer_list),
    "numerical": ("numbers", _is_number),
    "labels": ("numbers", _is_number),
    "weights": ("numbers", _is_number),
    "group": ("integers", pa.types.is_integer),
    "extra": ("numbers, booleans or texts", _is_plain),
}
