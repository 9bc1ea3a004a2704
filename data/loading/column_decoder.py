"""Turns columns as parquet holds them into the arrays of a `Batch`, and refuses values that no model can use."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from data.conversion.columns import as_numbers
from data.loading.batch import PAD, Batch
from data.loading.targets import Target, is_text
from data.loading.value_checks import Place, refuse_nulls, usable_values

# Rows that are turned from columns into rows at once: source and target stay in the processor's cache.
BLOCK_ROWS = 8192


class Decoded(NamedTuple):
    """What was done to values so that they fit.

    Attributes:
        cut: how many lists were longer than max_hotness, by column.
        replaced: [replaced] int64 the row of each id that was outside of its range, by column; columns without
            such an id are left out.
    """

    cut: Mapping[str, int]
    replaced: Mapping[str, np.ndarray]


class _Lists(NamedTuple):
    """A multi-hot column: its place in a row, the ids of all lists, and [rows + 1] where each list starts in them."""

    slot: int
    width: int
    ids: np.ndarray
    offsets: np.ndarray

    def count_longer(self) -> int:
        """How many lists have more than `width` ids."""
        return int(np.count_nonzero(np.diff(self.offsets) > self.width))


def decode_table(table: pa.Table, targets: Sequence[Target], place: Place, out: Batch) -> Decoded:
    """Writes the rows of a table to `out`, which has as many.

    Raises:
        DataError: a value is missing or out of its range; names the file, the row and the value.
    """
    matrices: dict[str, list[tuple[int, np.ndarray]]] = {"onehot": [], "numerical": [], "labels": []}
    lists: dict[str, _Lists] = {}
    replaced: dict[str, np.ndarray] = {}
    for target in targets:
        array = _one_array(table.column(target.name))
        if target.field == "extra":
            out.extra[target.slot][:] = _decode_extra(target, array, place)
            continue
        if target.field == "multihot":
            lists[target.name], bad_rows = _decode_lists(target, array, place)
        else:
            values, bad_rows = _decode_numbers(target, array, place)
            if target.field in matrices:
                matrices[target.field].append((target.slot, values))
            else:
                getattr(out, target.field)[:] = values
        if len(bad_rows):
            replaced[target.name] = bad_rows
    for field, columns in matrices.items():
        _copy_columns(columns, getattr(out, field))
    if lists:
        _fill_lists(list(lists.values()), out.multihot)
    return Decoded({name: column.count_longer() for name, column in lists.items()}, replaced)


def extra_dtype(stored: pa.DataType) -> np.dtype:
    """The dtype in which a batch holds an extra column."""
    return np.dtype(object if is_text(stored) else stored.to_pandas_dtype())


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _decode_numbers(target: Target, array: pa.Array, place: Place) -> tuple[np.ndarray, np.ndarray]:
    """The values, and the rows of those that were replaced."""
    if not target.domain.may_miss:
        refuse_nulls(target, array, place)
    return usable_values(target, as_numbers(array).to_numpy(zero_copy_only=False), place)


def _decode_extra(target: Target, array: pa.Array, place: Place) -> np.ndarray:
    if not is_text(array.type):
        refuse_nulls(target, array, place)
    return array.to_numpy(zero_copy_only=False)


def _decode_lists(target: Target, array: pa.Array, place: Place) -> tuple[_Lists, np.ndarray]:
    """The lists, and for each id that was replaced the row of its list."""
    refuse_nulls(target, array, place)
    if pa.types.is_fixed_size_list(array.type):
        offsets = np.arange(len(array) + 1) * array.type.list_size
        items = array.flatten()
    else:
        offsets = array.offsets.to_numpy()
        items = array.values.slice(offsets[0], offsets[-1] - offsets[0])
        offsets = offsets - offsets[0]

    def row_of(item: int) -> int:
        return int(np.searchsorted(offsets, item, side="right")) - 1

    refuse_nulls(target, items, place, row_of)
    ids, replaced = usable_values(target, items.to_numpy(), place, row_of)
    return _Lists(target.slot, target.width, ids, offsets), np.searchsorted(offsets, replaced, side="right") - 1


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
