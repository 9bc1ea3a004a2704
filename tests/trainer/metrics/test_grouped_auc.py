import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.metrics.evaluations import TestRows, cuts, evaluate, make_rows, rows_of, small_rows
from tests.trainer.metrics.oracles import auc_group_by_group
from tests.trainer.metrics.workers import LocalWorkers
from trainer.metrics.grouped import GroupedAuc
from trainer.metrics.rows import Rows

pytestmark = pytest.mark.filterwarnings("error")


def gauc(rows: TestRows, **how) -> float:
    return evaluate(rows, **how)["gauc"]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_equals_the_mean_over_groups(data):
    rows = data.draw(small_rows(max_rows=60))
    batch_size = data.draw(st.sampled_from([1, 7, None]))
    actual = gauc(rows, borders=data.draw(cuts(len(rows.logits))), batch_size=batch_size)
    np.testing.assert_allclose(actual, auc_group_by_group(*rows.counted), rtol=0, atol=1e-12)


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("distinct_scores", [1, 6, None])
@pytest.mark.parametrize("groups", [1, 2, 5, 60])
def test_hundreds_of_rows_agree_with_all_pairs(workers, distinct_scores, groups):
    rows = make_rows(400, groups=groups, distinct_scores=distinct_scores)
    expected = auc_group_by_group(*rows.counted)
    assert gauc(rows, workers=workers) == pytest.approx(expected, rel=0, abs=1e-12)


def test_groups_weigh_what_their_rows_do():
    # AUC 1 in a group of 2 rows, 0 in one of 3, and one that has no AUC.
    rows = rows_of([1, 0, 1, 2, 3, 9, 8], [1, 0, 1, 0, 0, 1, 1], group=[5, 5, 6, 6, 6, 7, 7])
    assert gauc(rows) == pytest.approx(2 / 5, abs=1e-15)
    assert gauc(rows._replace(weights=np.float32([4, 2, 1, 1, 1, 50, 50]))) == pytest.approx(6 / 9, abs=1e-15)


def test_a_tie_counts_one_half():
    assert gauc(rows_of([-0.0, 0.0], [1, 0])) == 0.5


def test_scores_of_different_groups_are_not_compared():
    rows = make_rows(500, groups=20)
    moved = rows._replace(logits=(rows.logits + np.unique(rows.group, return_inverse=True)[1] * 4).astype(np.float32))
    new_ties = len(np.unique(np.stack([moved.logits, rows.group]), axis=1).T) < 500
    assert not new_ties
    assert gauc(moved, workers=2) == pytest.approx(gauc(rows), abs=1e-12)


def test_rows_of_a_group_on_several_workers_are_compared():
    rows = rows_of([3, 1, 2, 0], [1, 1, 0, 0], group=[1, 1, 1, 1])
    assert gauc(rows, workers=4) == 0.75


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1], []])
def test_it_is_nan_when_no_group_has_both_classes(labels):
    assert np.isnan(gauc(rows_of(range(len(labels)), labels), workers=2))
    assert np.isnan(gauc(rows_of([0, 1], [0, 1], group=[0, 1]), workers=2))


def test_with_one_group_it_is_the_auc():
    result = evaluate(make_rows(3000, groups=1, distinct_scores=40), workers=3)
    assert result["gauc"] == pytest.approx(result["auc_roc"], abs=1e-12)


def test_a_small_group_behind_large_ones_keeps_its_digits():
    random = np.random.default_rng(0)
    weights = 10.0 ** random.uniform(-5, 5, 100_000)  # whose sums float64 cannot hold exactly
    rows = rows_of(
        np.concatenate([random.standard_normal(100_000), [0.25, 0.75, 0.5]]),
        [0] * 100_000 + [0, 0, 1],
        np.concatenate([weights, [1e-5, 3e-5, 1e-5]]),
        [0] * 100_000 + [1, 1, 1],
    )
    assert gauc(rows) == pytest.approx(0.25, abs=1e-6)  # 3e-5 in float32
    alone = TestRows(*(column[-3:] for column in rows))
    assert gauc(rows) == pytest.approx(gauc(alone), abs=1e-15)


def receipts(rows: TestRows, workers: int) -> list[tuple[float, int]]:
    """Per worker: GAUC, and the most rows that it was sent at once."""

    def work(comm):
        part = slice(comm.rank * len(rows.logits) // comm.size, (comm.rank + 1) * len(rows.logits) // comm.size)
        value = GroupedAuc().result(Rows(*(column[part] for column in rows)), comm)
        return value, comm.largest_receipt

    return LocalWorkers(workers).run(work)


@pytest.mark.parametrize("groups", [1, 40, 5000])
def test_one_large_group_is_shared_evenly(groups):
    rows = make_rows(20_000, groups=groups).counted
    rows = rows._replace(group=np.where(np.arange(len(rows.group)) % 10 < 9, 7, rows.group))
    rows = TestRows(*(column[np.argsort(rows.logits)] for column in rows))  # each worker starts in a range of its own
    alone = gauc(rows)
    for value, largest_receipt in receipts(rows, 4):
        assert value == pytest.approx(alone, abs=1e-12)
        assert largest_receipt <= 1.25 * len(rows.group) / 4


def test_one_score_sends_one_line_per_group():
    rows = rows_of(np.zeros(10_000), np.arange(10_000) % 3 == 0, group=np.arange(10_000) % 10)
    for value, largest_receipt in receipts(rows, 4):
        assert value == 0.5
        assert largest_receipt <= 40


def test_rows_without_groups_are_rejected():
    rows = rows_of([1], [1])
    with pytest.raises(ValueError, match="no group"):
        LocalWorkers(1).run(lambda comm: GroupedAuc().result(Rows(*rows[:3], None), comm))
