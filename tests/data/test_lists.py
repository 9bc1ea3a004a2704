"""Tables of lists, against plain Python lists."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.loading.lists import Lists, empty_lists, from_padded, join_columns, join_rows, stack_columns
from tests.data.sample_data import nested

PAD = -1
Table = list[list[list[Any]]]
INT32 = st.integers(0, 2**31 - 1)


@st.composite
def tables(draw: st.DrawFn, rows: int | None = None, columns: int | None = None, values: Any = INT32) -> Table:
    """Lists by row and column, many of them empty."""
    rows = draw(st.integers(0, 6)) if rows is None else rows
    columns = draw(st.integers(0, 4)) if columns is None else columns
    cell = st.one_of(st.just([]), st.lists(values, max_size=5))
    return [[draw(cell) for _ in range(columns)] for _ in range(rows)]


def lists_of(table: Table, columns: int | None = None, dtype: Any = np.int32) -> Lists:
    """The lists of a table; its number of columns is needed if it has no rows."""
    width = len(table[0]) if table else columns or 0
    lengths = np.array([[len(cell) for cell in row] for row in table], np.int32).reshape(len(table), width)
    return Lists(np.array([value for row in table for cell in row for value in cell], dtype), lengths)


@given(tables(), st.data())
def test_slices_are_views_of_the_rows(table, data):
    lists = lists_of(table)
    begin = data.draw(st.integers(0, len(table)))
    end = data.draw(st.integers(begin, len(table)))
    part = lists[begin:end]
    assert len(part) == end - begin and nested(part) == table[begin:end]
    assert nested(part[1:]) == table[begin:end][1:]
    if len(part.values):
        part.values[0] = 7
        assert 7 in lists.values


@given(tables(), st.data())
def test_take_copies_rows_in_any_order(table, data):
    lists = lists_of(table)
    rows = data.draw(st.lists(st.integers(0, len(table) - 1), max_size=9)) if table else []
    dtype = data.draw(st.sampled_from([np.int32, np.int64]))
    taken = lists.take(np.array(rows, dtype))
    assert nested(taken) == [table[row] for row in rows]
    taken.values[:] = 5  # a copy, which may be written to
    assert nested(lists) == table


@given(tables(), st.data())
def test_take_with_rows_of_its_own_for_each_column(table, data):
    lists, columns = lists_of(table), len(table[0]) if table else 0
    count = data.draw(st.integers(0, 6)) if table else 0
    chosen = data.draw(
        st.lists(st.integers(0, max(len(table) - 1, 0)), min_size=count * columns, max_size=count * columns)
    )
    rows = np.array(chosen, np.int64).reshape(count, columns)
    expected = [[table[row][column] for column, row in enumerate(of_row)] for of_row in rows.tolist()]
    assert nested(lists.take(rows)) == expected


@given(st.integers(0, 3), st.lists(st.integers(0, 5), min_size=1, max_size=3), st.data())
def test_rows_of_stacked_columns(columns, ranges, data):
    """Columns of consecutive ranges of rows, as files are decoded; rows are taken from all of them together."""
    parts = [data.draw(tables(rows=rows, columns=columns)) for rows in ranges]
    of_columns = [[lists_of([[row[c]] for row in part], 1) for c in range(columns)] for part in parts]
    stacked = stack_columns(of_columns, np.int32)
    whole = [row for part in parts for row in part]
    rows = data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=9)) if whole else []
    taken = stacked.take(np.array(rows, np.int32))
    assert nested(taken) == [whole[row] for row in rows] and taken.lengths.shape == (len(rows), columns)
    assert taken.values.flags.writeable


def test_rows_without_a_column():
    assert empty_lists(4, 0).take(np.array([3, 1], np.int32)).lengths.shape == (2, 0)


@given(tables(), st.data())
def test_gather_takes_lists_by_their_number(table, data):
    lists, flat = lists_of(table), [cell for row in table for cell in row]
    shape = data.draw(st.tuples(st.integers(0, 4), st.integers(0, 3))) if flat else (0, 2)
    count = shape[0] * shape[1]
    chosen = data.draw(st.lists(st.integers(0, max(len(flat) - 1, 0)), min_size=count, max_size=count))
    numbers = np.array(chosen, np.int64).reshape(shape)
    assert nested(lists.gather(numbers)) == [[flat[number] for number in row] for row in numbers.tolist()]


@given(tables(columns=4), st.lists(st.integers(0, 3), max_size=6))
def test_select_returns_columns_in_the_given_order(table, columns):
    selected = lists_of(table, 4).select(columns)
    assert nested(selected) == [[row[column] for column in columns] for row in table]
    assert selected.lengths.shape == (len(table), len(columns))


def test_all_columns_are_selected_without_a_copy():
    lists = lists_of([[[1], [2, 3]]])
    assert lists.select([0, 1]) is lists and lists.select([1, 0]) is not lists


@given(tables(columns=3), st.lists(st.integers(0, 6), min_size=3, max_size=3), st.booleans())
def test_cut_keeps_the_first_or_the_last_values(table, longest, keep_last):
    lists = lists_of(table, 3)
    cut = lists.cut(longest, keep_last=keep_last)

    def kept(cell, most):
        return cell[max(len(cell) - most, 0) :] if keep_last else cell[:most]

    assert nested(cut) == [[kept(cell, most) for cell, most in zip(row, longest, strict=True)] for row in table]
    fits = all(len(cell) <= most for row in table for cell, most in zip(row, longest, strict=True))
    assert (cut is lists) == fits


@given(tables())
def test_cells_and_places_locate_every_value(table):
    lists, width = lists_of(table), len(table[0]) if table else 1
    located = zip(lists.values.tolist(), lists.cells().tolist(), lists.places().tolist(), strict=True)
    assert all(table[cell // width][cell % width][place] == value for value, cell, place in located)
    begins = lists.starts().reshape(-1)[lists.cells()]
    assert (begins + lists.places()).tolist() == list(range(len(lists.values)))
    assert len(set(zip(lists.cells().tolist(), lists.places().tolist(), strict=True))) == len(lists.values)


@given(tables(columns=3), st.lists(st.integers(0, 2), min_size=3, max_size=3))
def test_padding_and_back(table, spare):
    longest = [max((len(row[column]) for row in table), default=0) for column in range(3)]
    widths = [max(1, most + more) for most, more in zip(longest, spare, strict=True)]
    lists = lists_of(table, 3)
    matrix = lists.padded(widths, PAD)
    expected = [
        [value for cell, width in zip(row, widths, strict=True) for value in [*cell, *[PAD] * width][:width]]
        for row in table
    ]
    assert matrix.tolist() == expected and matrix.shape == (len(table), sum(widths)) and matrix.dtype == np.int32
    assert nested(from_padded(matrix, widths)) == table


def test_tables_without_columns():
    none = Lists(np.empty(0, np.int32), np.empty((3, 0), np.int32))
    assert none.padded([], PAD).shape == (3, 0)
    assert from_padded(np.empty((3, 0), np.int32), []).lengths.shape == (3, 0)
    assert none.take(np.array([2, 2])).lengths.shape == (2, 0) and none[1:].lengths.shape == (2, 0)
    assert join_columns([none, lists_of([[[1]], [[]], [[2, 3]]])]).lengths.tolist() == [[1], [0], [2]]


@given(st.lists(tables(columns=2), min_size=1, max_size=4))
def test_joined_rows(parts):
    joined = join_rows([lists_of(part, 2) for part in parts])
    assert nested(joined) == [row for part in parts for row in part]


@given(st.integers(0, 5), st.data())
def test_joined_columns(rows, data):
    parts = data.draw(st.lists(tables(rows=rows), min_size=1, max_size=4))
    joined = join_columns([lists_of(part) for part in parts])
    assert nested(joined) == [sum((part[row] for part in parts), []) for row in range(rows)]


def test_empty_lists_take_no_values():
    empty = empty_lists(3, 2)
    assert nested(empty) == [[[], []]] * 3 and len(empty.values) == 0
    assert nested(join_rows([empty, lists_of([[[4], [5, 6]]])])) == [*[[[], []]] * 3, [[4], [5, 6]]]


@pytest.mark.parametrize("dtype", [np.int8, np.float32, np.float64])
@given(table=tables(rows=4, columns=2, values=st.integers(-100, 100)))
def test_values_of_any_dtype(dtype, table):
    lists = lists_of(table, dtype=dtype)
    taken = lists.take(np.array([3, 0]))
    assert taken.values.dtype == dtype and nested(taken) == [table[3], table[0]]
    assert nested(lists.select([1])) == [[row[1]] for row in table]
    assert lists.astype(np.float64).values.dtype == np.float64 and nested(lists.astype(np.float64)) == table


@given(tables(rows=5, columns=2))
def test_values_are_replaced_in_place(table):
    lists = lists_of(table)
    begins = lists[2:4]
    begins.values[...] = 9
    assert nested(lists) == [
        [[9 for _ in cell] for cell in row] if index in (2, 3) else row for index, row in enumerate(table)
    ]
