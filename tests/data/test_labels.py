"""Labels, weights and groups of raw rows against plain Python, and the messages about wrong ones."""

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.raw.labels import check_given, group_values, is_negative, label_values, weight_values
from data.spec.features import Feature
from data.spec.raw.spec import KeepRule, LabelMapRule, RawFeature, Rule, ThresholdRule
from tests.data.scalar_hash import scalar_hash

OPERATORS = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
IGNORED: dict[str, Any] = {"missing": "ignore"}


def row_name(row: int) -> str:
    return f"logs.csv, row {row + 1}"


def label(rule: Rule, **keys: Any) -> RawFeature:
    return RawFeature(Feature(name="liked", dtype="float32", **keys), "liked", rule)


def texts(values: Sequence[str | None]) -> pa.Array:
    return pa.array(values, pa.string()).dictionary_encode()


def labels_of(raw: RawFeature, values: pa.Array) -> list:
    found = label_values(raw, values, row_name)
    assert found.type == pa.float64()
    return found.to_pylist()


def error_of(raw: RawFeature, values: pa.Array) -> str:
    with pytest.raises(DataError) as error:
        label_values(raw, values, row_name)
    return str(error.value)


@given(values=st.lists(st.sampled_from(["yes", "no", "maybe", None])))
@settings(deadline=None)
def test_maps(values: list[str | None]) -> None:
    allowed = {"no": 0.0, "yes": 1.0, "maybe": 0.0}
    found = labels_of(label(LabelMapRule(allowed), **IGNORED), texts(values))
    assert found == [None if value is None else allowed[value] for value in values]


def test_value_outside_of_the_map() -> None:
    raw = label(LabelMapRule({"yes": 1.0, "no": 0.0}))
    message = (
        "logs.csv, row 2: the label liked is 'Yes'; did you mean 'yes'? Otherwise, add the text to "
        "feature_spec.liked.encode.map"
    )
    assert error_of(raw, texts(["no", "Yes", "x"])) == message
    assert "row 1: the label liked is 'x'; expected one of 'yes', 'no'" in error_of(raw, texts(["x"]))
    # A value that no row has does not count.
    unused = pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), pa.array(["yes", "unused"]))
    assert labels_of(raw, unused) == [1.0]


@given(
    values=st.lists(st.none() | st.integers(-3, 3)),
    comparison=st.sampled_from(list(OPERATORS)),
    value=st.sampled_from([-1.0, 0.0, 0.5, 2.0, 300.0]),
)
@settings(deadline=None)
def test_thresholds(values: list[int | None], comparison: Any, value: float) -> None:
    expected = [None if number is None else float(OPERATORS[comparison](number, value)) for number in values]
    raw = label(ThresholdRule(comparison, value), **IGNORED)
    for number_type in (pa.int8(), pa.int64(), pa.float32(), pa.float64()):
        assert labels_of(raw, pa.array(values, number_type)) == expected


@pytest.mark.parametrize("number_type", [pa.float32(), pa.float64()])
def test_threshold_that_binary_floats_round(number_type: pa.DataType) -> None:
    values = pa.array([0.0999, 0.1, 0.1001], number_type)
    comparisons: list[Any] = list(OPERATORS)
    for comparison in comparisons:
        expected = [float(OPERATORS[comparison](number, 0.1)) for number in (0.0999, 0.1, 0.1001)]
        assert labels_of(label(ThresholdRule(comparison, 0.1)), values) == expected


@pytest.mark.parametrize(
    ("keys", "values", "message"),
    [
        ({}, [0.0, 1.0, 2.0], "row 3: the label liked is 2; expected 0 or 1; write `encode: {threshold"),
        (
            {},
            [0.0, None],
            "row 2: the label liked is missing; remove such rows with `where`, or write `missing: ignore`",
        ),
        ({}, [float("nan"), 1.0], "row 1: the label liked is missing"),
        (IGNORED, [None, -1.0], "row 2: the label liked is -1; expected 0 or 1"),
        (
            {"task": "multiclass", "cardinality": 3},
            [0.0, 2.0, 3.0],
            "row 3: the label liked is 3; expected a class in [0",
        ),
        ({"task": "multiclass", "cardinality": 3}, [0.5], "row 1: the label liked is 0.5; expected a class in [0, 3)"),
        ({"task": "regression"}, [1.5, math.inf], "row 2: the label liked is inf; expected a finite number"),
        ({"task": "poisson"}, [0.0, -0.5], "row 2: the label liked is -0.5; expected a finite number of at least 0; w"),
        ({"task": "ziln"}, [math.inf], "row 1: the label liked is inf; expected a finite number of at least 0; w"),
    ],
)
def test_values_that_the_task_does_not_take(keys: dict, values: list, message: str) -> None:
    assert message in error_of(label(KeepRule(), **keys), pa.array(values, pa.float64()))


def test_values_that_the_task_takes() -> None:
    assert labels_of(label(KeepRule()), pa.array([0, 1], pa.int8())) == [0.0, 1.0]
    assert labels_of(label(KeepRule(), **IGNORED), pa.array([1.0, None])) == [1.0, None]
    assert labels_of(label(KeepRule(), task="regression"), pa.array([-1.5])) == [-1.5]
    assert labels_of(label(KeepRule(), task="tweedie"), pa.array([1.5, 0])) == [1.5, 0]
    assert labels_of(label(KeepRule(), task="multiclass", cardinality=3), pa.array([0, 2])) == [0.0, 2.0]


def test_sample_space() -> None:
    click = (Feature(name="click", dtype="float32"), pa.array([1.0, 0.0, 1.0, 0.0]))
    bought = Feature(name="bought", dtype="float32", given="click")
    check_given({"click": click, "bought": (bought, pa.array([1.0, 0.0, 0.0, None]))}, row_name)
    with pytest.raises(DataError) as error:
        check_given({"click": click, "bought": (bought, pa.array([1.0, 0.0, 0.0, 1.0]))}, row_name)
    assert str(error.value) == (
        "logs.csv, row 4: bought is 1, expected 0 where click is 0; correct the row, or remove `given: click`"
    )


def test_weights() -> None:
    assert weight_values(pa.array([0, 2], pa.int8()), "w", row_name).to_pylist() == [0.0, 2.0]
    for wrong, found in ((-0.5, "-0.5"), (None, "None"), (math.inf, "inf"), (math.nan, "nan")):
        with pytest.raises(DataError) as error:
            weight_values(pa.array([1.0, wrong]), "w", row_name)
        assert f"logs.csv, row 2: the sample weight w is {found}; expected a number of at least 0" in str(error.value)


@given(values=st.lists(st.text(max_size=3)))
@settings(deadline=None)
def test_groups(values: list[str]) -> None:
    """Texts are hashed; integers stay as they are."""
    hashed = [int(np.uint64(scalar_hash(value)).view(np.int64)) for value in values]
    assert group_values(texts(values), "query", row_name).to_pylist() == hashed
    assert group_values(pa.array(range(len(values)), pa.int32()), "query", row_name).to_pylist() == list(
        range(len(values))
    )


def test_groups_without_a_value() -> None:
    for values in (texts(["a", None]), pa.array([1, None])):
        with pytest.raises(
            DataError, match="logs.csv, row 2: the map feature query is missing; every row needs a group"
        ):
            group_values(values, "query", row_name)


@given(rows=st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, None])] * 2, st.floats(0, 5))))
@settings(deadline=None)
def test_negative_rows(rows: list[tuple[float | None, float | None, float]]) -> None:
    """All binary labels are 0 or missing; other labels do not count."""
    columns = [pa.array([row[index] for row in rows], pa.float64()) for index in range(3)]
    tasks: list[dict[str, Any]] = [{}, IGNORED, {"task": "regression"}]
    labels = {
        str(index): (Feature(name=str(index), dtype="float32", **keys), column)
        for index, (keys, column) in enumerate(zip(tasks, columns, strict=True))
    }
    assert is_negative(labels, len(rows)).tolist() == [1.0 not in row[:2] for row in rows]
