import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.encoding.counting import KeyCounts, group_keys
from data.encoding.hashing import hash_values
from data.encoding.keys import KeyIndex

# Strings whose FNV-1a hashes are equal, found by others with a brute-force search.
COLLIDING = ["8yn0iYCKYHlIj4-BwPqk", "GReLUrM4wMqfg9yzV3KQ"]
MORE = ["gMPflVXtwGDXbIhP73TX", "LtHf1prlU1bCeYZEdqWf"]
TEXTS = st.lists(st.one_of(st.text(max_size=4), st.sampled_from([*COLLIDING, *MORE, None])), max_size=40)
INTEGERS = st.lists(st.one_of(st.integers(-5, 5), st.sampled_from([2**62, -(2**63), None])), max_size=40)


def as_column(values: list) -> pa.Array:
    is_text = any(isinstance(value, str) for value in values)
    return pa.array(values, pa.large_string() if is_text else pa.int64())


def ranked(values: list, min_count: int, max_size: int | None) -> list[tuple]:
    counts = Counter(value for value in values if value is not None)
    kept = [(value, count) for value, count in counts.items() if count >= min_count]
    return sorted(kept, key=lambda entry: (-entry[1], entry[0]))[:max_size]


def test_these_strings_collide():
    for one, other in (COLLIDING, MORE):
        assert one != other and len(set(hash_values([one, other]).tolist())) == 1


@pytest.mark.parametrize("keys", [COLLIDING, [*MORE, "a", *COLLIDING]])
def test_keys_with_equal_hashes_are_told_apart(keys):
    index = KeyIndex("x", keys)
    for wanted in (keys, keys[::-1], [COLLIDING[1], "b"], [None, COLLIDING[0]]):
        codes, found, positions = index.find(wanted)
        expected = [keys.index(value) if value in keys else -1 for value in wanted]
        assert np.append(positions, -1)[codes].tolist() == expected
        codes, _, positions = index.find(wanted * 20)
        assert np.append(positions, -1)[codes].tolist() == expected * 20
    for known in keys:  # the other one of the pair is unknown
        _, _, positions = KeyIndex("x", [known]).find([*COLLIDING, *MORE])
        assert [value for value, place in zip([*COLLIDING, *MORE], positions, strict=True) if place == 0] == (
            [known] if known != "a" else []
        )


@settings(deadline=None)
@given(st.one_of(TEXTS, INTEGERS))
def test_equal_keys_are_grouped(values):
    keys = as_column([value for value in values if value is not None])
    groups = group_keys(keys)
    assert groups.keys.take(pa.array(groups.codes)).equals(keys)
    assert len(set(groups.keys.to_pylist())) == len(groups.keys)
    assert groups.hashes.tolist() == sorted(groups.hashes.tolist()) == hash_values(groups.keys).tolist()


@settings(deadline=None)
@given(
    st.one_of(TEXTS, INTEGERS),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([None, 1, 3]),
    st.sampled_from([0, 40, 10**6]),
    st.booleans(),
)
def test_counts_by_parts(tmp_path_factory, values, number, min_count, max_size, budget, is_dictionary):
    folder, column = tmp_path_factory.mktemp("counts"), as_column(values)
    parts = [column.filter(pa.array(np.arange(len(values)) % number == part)) for part in range(number)]
    states = [KeyCounts.of("x", part.dictionary_encode() if is_dictionary else part) for part in parts]
    random.Random(len(values)).shuffle(states)
    while len(states) > 1:
        states = [*states[2:], KeyCounts.merged(states[:2], budget, folder)]
    keys, counts = states[0].frequent(min_count, max_size)
    assert list(zip(keys.to_pylist(), counts.tolist(), strict=True)) == ranked(values, min_count, max_size)


def test_counts_on_disk_do_not_stay_in_memory(tmp_path):
    numbers = np.random.default_rng(0).integers(0, 3000, 10_000)
    state = KeyCounts.of("x", pa.array(numbers[:1]))
    for part in np.array_split(numbers[1:], 20):
        state = KeyCounts.merged([state, KeyCounts.of("x", pa.array(part))], 8000, tmp_path)
        assert state.keys.nbytes + state.counts.nbytes <= 8000
    assert len(state.files) > 2
    keys, counts = state.frequent(1, None)
    assert list(zip(keys.to_pylist(), counts.tolist(), strict=True)) == ranked(numbers.tolist(), 1, None)


def test_a_dictionary_with_unused_repeated_and_null_entries():
    dictionary = pa.array(["a", "b", None, "a", "c"])
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 3, 3, None], pa.int32()), dictionary)
    keys, counts = KeyCounts.of("x", column).frequent(1, None)
    assert dict(zip(keys.to_pylist(), counts.tolist(), strict=True)) == {"a": 3, "b": 1}
