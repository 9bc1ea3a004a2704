import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.metrics.evaluations import TestRows, cuts, evaluate, make_rows, rows_of, small_rows
from tests.trainer.metrics.oracles import entropy_of_labels, log_loss_row_by_row

pytestmark = pytest.mark.filterwarnings("error")


def log_loss(rows: TestRows, **how) -> float:
    return evaluate(rows, **how)["loss_val"]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_it_is_the_mean_over_rows_however_they_are_spread(data):
    rows = data.draw(small_rows())
    batch_size = data.draw(st.sampled_from([1, 7, None]))
    actual = log_loss(rows, borders=data.draw(cuts(len(rows.logits))), batch_size=batch_size)
    np.testing.assert_allclose(actual, log_loss_row_by_row(*rows.counted[:3]), rtol=1e-12, atol=0)


def test_several_blocks_of_rows():
    rows = make_rows(300_000, groups=2).counted
    assert log_loss(rows) == pytest.approx(log_loss_row_by_row(*rows[:3]), rel=1e-12)


@pytest.mark.parametrize(
    ("logit", "label", "expected"), [(1000, 0, 1000), (1000, 1, 0), (-1000, 1, 1000), (3e38, 1, 0)]
)
def test_extreme_logits_do_not_overflow(logit, label, expected):
    column = np.array([logit], np.float32)
    rows = TestRows(column, np.array([label], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
    assert log_loss(rows) == expected


def test_it_is_nan_without_a_row():
    assert np.isnan(log_loss(make_rows(0, groups=1), workers=2))


def test_confident_rows_keep_their_small_losses():
    rows = TestRows(np.float32([30, -30]), np.float32([1, 0]), np.ones(2, np.float32), np.zeros(2, np.int64))
    assert log_loss(rows) == pytest.approx(np.exp(-30), rel=1e-12)


def normalized_entropy(rows: TestRows, **how) -> float:
    return evaluate(rows, **how)["normalized_entropy"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_normalized_entropy_is_relative_to_labels(data):
    rows = data.draw(small_rows())
    counted = rows.counted
    actual = normalized_entropy(rows, borders=data.draw(cuts(len(rows.logits))))
    if len(np.unique(counted.labels)) < 2:
        assert np.isnan(actual)
    else:
        expected = log_loss_row_by_row(*counted[:3]) / entropy_of_labels(counted.labels, counted.weights)
        assert actual == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_normalized_entropy_of_the_base_rate_is_1(workers):
    rows = rows_of(np.full(400, np.log(1 / 3)), np.arange(400) % 4 == 0)
    assert normalized_entropy(rows, workers=workers) == pytest.approx(1, abs=1e-7)  # log(1 / 3) in float32


def test_normalized_entropy_with_rare_positives():
    rows = rows_of([0, 0], [1, 0], [1e-12, 1])
    rate = 1e-12 / (1 + 1e-12)  # -log(1 - rate) is about the rate itself
    entropy = -rate * np.log(rate) + (1 - rate) * rate
    assert normalized_entropy(rows) == pytest.approx(np.log(2) / entropy, rel=1e-7)  # 1e-12 in float32
