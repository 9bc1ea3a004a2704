"""Rows of tables in two encodings: against look-ups by raw value in plain dictionaries."""

import random

import numpy as np
import pyarrow as pa
import pytest

from data.encoding.encoders import BucketizedIds, CrossedIds, CrossInput, HashedIds, IdentityIds, Vocabulary
from data.encoding.hashing import buckets, hash_values
from data.spec.features import Feature
from trainer.checkpoint.row_maps import NoMatch, RowMap, map_rows


def vocabulary(values: list, oov_buckets: int = 1) -> Vocabulary:
    counts = np.array([0 if value is None else 1 for value in values], np.int64)
    return Vocabulary("item", pa.array(values, pa.string()), counts, oov_buckets)


def mapped(new, old, name: str = "item", **others) -> RowMap:
    """The map of a feature with these encoders; `others` are pairs of encoders of other features."""
    encoders, old_encoders = (
        {name: one} | {other: pair[side] for other, pair in others.items()} for side, one in enumerate((new, old))
    )
    features = (Feature(name=name, cardinality=one.cardinality) for one in (new, old))
    return map_rows(*features, encoders, old_encoders)


def drawn(seed: int) -> tuple[list[str | None], list[str | None]]:
    """Values of two vocabularies: some with the same id, some with another one, some free, some reused."""
    draws = random.Random(seed)
    names = [f"v{number}" for number in range(40)]
    old = draws.sample([*names[:25], *[None] * 6], 25)
    new = [draws.choice([value, value, None]) for value in old]
    others = [name for name in names if name not in new]
    draws.shuffle(others)
    new = [others.pop() if value is None and draws.random() < 0.5 else value for value in new]
    return old, [*new, *others[:5]]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("old_buckets", "new_buckets"), [(1, 1), (3, 3), (2, 6), (4, 2)])
def test_rows_by_raw_value(seed, old_buckets, new_buckets):
    old, new = drawn(seed)
    found = mapped(vocabulary(new, new_buckets), vocabulary(old, old_buckets))
    old_ids = {value: 2 + old_buckets + place for place, value in enumerate(old) if value is not None}
    expected, is_known = [0, 1], [True, True]
    for bucket in range(new_buckets):
        expected.append(2 + bucket % old_buckets)
        is_known.append(bucket < old_buckets)
    for value in new:
        if value in old_ids:
            expected.append(old_ids[value])
        elif value is None:
            expected.append(2)
        else:
            expected.append(2 + int(buckets(hash_values(pa.array([value])), old_buckets)[0]))
        is_known.append(value in old_ids)
    assert found.sources.tolist() == expected and found.is_known.tolist() == is_known
    values, old_values = ({value for value in side if value is not None} for side in (new, old))
    assert found.new == len(values - old_values) + max(0, new_buckets - old_buckets)
    assert found.gone == len(old_values - values) + max(0, old_buckets - new_buckets)


def test_rows_by_id():
    found = map_rows(Feature(name="code", cardinality=7, unseen_id=2), Feature(name="code", cardinality=5), {}, {})
    assert found.sources.tolist() == [0, 1, 2, 3, 4, 2, 2] and found.new == 2
    found = mapped(IdentityIds("item", 4), IdentityIds("item", 6))
    assert found.sources.tolist() == [0, 1, 2, 3] and (found.new, found.gone) == (0, 2)
    new = map_rows(Feature(name="code", cardinality=3), Feature(name="code", cardinality=2), {}, {})
    assert new.sources.tolist() == [0, 1, -1]


def crossed(values: list, *, raw: bool = False) -> CrossedIds:
    return CrossedIds((CrossInput("shop", True), CrossInput("hour", not raw)), vocabulary(values))


def test_crosses_follow_the_ids_that_they_cross():
    old, new = crossed(["1", "2"]), crossed(["2", "3"])
    hour = BucketizedIds("hour", (6.0, 18.0))
    for shops, hours, why in (
        ((["a", "b", "c"], ["a", "b"]), (hour, hour), None),
        ((["a", None], ["a", "b"]), (hour, hour), None),
        ((["b", "a"], ["a", "b"]), (hour, hour), "shop, whose ids have changed"),
        ((["a", "c"], ["a", "b"]), (hour, hour), "shop, whose ids have changed"),  # a reused id
        ((["a"], ["a"]), (hour, BucketizedIds("hour", (7.0, 18.0))), "hour, whose ids have changed"),
    ):
        others = {"shop": tuple(map(vocabulary, shops)), "hour": hours}
        if why is None:
            assert mapped(new, old, "both", **others).sources.tolist() == [0, 1, 2, 4, 2]
        else:
            with pytest.raises(NoMatch, match=why):
                mapped(new, old, "both", **others)
    with pytest.raises(NoMatch, match="other columns"):
        mapped(crossed(["1"], raw=True), old, "both", shop=(vocabulary(["a"]),) * 2, hour=(hour, hour))


@pytest.mark.parametrize(
    ("new", "old", "why"),
    [
        (HashedIds("item", 8), HashedIds("item", 9), "8 buckets of hashes and had 9"),
        (HashedIds("item", 8), HashedIds("item", 8, 2), "buckets"),
        (vocabulary(["a"]), HashedIds("item", 8), "HashedIds"),
        (BucketizedIds("item", (1.0, 2.0)), BucketizedIds("item", (1.0,)), "had"),
        (vocabulary(["a"]), Vocabulary("item", pa.array([1]), np.ones(1, np.int64)), "of another kind"),
    ],
)
def test_ids_of_another_meaning(new, old, why):
    with pytest.raises(NoMatch, match=why):
        mapped(new, old)
