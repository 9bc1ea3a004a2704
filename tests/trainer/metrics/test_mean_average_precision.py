from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.metrics.evaluations import TestRows, cuts, evaluate, make_rows, small_rows
from tests.trainer.metrics.oracles import map_by_shuffling, map_over_all_orders, map_over_all_placements
from tests.trainer.metrics.workers import LocalWorkers
from trainer.metrics.ranking import MeanAveragePrecision
from trainer.metrics.rows import Rows

pytestmark = pytest.mark.filterwarnings("error")


def mean_ap(rows: TestRows, **how) -> float:
    return evaluate(rows, **how)["streaming_map_val"]


def rows_of(logits, labels, group=None) -> TestRows:
    logits, labels = np.array(logits, np.float32), np.array(labels, np.float32)
    group = np.zeros(len(logits), np.int64) if group is None else np.array(group, np.int64)
    return TestRows(logits, labels, np.ones_like(logits), group)


def ranked(labels) -> TestRows:
    """One group without ties, in this order."""
    return rows_of(-np.arange(len(labels)), labels)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_ties_get_the_mean_over_all_their_orders(data):
    rows = data.draw(small_rows(max_rows=6))
    expected = map_over_all_orders(rows.counted.logits, rows.counted.labels, rows.counted.group)
    actual = mean_ap(rows, borders=data.draw(cuts(len(rows.logits))))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_it_is_the_definition_however_rows_are_spread(data):
    rows = data.draw(small_rows(max_rows=45))
    counted = rows.counted
    sizes = np.unique(np.stack([counted.group, (counted.logits + 0).view(np.int32)]), axis=1, return_counts=True)[1]
    if sizes.max(initial=0) > 12:
        return  # the oracle would have too many placements to try
    expected = map_over_all_placements(counted.logits, counted.labels, counted.group)
    batch_size = data.draw(st.sampled_from([1, 7, None]))
    actual = mean_ap(rows, borders=data.draw(cuts(len(rows.logits))), batch_size=batch_size)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("distinct_scores", [12, None])
@pytest.mark.parametrize("group_rows", [1, 2, 5, 13, 40])
def test_groups_of_1_to_40_rows_agree_with_the_definition(workers, distinct_scores, group_rows):
    rows = make_rows(600, groups=600 // group_rows, distinct_scores=distinct_scores)
    expected = map_over_all_placements(rows.counted.logits, rows.counted.labels, rows.counted.group)
    assert mean_ap(rows, workers=workers) == pytest.approx(expected, rel=0, abs=1e-12)


@pytest.mark.parametrize("workers", [1, 3])
def test_large_ties_get_what_shuffling_tends_to(workers):
    random = np.random.default_rng(1)
    rows = rows_of(random.integers(0, 3, 300), random.random(300) < 0.2, random.integers(0, 6, 300))
    expected = map_by_shuffling(rows.logits, rows.labels, rows.group, 400, random)
    assert mean_ap(rows, workers=workers) == pytest.approx(expected, abs=0.02)


def test_a_perfect_order_scores_1_with_several_positives():
    assert mean_ap(ranked([1, 1, 1, 0, 0])) == pytest.approx(1, abs=1e-15)


def test_every_positive_counts_not_only_the_first():
    assert mean_ap(ranked([0, 1, 0, 1])) == pytest.approx((1 / 2 + 2 / 4) / 2, abs=1e-15)


def test_positive_after_rank_12_lowers_the_score():
    assert mean_ap(ranked([1] + [0] * 11 + [1])) == pytest.approx(1 / 2, abs=1e-15)
    assert mean_ap(ranked([0] * 12 + [1])) == 0


def test_more_than_12_positives_divide_by_12():
    assert mean_ap(ranked([0] + [1] * 30)) == pytest.approx(sum(k / (k + 1) for k in range(1, 12)) / 12, abs=1e-12)


def test_tie_across_rank_12_counts_partly():
    # Ranks 1 to 11 hold no positive; one of three tied rows is positive, on rank 12 in one order of three.
    rows = rows_of([*range(20, 9, -1), 0, 0, 0], [0] * 11 + [1, 0, 0])
    assert mean_ap(rows) == pytest.approx(1 / 3 * 1 / 12, abs=1e-15)


def test_two_tied_rows_score_the_mean_of_both_orders():
    assert mean_ap(rows_of([0, 0], [1, 0])) == pytest.approx(float(Fraction(1, 2) * (1 + Fraction(1, 2))), abs=1e-15)


def test_zero_and_negative_zero_are_tied():
    assert mean_ap(rows_of([-0.0, 0.0], [1, 0])) == pytest.approx(0.75, abs=1e-15)


def test_groups_without_a_positive_are_left_out():
    rows = rows_of([2, 1, 2, 1], [0, 1, 0, 0], [5, 5, 6, 6])
    assert mean_ap(rows) == 0.5


def test_it_is_nan_without_any_positive():
    assert np.isnan(mean_ap(rows_of([1, 2], [0, 0]), workers=2))
    assert np.isnan(mean_ap(rows_of([], []), workers=2))


def test_only_weight_0_matters():
    rows = rows_of([3, 2, 1], [0, 1, 0])
    assert mean_ap(rows._replace(weights=np.array([9, 0.5, 3], np.float32))) == 0.5
    assert mean_ap(rows._replace(weights=np.array([0, 0.5, 3], np.float32))) == 1


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_order_of_rows_does_not_matter(workers):
    rows = make_rows(3000, groups=100, distinct_scores=9)
    expected = mean_ap(rows)
    for seed in range(3):
        shuffled = rows.permuted(np.random.default_rng(seed))
        assert mean_ap(shuffled, workers=workers) == pytest.approx(expected, abs=1e-12)


def receipts(rows: TestRows, workers: int) -> list[tuple[float, int]]:
    """Per worker: MAP@12, and the most rows that it was sent at once."""

    def work(comm):
        part = slice(comm.rank * len(rows.logits) // comm.size, (comm.rank + 1) * len(rows.logits) // comm.size)
        value = MeanAveragePrecision().result(Rows(*(column[part] for column in rows)), comm)
        return value, comm.largest_receipt

    return LocalWorkers(workers).run(work)


@pytest.mark.parametrize("distinct_scores", [1, 50, None])
def test_large_group_is_not_sent_whole(distinct_scores):
    rows = make_rows(40_000, groups=40, distinct_scores=distinct_scores, positives=0.5).counted
    rows = rows._replace(group=np.where(np.arange(len(rows.group)) % 10 < 9, 7, rows.group))
    alone = mean_ap(rows)
    for value, largest_receipt in receipts(rows, 4):
        assert value == pytest.approx(alone, abs=1e-12)
        assert largest_receipt <= 41 * 13 * 4


@pytest.mark.parametrize("step", [1, 2, 1000, 2**32])
def test_workers_share_the_groups_evenly_whatever_the_ids(step):
    rows = make_rows(20_000, groups=5000).counted
    group = np.unique(rows.group, return_inverse=True)[1] * step
    for _, largest_receipt in receipts(rows._replace(group=group), 4):
        assert largest_receipt <= 1.2 * len(rows.group) / 4


def test_rows_without_groups_are_rejected():
    rows = rows_of([1], [1])
    with pytest.raises(ValueError, match="no group"):
        LocalWorkers(1).run(lambda comm: MeanAveragePrecision().result(Rows(*rows[:3], None), comm))
