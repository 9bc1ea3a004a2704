import math
import statistics

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.encoding.encoder_files import load_encoders, save_encoders
from data.encoding.encoders import HashedIds, HashedRanks, Vocabulary
from data.encoding.keys import KeyTable
from data.encoding.splits import ranges
from data.errors import DataError
from data.outbrain.joining import display_order, folds, is_training, row_order
from data.outbrain.operators import (
    FoldCounts,
    OutOfFoldRates,
    days_encoder,
    load_out_of_fold,
    log_views,
    moments,
    published_rate,
    save_out_of_fold,
    smoothed_rates,
    weighted_median,
)
from tests.data.outbrain.sample_data import DAY_MS
from tests.data.scalar_hash import scalar_hash, scalar_row_hash

FOLDS = 4
# Key (None is null), fold and click of training rows.
ROWS = st.lists(
    st.tuples(st.one_of(st.integers(-2, 3), st.none()), st.integers(0, FOLDS - 1), st.integers(0, 1)), min_size=1
)
REPEATED = st.dictionaries(st.integers(0, 3650), st.integers(1, 6))
SIGNED_WORDS = st.integers(-(2**63), 2**63 - 1)


def counted(rows):
    keys = sorted({key for key, _, _ in rows if key is not None})
    views, clicks = np.zeros((2, len(keys) + 1, FOLDS), np.int64)
    for key, fold, clicked in rows:
        place = len(keys) if key is None else keys.index(key)
        views[place, fold] += 1
        clicks[place, fold] += clicked
    return FoldCounts("ad_id", np.array(keys, np.int64), views, clicks)


def smoothed(key, others, smoothing):
    """(clicks + smoothing * prior) / (views + smoothing) over some rows."""
    prior = sum(clicked for _, _, clicked in others) / len(others) if others else 0.0
    same = [clicked for other, _, clicked in others if key is not None and other == key]
    return (sum(same) + smoothing * prior) / (len(same) + smoothing)


def standardized(numbers, of):
    mean = statistics.fmean(of)
    std = statistics.stdev(of) if len(of) > 1 else 0.0
    return [(number - mean) / (std if std > 1e-9 else 1.0) for number in numbers]


def columns(rows):
    keys, fold, _ = zip(*rows, strict=True)
    return list(keys), np.array(fold, np.int64)


@settings(deadline=None)
@given(ROWS, st.sampled_from([0.5, 20.0]))
def test_out_of_fold_rates(rows, smoothing):
    keys, fold = columns(rows)
    wanted = [smoothed(key, [row for row in rows if row[1] != own], smoothing) for key, own, _ in rows]
    if np.ptp(wanted) < 1e-9:
        return  # a deviation of nothing but rounding; it has a test of its own
    _, out_of_fold = smoothed_rates(counted(rows), smoothing)
    found = out_of_fold.encode(keys, fold)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, standardized(wanted, wanted), rtol=1e-5, atol=1e-5)


@settings(deadline=None)
@given(ROWS, st.sampled_from([0.5, 20.0]))
def test_rates_of_rows_to_predict(rows, smoothing):
    training = [smoothed(key, [row for row in rows if row[1] != own], smoothing) for key, own, _ in rows]
    if np.ptp(training) < 1e-9:
        return
    encoder, _ = smoothed_rates(counted(rows), smoothing)
    asked = [*range(-3, 5), None]
    wanted = standardized([smoothed(key, rows, smoothing) for key in asked], training)
    np.testing.assert_allclose(encoder.encode(asked), wanted, rtol=1e-5, atol=1e-5)


def test_a_rows_own_click_is_not_in_its_rate():
    rows = [(1, 0, 0), (1, 1, 1), (2, 2, 0), (2, 3, 1), (1, 2, 0)]
    changed = [(1, 0, 1), *rows[1:]]
    for number in (0, 1):
        before, after = (smoothed_rates(counted(table), 20.0) for table in (rows, changed))
        raw = [
            out.encode([row[0]], np.array([row[1]])) * encoder.steps[-1][2] + encoder.steps[-1][1]
            for (encoder, out), row in zip((before, after), (rows[number], changed[number]), strict=True)
        ]
        same = np.allclose(*raw, rtol=0, atol=1e-6)
        assert same == (number == 0)


def test_a_row_in_no_fold_has_no_rate_out_of_fold():
    _, rates = smoothed_rates(counted([(1, 0, 1), (1, 1, 0), (2, 0, 0)]), 20.0)
    with pytest.raises(ValueError, match="no fold"):
        rates.encode([1, 2], np.array([0, -1]))


def test_rates_out_of_fold_are_read_as_they_were_written(tmp_path):
    _, first = smoothed_rates(counted([(-1, 0, 1), (3, 1, 0), (None, 2, 1)]), 20.0)
    second = OutOfFoldRates("other", np.empty(0, np.int64), np.zeros((1, FOLDS), np.float32))
    save_out_of_fold({"ad_id_ctr": first, "b": second}, tmp_path)
    loaded = load_out_of_fold(tmp_path)
    assert set(loaded) == {"ad_id_ctr", "b"}
    for name, rates in (("ad_id_ctr", first), ("b", second)):
        assert loaded[name].column == rates.column
        for array in ("keys", "rates"):
            kept, given = getattr(loaded[name], array), getattr(rates, array)
            assert kept.dtype == given.dtype and kept.shape == given.shape and kept.tolist() == given.tolist()


@pytest.mark.parametrize(("least", "views", "rate"), [(5, 4, 0.0), (5, 5, 0.6), (10, 9, 0.0), (10, 10, 0.3)])
def test_the_published_rate_begins_at_its_least_views(least, views, rate):
    rows = [(7, number % FOLDS, int(number < 3)) for number in range(views)] + [(8, 0, 1)] * 20 + [(None, 0, 1)] * 20
    found = published_rate(counted(rows), least).encode([7, 8, None, 9])
    np.testing.assert_allclose(found, [rate, 1.0, 0.0, 0.0], rtol=1e-6)


@settings(deadline=None)
@given(ROWS)
def test_log_views(rows):
    def log_of(key):
        return math.log(1 + sum(key is not None and other == key for other, _, _ in rows))

    training = [log_of(key) for key, _, _ in rows]
    if np.ptp(training) < 1e-9:
        return
    asked = [*range(-3, 5), None]
    found = log_views(counted(rows)).encode(asked)
    np.testing.assert_allclose(found, standardized(map(log_of, asked), training), rtol=1e-5, atol=1e-5)


@settings(deadline=None)
@given(REPEATED)
def test_the_weighted_median_is_that_of_the_repeated_values(repeated):
    values = sorted(repeated)
    everything = [value for value in values for _ in range(repeated[value])]
    found = weighted_median(np.array(values, np.int64), np.array([repeated[value] for value in values], np.int64))
    assert found == (statistics.median(everything) if everything else 0.0)


@settings(deadline=None)
@given(REPEATED)
def test_moments_are_those_of_the_repeated_values(repeated):
    values, counts = np.array([*repeated], np.float64), np.array([*repeated.values()], np.int64)
    mean, std = moments(values, counts)
    everything = np.repeat(values, counts)
    assert mean == pytest.approx(everything.mean() if len(everything) else 0.0)
    assert std == pytest.approx(everything.std(ddof=1) if len(everything) > 1 else 0.0, abs=1e-9)


@settings(deadline=None)
@given(REPEATED.filter(lambda repeated: len(repeated) > 1), st.booleans())
def test_days_encoder(repeated, scaled):
    values = sorted(repeated)
    everything = [value for value in values for _ in range(repeated[value])]
    table = KeyTable(np.array(values), np.array([repeated[value] for value in values], np.float64), 0.0)
    asked = [None, 0, 3650, *values]
    logs = [math.log(1 + (statistics.median(everything) if days is None else days)) for days in asked]
    wanted = standardized(logs, [math.log(1 + days) for days in everything]) if scaled else logs
    found = days_encoder("days", table, standardized=scaled).encode(asked)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scaled", [True, False])
def test_days_that_are_missing_everywhere_are_zero(scaled):
    nothing = KeyTable(np.empty(0, np.int64), np.empty(0), 0.0)
    assert days_encoder("days", nothing, standardized=scaled).encode([None, None]).tolist() == [0.0, 0.0]


@settings(deadline=None)
@given(st.integers(0, 3650), st.integers(2, 10_000))
@example(181, 439)
def test_a_number_that_never_varies_stays_a_small_number(days, rows):
    encoder = days_encoder("days", KeyTable(np.array([days]), np.array([float(rows)]), 0.0), standardized=True)
    same, other = encoder.encode([days, days + 1])
    assert same == pytest.approx(0, abs=1e-6)
    assert other == pytest.approx(math.log((days + 2) / (days + 1)), rel=1e-3)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1)), st.one_of(st.integers(1, 50), st.just(2**32)))
def test_ranges_are_equal_and_ascending(keys, number):
    found = ranges(np.array(keys, np.uint64), number).tolist()
    assert found == [(key >> 32) * number // 2**32 for key in keys]
    assert all(0 <= part < number for part in found)
    in_order = [part for _, part in sorted(zip(keys, found, strict=True))]
    assert in_order == sorted(in_order)


@pytest.mark.parametrize("number", [1, 3, 7, 400])
def test_every_range_has_its_share_of_evenly_spread_keys(number):
    keys = np.arange(100_000, dtype=np.uint64) * np.uint64(2**64 // 100_000)
    counts = np.bincount(ranges(keys, number), minlength=number)
    assert len(counts) == number
    np.testing.assert_allclose(counts, 100_000 / number, atol=1)


@pytest.mark.parametrize("number", [0, -1, 2**32 + 1])
def test_a_number_of_ranges_that_cannot_be_is_rejected(number):
    with pytest.raises(ValueError, match="expected 1 to"):
        ranges(np.array([0], np.uint64), number)


@settings(deadline=None)
@given(st.lists(st.tuples(SIGNED_WORDS, SIGNED_WORDS), min_size=1), st.integers(0, 2**31))
def test_split_folds_and_order_are_those_of_their_statement(rows, seed):
    display, ad = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    held_out = [scalar_row_hash(seed, 0, number) < 0.2 * 2**64 for number, _ in rows]
    for day in (0, 10, 11, 12):
        time = np.full(len(rows), day * DAY_MS)
        for late in (0, DAY_MS - 1):
            expected = [day <= 10 and not held for held in held_out]
            assert is_training(display, time + late, seed=seed).tolist() == expected
    training = np.array([not held for held in held_out])
    expected = [-1 if held else scalar_row_hash(seed, 1, row[0]) % 10 for held, row in zip(held_out, rows, strict=True)]
    assert folds(display, training, seed=seed).tolist() == expected
    assert display_order(display, seed=seed).tolist() == [scalar_row_hash(seed, 2, row[0]) for row in rows]
    assert row_order(display, ad, seed=seed).tolist() == [scalar_row_hash(seed, 2, *row) for row in rows]


def test_sizes_of_split_and_folds():
    display, time = np.arange(50_000), np.zeros(50_000, np.int64)
    training = is_training(display, time, seed=3)
    assert training.mean() == pytest.approx(0.8, abs=0.01)
    shares = np.bincount(folds(display, training, seed=3)[training], minlength=10) / training.sum()
    np.testing.assert_allclose(shares, 0.1, atol=0.01)


@settings(deadline=None)
@given(
    st.dictionaries(st.integers(-30, 30), st.integers(1, 5)),
    st.integers(1, 3),
    st.one_of(st.none(), st.integers(5, 40)),
    st.integers(1, 3),
)
def test_vocabulary_keeps_the_most_frequent_values(counts, oov_buckets, max_ids, min_count):
    vocabulary = Vocabulary.fit(
        "x", list(counts), list(counts.values()), oov_buckets=oov_buckets, max_ids=max_ids, min_count=min_count
    )
    frequent = [value for value in sorted(counts, key=lambda value: (-counts[value], value))]
    kept = [value for value in frequent if counts[value] >= min_count]
    if max_ids is not None and 2 + oov_buckets + len(kept) > max_ids:
        oov_buckets = max(oov_buckets, max_ids // 10)
        kept = kept[: max_ids - 2 - oov_buckets]
        assert vocabulary.cardinality == max_ids
    ids = {value: 2 + oov_buckets + rank for rank, value in enumerate(kept)}
    asked = [*range(-35, 35), None]
    wanted = [1 if value is None else ids.get(value, 2 + scalar_hash(value) % oov_buckets) for value in asked[:-1]]
    assert vocabulary.encode(asked).tolist() == [*wanted, 1]
    assert vocabulary.cardinality == 2 + oov_buckets + len(kept)


@pytest.mark.parametrize(
    ("wrong", "message"), [({"max_ids": 4, "oov_buckets": 3}, "5 are needed"), ({"oov_buckets": 0}, "1 is")]
)
def test_vocabulary_without_room_for_first_ids(wrong, message):
    with pytest.raises(DataError, match=f"'x'.*{message}"):
        Vocabulary.fit("x", [1], [1], **wrong)


INTEGERS = st.lists(st.one_of(st.integers(-(2**53) + 1, 2**53 - 1), st.none()))
TEXTS = st.lists(st.one_of(st.text(max_size=4), st.none()))


@settings(deadline=None)
@given(st.one_of(INTEGERS, TEXTS), st.integers(1, 50))
def test_hashed_ids(values, num_buckets):
    encoder = HashedIds("x", num_buckets)
    assert encoder.cardinality == num_buckets
    assert encoder.encode(values).tolist() == [
        0 if value is None else scalar_hash(value) % num_buckets for value in values
    ]


@settings(deadline=None)
@given(st.lists(st.integers(0, 20), unique=True, min_size=1), st.lists(st.integers(-5, 25)), st.integers(1, 50))
def test_hashed_ranks(known, values, num_buckets):
    encoder = HashedRanks("x", np.array(known), num_buckets)
    ranks = [known.index(value) + 1 if value in known else 0 for value in values]
    assert encoder.cardinality == num_buckets
    assert encoder.encode_flat(values).tolist() == [scalar_hash(rank) % num_buckets for rank in ranks]


def test_hashed_ranks_of_lists():
    encoder = HashedRanks("x", np.array(["b", "a"], object), 1000)
    found = [ids.tolist() for ids in encoder.encode([["a", "b"], [], None, ["new", None, "b"]])]
    first, second, unseen = (scalar_hash(rank) % 1000 for rank in (1, 2, 0))
    assert found == [[second, first], [], [], [unseen, unseen, first]]


@pytest.mark.parametrize("values", [np.array([9, -4, 2**40]), np.array(["é", "b"], object), np.array([], object)])
def test_hashed_encoders_are_read_as_they_were_written(tmp_path, values):
    encoders = {"a": HashedIds("raw a", 7), "b": HashedRanks("raw b", values, 11)}
    save_encoders(encoders, tmp_path / "encoders")
    loaded = load_encoders(tmp_path / "encoders")
    assert list(loaded) == ["a", "b"]
    ids, ranks = loaded["a"], loaded["b"]
    assert isinstance(ids, HashedIds) and (ids.column, ids.num_buckets) == ("raw a", 7)
    assert isinstance(ranks, HashedRanks) and (ranks.column, ranks.num_buckets) == ("raw b", 11)
    assert ranks.values.equals(HashedRanks("raw b", values, 11).values)
