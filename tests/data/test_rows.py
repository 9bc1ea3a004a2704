"""Mappings, conditions, weights and negatives of raw rows against loops over single rows."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.preprocess.raw_files import RawBlock
from data.preprocess.rows import NOT_USED, assign, draw_negatives, mapping_names, row_readings, row_weights, selected
from data.preprocess.splits import NEGATIVE, SPLIT, draw_mappings
from data.spec.raw_spec import Condition, RandomSplit, RawChunk, RawSpec, TimeSplit
from tests.data.scalar_hash import mix, scalar_hash, scalar_row_hash

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


def block_of(columns: Mapping[str, pa.Array], first_row: int = 0, file: str = "day=1/a.parquet") -> RawBlock:
    return RawBlock(file, first_row, pa.table(dict(columns)))


def texts(values: Sequence[str | None]) -> pa.Array:
    return pa.array(values, pa.string()).dictionary_encode()


def named(spec: RawSpec, block: RawBlock, source: str = "logs") -> list[str | None]:
    names = mapping_names(spec)
    return [None if code == NOT_USED else names[code] for code in assign(spec, source, block)]


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
    found = selected(Condition(column, comparison, value), pa.table(arrow(raw)))
    assert found.tolist() == [cell is not None and OPERATORS[comparison](cell, value) for cell in raw[column]]


def test_conditions_on_other_types() -> None:
    table = pa.table({"flag": pa.array([True, False, None]), "small": pa.array([1, None, 3], pa.int8())})
    assert selected(Condition("flag", "!=", 0.0), table).tolist() == [True, False, False]
    assert selected(Condition("small", ">", 300.0), table).tolist() == [False, False, False]
    assert selected(Condition("small", ">", 1.5), table).tolist() == [False, False, True]


def test_conditions_of_the_wrong_type() -> None:
    table = pa.table({"t": texts(["5"]), "n": pa.array([5]), "l": pa.array([[5]])})
    for column, value, message in (
        ("t", 4.0, "where: t >= 4.0: the column holds text; write the constant in quotes, or state another `dtype`"),
        ("n", "4", "where: n >= '4': the column holds numbers; write a number"),
        ("l", 4.0, "where: l >= 4.0: the column holds lists; only a single value can be compared"),
    ):
        with pytest.raises(DataError) as error:
            selected(Condition(column, ">=", value), table)
        assert message in str(error.value)


# Mappings


def test_mappings_given_as_files() -> None:
    spec = replace(LOGS, sources={"test": (CHUNK,), "fold_2": (CHUNK,), "train": (CHUNK,)})
    assert mapping_names(spec) == ("train", "test", "fold_2")
    assert named(spec, block_of({"x": pa.array([1, 2])}), "fold_2") == ["fold_2", "fold_2"]


@settings(deadline=None)
@given(
    times=st.lists(st.integers(0, 9)),
    bounds=st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted),
    with_valid=st.booleans(),
)
def test_time_splits(times: list[int], bounds: list[int], with_valid: bool) -> None:
    valid_from, test_from = bounds
    split = TimeSplit(("logs",), "t", float(valid_from) if with_valid else None, float(test_from))
    spec = replace(LOGS, split=split)
    for number_type in (pa.int64(), pa.float64()):
        found = named(spec, block_of({"t": pa.array(times, number_type)}))
        assert found == [
            "test" if time >= test_from else "valid" if with_valid and time >= valid_from else "train" for time in times
        ]


def test_time_splits_need_a_time() -> None:
    spec = replace(LOGS, split=TimeSplit(("logs",), "t", None, 5.0), where=Condition("click", "!=", 0.0))
    times, clicks = pa.array([4, None, 6, None]), pa.array([1, 0, 1, 1])
    with pytest.raises(DataError, match="day=1/a.parquet, row 13 .from 0.: the time 't' is missing"):
        assign(spec, "logs", block_of({"t": times, "click": clicks}, first_row=10))
    assert named(spec, block_of({"t": times[:3], "click": clicks[:3]})) == ["train", None, "test"]
    with pytest.raises(DataError, match="split: t holds text"):
        assign(spec, "logs", block_of({"t": texts(["1"]), "click": pa.array([1])}))


@settings(deadline=None)
@given(
    raw=columns(),
    key=st.lists(st.sampled_from(["text", "number", "float"]), unique=True),
    by=st.none() | st.sampled_from(["text", "number", "float"]),
    seed=st.integers(0, 2**32),
    cuts=st.lists(st.integers(0, 12)),
)
def test_random_splits(raw: dict[str, list], key: list[str], by: str | None, seed: int, cuts: list[int]) -> None:
    """Against a loop over rows, in any blocks."""
    fractions = {"fold": 0.2, "valid": 0.3, "test": 0.25}
    spec = replace(LOGS, split=RandomSplit(("logs",), fractions, by, tuple(key), seed))
    rows = len(raw["text"])
    table = pa.table(arrow(raw))
    bounds = sorted({0, rows, *(cut for cut in cuts if cut < rows)})
    found = []
    for start, end in zip(bounds, bounds[1:], strict=False):
        found += named(spec, RawBlock("logs/a.csv", start, table.slice(start, end - start)))
    expected = []
    for row in range(rows):
        keys = [raw[name][row] for name in key] if key else ["logs/a.csv", row]
        if by is not None and raw[by][row] is not None:
            keys = [raw[by][row]]
        share = row_hash(seed, SPLIT, keys) / 2**64
        names = ["test"] * (share < 0.25) + ["valid"] * (share < 0.55) + ["fold"] * (share < 0.75)
        expected.append((names + ["train"])[0])
    assert found == expected


def test_random_splits_equal_draw_mappings() -> None:
    keys = np.arange(2000)
    spec = replace(LOGS, split=RandomSplit(("logs",), {"valid": 0.1, "test": 0.2}, key=("k",), seed=7))
    expected = draw_mappings(keys, seed=7, test_fraction=0.2, validation_fraction=0.1)
    found = named(spec, block_of({"k": pa.array(keys)}))
    assert found == expected.tolist()
    counts = pd.Series(found).value_counts()
    assert abs(counts["test"] - 400) < 80 and abs(counts["valid"] - 200) < 60


def test_groups_stay_together_over_files() -> None:
    spec = replace(LOGS, split=RandomSplit(("logs",), {"test": 0.5}, by="user"))
    mappings: dict[str, set] = {}
    for file in ("a.csv", "b.csv"):
        users = [f"user {row % 50}" for row in range(500)]
        for user, mapping in zip(users, named(spec, block_of({"user": texts(users)}, file=file)), strict=True):
            mappings.setdefault(user, set()).add(mapping)
    assert all(len(found) == 1 for found in mappings.values())
    assert {"train"} in mappings.values() and {"test"} in mappings.values()
    with pytest.raises(DataError, match="split: user holds lists"):
        assign(spec, "logs", block_of({"user": pa.array([[1]])}))


# Weights and negatives


def test_weights() -> None:
    block = block_of({"w": pa.array([0.5, 0, None]), "n": pa.array([1, -2, 3])}, first_row=5)
    assert row_weights(LOGS, block).tolist() == [1, 1, 1]
    assert row_weights(replace(LOGS, sample_weight="w"), RawBlock("a", 0, block.table[:2])).tolist() == [0.5, 0]
    with pytest.raises(DataError, match="a.parquet, row 7 .from 0.: the sample weight 'w' is missing"):
        row_weights(replace(LOGS, sample_weight="w"), block)
    with pytest.raises(DataError, match="row 6 .from 0.: the sample weight 'n' is -2; expected a number of at least 0"):
        row_weights(replace(LOGS, sample_weight="n"), block)


@settings(deadline=None)
@given(
    labels=st.lists(st.tuples(*[st.sampled_from([0.0, 0.0, 1.0, float("nan")])] * 2), max_size=20),
    by_key=st.booleans(),
    seed=st.integers(0, 9),
)
def test_negatives(labels: list[tuple[float, float]], by_key: bool, seed: int) -> None:
    split = RandomSplit(("logs",), {"test": 0.5}, key=("user",)) if by_key else None
    spec = replace(LOGS, split=split, keep_negatives=0.25, seed=seed)
    rows = np.arange(len(labels)) * 3 + 10
    users = [f"user {row % 4}" for row in range(len(labels))]
    first, second = np.array(labels).reshape(-1, 2).T
    table = pa.table({"user": texts(users)})
    kept, factors = draw_negatives(spec, "a.csv", rows, [first, second], table)
    for index, row in enumerate(rows.tolist()):
        keys = [users[index]] if by_key else ["a.csv", row]
        is_negative = labels[index] == (0, 0)
        share = row_hash(seed, NEGATIVE, keys) / 2**64
        assert kept[index] == (not is_negative or share < 0.25)
        assert factors[index] == (4 if is_negative else 1)


def test_negatives_keep_the_sum_of_weights() -> None:
    spec = replace(LOGS, keep_negatives=0.1)
    table, labels = pa.table({"x": pa.nulls(100_000)}), np.arange(100_000) % 10 == 0
    kept, factors = draw_negatives(spec, "a.csv", np.arange(100_000), [labels], table)
    assert kept[labels].all() and (factors[labels] == 1).all()
    assert factors[kept & ~labels].sum() == pytest.approx(90_000, rel=0.05)
    assert draw_negatives(LOGS, "a.csv", np.arange(100_000), [labels], table)[0].all()


def test_readings_of_rows() -> None:
    spec = replace(LOGS, where=Condition("a", "==", 1.0), sample_weight="w", split=TimeSplit(("logs",), "t", None, 1.0))
    assert row_readings(spec) == ("w", "a", "t")
    spec = replace(spec, split=RandomSplit(("logs",), {"test": 0.5}, "user", ("a", "b")))
    assert row_readings(spec) == ("w", "a", "user", "b")
    assert scalar_row_hash(1, 2, 3) == row_hash(1, 2, [3])
