"""Encoders inside a graph, beside what they are stated to do: 0 pad, 1 null, unseen by hash, then the vocabulary."""

import datetime
import math

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from data.encoding.encoders import (
    CrossedIds,
    CrossInput,
    HashedIds,
    HashedRanks,
    IdentityIds,
    MissingIndicator,
    Numerical,
    TimestampIds,
    Vocabulary,
)
from data.encoding.keys import KeyTable
from data.spec.raw.spec import RawSpec, Reading
from tests.data.scalar_hash import scalar_hash
from tests.trainer.export.models import predicted, write_run
from tests.trainer.export.raw_samples import make_layout, sample_rows
from trainer.checkpoint.load_model import LoadedModel
from trainer.export.ports import named_inputs
from trainer.export.raw import RawEncoding
from trainer.export.raw_arrays import write_encoders
from trainer.export.raw_columns import NULL_INTEGER, NotFromRaw, RawInput, RawLayout
from trainer.export.raw_encoders import RawValues, timestamp_ids
from trainer.export.raw_hashes import buckets, hash_integers, hash_texts
from trainer.export.rows import raw_inputs
from trainer.export.saved_model_folder import load_signatures, write_saved_model
from trainer.export.served.raw_encoding import RawEncoder
from trainer.layout import ModelInputs

NAMES, DAYS, TAGS = [f"né {number}" for number in range(20)], [3, -4, 2**60], ["a", "b", "c"]
BIG = 2**63 - 1


def objects(values: list) -> np.ndarray:
    return np.array(values, object)


def make_encoders() -> dict:
    return {
        "user": Vocabulary("who", objects(NAMES), np.ones(20, np.int64), oov_buckets=5),
        "day": Vocabulary("weekday", np.array(DAYS), np.ones(3, np.int64)),
        "tags": Vocabulary("words", objects(TAGS), np.ones(3, np.int64), oov_buckets=3, is_list=True),
        "age": Numerical.standardized("years", fill=4.0, log=True, mean=1.5, std=2.0),
        "price": Numerical.standardized(
            "who", KeyTable(objects(sorted(NAMES)), np.arange(20.0), 7.5), mean=2.0, std=0.0
        ),
    }


RAW = {
    "who": [NAMES[0], NAMES[19], "new", "日本", None],
    "weekday": [3, 2**60, 5, BIG, None],
    "words": [["a", "c"], [], ["new", "b", "a", "c", "c"], None, ["日本"]],
    "years": [0.0, 10.5, None, 1e6, 3.0],
}
GIVEN = {
    "who": np.array([[(value or "").encode()] for value in RAW["who"]], object),
    "weekday": np.array([[NULL_INTEGER if value is None else value] for value in RAW["weekday"]]),
    "words": np.array([[word.encode() for word in (row or [])] + [b""] * (5 - len(row or [])) for row in RAW["words"]]),
    "years": np.array([[math.nan if value is None else value] for value in RAW["years"]]),
}


def encoding_of(saved: LoadedModel) -> RawEncoding:
    return RawEncoding(RawLayout.of(saved.layout, saved.encoders))


def encoded(encoding: RawEncoding, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    inputs = encoding.matrices({name: tf.constant(values) for name, values in given.items()})
    return named_inputs(encoding.layout.model, ModelInputs(*(matrix.numpy() for matrix in inputs)))


def wanted_features() -> dict[str, np.ndarray]:
    def user(value):
        if value is None:
            return 1
        return 7 + NAMES.index(value) if value in NAMES else 2 + scalar_hash(value) % 5

    def day(value):
        return 1 if value is None else 3 + DAYS.index(value) if value in DAYS else 2

    def tags(row):
        ids = [5 + TAGS.index(word) if word in TAGS else 2 + scalar_hash(word) % 3 for word in row or []][:3]
        return ids + [-1] * (3 - len(ids))

    ages = [(math.log((4.0 if value is None else value) + 1) - 1.5) / 2 for value in RAW["years"]]
    prices = [sorted(NAMES).index(value) - 2.0 if value in NAMES else 5.5 for value in RAW["who"]]
    return {
        "user": np.array([[user(value)] for value in RAW["who"]], np.int32),
        "day": np.array([[day(value)] for value in RAW["weekday"]], np.int32),
        "tags": np.array([tags(row) for row in RAW["words"]], np.int32),
        "age": np.array(ages, np.float32)[:, None],
        "price": np.array(prices, np.float32)[:, None],
    }


def test_hash_in_a_graph_is_the_documented_one():
    integers = np.append(np.random.default_rng(0).integers(-(2**63), BIG, 200), [0, -1, BIG, -(2**63)])
    texts = ["", "a", "foobar", "zero\0", "日本語", "x" * 300, *map(str, range(50))]
    assert hash_integers(tf.constant(integers)).numpy().tolist() == [scalar_hash(int(value)) for value in integers]
    hashes = hash_texts(tf.constant([text.encode() for text in texts]))
    assert hashes.numpy().tolist() == [scalar_hash(text) for text in texts]
    assert buckets(hashes, 7).numpy().tolist() == [scalar_hash(text) % 7 for text in texts]
    assert hash_texts(tf.constant([], tf.string)).shape == (0,)


def test_raw_graph_encodes_and_predicts(tmp_path):
    saved = write_run(tmp_path / "run", encoders=make_encoders(), model="mmoe")
    encoding = encoding_of(saved)
    wanted = wanted_features()
    found = encoded(encoding, GIVEN)
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, err_msg=name)
    (tmp_path / "export").mkdir()
    write_saved_model(tmp_path / "export", saved, encoding)
    raw = load_signatures(tmp_path / "export")["serving_raw"]
    for rows in (slice(None), slice(1), slice(4, 5)):
        expected = predicted(saved, {name: values[rows] for name, values in wanted.items()})
        predictions = raw({name: values[rows] for name, values in GIVEN.items()})
        for task, values in expected.items():
            np.testing.assert_allclose(predictions[task], values, rtol=0, atol=1e-5)
    narrow = raw(GIVEN | {"words": GIVEN["words"][:, :1]})  # lists shorter than max_hotness
    assert narrow["click"].shape == (5, 1)


def test_ids_by_hash_and_by_hashed_rank(tmp_path):
    hashed = {"user": HashedIds("who", 300), "tags": HashedRanks("words", objects(TAGS), 60)}
    found = encoded(encoding_of(write_run(tmp_path, encoders=make_encoders() | hashed)), GIVEN)
    names = [0 if value is None else scalar_hash(value) % 300 for value in RAW["who"]]
    assert found["user"][:, 0].tolist() == names
    ranks = [[TAGS.index(word) + 1 if word in TAGS else 0 for word in row or []][:3] for row in RAW["words"]]
    ids = [[scalar_hash(rank) % 60 for rank in row] + [-1] * (3 - len(row)) for row in ranks]
    assert found["tags"].tolist() == ids


def test_empty_text_in_vocabulary_is_not_null(tmp_path):
    with_empty = Vocabulary("who", objects(["", "b"]), np.ones(2, np.int64))
    found = encoded(encoding_of(write_run(tmp_path, encoders=make_encoders() | {"user": with_empty})), GIVEN)
    assert found["user"][:, 0].tolist() == [2, 2, 2, 2, 3]


def test_retired_values_are_unseen(tmp_path):
    """The graph, and Triton's model, give ids that became free to no value."""
    gaps = {
        "user": Vocabulary("who", pa.array([NAMES[0], None, "b", None]), np.array([1, 0, 1, 0])),
        "day": Vocabulary("weekday", pa.array([None, 3, 0]), np.array([0, 1, 1]), oov_buckets=2),
        "tags": Vocabulary("words", pa.array([None, "a"]), np.array([0, 1]), is_list=True),
    }
    saved = write_run(tmp_path / "run", encoders=make_encoders() | gaps)
    encoding = encoding_of(saved)
    given = GIVEN | {
        "who": objects([[value] for value in (NAMES[0].encode(), NAMES[1].encode(), b"b", b"", b"None")]),
        "weekday": np.array([[0], [3], [-4], [NULL_INTEGER], [2**60]]),
        "words": objects([[b"a", b"b"], [b"b", b""], [b"", b""], [b"None", b"a"], [b"a", b""]]),
    }
    wanted = {
        "user": [3, 2, 5, 1, 2],
        "day": [6, 5, 2 + scalar_hash(-4) % 2, 1, 2 + scalar_hash(2**60) % 2],
        "tags": [[4, 2, -1], [2, -1, -1], [-1, -1, -1], [2, 4, -1], [4, -1, -1]],
    }
    (tmp_path / "encoders").mkdir()
    write_encoders(tmp_path / "encoders", encoding.layout)
    for found in (encoded(encoding, given), RawEncoder(tmp_path / "encoders").encode(given)):
        for name, values in wanted.items():
            np.testing.assert_array_equal(found[name], np.reshape(values, (5, -1)), err_msg=name)
    (tmp_path / "export").mkdir()
    write_saved_model(tmp_path / "export", saved, encoding)
    predictions = load_signatures(tmp_path / "export")["serving_raw"](given)
    ids = {name: np.reshape(values, (5, -1)).astype(np.int32) for name, values in wanted.items()}
    numbers = {name: values for name, values in encoded(encoding, given).items() if name not in ids}
    for task, values in predicted(saved, ids | numbers).items():
        np.testing.assert_allclose(predictions[task], values, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def every() -> RawEncoding:
    return RawEncoding(make_layout())


@pytest.mark.parametrize("rows", [1, 700])
def test_every_encoder_in_a_graph_is_the_plain_one(every, rows):
    layout = every.layout
    raw, wanted = sample_rows(layout, rows)
    columns = layout.columns
    assert columns["moment"] == RawInput("moment", "int64", is_time=True)
    assert columns["age"].dtype == "int64" and columns["price"].dtype == "float64"
    assert columns["clicked"] == RawInput("clicked", "string", None) and columns["ages"].dtype == "int64"
    assert columns["title"] == RawInput("title", "float32", 5)
    given = raw_inputs(columns, raw)
    signature = {name: tf.TensorSpec([None, column.width], column.dtype) for name, column in columns.items()}
    compiled = tf.function(every.matrices, input_signature=[signature])
    inputs = compiled({name: tf.constant(values) for name, values in given.items()})
    found = named_inputs(layout.model, ModelInputs(*(matrix.numpy() for matrix in inputs)))
    for name, values in wanted.items():
        assert found[name].dtype == values.dtype
        if values.dtype == np.int32:
            np.testing.assert_array_equal(found[name], values, err_msg=name)
        else:
            np.testing.assert_array_max_ulp(found[name], values, 1)


def test_parts_of_times_are_those_of_the_calendar():
    days = np.arange(-200_000, 200_000, 97)
    seconds = days * 86_400 + np.arange(len(days)) * 5003 % 86_400
    times = [datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=int(value)) for value in seconds]
    micro = RawValues(tf.constant(seconds[:, None] * 10**6), tf.zeros([len(days), 1], tf.bool))
    for part, wanted in (
        ("hour", [time.hour for time in times]),
        ("weekday", [time.weekday() for time in times]),
        ("day", [time.day - 1 for time in times]),
    ):
        found = timestamp_ids([TimestampIds("moment", part)], micro).numpy()[:, 0]
        np.testing.assert_array_equal(found - 3, wanted)


def test_an_id_out_of_range_fails_its_request(tmp_path):
    encoders = make_encoders() | {"user": IdentityIds("number", 500)}
    saved = write_run(tmp_path / "run", encoders=encoders, model="mmoe")
    (tmp_path / "export").mkdir()
    write_saved_model(tmp_path / "export", saved, encoding_of(saved))
    raw = load_signatures(tmp_path / "export")["serving_raw"]
    given = GIVEN | {"number": np.array([[0], [499], [NULL_INTEGER], [1], [2]])}
    assert raw(given)["click"].shape == (5, 1)
    for wrong in (500, -1, 2**40):
        given["number"][3] = wrong
        with pytest.raises(tf.errors.InvalidArgumentError):
            raw(given)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"user": None}, "no encoder for user"),
        ({"user": HashedIds("id", 300)}, "whether it holds integers or strings is unknown"),
        ({"user": HashedIds("years", 300)}, "whether it holds integers or strings is unknown"),
        (
            {"user": CrossedIds((CrossInput("absent", True), CrossInput("day", True)), HashedIds("", 300, 2))},
            "no encoder for absent",
        ),
        ({"user": MissingIndicator("years")}, "does not produce the model's inputs"),
        ({"age": Numerical("words", None, (("fill", 0.0),), is_list=True)}, "does not produce the model's inputs"),
        ({"user": Vocabulary("weekday", objects(["a"]), np.ones(1, np.int64))}, "weekday is read as values of several"),
        ({"user": Vocabulary("words", objects(["a"]), np.ones(1, np.int64))}, "words is read as values of several"),
        ({"user": Numerical("years")}, "does not produce the model's inputs"),
        (
            {"user": Vocabulary("who", np.arange(600), np.ones(600, np.int64))},
            "does not produce the model's inputs",
        ),
        (
            {"tags": Vocabulary("words", objects(TAGS), np.ones(3, np.int64))},
            "does not produce the model's inputs",
        ),
        (
            {"age": Vocabulary("years", np.arange(3), np.ones(3, np.int64))},
            "does not produce the model's inputs",
        ),
        ({"day": Vocabulary("weekday", np.array([NULL_INTEGER]), np.ones(1, np.int64))}, "which is reserved for null"),
        (
            {"tags": Vocabulary("words", objects(["", "a"]), np.ones(2, np.int64), is_list=True)},
            "has the empty string in its lists",
        ),
    ],
)
def test_reason_for_omitted_raw_features_is_reported(change, reason, tmp_path):
    saved = write_run(tmp_path)
    encoders = {name: encoder for name, encoder in (make_encoders() | change).items() if encoder is not None}
    with pytest.raises(NotFromRaw, match=reason):
        RawLayout.of(saved.layout, encoders)
    with pytest.raises(NotFromRaw, match="no vocabularies and scalers"):
        RawLayout.of(saved.layout, {})


@pytest.mark.parametrize(
    ("dtype", "reason"),
    [
        ("float32", "years holds floating-point numbers, which have no hash"),
        ("string", "strings, which are read"),
    ],
)
def test_the_specification_gives_types_of_columns(tmp_path, dtype, reason):
    saved = write_run(tmp_path)
    encoders = make_encoders() | {"user": HashedIds("years", 300)}
    spec = RawSpec(tmp_path, {"years": Reading("years", "years", dtype)}, {}, {}, None, {})
    with pytest.raises(NotFromRaw, match=reason):
        RawLayout.of(saved.layout, encoders, spec)
    spec.readings["years"] = Reading("years", "years", "int16")
    assert RawLayout.of(saved.layout, encoders, spec).columns["years"].dtype == "int64"
