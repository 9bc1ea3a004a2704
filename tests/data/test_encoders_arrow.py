"""Encoders of Arrow arrays: every form of the same values has the same ids, one row at a time or all at once."""

import datetime
import json
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.encoding.encoder_files import load_encoders, save_encoders
from data.encoding.encoders import (
    BucketizedIds,
    CrossedIds,
    CrossInput,
    HashedIds,
    HashedRanks,
    IdentityIds,
    MissingIndicator,
    Numerical,
    TimestampIds,
    Vocabulary,
    encode_columns,
    raw_columns,
)
from data.encoding.keys import KeyTable
from data.errors import DataError
from tests.data.scalar_hash import mix, scalar_hash, scalar_row_hash
from tests.manifests import replace_file

SHOPS = ["kiosk", "markt", "", "日本", "a\0b"]
TEXTS = st.lists(st.one_of(st.none(), st.sampled_from([*SHOPS, "new", "kios", "kioskk"]), st.text(max_size=20)))
INTEGERS = st.lists(st.one_of(st.none(), st.integers(-9, 9), st.integers(-(2**63), 2**63 - 1)))
TIMES = st.lists(st.one_of(st.none(), st.integers(-(2**55), 2**55)))
NUMBERS = st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6, width=32)))
ONES = np.ones(5, np.int64)
TEXT_ENCODERS = [
    Vocabulary("x", SHOPS, ONES, oov_buckets=3),
    HashedIds("x", 97),
    HashedIds("x", 97, first_id=2),
    HashedRanks("x", SHOPS, 50),
    Numerical("x", KeyTable(SHOPS, np.arange(5.0), default=7.5)),
]
INTEGER_ENCODERS = [Vocabulary("x", [3, -4, 2**62, 0, 5], ONES, oov_buckets=3), HashedIds("x", 97, first_id=2)]
TIME_ENCODERS = [TimestampIds("x", part) for part in ("hour", "weekday", "day")]
NUMBER_ENCODERS = [
    BucketizedIds("x", (-1.0, 0.0, 2.5)),
    MissingIndicator("x"),
    Numerical("x", steps=(("clip", 0.0, None), ("fill", 3.0), ("log1p",), ("minmax", 0.5, 4.5), ("clip", None, 0.9))),
]


def forms(values: list, kind: pa.DataType) -> list:
    """Return the same values in every form of Arrow memory."""
    array = pa.array(values, kind)
    doubled = pa.chunked_array([pa.array([None, *values], kind), array])
    dictionary = array.dictionary_encode()
    found = [
        array,
        doubled.slice(1 + len(values)),
        pa.array([None, *values, None], kind).slice(1, len(values)),
        pd.Series(array, dtype=pd.ArrowDtype(kind)),
        pd.Series(values, dtype=object),
        dictionary,
        pa.chunked_array([dictionary.slice(0, 1), dictionary.slice(1)]),
        pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([dictionary]))),
    ]
    if pa.types.is_string(kind):
        found += [array.cast(pa.large_string()), array.cast(pa.string_view())]
    return found


def flat(encoder, values) -> list:
    encoded = encoder.encode_flat(values) if isinstance(encoder, HashedRanks) else encoder.encode(values)
    return encoded.tolist()


def check_forms(encoders: list, values: list, kind: pa.DataType) -> None:
    for encoder in encoders:
        expected = flat(encoder, values)
        for form in forms(values, kind):
            if not (
                pa.types.is_floating(kind) and "dictionary" in str(getattr(form, "type", getattr(form, "dtype", "")))
            ):
                assert flat(encoder, form) == expected, (encoder, form)
        assert [flat(encoder, pa.array([value], kind))[0] for value in values] == expected
        assert flat(encoder, values * 20) == expected * 20


@settings(deadline=None, max_examples=40)
@given(TEXTS)
def test_every_form_of_texts(values):
    check_forms(TEXT_ENCODERS, values, pa.string())


@settings(deadline=None, max_examples=40)
@given(INTEGERS)
def test_every_form_of_integers(values):
    check_forms(INTEGER_ENCODERS, values, pa.int64())


@settings(deadline=None, max_examples=30)
@given(TIMES)
def test_every_form_of_times(values):
    check_forms(TIME_ENCODERS, values, pa.int64())


@settings(deadline=None, max_examples=30)
@given(NUMBERS)
def test_every_form_of_numbers(values):
    check_forms(NUMBER_ENCODERS, values, pa.float64())


@settings(deadline=None, max_examples=40)
@given(st.lists(st.one_of(st.none(), TEXTS), max_size=8), st.integers(0, 3))
def test_lists_in_arrow_memory(values, skipped):
    for encoder in (
        Vocabulary("x", SHOPS, ONES, oov_buckets=3, is_list=True),
        HashedIds("x", 97, first_id=2, is_list=True),
        HashedRanks("x", SHOPS, 50),
    ):
        expected = [entry.tolist() for entry in encoder.encode(values)]
        padded = [["pad"] * skipped] * skipped + values
        for kind in (
            pa.list_(pa.string()),
            pa.large_list(pa.large_string()),
            pa.list_(pa.dictionary(pa.int32(), pa.string())),
        ):
            found = encoder.encode(pa.array(padded, kind).slice(skipped))
            assert isinstance(found, pa.LargeListArray) and found.to_pylist() == expected


def test_values_behind_a_missing_list_are_skipped():
    values = pa.array(["kiosk", "markt", "new"])
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3]), values, mask=pa.array([False, True, False]))
    assert Vocabulary("x", SHOPS, ONES, is_list=True).encode(lists).to_pylist() == [[3], [], [2]]


@pytest.mark.parametrize(
    ("encoder", "values", "ids"),
    [
        (HashedIds("x", 10), ["a", None], [scalar_hash("a") % 10, 0]),
        (HashedIds("x", 10, first_id=2), ["a", None, 5], None),
        (HashedIds("x", 10, first_id=2), ["a", None], [2 + scalar_hash("a") % 10, 1]),
        (IdentityIds("x", 5), [0, 4, None], [0, 4, 1]),
        (BucketizedIds("x", (1.0, 2.0)), [0.5, 1, 1.5, 2, 9, None, math.nan], [3, 4, 4, 5, 5, 1, 1]),
        (BucketizedIds("x", ()), [0.5, None], [3, 1]),
        (MissingIndicator("x"), [0.5, None, math.nan], [0, 1, 1]),
    ],
)
def test_ids_by_hand(encoder, values, ids):
    if ids is None:
        with pytest.raises(DataError, match="also 5"):
            encoder.encode(values)
        return
    assert encoder.encode(values).tolist() == ids


@pytest.mark.parametrize(
    ("encoder", "cardinality", "unseen_id"),
    [
        (Vocabulary("x", SHOPS, ONES, oov_buckets=3), 10, 2),
        (HashedIds("x", 10), 10, None),
        (HashedIds("x", 10, first_id=2), 12, None),
        (IdentityIds("x", 5), 5, None),
        (BucketizedIds("x", (1.0, 2.0)), 6, 2),
        (TimestampIds("x", "hour"), 27, 2),
        (TimestampIds("x", "weekday"), 10, 2),
        (TimestampIds("x", "day"), 34, 2),
        (CrossedIds((CrossInput("x", False),), HashedIds("x", 7, first_id=2)), 9, None),
        (CrossedIds((CrossInput("x", False),), Vocabulary("x", [1, 2], ONES[:2])), 5, 2),
    ],
)
def test_cardinality_and_unseen_id(encoder, cardinality, unseen_id):
    assert (encoder.cardinality, encoder.unseen_id) == (cardinality, unseen_id)


@settings(deadline=None)
@given(st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2200, 1, 1)))
def test_parts_of_a_time(moment):
    value = (moment - datetime.datetime(1970, 1, 1)) // datetime.timedelta(microseconds=1)
    found = [TimestampIds("x", part).encode([value]).item() for part in ("hour", "weekday", "day")]
    assert found == [3 + moment.hour, 3 + moment.weekday(), 2 + moment.day]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.one_of(st.none(), st.text(max_size=3)), st.integers(-5, 5), st.integers(0, 9))))
def test_crosses_hash_their_inputs(rows):
    shops, codes, ids = ([row[place] for row in rows] for place in range(3))
    cross = CrossedIds(tuple(CrossInput(name, False) for name in ("shop", "code", "id")), HashedIds("x", 97, 2))
    columns = {"shop": pa.array(shops, pa.string()).dictionary_encode(), "code": pa.array(codes, pa.int64()), "id": ids}
    expected = [2 + scalar_hash(signed(null_row_hash(*row))) % 97 for row in rows]
    assert cross.encode(columns).tolist() == expected


def null_row_hash(*keys) -> int:
    """The hash of a row with nulls, whose hash is 0."""
    word = 0
    for key in keys:
        word = mix(word ^ (0 if key is None else scalar_hash(key)))
    return word


LISTS = st.none() | st.lists(st.none() | st.text(max_size=3), max_size=4)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(-5, 5), LISTS, st.none() | st.text(max_size=3))), st.booleans(), st.integers(0, 3)
)
def test_a_cross_of_a_list_hashes_every_item_with_the_row(rows, in_arrow, skipped):
    inputs = tuple(CrossInput(name, False) for name in ("code", "tags", "shop"))
    cross = CrossedIds(inputs, HashedIds("x", 97, 2), "tags")
    assert cross.is_list and cross.column == "code x tags x shop"
    columns = {name: [row[place] for row in rows] for place, name in enumerate(("code", "tags", "shop"))}
    if in_arrow:  # with offsets that do not start at 0
        types = {"code": pa.int64(), "tags": pa.list_(pa.string()), "shop": pa.string()}
        columns = {name: pa.array(columns[name], types[name])[skipped:] for name in columns}
        rows = rows[skipped:]
    else:
        columns["tags"] = np.array([*columns["tags"], None], object)[:-1]
    wanted = [[null_row_hash(code, tag, shop) for tag in tags or []] for code, tags, shop in rows]
    assert cross.keys(columns).tolist() == [signed(key) for keys in wanted for key in keys]
    found = cross.encode(columns)
    assert isinstance(found, pa.LargeListArray) == in_arrow
    listed = found.to_pylist() if in_arrow else [ids.tolist() for ids in found]
    assert listed == [[2 + scalar_hash(signed(key)) % 97 for key in keys] for keys in wanted]


def signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def every_encoder() -> dict:
    keys = [signed(scalar_row_hash(4, -1)), 5]
    return {
        "shop_by_id": CrossedIds(
            (CrossInput("shop", True), CrossInput("code", False)), Vocabulary("c", keys, ONES[:2])
        ),
        "words_by_shop": CrossedIds(
            (CrossInput("shop", True), CrossInput("words", False)), HashedIds("c", 9, 2), "words"
        ),
        "words_by_both": CrossedIds(
            (CrossInput("words_by_shop", True), CrossInput("code", False)),
            Vocabulary("c", keys, ONES[:2]),
            "words_by_shop",
        ),
        "crossed": CrossedIds((CrossInput("shop_by_id", True), CrossInput("word", False)), HashedIds("c", 9, 2)),
        "shop": Vocabulary("word", SHOPS, ONES),
        "words": Vocabulary("words", SHOPS, ONES, is_list=True),
        "hashed": HashedIds("words", 9, 2, is_list=True),
        "published": HashedIds("word", 9),
        "ranks": HashedRanks("words", SHOPS, 9),
        "identity": IdentityIds("code", 9),
        "bucketized": BucketizedIds("number", (0.1, 1 / 3)),
        "hour": TimestampIds("code", "hour"),
        "number": Numerical(
            "number", None, (("fill", 1 / 7), ("clip", None, 9.5), ("log1p",), ("scale", 0.1 + 0.2, 3.0))
        ),
        "numbers": Numerical("numbers", None, (("fill", 0.0), ("minmax", -1.0, 1 / 3)), is_list=True),
        "rate": Numerical("word", KeyTable(SHOPS, np.arange(5) / 7, default=0.25)),
        "missing": MissingIndicator("number"),
    }


RAW = pa.table(
    {
        "word": pa.array(["markt", None, "new"]).dictionary_encode(),
        "words": pa.array([["kiosk", None], None, []], pa.list_(pa.string())),
        "code": pa.array([-1 % 8, None, 3]),
        "number": pa.array([0.2, None, -0.5]),
        "numbers": pa.array([[0.2, None], None, []], pa.list_(pa.float64())),
    }
)


def test_every_kind_is_saved_and_loaded(tmp_path):
    save_encoders(every_encoder(), tmp_path / "one")
    loaded = load_encoders(tmp_path / "one")
    assert list(loaded) == list(every_encoder()) and raw_columns(loaded) == set(RAW.column_names)
    columns = dict(zip(RAW.column_names, RAW.columns, strict=True))
    before, after = (encode_columns(encoders, columns) for encoders in (every_encoder(), loaded))
    for name in before:
        assert type(loaded[name]) is type(every_encoder()[name])
        assert pa.array(before[name]).equals(pa.array(after[name]))
    save_encoders(loaded, tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_cross_finds_its_combinations():
    cross = every_encoder()["shop_by_id"]
    assert cross.encode({"shop": np.array([4, 4, 5]), "code": [-1, 0, -1]}).tolist() == [3, 2, 2]
    with pytest.raises(TypeError, match="shop x code needs its inputs by name"):
        cross.encode([1])


def test_a_cross_of_a_list_needs_lists():
    cross = every_encoder()["words_by_shop"]
    with pytest.raises(DataError, match="'words' holds 'a' where a list is expected"):
        cross.encode({"shop": np.array([4]), "words": ["a"]})


def test_crosses_of_single_values_are_saved_as_before(tmp_path):
    save_encoders(every_encoder(), tmp_path / "one")
    stored = json.loads((tmp_path / "one" / "encoders.json").read_text())["features"]
    assert set(stored["crossed"]) == {"kind", "inputs", "encoder"}
    assert stored["words_by_shop"]["list_input"] == "words"


@pytest.mark.parametrize(
    ("encoder", "values", "message"),
    [
        (IdentityIds("x", 5), [5], r"'x' holds 5, outside of \[0, 5\); raise the cardinality"),
        (IdentityIds("x", 5), [-1], r"'x' holds -1, outside of \[0, 5\)"),
        (IdentityIds("x", 5), ["a"], "'x' holds strings such as 'a'; expected integer ids"),
        (TimestampIds("x", "hour"), ["a"], "'x' holds strings such as 'a'; expected a time"),
        (BucketizedIds("x", (1.0,)), ["a"], "'x' is numerical and holds 'a'"),
        (Numerical("x"), [None], "'x' is null in a row; say what replaces null, as with {fill: median}"),
        (Numerical("x", steps=(("log1p",),)), [-1.0], "'x' holds -1, .*expected a number above -1"),
        (Vocabulary("x", [1], ONES[:1]), pa.array(["a"]), "'x' holds strings such as 'a', but .* integers such as 1"),
        (Vocabulary("x", ["a"], ONES[:1]), pa.array([1]), "'x' holds integers such as 1, but .* strings such as 'a'"),
        (Vocabulary("x", ["a"], ONES[:1]), pa.array([1.5]), "'x' holds 1.5; expected integers or strings"),
        (Vocabulary("x", ["a"], ONES[:1], is_list=True), pa.array(["b"]), "'x' holds 'b' where a list is expected"),
        (Vocabulary("x", [1], ONES[:1]), pa.array([[1]]), "'x' holds .1.; .*one value per row"),
    ],
)
def test_what_cannot_be_encoded_is_named(encoder, values, message):
    with pytest.raises(DataError, match=message):
        encoder.encode(values)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("bucketized", {"boundaries": [2.0, 1.0]}),
        ("bucketized", {"boundaries": ["a"]}),
        ("hour", {"part": "minute"}),
        ("number", {"steps": [["fill"]]}),
        ("number", {"steps": [["power", 2.0]]}),
        ("number", {"steps": [["clip", "a", None]]}),
        ("published", {"first_id": 7}),
        ("identity", {"cardinality": 0}),
        ("crossed", {"encoder": {"kind": "missing", "column": "x"}}),
        ("crossed", {"inputs": [{"name": "x"}]}),
        ("crossed", {"list_input": "x"}),
        ("words_by_shop", {"list_input": None}),
        ("missing", {"kind": "unknown"}),
    ],
)
def test_settings_that_make_no_encoder_are_rejected(tmp_path, name, change):
    save_encoders(every_encoder(), tmp_path / "workflow")
    stored = json.loads((tmp_path / "workflow" / "encoders.json").read_text())
    stored["features"][name].update(change)
    replace_file(tmp_path / "workflow", "encoders.json", json.dumps(stored).encode())
    with pytest.raises(DataError, match="does not contain valid encoders"):
        load_encoders(tmp_path / "workflow")
