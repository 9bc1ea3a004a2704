"""What the specification says of the ids and numbers of encoders."""

import numpy as np
import pyarrow as pa

from data.encoding.encoders import (
    BucketizedIds,
    CrossedIds,
    CrossInput,
    HashedIds,
    HashedRanks,
    IdentityIds,
    MissingIndicator,
    Numerical,
    Vocabulary,
)
from data.encoding.keys import KeyTable
from data.preprocess.prepared import encoded_features
from data.spec.features import Feature

USERS = pa.array([7, 8, 9])
COUNTS = np.array([30, 20, 10])
TABLE = KeyTable(USERS, COUNTS.astype(np.float64), 0.0)


def entry(name: str, cardinality: int, **keys: int) -> Feature:
    return Feature(name=name, dtype="int32", cardinality=cardinality, **keys)


def test_ids_of_null_and_of_unseen_values():
    users = Vocabulary("user", USERS, COUNTS)
    pair = (CrossInput("user", is_feature=False), CrossInput("shop", is_feature=False))
    encoders = {
        "user": users,
        "tags": Vocabulary("tags", USERS, COUNTS, oov_buckets=4, is_list=True),
        "published": HashedIds("ad", 100),
        "hashed": HashedIds("ad", 100, first_id=2),
        "ranks": HashedRanks("topics", USERS, 50),
        "identity": IdentityIds("shop", 20),
        "age": BucketizedIds("age", (18.0, 40.0)),
        "pair": CrossedIds(pair, Vocabulary("", USERS, COUNTS)),
        "hashed_pair": CrossedIds(pair, HashedIds("", 100, first_id=2)),
    }
    found = encoded_features(encoders, {"tags": 5, "ranks": 3})
    assert found == {
        "user": entry("user", 6, null_id=1, unseen_id=2),
        "tags": entry("tags", 9, max_hotness=5, null_id=1, unseen_id=2, oov_buckets=4),
        "published": entry("published", 100),
        "hashed": entry("hashed", 102, null_id=1),
        "ranks": entry("ranks", 50, max_hotness=3),
        "identity": entry("identity", 20, null_id=1),
        "age": entry("age", encoders["age"].cardinality, null_id=1),
        "pair": entry("pair", 6, null_id=1, unseen_id=2),
        "hashed_pair": entry("hashed_pair", 102, null_id=1),
    }


def test_numbers_that_are_unseen_with_an_id():
    encoders = {
        "user": Vocabulary("user", USERS, COUNTS),
        "user_count": Numerical.standardized("user", TABLE, log=True, mean=3.0, std=0.5),
        "shop_count": Numerical.standardized("shop", TABLE),  # no feature has the shop's ids
        "age": Numerical.standardized("age"),
        "no_age": MissingIndicator("age"),
    }
    found = encoded_features(encoders, {})
    unseen = float(encoders["user_count"].encode([12345])[0])
    assert unseen == (np.log(1 + 0) - 3.0) / 0.5
    expected = Feature(name="user_count", dtype="float32", unseen_with="user", unseen_value=unseen)
    assert found["user_count"] == expected
    for name in ("shop_count", "age", "no_age"):
        assert found[name] == Feature(name=name, dtype="float32")
