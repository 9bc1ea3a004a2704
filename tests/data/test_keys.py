"""The rule for raw values: what is null, which values are the same integer or text, and what is rejected."""

from datetime import date
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from data.encoding.encoders import HashedIds, Numerical, Vocabulary
from data.encoding.keys import KeyIndex, KeyTable
from data.errors import DataError
from tests.data.scalar_hash import scalar_hash

BIG = 2**60 + 1  # its neighbours are the same float64
ENDS = [-(2**63), 2**63 - 1]
ONE = Vocabulary.fit("x", [1, 0, BIG, *ENDS], [9, 8, 7, 6, 5])
IDS = {None: 1, 1: 3, 0: 4, BIG: 5, ENDS[0]: 6, ENDS[1]: 7}
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


def ids(*values: int | None) -> list[int]:
    return [IDS[value] for value in values]


@pytest.mark.parametrize("dtype", [*INTEGERS, "float16", "float32", "float64", "bool"])
def test_an_integer_is_the_same_in_every_type(dtype):
    assert ONE.encode(np.array([1, 0], dtype)).tolist() == ids(1, 0)
    assert ONE.encode(pd.Series([1, 0], dtype=dtype)).tolist() == ids(1, 0)
    assert ONE.encode(list(np.array([1, 0], dtype))).tolist() == ids(1, 0)
    assert Vocabulary.fit("x", np.array([1, 0], dtype), [2, 1]).values.tolist() == [1, 0]


@pytest.mark.parametrize(
    "dtype",
    [*(name.replace("int", "Int").replace("uI", "UI") for name in INTEGERS), "Float64", "boolean"]
    + [f"{name}[pyarrow]" for name in INTEGERS]
    + ["double[pyarrow]", "bool[pyarrow]", pd.ArrowDtype(pa.decimal128(20, 2)), object],
)
def test_nullable_and_arrow_types_keep_their_nulls(dtype):
    column = pd.Series([1, None, 0], dtype=dtype)
    assert ONE.encode(column).tolist() == ids(1, None, 0)
    assert ONE.encode(column.astype("category")).tolist() == ids(1, None, 0)


@pytest.mark.parametrize("value", [True, 1.0, np.float32(1), Decimal("1.00"), np.uint64(1), np.True_])
def test_a_mixed_column_of_whole_numbers_is_integers(value):
    assert ONE.encode([0, value, None, float("nan"), pd.NA, pd.NaT]).tolist() == ids(0, 1, None, None, None, None)
    assert Vocabulary.fit("x", [value, 0], [2, 1]).values.tolist() == [1, 0]


def test_minus_zero_is_zero():
    assert ONE.encode([-0.0]).tolist() == ids(0)


@pytest.mark.parametrize(
    "column",
    [
        [BIG, None, *ENDS],
        np.array([BIG, None, *ENDS], object),
        pd.Series([BIG, None, *ENDS], dtype="Int64"),
        pd.Series([BIG, None, *ENDS], dtype="int64[pyarrow]"),
        pd.Series([BIG, None, *ENDS], dtype="Int64").astype("category"),
    ],
)
def test_large_integers_are_exact_beside_nulls(column):
    assert ONE.encode(column).tolist() == ids(BIG, None, *ENDS)
    lists = Vocabulary("x", ONE.values, ONE.counts, is_list=True).encode([list(column), None, float("nan"), pd.NA])
    assert [entry.tolist() for entry in lists] == [ids(BIG, None, *ENDS), [], [], []]


@pytest.mark.parametrize(
    "values",
    [
        np.array([1, 2**63], np.uint64),
        pd.Series([1, 2**63], dtype="uint64"),
        pd.Series([2**63, None], dtype="UInt64"),
        pd.Series([2**63, None], dtype="uint64[pyarrow]"),
        [1, 2**63],
        [1, -(2**63) - 1],
        [2**70, None],
        [Decimal(2) ** 64],
        [np.uint64(2**63)],
    ],
)
def test_integers_beyond_int64_are_rejected(values):
    for use in (ONE.encode, HashedIds("x", 9).encode, lambda given: Vocabulary.fit("x", given, [1] * len(given))):
        with pytest.raises(DataError, match=r"column 'x' holds -?\d+, .*int64.*to strings, as with \.astype\(str\)"):
            use(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([2**24], np.float32), r"holds 16777216.0; .*float32.*2\*\*24"),
        ([np.float32(2**24)], r"holds 16777216.0; .*float32.*2\*\*24"),
        (np.array([2048], np.float16), r"holds 2048.0; .*float16.*2\*\*11"),
        ([2.0**53], r"holds 9007199254740992.0; .*float64.*2\*\*53"),
        ([1.5], "holds 1.5; .*expected integers or strings.*round"),
        ([Decimal("1.5")], "holds Decimal.'1.5'.; .*expected integers or strings.*round"),
        ([float("inf")], "holds inf; .*expected integers or strings"),
        ([Decimal("Infinity")], "expected integers or strings"),
        ([1, "1"], "holds strings such as '1' and also 1; .*astype.str"),
        (["a", 1.0], "holds strings such as 'a' and also 1.0"),
        ([b"a"], r"holds b'a'; .*decode"),
        (np.array([b"a"]), r"holds b'a'; .*decode"),
        ([date(2020, 1, 1)], r"dt\.year or \.astype\(str\)"),
        (pd.Series(pd.to_datetime(["2020-01-01"])), r"dt\.year or \.astype\(str\)"),
        (np.array(["2020-01-01"], "datetime64[ns]"), r"dt\.year or \.astype\(str\)"),
        (pd.Series(pd.to_datetime(["2020-01-01"]).tz_localize("UTC")), r"dt\.year or \.astype\(str\)"),
        (pd.Series(pd.to_timedelta([5])), r"dt\.year or \.astype\(str\)"),
        ([{1, 2}], r"holds \{1, 2\}; .*\.map\(sorted\)"),
        ([[1], [2]], "holds .1.; .*one value per row"),
        ([{"a": 1}], "expected integers or strings"),
        ([1j], "expected integers or strings"),
        (np.zeros((2, 2), int), "two dimensions"),
        (["\ud800"], "surrogate"),
    ],
)
def test_other_values_are_rejected_with_the_fix(values, message):
    for use in (ONE.encode, HashedIds("x", 9).encode, lambda given: Vocabulary.fit("x", given, [1] * len(given))):
        with pytest.raises(DataError, match=f"column 'x' .*{message}"):
            use(values)


def test_texts_are_compared_by_code_point():
    one, other = "\u00e9", "e\u0301"
    texts = Vocabulary.fit("x", [one, "1", ""], [3, 2, 1])
    assert texts.encode([one, other, "1", "", "1 ", np.str_("1"), None]).tolist() == [3, 2, 4, 5, 2, 4, 1]
    assert texts.encode(pd.Series([one, None], dtype="category")).tolist() == [3, 1]
    with pytest.raises(DataError, match="'x' holds integers such as 1, but it was fitted on strings such as '\u00e9'"):
        texts.encode([1])
    with pytest.raises(DataError, match="'x' holds strings such as '1', but it was fitted on integers such as 1"):
        ONE.encode(["1"])


def test_a_text_does_not_end_at_its_first_nul():
    values = ["", "\0", "\0a", "a", "a\0"]
    texts = Vocabulary.fit("x", values, [1] * 5)
    assert texts.values.tolist() == sorted(values)
    for given in (values, np.array(values, object), pd.Series(values)):
        assert texts.encode(given).tolist() == [3, 4, 5, 6, 7]
    assert HashedIds("x", 97).encode(values).tolist() == [scalar_hash(value) % 97 for value in values]


def test_a_bad_value_is_found_beside_its_equal():
    """1 and Decimal(1) are equal, and so are True and 1: the check sees values, not distinct ones."""
    huge = float(2**60)
    assert huge == 2**60
    with pytest.raises(DataError, match="float64"):
        KeyIndex("x", np.array([2**60])).find([2**60, huge])


def test_hashed_ids_follow_the_rule():
    assert HashedIds("x", 97).encode([1.0, True, Decimal(1), np.uint8(1), None]).tolist() == [
        scalar_hash(1) % 97
    ] * 4 + [0]


@pytest.mark.parametrize("dtype", [*INTEGERS, "float32", "bool", "Int64", "uint64[pyarrow]", object])
def test_numbers_are_read_from_every_type(dtype):
    assert Numerical.standardized("x").encode(pd.Series([1, 0], dtype=dtype)).tolist() == [1, 0]
    assert Numerical.standardized("x", fill=7).encode([Decimal("0.5"), True, None, pd.NA, np.float32(2)]).tolist() == [
        0.5,
        1,
        7,
        7,
        2,
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["1"], "'x' is numerical and holds '1'.*pd.to_numeric"),
        (pd.Series(["1", None], dtype="string"), "'x' is numerical and holds '1'"),
        ([10**400], "'x' .*float"),
        ([float("inf")], "'x' holds inf; make it null, or finite"),
        ([1j], "'x' is numerical and holds 1j"),
        ([[1]], "'x' is numerical and holds .1."),
        (pd.Series(pd.to_datetime(["2020-01-01"])), "'x' is numerical and holds Timestamp"),
        (pd.Series(pd.to_timedelta([5])), "'x' is numerical and holds Timedelta"),
        (np.array(["2020-01-01"], "datetime64[ns]"), "'x' is numerical and holds Timestamp"),
        ([1e300], "'x' holds 1e.300, .*float32"),
    ],
)
def test_what_is_no_finite_number_is_rejected(values, message):
    with pytest.raises(DataError, match=message):
        Numerical.standardized("x").encode(values)


def test_a_logarithm_of_a_negative_number_is_rejected():
    with pytest.raises(DataError, match="'x' holds -2"):
        Numerical.standardized("x", log=True).encode([-2])


def test_a_table_of_numbers_finds_keys_by_the_rule():
    table = Numerical.standardized("x", KeyTable(np.array([1, BIG]), np.array([10.0, 20.0]), default=-1.0))
    assert table.encode([1.0, BIG, None, 2**60]).tolist() == [10, 20, -1, -1]
