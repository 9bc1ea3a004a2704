import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.metrics.evaluations import TestRows, cuts, evaluate, make_rows, rows_of, small_rows
from tests.trainer.metrics.oracles import average_precision_score_by_score

pytestmark = pytest.mark.filterwarnings("error")


def pr_auc(rows: TestRows, **how) -> float:
    return evaluate(rows, **how)["pr_auc"]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_equals_precision_times_gained_recall(data):
    rows = data.draw(small_rows())
    batch_size = data.draw(st.sampled_from([1, 7, None]))
    actual = pr_auc(rows, borders=data.draw(cuts(len(rows.logits))), batch_size=batch_size)
    np.testing.assert_allclose(actual, average_precision_score_by_score(*rows.counted[:3]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("distinct_scores", [1, 2, 11, None])
def test_hundreds_of_rows_agree_with_the_definition(workers, distinct_scores):
    rows = make_rows(400, groups=5, distinct_scores=distinct_scores)
    expected = average_precision_score_by_score(*rows.counted[:3])
    assert pr_auc(rows, workers=workers) == pytest.approx(expected, rel=0, abs=1e-12)


def test_positives_at_ranks_1_and_3():
    assert pr_auc(rows_of([4, 3, 2, 1], [1, 0, 1, 0])) == pytest.approx((1 + 2 / 3) / 2, abs=1e-15)


def test_tied_rows_are_taken_at_once():
    assert pr_auc(rows_of([1, 1, 0, 0], [1, 0, 1, 0])) == pytest.approx((1 / 2 + 2 / 4) / 2, abs=1e-15)
    assert pr_auc(rows_of([0, -0.0, 0, 0], [1, 0, 0, 0])) == 1 / 4


def test_a_row_of_weight_two_is_two_rows():
    twice = pr_auc(rows_of([0.4, 0.3, 0.2, 0.1], [1, 0, 1, 0], [1, 2, 2, 1]))
    assert twice == pr_auc(rows_of([0.4, 0.3, 0.3, 0.2, 0.2, 0.1], [1, 0, 0, 1, 1, 0]))


def test_nan_without_positives_1_without_negatives():
    assert np.isnan(pr_auc(rows_of([1, 2], [0, 0]), workers=2))
    assert np.isnan(pr_auc(rows_of([], []), workers=2))
    assert pr_auc(rows_of([1, 2], [1, 1]), workers=2) == 1
