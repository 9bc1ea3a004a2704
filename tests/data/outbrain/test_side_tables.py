import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from data.encoding.keys import KeyTable
from data.errors import DataError
from data.outbrain.recipes import tag_counts
from data.outbrain.side_tables import DocumentTags, LookupTable, check_tags, find_sorted

IDS = st.integers(-20, 20)
# Some are there, some are not; NaN is what a missing id becomes.
WANTED = st.lists(st.one_of(st.integers(-25, 25), st.none()), max_size=20)
CONFIDENCES = st.integers(0, 20).map(lambda number: number / 20)
INTEGER_TAGS, TEXT_TAGS = st.integers(-3, 3), st.sampled_from(["a", "b", "c", "é", "d"])
DOCUMENTS = st.integers(0, 6)


def entries_of(tags):
    return st.lists(st.tuples(DOCUMENTS, tags, CONFIDENCES), min_size=1, max_size=25)


ENTRIES = st.one_of(entries_of(INTEGER_TAGS), entries_of(TEXT_TAGS))
TWO_FILES = st.one_of(*(st.tuples(entries_of(tags), entries_of(tags)) for tags in (INTEGER_TAGS, TEXT_TAGS)))
PAIRS = st.lists(st.tuples(*(st.one_of(st.integers(-1, 8), st.none()),) * 2), max_size=20)


def floats(values):
    return np.array([np.nan if value is None else value for value in values], np.float64)


def columns(entries):
    documents, tags, confidences = zip(*entries, strict=True)
    texts = isinstance(tags[0], str)
    return np.array(documents, np.int64), np.array(tags, object if texts else np.int64), np.array(confidences)


def fitted(entries):
    return DocumentTags.fit(*columns(entries))


def plain_weights(entries):
    corpus = max(document for document, _, _ in entries) + 1
    return {tag: math.log(corpus / number) for tag, number in Counter(tag for _, tag, _ in entries).items()}


def plain_cosine(entries, idf, first, second):
    """The statement once more: weights, scaled to length 1, then added up by tag."""
    raw = defaultdict(list)
    for document, tag, confidence in entries:
        raw[document].append((tag, confidence * idf.get(tag, 0.0)))
    vectors = {}
    for document, weights in raw.items():
        length = math.sqrt(sum(weight**2 for _, weight in weights))
        vectors[document] = defaultdict(float)
        for tag, weight in weights:
            vectors[document][tag] += weight / length if length else 0.0
    left, right = vectors.get(first, {}), vectors.get(second, {})
    return math.fsum(weight * right[tag] for tag, weight in left.items() if tag in right)


@settings(deadline=None)
@given(st.lists(IDS, unique=True), WANTED)
def test_find_sorted(ids, wanted):
    ascending = sorted(ids)
    places = {key: place for place, key in enumerate(ascending)}
    found = find_sorted(np.array(ascending, np.int64), floats(wanted))
    assert found.tolist() == [places.get(key, -1) for key in wanted]


def test_large_integer_ids_are_distinguished():
    ascending = np.array([2**53, 2**53 + 1, 2**63 - 1])
    assert find_sorted(ascending, np.array([2**53 + 1, 2**53, 2**53 + 2, 2**63 - 1])).tolist() == [1, 0, -1, 2]


@settings(deadline=None)
@given(st.dictionaries(IDS, st.tuples(IDS, st.one_of(IDS, st.none()))), WANTED)
def test_gather_keeps_the_rows(table, wanted):
    first, second = [[cells[number] for cells in table.values()] for number in (0, 1)]
    rows = pa.table({"a": pa.array(first, pa.int64()), "key": list(table), "b": pa.array(second, pa.int64())})
    rows = rows.set_column(1, "key", rows.column("key").cast(pa.int64()))
    gathered = LookupTable.build(rows, "key", Path("table.csv")).gather(floats(wanted), "_promo")
    assert list(gathered.columns) == ["a_promo", "b_promo"]
    for number, name in enumerate(gathered.columns):
        expected = [table[key][number] if key in table else None for key in wanted]
        np.testing.assert_array_equal(gathered[name].to_numpy(), floats(expected))


def test_times_become_milliseconds_and_missing_ones_nan():
    moments = pa.array([1_465_876_800, None], pa.timestamp("s"))
    table = LookupTable.build(pa.table({"key": pa.array([2, 1]), "time": moments}), "key", Path("table.csv"))
    np.testing.assert_array_equal(table.gather(np.array([2, 1, 3]))["time"], [1_465_876_800_000, np.nan, np.nan])


@settings(deadline=None)
@given(st.lists(IDS, min_size=2))
def test_repeated_key_names_both_lines(ids):
    places = defaultdict(list)
    for place, key in enumerate(ids):
        places[key].append(place + 2)
    repeated = sorted(key for key, lines in places.items() if len(lines) > 1)
    assume(repeated)
    first, second, *_ = places[repeated[0]]
    extra = len(ids) - len(places)
    message = rf"table\.csv, line {second}: key {repeated[0]} occurs again, after line {first} \({extra} such"
    with pytest.raises(DataError, match=message):
        LookupTable.build(pa.table({"key": pa.array(ids, pa.int64())}), "key", Path("table.csv"))


@settings(deadline=None)
@given(ENTRIES, PAIRS)
@example([(1, 5, 0.0), (2, 5, 1.0), (2, 6, 1.0)], [(1, 2), (2, 2)])  # a document whose weights are all zero
@example([(1, 5, 0.5), (1, 5, 0.5), (1, 6, 0.5), (6, 5, 1.0), (6, 6, 0.1)], [(1, 6), (1, 1)])  # a tag twice
def test_similarity_is_the_cosine_that_its_statement_gives(entries, pairs):
    idf = plain_weights(entries)
    first, second = [[pair[number] for pair in pairs] for number in (0, 1)]
    found = fitted(entries).similarity(floats(first), floats(second))
    expected = [plain_cosine(entries, idf, *pair) for pair in pairs]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_similarity_takes_integer_and_float_ids_alike():
    fitted_tags = fitted([(1, "a", 0.5), (1, "b", 0.2), (7, "a", 0.9)])
    whole = fitted_tags.similarity(np.array([1, 1, 4]), np.array([7, 1, 1]))
    assert whole.tolist() == fitted_tags.similarity(np.array([1.0, 1.0, 4.0]), np.array([7.0, 1.0, 1.0])).tolist()
    assert whole[0] > 0 and whole[2] == 0


@settings(deadline=None)
@given(ENTRIES, st.lists(st.one_of(st.integers(-1, 8), st.none())), st.integers(1, 4))
def test_a_document_lists_its_first_tags_in_the_files_order(entries, documents, most):
    fitted_tags = fitted(entries)
    tags = defaultdict(list)
    for document, tag, _ in entries:
        tags[document].append(tag)
    expected = [tags.get(document, [])[:most] for document in documents]
    codes, lengths = fitted_tags.lists(floats(documents), most)
    assert lengths.tolist() == list(map(len, expected))
    assert fitted_tags.values[codes].tolist() == [tag for listed in expected for tag in listed]


@settings(deadline=None)
@given(ENTRIES)
def test_by_confidence_is_stable(entries):
    fitted_tags = fitted(entries).by_confidence()
    tags = defaultdict(list)
    for document, tag, confidence in entries:
        tags[document].append((tag, confidence))
    expected = [sorted(tags[document], key=lambda entry: -entry[1]) for document in sorted(tags)]
    codes, lengths = fitted_tags.lists(np.array(sorted(tags)), len(entries))
    assert lengths.tolist() == list(map(len, expected))
    assert fitted_tags.values[codes].tolist() == [tag for listed in expected for tag, _ in listed]


def test_ties_of_confidence_keep_the_file_order():
    fitted_tags = fitted([(4, "z", 0.5), (4, "a", 0.5), (4, "m", 0.9), (4, "b", 0.5)]).by_confidence()
    codes, _ = fitted_tags.lists(np.array([4]), 3)
    assert fitted_tags.values[codes].tolist() == ["m", "z", "a"]


@settings(deadline=None)
@given(ENTRIES, PAIRS)
def test_the_order_of_tags_does_not_change_similarities(entries, pairs):
    first, second = [floats([pair[number] for pair in pairs]) for number in (0, 1)]
    fitted_tags = fitted(entries)
    found = fitted_tags.by_confidence().similarity(first, second)
    np.testing.assert_allclose(found, fitted_tags.similarity(first, second), rtol=1e-9, atol=1e-12)


@settings(deadline=None)
@given(TWO_FILES, PAIRS)
def test_with_entries_keeps_fitted_weights(files, pairs):
    old, new = files
    fitted_tags = fitted(old).with_entries(*columns(new))
    first, second = [[pair[number] for pair in pairs] for number in (0, 1)]
    expected = [plain_cosine(new, plain_weights(old), *pair) for pair in pairs]
    np.testing.assert_allclose(fitted_tags.similarity(floats(first), floats(second)), expected, rtol=1e-9, atol=1e-12)
    tags = defaultdict(list)
    for document, tag, _ in new:
        tags[document].append(tag)
    codes, _ = fitted_tags.lists(np.array(sorted(tags)), len(new))
    assert fitted_tags.values[codes].tolist() == [tag for document in sorted(tags) for tag in tags[document]]


@pytest.mark.parametrize("confidence", [-0.1, math.nan, math.inf])
def test_invalid_confidence_names_its_line(confidence):
    with pytest.raises(DataError, match=r"tags.csv, line 3: confidence_level is"):
        check_tags(Path("tags.csv"), np.array([1, 2]), np.array([0.5, confidence]))


def test_a_negative_document_is_rejected_with_its_line():
    with pytest.raises(DataError, match=r"tags.csv, line 3: document_id is -3"):
        check_tags(Path("tags.csv"), np.array([1, -3]), np.array([0.5, 0.5]))


@settings(deadline=None)
@given(ENTRIES, st.dictionaries(st.integers(0, 8), st.integers(1, 5)))
def test_tag_counts(entries, rows):
    fitted_tags = fitted(entries)
    documents = sorted(rows)
    numbers = np.array([rows[document] for document in documents], np.float64)
    counts = tag_counts(KeyTable(np.array(documents, np.int64), numbers, 0.0), fitted_tags)
    expected = Counter()
    for document, tag, _ in entries:
        expected[tag] += rows.get(document, 0)
    assert dict(zip(fitted_tags.values.tolist(), counts.tolist(), strict=True)) == dict(expected)
