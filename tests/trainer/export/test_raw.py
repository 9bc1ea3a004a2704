"""Encoders inside a graph, beside what they are stated to do: 0 pad, 1 null, unseen by hash, then the vocabulary."""

import math

import numpy as np
import pytest
import tensorflow as tf

from data.preprocess.encoders import HashedIds, HashedRanks, Numerical, Vocabulary
from data.preprocess.keys import KeyTable
from tests.data.scalar_hash import scalar_hash
from tests.trainer.export.models import predicted, write_run
from trainer.export.raw import (
    NULL_INTEGER,
    NotFromRaw,
    RawEncoding,
    buckets,
    encoders_of,
    hash_integers,
    hash_texts,
    raw_columns,
)
from trainer.export.saved_model_folder import load_signatures, write_saved_model

NAMES, DAYS, TAGS = [f"né {number}" for number in range(20)], [3, -4, 2**60], ["a", "b", "c"]
BIG = 2**63 - 1


def objects(values: list) -> np.ndarray:
    return np.array(values, object)


def make_encoders() -> dict:
    return {
        "user": Vocabulary("who", objects(NAMES), np.ones(20, np.int64), oov_buckets=5),
        "day": Vocabulary("weekday", np.array(DAYS), np.ones(3, np.int64)),
        "tags": Vocabulary("words", objects(TAGS), np.ones(3, np.int64), oov_buckets=3, is_list=True),
        "age": Numerical("years", fill=4.0, log=True, mean=1.5, std=2.0),
        "price": Numerical("who", KeyTable(objects(sorted(NAMES)), np.arange(20.0), 7.5), mean=2.0, std=0.0),
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
    encoding = RawEncoding(saved)
    wanted = wanted_features()
    found = encoding.features({name: tf.constant(values) for name, values in GIVEN.items()})
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name].numpy(), values, rtol=1e-6, err_msg=name)
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
    found = RawEncoding(write_run(tmp_path, encoders=make_encoders() | hashed)).features(
        {name: tf.constant(values) for name, values in GIVEN.items()}
    )
    names = [0 if value is None else scalar_hash(value) % 300 for value in RAW["who"]]
    assert found["user"].numpy()[:, 0].tolist() == names
    ranks = [[TAGS.index(word) + 1 if word in TAGS else 0 for word in row or []][:3] for row in RAW["words"]]
    ids = [[scalar_hash(rank) % 60 for rank in row] + [-1] * (3 - len(row)) for row in ranks]
    assert found["tags"].numpy().tolist() == ids


def test_empty_text_in_vocabulary_is_not_null(tmp_path):
    with_empty = Vocabulary("who", objects(["", "b"]), np.ones(2, np.int64))
    encoding = RawEncoding(write_run(tmp_path, encoders=make_encoders() | {"user": with_empty}))
    found = encoding.features({name: tf.constant(values) for name, values in GIVEN.items()})
    assert found["user"].numpy()[:, 0].tolist() == [2, 2, 2, 2, 3]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"user": None}, "no encoder for user"),
        ({"user": HashedIds("id", 300)}, "whether it holds integers or strings is unknown"),
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
        raw_columns(saved.layout, encoders_of(saved.layout, encoders))
    with pytest.raises(NotFromRaw, match="no vocabularies and scalers"):
        encoders_of(saved.layout, {})
