"""Compute histories and counts of rows in memory, vectorized; see `data.preprocess.histories` for their definition.

Rows are a table with the columns BY, OF (unless a count has none), ORDER and ROWS: the number of rows of the log that
each stands for, 0 if it does not enter. Columns hold large strings, int64, or float64 without -0.0 and NaN. None is
null, except OF of a history, in rows that do not enter it and in sequences. Rows of equal order follow in the sequence
of the table.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.encoding.hashing import hash_values, mix
from data.raw.cells import combined

BY, OF, ORDER, ROWS = "by", "of", "order", "count"


@dataclass(frozen=True)
class OrderedRows:
    """Rows sorted by key, order, and their sequence in the table.

    Attributes:
        permutation: [rows] indices into the table.
        keys: [rows] rank of the key, by hash and value, so that it does not depend on the other rows.
        moments: [rows] index of the order in `orders`.
        orders: distinct orders, ascending.
        counts: [rows] number of rows that each stands for.
    """

    permutation: np.ndarray
    keys: np.ndarray
    moments: np.ndarray
    orders: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, rows: pa.Table, key: Sequence[str]) -> "OrderedRows":
        """Sort rows by a key of one or two columns, and ORDER."""
        keys, size = _ranks(rows.column(key[0]))
        if len(key) > 1:
            others, size = _ranks(rows.column(key[1]))
            keys = np.unique(keys * size + others, return_inverse=True)[1]
        orders, moments = np.unique(rows.column(ORDER).to_numpy(), return_inverse=True)
        permutation = np.argsort(keys * len(orders) + moments, kind="stable")
        counts = rows.column(ROWS).to_numpy()[permutation]
        return cls(permutation, keys[permutation], moments[permutation], orders, counts)

    @property
    def groups(self) -> np.ndarray:
        """[rows] ascending numbers, equal for rows of equal key and order."""
        return self.keys * len(self.orders) + self.moments

    @property
    def entering(self) -> np.ndarray:
        """Indices of the sorted rows that enter, ascending."""
        return np.flatnonzero(self.counts > 0)

    def in_table(self, values: np.ndarray) -> np.ndarray:
        """Return values of the sorted rows in the sequence of the table."""
        result = np.empty_like(values)
        result[self.permutation] = values
        return result


def find_histories(rows: OrderedRows, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the history of every row among the rows that enter.

    Returns:
        starts, lengths: [rows] int64, in the sequence of the table: the history is that part of `rows.entering`.
    """
    before = np.concatenate([[0], np.cumsum(rows.counts > 0)])
    ends = before[_first_of_group(rows.groups)]
    starts = np.maximum(before[_first_of_group(rows.keys)], ends - last)
    return rows.in_table(starts), rows.in_table(ends - starts)


def last_items(rows: OrderedRows, last: int) -> np.ndarray:
    """Return the indices into the table of the rows that histories of later rows need, sorted.

    For each key these are the `last` rows and, for later rows of the latest order, the `last` ones before this order.
    """
    entering = rows.entering
    keys, groups = rows.keys[entering], rows.groups[entering]
    ends = _end_of_group(keys)
    latest = _first_of_group(groups)[ends - 1]
    index = np.arange(len(entering))
    needed = (index >= ends - last) | ((index < latest) & (index >= latest - last))
    return rows.permutation[entering[needed]]


def find_counts(rows: OrderedRows, window: int | None) -> np.ndarray:
    """Return the count of every row, [rows] int64, in the sequence of the table."""
    before = np.concatenate([[0], np.cumsum(rows.counts)])
    first = _first_of_group(rows.keys)
    if window is not None:
        first = np.searchsorted(rows.groups, rows.keys * len(rows.orders) + _windows(rows.orders, window)[rows.moments])
    return rows.in_table(before[_first_of_group(rows.groups)] - before[first])


def last_counts(rows: OrderedRows, window: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return what counts of later rows need: a row of the table per key and order, and how many it stands for.

    Without a window, all rows of a key before its latest order are one, with the last of their orders.

    Returns:
        indices: [n] int64 indices into the table, sorted by key and order.
        counts: [n] int64 number of rows of the log.
    """
    entering = rows.entering
    keys, moments, groups = rows.keys[entering], rows.moments[entering], rows.groups[entering]
    latest = moments[_end_of_group(keys) - 1]
    if window is None:
        groups = keys * 2 + (moments == latest)
    ends = np.unique(_end_of_group(groups)) - 1
    counts = np.diff(np.cumsum(rows.counts[entering])[ends], prepend=0)
    if window is not None:
        needed = moments[ends] >= _windows(rows.orders, window)[latest[ends]]
        ends, counts = ends[needed], counts[needed]
    return rows.permutation[entering[ends]], counts


def joined_ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the indices start, ..., start + length - 1 of all ranges, one range after the other, int64."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


def value_hashes(values: pa.Array) -> np.ndarray:
    """Return [n] uint64 hashes of large strings, int64 or float64."""
    if pa.types.is_floating(values.type):
        return mix(values.to_numpy().view(np.uint64))
    return hash_values(values)


def _ranks(values: pa.ChunkedArray) -> tuple[np.ndarray, int]:
    """Return [n] int64 ranks of values by hash and value, and the number of distinct values."""
    encoded = combined(values.dictionary_encode())
    distinct = pa.table({"hash": value_hashes(encoded.dictionary), "value": encoded.dictionary})
    in_order = pc.sort_indices(distinct, sort_keys=[("hash", "ascending"), ("value", "ascending")]).to_numpy()
    ranks = np.empty(len(in_order), np.int64)
    ranks[in_order] = np.arange(len(in_order))
    return ranks[encoded.indices.to_numpy()], len(ranks)


def _windows(orders: np.ndarray, window: int) -> np.ndarray:
    """Return for every order the index of the first order in its window, [orders] int64."""
    if orders.dtype == np.int64:  # without overflow
        begin = np.maximum(orders, np.iinfo(np.int64).min + window) - window
    else:
        begin = orders - window
    return np.searchsorted(orders, begin)


def _group_starts(ascending: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1]])[: len(ascending)])


def _first_of_group(ascending: np.ndarray) -> np.ndarray:
    """Return for every value the index of the first equal one, [n] int64."""
    starts = _group_starts(ascending)
    return np.repeat(starts, np.diff(starts, append=len(ascending)))


def _end_of_group(ascending: np.ndarray) -> np.ndarray:
    """Return for every value the index after the last equal one, [n] int64."""
    starts = _group_starts(ascending)
    ends = np.append(starts[1:], len(ascending))[: len(starts)]
    return np.repeat(ends, ends - starts)
