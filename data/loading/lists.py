"""Tables of lists without padding: the values of all lists, one after the other, and the length of each list."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import DTypeLike

from data.loading.arrays import empty_array, joined_array


@dataclass(frozen=True, eq=False)
class Lists:
    """A table whose cells are lists: a row per row of the batch, a column per feature.

    Its size follows the values that exist, not the longest list. Values may be replaced in place; lengths may not be
    changed.

    Attributes:
        values: [values] of any dtype of a fixed size. Lists follow one another row by row and, within a row, column by
            column.
        lengths: [rows, columns] int32 number of values in each list.
    """

    values: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, rows: slice) -> "Lists":
        """Return a range of rows, as views; the slice has no step."""
        begin, end, _ = rows.indices(len(self))
        width = self.lengths.shape[1]
        values = slice(None)
        if len(self.values):
            values = slice(*(self._ends[[begin * width, end * width]] // self.values.itemsize))
        return Lists(self.values[values], self.lengths[begin:end])

    @cached_property
    def _ends(self) -> np.ndarray:
        """Where each list begins in `values` and where the last one ends, in bytes: [lists + 1] int32 or int64."""
        fits = self.values.nbytes <= np.iinfo(np.int32).max
        return _ends_of(self.lengths.reshape(-1), self.values.itemsize, np.int32 if fits else np.int64)

    @cached_property
    def _row_ends(self) -> np.ndarray:
        """Where each row begins in `values` and where the last one ends, in bytes: [rows + 1] int32 or int64."""
        columns = self.lengths.shape[1]
        return self._ends[::columns].copy() if columns else np.zeros(len(self) + 1, np.int32)

    def gather(self, numbers: np.ndarray) -> "Lists":
        """Return a copy of the lists with the given numbers in any order, repeated or not.

        Args:
            numbers: [rows, columns] integers, where list (r, c) of this table is number r * columns + c; unchecked.
        """
        values, lengths = _copies(self.values, self._ends, numbers.reshape(-1))
        return Lists(values, lengths.reshape(numbers.shape))

    def take(self, rows: np.ndarray) -> "Lists":
        """Return a copy of the rows at the given positions.

        Args:
            rows: [taken] integer positions in any order, repeated or not, unchecked; or [taken, columns], one for each
                column: list (i, c) of the result is list (rows[i, c], c).
        """
        columns = self.lengths.shape[1]
        if not columns:
            return Lists(self.values, np.empty((len(rows), 0), np.int32))
        if rows.ndim > 1:
            return self.gather(rows * columns + np.arange(columns))
        values, _ = _copies(self.values, self._row_ends, rows)
        return Lists(values, np.take(self.lengths, rows, axis=0))

    def select(self, columns: Sequence[int]) -> "Lists":
        """Return the given columns in the given order; without a copy if these are all columns in their order."""
        width = self.lengths.shape[1]
        if list(columns) == list(range(width)):
            return self
        return self.gather(width * np.arange(len(self))[:, np.newaxis] + np.array(columns, np.int64))

    def cut(self, longest: Sequence[int], *, keep_last: bool = False) -> "Lists":
        """Return at most `longest[c]` values of each list of column c; without a copy if no list is longer.

        The first values are kept, or the last ones with `keep_last`.
        """
        if not (self.lengths > np.array(longest, np.int32)).any():
            return self
        lengths = np.minimum(self.lengths, np.array(longest, np.int32))
        bounds = np.repeat((self.lengths - lengths if keep_last else lengths).reshape(-1), self.lengths.reshape(-1))
        kept = self.places() >= bounds if keep_last else self.places() < bounds
        return Lists(self.values[kept], lengths)

    def astype(self, dtype: DTypeLike) -> "Lists":
        """Return a copy of the lists with values of another dtype."""
        return Lists(self.values.astype(dtype), self.lengths)

    def cells(self) -> np.ndarray:
        """Return the number of the list that holds each value, [values] int64, where list (r, c) is r * columns + c."""
        return np.repeat(np.arange(self.lengths.size), self.lengths.reshape(-1))

    def starts(self) -> np.ndarray:
        """Return where each list begins in `values`, [rows, columns] int64."""
        return _ends_of(self.lengths.reshape(-1))[:-1].reshape(self.lengths.shape)

    def places(self) -> np.ndarray:
        """Return the position of each value in its list, [values] int64."""
        return np.arange(len(self.values)) - np.repeat(self.starts().reshape(-1), self.lengths.reshape(-1))

    def padded(self, widths: Sequence[int], padding: int) -> np.ndarray:
        """Return a matrix with the lists of column c in `widths[c]` columns, [rows, sum of widths].

        Args:
            widths: for each column, at least the length of its longest list.
            padding: value after the end of a list.
        """
        matrix = np.full((len(self), sum(widths)), padding, self.values.dtype)
        rows, columns = np.divmod(self.cells(), max(len(widths), 1))
        matrix[rows, _ends_of(np.array(widths, np.int64))[columns] + self.places()] = self.values
        return matrix


def empty_lists(rows: int, columns: int, dtype: DTypeLike = np.int32) -> Lists:
    """Return a table of empty lists."""
    return Lists(np.empty(0, dtype), np.zeros((rows, columns), np.int32))


def from_padded(matrix: np.ndarray, widths: Sequence[int]) -> Lists:
    """Return the lists in a matrix as `padded` returns it; values below 0 are padding, and no width is 0."""
    present = matrix >= 0
    starts = _ends_of(np.array(widths, np.int64))[:-1]
    return Lists(matrix[present], np.add.reduceat(present, starts, axis=1, dtype=np.int32))


def join_rows(parts: Sequence[Lists]) -> Lists:
    """Return the rows of tables with the same columns, table after table; without a copy if there is only one table."""
    if len(parts) == 1:
        return parts[0]
    if not parts[0].lengths.shape[1]:
        return Lists(parts[0].values, np.empty((sum(map(len, parts)), 0), np.int32))
    return Lists(joined_array([part.values for part in parts]), joined_array([part.lengths for part in parts]))


def join_columns(parts: Sequence[Lists]) -> Lists:
    """Return the columns of tables of equally many rows side by side; without a copy if there is only one table."""
    if len(parts) == 1:
        return parts[0]
    # As one column: all lists of the first table, then those of the second, and so on.
    stacked = join_rows([Lists(part.values, part.lengths.reshape(-1, 1)) for part in parts])
    firsts = _ends_of(np.array([part.lengths.size for part in parts]))
    numbers = [
        first + np.arange(part.lengths.size).reshape(part.lengths.shape)
        for first, part in zip(firsts[:-1], parts, strict=True)
    ]
    return stacked.gather(np.concatenate(numbers, axis=1))


@dataclass(frozen=True, eq=False)
class ListColumns:
    """Columns of lists, one after the other, from which rows are taken as a table.

    Every list is copied once then. Taking rows of a table copies it a second time, since the columns of a table are
    interleaved.

    Attributes:
        lists: [columns * rows, 1] lists: those of the first column, then those of the second, and so on.
        firsts: [columns] int64 position of each column's first list among them.
    """

    lists: Lists
    firsts: np.ndarray

    def take(self, rows: np.ndarray) -> Lists:
        """Return a copy of the rows at the given positions: [taken] integers in any order, unchecked."""
        if not len(self.firsts):
            return empty_lists(len(rows), 0, self.lists.values.dtype)
        # Column by column, which is several times as fast as NumPy's loop over the few columns of each row.
        return self.lists.gather(np.stack([first + rows for first in self.firsts], axis=1))


def stack_columns(parts: Sequence[Sequence[Lists]], dtype: DTypeLike) -> ListColumns:
    """Return the columns of several parts, whose rows follow one another part after part.

    Args:
        parts: for each part, [rows, 1] lists of each column; there may be no columns.
        dtype: dtype of the values.
    """
    columns = list(zip(*parts, strict=True))
    lists = join_rows([part for column in columns for part in column] or [empty_lists(0, 1, dtype)])
    return ListColumns(lists, len(lists) // max(len(columns), 1) * np.arange(len(columns)))


def _copies(values: np.ndarray, ends: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a copy of the runs of values with the given numbers, one after the other, and their [n] int32 lengths.

    Args:
        values: [values] the values of all runs, one after the other.
        ends: [runs + 1] where each run begins and the last one ends, in bytes, int32 or int64.
        numbers: [n] integers in [0, runs), which is not checked.
    """
    if not len(values):
        return values.copy(), np.zeros(len(numbers), np.int32)
    # For Arrow, a run is a string of bytes, which it copies at once: ten times as fast as indexing every value.
    kind = pa.binary() if ends.dtype == np.int32 else pa.large_binary()
    runs = pa.Array.from_buffers(kind, len(ends) - 1, [None, pa.py_buffer(ends), pa.py_buffer(values)])
    _, copied_ends, copied = pc.take(runs, pa.array(numbers), boundscheck=False).buffers()
    bounds = np.frombuffer(copied_ends, ends.dtype)[: len(numbers) + 1]
    return np.frombuffer(copied, values.dtype), (np.diff(bounds) // values.itemsize).astype(np.int32, copy=False)


def _ends_of(lengths: np.ndarray, scale: int = 1, dtype: type[np.signedinteger] = np.int64) -> np.ndarray:
    """Return 0 and the sum of the first lengths up to each one, times `scale`: [lengths + 1]."""
    ends = empty_array((len(lengths) + 1,), dtype)
    ends[0] = 0
    np.cumsum(lengths, out=ends[1:])
    return ends if scale == 1 else np.multiply(ends, scale, out=ends)
