import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.metrics.evaluations import TestRows, cuts, evaluate, make_rows, rows_of, small_rows
from tests.trainer.metrics.oracles import auc_over_all_pairs
from tests.trainer.metrics.workers import LocalWorkers
from trainer.metrics.auc import RocAuc
from trainer.metrics.rows import Rows
from trainer.metrics.score_table import score_table

pytestmark = pytest.mark.filterwarnings("error")


def auc(rows: TestRows, **how) -> float:
    return evaluate(rows, **how)["auc_roc"]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_equals_the_share_of_ordered_pairs(data):
    rows = data.draw(small_rows())
    borders = data.draw(cuts(len(rows.logits)))
    batch_size = data.draw(st.sampled_from([1, 7, None]))
    expected = auc_over_all_pairs(*rows.counted[:3])
    actual = auc(rows, borders=borders, batch_size=batch_size)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("distinct_scores", [1, 2, 11, None])
def test_hundreds_of_rows_agree_with_all_pairs(workers, distinct_scores):
    rows = make_rows(400, groups=5, distinct_scores=distinct_scores)
    expected = auc_over_all_pairs(*rows.counted[:3])
    assert auc(rows, workers=workers) == pytest.approx(expected, rel=0, abs=1e-12)


def test_a_tie_counts_one_half():
    assert auc(rows_of([1, 1, 1, 0], [1, 0, 0, 0])) == (0.5 + 0.5 + 1) / 3


def test_zero_and_negative_zero_are_tied():
    assert auc(rows_of([-0.0, 0.0], [1, 0])) == 0.5


def test_neighbouring_floats_are_not_tied():
    near = np.nextafter(np.float32(-1.5), np.float32(0))
    assert auc(rows_of([near, -1.5], [1, 0])) == 1
    assert auc(rows_of([near, -1.5], [0, 1])) == 0


def test_a_row_of_weight_two_is_two_rows():
    twice = auc(rows_of([0.1, 0.4, 0.2, 0.3], [1, 1, 0, 0], [1, 2, 1, 2]))
    assert twice == auc(rows_of([0.1, 0.4, 0.4, 0.2, 0.3, 0.3], [1, 1, 1, 0, 0, 0]))


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1], []])
def test_it_is_nan_when_a_class_is_absent(labels):
    assert np.isnan(auc(rows_of(range(len(labels)), labels), workers=2))


def test_it_is_not_the_mean_over_workers():
    # Sorted by score and cut in two, each half alone looks like chance.
    logits = np.repeat([-1.0, 1.0], 500)
    labels = np.concatenate([np.tile([0, 0, 0, 0, 1], 100), np.tile([0, 1, 1, 1, 1], 100)])
    rows = rows_of(logits, labels)
    assert auc(rows, workers=2) == pytest.approx(0.8, abs=1e-12)
    assert auc(TestRows(*(column[:500] for column in rows))) == 0.5


def on_workers(rows: TestRows, workers: int, function) -> list:
    def work(comm):
        part = slice(comm.rank * len(rows.logits) // workers, (comm.rank + 1) * len(rows.logits) // workers)
        return function(Rows(rows.logits[part], rows.labels[part], rows.weights[part], None), comm)

    return LocalWorkers(workers).run(work)


@pytest.mark.parametrize("distinct_scores", [5, 300, None])
def test_workers_share_the_scores_evenly_and_none_twice(distinct_scores):
    rows = make_rows(20_000, groups=1, distinct_scores=distinct_scores).counted
    rows = TestRows(*(column[np.argsort(rows.logits)] for column in rows))  # each worker starts in a range of its own
    parts = on_workers(rows, 4, score_table)
    scores = np.concatenate([part.scores for part in parts])
    np.testing.assert_array_equal(scores, np.unique(rows.logits))
    assert max(len(part.scores) for part in parts) <= len(scores) / 4 * 1.25 + 1


def test_one_score_sends_one_line_per_worker():
    rows = rows_of(np.zeros(10_000), np.arange(10_000) % 3 == 0)

    def work(mine, comm):
        return RocAuc().result(mine, comm), comm.largest_receipt

    for value, largest_receipt in on_workers(rows, 4, work):
        assert value == 0.5
        assert largest_receipt <= 4


def keras_style_auc(rows: TestRows, num_thresholds: int) -> float:
    """Trapezoids between the points of the curve at each threshold, in a plain loop."""
    probabilities = 1 / (1 + np.exp(-rows.logits.astype(np.float64)))
    thresholds = [-1.0, *(step / (num_thresholds - 1) for step in range(1, num_thresholds - 1)), 2.0]
    positive, weights = rows.labels == 1, rows.weights.astype(np.float64)
    points = [
        (
            weights[~positive & (probabilities > threshold)].sum() / weights[~positive].sum(),
            weights[positive & (probabilities > threshold)].sum() / weights[positive].sum(),
        )
        for threshold in thresholds
    ]
    return sum((x0 - x1) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in zip(points[:-1], points[1:], strict=True))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("num_thresholds", [2, 3, 10, 200])
def test_thresholds_equal_the_trapezoids_of_keras(workers, num_thresholds):
    rows = make_rows(500, groups=1)
    actual = auc(rows, workers=workers, num_auc_thresholds=num_thresholds)
    assert actual == pytest.approx(keras_style_auc(rows.counted, num_thresholds), abs=1e-12)


def test_thresholds_stand_a_worker_without_rows():
    rows = make_rows(50, groups=1)
    assert auc(rows, borders=[0], num_auc_thresholds=10) == auc(rows, num_auc_thresholds=10)


def test_thresholds_stand_extreme_logits():
    rows = rows_of([-3e38, -1000, 1000, 3e38], [0, 0, 1, 1])
    assert auc(rows, num_auc_thresholds=10) == 1


def test_many_thresholds_come_close_to_the_exact_value():
    rows = make_rows(5000, groups=1)
    assert auc(rows, num_auc_thresholds=8000) == pytest.approx(auc(rows), abs=1e-4)


@pytest.mark.parametrize("number", [1, -5])
def test_a_number_of_thresholds_without_a_curve_is_rejected(number):
    with pytest.raises(ValueError, match="at least 2"):
        RocAuc(number)
