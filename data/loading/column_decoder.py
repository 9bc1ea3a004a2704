"""Decode Arrow columns into the row-major arrays of a `Batch`, rejecting invalid values."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from data.conversion.columns import as_numbers
from data.loading.batch import PAD, Batch
from data.loading.targets import Target, is_text
from data.loading.value_checks import Place, refuse_nulls, usable_values

# Rows transposed at a time, few enough for source and target to stay in the CPU cache.
BLOCK_ROWS = 8192


class Decoded(NamedTuple):
    """The values that were changed while decoding.

    Attributes:
        cut: number of lists cut to max_hotness, by column.
        replaced: [replaced] int64 row of each id that was out of range, by column; columns without such ids are
            left out.
    """

    cut: Mapping[str, int]
    replaced: Mapping[str, np.ndarray]


class _Lists(NamedTuple):
    """A multi-hot column.

    Attributes:
        slot: first of its columns in `Batch.multihot`.
        width: number of its columns there, max_hotness.
        ids: [ids] ids of all lists, concatenated.
        offsets: [rows + 1] where each list starts in `ids`, followed by the end of the last one.
    """

    slot: int
    width: int
    ids: np.ndarray
    offsets: np.ndarray

    def count_longer(self) -> int:
        """Return the number of lists with more than `width` ids."""
        return int(np.count_nonzero(np.diff(self.offsets) > self.width))


def decode_table(table: pa.Table, targets: Sequence[Target], place: Place, out: Batch) -> Decoded:
    """Decode the rows of a table into `out`, a batch of the same number of rows.

    Args:
        table: stored columns, including those of all targets.
        targets: columns to decode.
        place: where the first row is stored, for messages.
        out: batch to write to; fields without a target are left unchanged.

    Returns:
        The lists that were cut and the ids that were replaced.

    Raises:
        DataError: if a value is missing or out of range, naming the file, the row and the value.
    """
    # Columns are decoded one by one, then transposed together into the row-major fields [rows, columns].
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
    """Return the dtype of an extra column in a batch."""
    return np.dtype(object if is_text(stored) else stored.to_pandas_dtype())


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _decode_numbers(target: Target, array: pa.Array, place: Place) -> tuple[np.ndarray, np.ndarray]:
    """Return the [rows] values and the [replaced] int64 rows of those that were replaced."""
    if not target.domain.may_miss:
        refuse_nulls(target, array, place)
    return usable_values(target, as_numbers(array).to_numpy(zero_copy_only=False), place)


def _decode_extra(target: Target, array: pa.Array, place: Place) -> np.ndarray:
    if not is_text(array.type):
        refuse_nulls(target, array, place)
    return array.to_numpy(zero_copy_only=False)


def _decode_lists(target: Target, array: pa.Array, place: Place) -> tuple[_Lists, np.ndarray]:
    """Return the lists and the [replaced] int64 row of each id that was replaced."""
    refuse_nulls(target, array, place)
    if pa.types.is_fixed_size_list(array.type):
        offsets = np.arange(len(array) + 1) * array.type.list_size
        items = array.flatten()
    else:
        # The offsets of a sliced array point into the values of the whole row group.
        offsets = array.offsets.to_numpy()
        items = array.values.slice(offsets[0], offsets[-1] - offsets[0])
        offsets = offsets - offsets[0]

    def row_of(item: int) -> int:
        return int(np.searchsorted(offsets, item, side="right")) - 1

    refuse_nulls(target, items, place, row_of)
    ids, replaced = usable_values(target, items.to_numpy(), place, row_of)
    return _Lists(target.slot, target.width, ids, offsets), np.searchsorted(offsets, replaced, side="right") - 1


def _fill_lists(columns: Sequence[_Lists], matrix: np.ndarray) -> None:
    """Write lists to their columns of a [rows, sum of max_hotness] matrix, cut or padded with PAD to their width."""
    for rows, places in _turned_blocks(matrix, sum(column.width for column in columns)):
        for slot, width, ids, offsets in columns:
            starts = offsets[rows].astype(np.intp)
            lengths = offsets[rows.start + 1 : rows.stop + 1] - starts
            for place in range(width):
                # Branch-free, since branches on list ends would be mispredicted too often: past the end of a list,
                # take an arbitrary id and set all its bits, which makes it PAD (-1).
                values = np.take(ids, starts + place, mode="clip").astype(np.int32) if len(ids) else PAD
                has_ended = (lengths <= place).astype(np.int32)
                np.bitwise_or(values, -has_ended, out=places[slot + place])


def _copy_columns(columns: list[tuple[int, np.ndarray]], matrix: np.ndarray) -> None:
    """Write [rows] columns to their slots of a [rows, slots] matrix."""
    for rows, places in _turned_blocks(matrix, len(columns)):
        for slot, values in columns:
            places[slot] = values[rows]


def _turned_blocks(matrix: np.ndarray, given: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield slices of a matrix's rows with a [columns, rows] buffer to fill, and transpose each into the matrix.

    Transposing a block at once is faster than writing each column with a stride.

    Args:
        matrix: [rows, columns] array to write to.
        given: number of columns that the caller fills. If there are others, which come from another column group,
            the buffer starts out with the matrix's values, so that they are kept.
    """
    turned = np.empty((matrix.shape[1], BLOCK_ROWS), matrix.dtype)
    for begin in range(0, len(matrix), BLOCK_ROWS):
        rows = slice(begin, min(begin + BLOCK_ROWS, len(matrix)))
        places = turned[:, : rows.stop - begin]
        if given < len(places):
            places[:] = matrix[rows].T
        yield rows, places
        matrix[rows] = places.T
