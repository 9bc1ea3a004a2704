"""Mappings, conditions and draws of raw rows against loops over single rows."""

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.encoding.splits import NEGATIVE, ORDER, SPLIT, draw_mappings
from data.errors import DataError
from data.raw.rows import RawRows, assign_mappings, keeps_negative, row_hashes, satisfies
from data.spec.raw.spec import Condition, LastSplit, RandomSplit, RawChunk, RawSpec, TimeSplit
from tests.data.scalar_hash import mix, scalar_hash

CHUNK = RawChunk("parquet", ("*.parquet",))
LOGS = RawSpec(Path("."), {}, {}, {"logs": (CHUNK,)}, None, {})
OPERATORS = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
TEXTS = st.none() | st.text("abé", max_size=2)
NUMBERS = st.none() | st.integers(-3, 3) | st.sampled_from([2**62, 2**62 + 1])
FLOATS = st.none() | st.sampled_from([0.5, -0.0, 0.0, 3.0, 1e300])


def rows_of(columns: Mapping[str, pa.Array], file: int = 0, first_row: int = 0, first_of_file: int = 0) -> RawRows:
    """Rows of a file, given its number, that of its first row here, and the rows in earlier files."""
    table = pa.table(dict(columns))
    in_file = np.arange(first_row, first_row + table.num_rows)
    return RawRows(
        lambda row: f"day={file}/a.parquet, row {row + 1}",
        table,
        in_file,
        first_of_file + in_file,
        file * 2**40 + in_file,
    )


def texts(values: Sequence[str | None]) -> pa.Array:
    return pa.array(values, pa.string()).dictionary_encode()


def mappings(spec: RawSpec, rows: RawRows, source: str = "logs", total: int = 0) -> list[str]:
    return assign_mappings(spec, source, rows, total).tolist()


@st.composite
def columns(draw: st.DrawFn) -> dict[str, list]:
    rows = draw(st.integers(0, 12))
    return {
        name: draw(st.lists(kind, min_size=rows, max_size=rows))
        for name, kind in (("text", TEXTS), ("number", NUMBERS), ("float", FLOATS))
    }


def arrow(raw: Mapping[str, list]) -> dict[str, pa.Array]:
    return {
        "text": texts(raw["text"]),
        "number": pa.array(raw["number"], pa.int64()),
        "float": pa.array(raw["float"], pa.float64()),
    }


def key_hash(value: str | float | None) -> int:
    """Whole floats hash like integers, others by their bits; null is 0."""
    if value is None:
        return 0
    if isinstance(value, float):
        value = int(value) if value.is_integer() and abs(value) < 2**53 else int(np.float64(value).view(np.int64))
    return scalar_hash(value)


def row_hash(seed: int, purpose: int, keys: Sequence[Any]) -> int:
    hashed = 0
    for key in (scalar_hash(seed), scalar_hash(purpose), *map(key_hash, keys)):
        hashed = mix(hashed ^ key)
    return hashed


# Conditions


@settings(deadline=None)
@given(
    raw=columns(),
    column=st.sampled_from(["text", "number", "float"]),
    comparison=st.sampled_from(list(OPERATORS)),
    text=st.text("abé", max_size=2),
    number=st.sampled_from([0.0, 1.0, 0.5, -3.0, 1e300]),
)
def test_conditions(raw: dict[str, list], column: str, comparison: Any, text: str, number: float) -> None:
    value = text if column == "text" else number
    found = satisfies(Condition(column, comparison, value), pa.table(arrow(raw)))
    assert found.tolist() == [cell is not None and OPERATORS[comparison](cell, value) for cell in raw[column]]


def test_conditions_on_other_types() -> None:
    table = pa.table({"flag": pa.array([True, False, None]), "small": pa.array([1, None, 3], pa.int8())})
    assert satisfies(Condition("flag", "!=", 0.0), table).tolist() == [True, False, False]
    assert satisfies(Condition("small", ">", 300.0), table).tolist() == [False, False, False]
    assert satisfies(Condition("small", ">", 1.5), table).tolist() == [False, False, True]


# Mappings


def test_mappings_given_as_files() -> None:
    spec = replace(LOGS, split=TimeSplit(("logs",), "t", None, 1.0))
    assert mappings(spec, rows_of({"x": pa.array([1, 2])}), "fold_2") == ["fold_2", "fold_2"]
    assert mappings(LOGS, rows_of({"x": pa.array([1, 2])})) == ["logs", "logs"]


@settings(deadline=None)
@given(
    times=st.lists(st.integers(0, 9)),
    bounds=st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted),
    with_valid=st.booleans(),
)
def test_time_splits(times: list[int], bounds: list[int], with_valid: bool) -> None:
    valid_from, test_from = bounds
    split = TimeSplit(("logs",), "t", float(valid_from) if with_valid else None, float(test_from))
    for number_type in (pa.int64(), pa.float64()):
        found = mappings(replace(LOGS, split=split), rows_of({"t": pa.array(times, number_type)}))
        assert found == [
            "test" if time >= test_from else "valid" if with_valid and time >= valid_from else "train" for time in times
        ]


def test_time_splits_need_a_time() -> None:
    spec = replace(LOGS, split=TimeSplit(("logs",), "t", None, 5.0))
    rows = rows_of({"t": pa.array([4, None, 6])}, first_row=10)
    with pytest.raises(DataError, match="day=0/a.parquet, row 12: the time 't' is missing"):
        mappings(spec, rows)
    assert mappings(spec, rows.filter(np.array([True, False, True]))) == ["train", "test"]


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    shares=st.lists(st.integers(0, 4).map(lambda tenths: tenths / 10), min_size=1, max_size=2),
)
def test_last_rows(sizes: list[int], shares: list[float]) -> None:
    """The order of rows is that of the files, whatever rows are left out."""
    fractions = dict(zip(("valid", "test"), shares, strict=False))
    total = sum(sizes)
    expected = ["train"] * total
    end = total
    for name in reversed(fractions):
        count = math.floor(total * fractions[name] + 0.5)
        expected[end - count : end] = [name] * count
        end -= count
    found = []
    for file, size in enumerate(sizes):
        rows = rows_of({"x": pa.nulls(size)}, file, first_of_file=sum(sizes[:file]))
        found += mappings(replace(LOGS, split=LastSplit(("logs",), fractions)), rows, total=total)
    assert found == expected


@settings(deadline=None)
@given(
    raw=columns(),
    key=st.lists(st.sampled_from(["text", "number"]), unique=True),
    by=st.none() | st.sampled_from(["text", "number"]),
    seed=st.integers(0, 2**32),
    cuts=st.lists(st.integers(0, 12)),
)
def test_random_splits(raw: dict[str, list], key: list[str], by: str | None, seed: int, cuts: list[int]) -> None:
    """Against a loop over rows, in any blocks."""
    split = RandomSplit(("logs",), {"fold": 0.2, "valid": 0.3, "test": 0.25}, by)
    spec = replace(LOGS, split=split, row_key=tuple(key), seed=seed)
    rows = len(raw["text"])
    table = pa.table(arrow(raw))
    bounds = sorted({0, rows, *(cut for cut in cuts if cut < rows)})
    found = []
    for start, end in pairwise(bounds):
        columns_here = dict(zip(table.column_names, table.slice(start, end - start).columns, strict=True))
        found += mappings(spec, rows_of(columns_here, 3, start))
    expected = []
    for row in range(rows):
        keys = [raw[name][row] for name in key] if key else [3 * 2**40 + row]
        if by is not None and raw[by][row] is not None:
            keys = [raw[by][row]]
        share = row_hash(seed, SPLIT, keys) / 2**64
        names = ["fold"] * (share < 0.2) + ["valid"] * (share < 0.5) + ["test"] * (share < 0.75)
        expected.append((names + ["train"])[0])
    assert found == expected


def test_random_splits_equal_draw_mappings() -> None:
    rows = rows_of({"x": pa.nulls(2000)})
    spec = replace(LOGS, split=RandomSplit(("logs",), {"test": 0.2, "valid": 0.1}), seed=7)
    expected = draw_mappings(np.arange(2000), seed=7, test_fraction=0.2, validation_fraction=0.1)
    found = mappings(spec, rows)
    assert found == expected.tolist()
    counts = pd.Series(found).value_counts()
    assert abs(counts["test"] - 400) < 80 and abs(counts["valid"] - 200) < 60
    spec = replace(LOGS, split=RandomSplit(("logs",), {"valid": 0.7, "test": 0.3}))
    assert set(mappings(spec, rows)) == {"valid", "test"}


def test_groups_stay_together_over_files() -> None:
    spec = replace(LOGS, split=RandomSplit(("logs",), {"test": 0.5}, by="user"))
    found: dict[str, set] = {}
    for file in range(2):
        users = [f"user {row % 50}" for row in range(500)]
        for user, mapping in zip(users, mappings(spec, rows_of({"user": texts(users)}, file)), strict=True):
            found.setdefault(user, set()).add(mapping)
    assert all(len(names) == 1 for names in found.values())
    assert {"train"} in found.values() and {"test"} in found.values()


# Negatives and order


@settings(deadline=None)
@given(raw=columns(), key=st.lists(st.sampled_from(["text", "number"]), unique=True), seed=st.integers(0, 9))
def test_draws_of_negatives_and_order(raw: dict[str, list], key: list[str], seed: int) -> None:
    spec = replace(LOGS, keep_negatives=0.25, row_key=tuple(key), seed=seed)
    rows = rows_of(arrow(raw), 1, 5)
    keys = [[raw[name][row] for name in key] or [2**40 + 5 + row] for row in range(len(raw["text"]))]
    assert keeps_negative(spec, rows).tolist() == [row_hash(seed, NEGATIVE, key) / 2**64 < 0.25 for key in keys]
    assert row_hashes(spec, ORDER, rows.table, rows.numbers).tolist() == [row_hash(seed, ORDER, key) for key in keys]


def test_negatives_are_kept_at_the_rate() -> None:
    kept = keeps_negative(replace(LOGS, keep_negatives=0.1), rows_of({"x": pa.nulls(100_000)}))
    assert kept.mean() == pytest.approx(0.1, rel=0.05)
