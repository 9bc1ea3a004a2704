import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.metrics.evaluations import TestRows, cuts, evaluate, make_rows, rows_of, small_rows
from tests.trainer.metrics.oracles import calibration_error_bin_by_bin, calibration_row_by_row

pytestmark = pytest.mark.filterwarnings("error")


def calibration(rows: TestRows, **how) -> float:
    return evaluate(rows, **how)["calibration"]


def calibration_error(rows: TestRows, **how) -> float:
    return evaluate(rows, **how)["calibration_error"]


def logit(probability) -> np.ndarray:
    probability = np.asarray(probability, float)
    return np.log(probability / (1 - probability))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_both_are_their_definitions_however_rows_are_spread(data):
    rows = data.draw(small_rows())
    how = {"borders": data.draw(cuts(len(rows.logits))), "batch_size": data.draw(st.sampled_from([1, 7, None]))}
    counted = rows.counted[:3]
    np.testing.assert_allclose(calibration(rows, **how), calibration_row_by_row(*counted), rtol=1e-12)
    np.testing.assert_allclose(calibration_error(rows, **how), calibration_error_bin_by_bin(*counted), atol=1e-12)


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("distinct_scores", [1, 2, 40, None])
def test_hundreds_of_rows_agree_with_the_definition(workers, distinct_scores):
    rows = make_rows(600, groups=5, distinct_scores=distinct_scores)
    expected = calibration_error_bin_by_bin(*rows.counted[:3])
    assert calibration_error(rows, workers=workers) == pytest.approx(expected, rel=0, abs=1e-12)


def test_calibration_is_expected_positives_by_positives():
    rows = rows_of(logit([0.5, 0.25, 0.75]), [1, 0, 0], [2, 4, 4])
    assert calibration(rows) == pytest.approx((1 + 1 + 3) / 2, rel=1e-7)


def test_calibration_is_nan_without_a_positive():
    assert np.isnan(calibration(rows_of([1, 2], [0, 0]), workers=2))
    assert np.isnan(calibration(rows_of([], []), workers=2))
    assert calibration(rows_of([0, 0], [1, 1]), workers=2) == 0.5


def test_extreme_logits_do_not_overflow():
    rows = rows_of([-3e38, 3e38, -1000, 1000], [0, 1, 0, 1])
    assert calibration(rows) == 1
    assert calibration_error(rows) == 0


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("offset", [0, 5000])
def test_a_bin_holds_a_hundredth_of_the_rows(workers, offset):
    random = np.random.default_rng(offset)
    scores = np.sort(random.standard_normal(5000)) + offset / 1000
    labels = random.random(5000) < 0.3
    gaps = (1 / (1 + np.exp(-np.float64(np.float32(scores)))) - labels).reshape(100, 50)
    rows = rows_of(scores, labels).permuted(random)
    assert calibration_error(rows, workers=workers) == pytest.approx(np.abs(gaps.mean(axis=1)).mean(), abs=1e-12)


def test_errors_within_a_bin_cancel_and_between_bins_do_not():
    # 100 scores, a bin each: in the first case of one positive and one negative, in the second of only one kind.
    scores = np.repeat(np.arange(100) / 1e6, 2)
    assert calibration_error(rows_of(scores, np.tile([0, 1], 100))) == pytest.approx(0, abs=1e-4)
    assert calibration_error(rows_of(scores, np.repeat(np.tile([0, 1], 50), 2))) == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_tied_rows_stay_in_one_bin(workers):
    # Were the 300 ties cut at hundredths of the mass, in this order, the bins would be all wrong.
    rows = rows_of(np.zeros(300), np.arange(300) >= 150)
    assert calibration_error(rows, workers=workers) == 0
    rows = rows_of([-30] * 100 + [0] * 100 + [30] * 100, [0] * 150 + [1] * 150)
    assert calibration_error(rows, workers=workers) == pytest.approx(0, abs=1e-12)


def test_a_score_goes_to_the_bin_of_the_middle_of_its_mass():
    # The middles of the masses 1, 4 and 195 of 200: 0.25, 1.5 and 51.25 hundredths, of three bins.
    apart = rows_of([-1, 0, 1], [0, 1, 1], [1, 4, 195])
    expected = (1 / (1 + np.e) * 1 + 0.5 * 4 + 195 / (1 + np.e)) / 200
    assert calibration_error(apart) == pytest.approx(expected, abs=1e-12)
    # The middles of the masses 1, 1 and 398 of 400: 0.125, 0.375 and 50.25; the first two share bin 0.
    together = rows_of([-1, 0, 1], [0, 1, 1], [1, 1, 398])
    expected = (0.5 - 1 / (1 + np.e) + 398 / (1 + np.e)) / 400
    assert calibration_error(together) == pytest.approx(expected, abs=1e-12)


def test_a_row_of_weight_two_is_two_rows():
    rows = make_rows(500, groups=1, distinct_scores=200).counted
    twice = np.arange(len(rows.logits)) % 3 == 0
    doubled = rows._replace(weights=np.where(twice, 2 * rows.weights, rows.weights))
    repeated = TestRows(*(np.concatenate([column, column[twice]]) for column in rows))
    assert calibration_error(doubled) == pytest.approx(calibration_error(repeated), abs=1e-12)


@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_the_unit_of_the_weights_does_not_matter(unit):
    rows = make_rows(500, groups=1)
    scaled = rows._replace(weights=(rows.weights * np.float64(unit)).astype(np.float32))
    assert calibration_error(scaled, workers=2) == pytest.approx(calibration_error(rows), rel=1e-6)


def test_the_error_is_nan_without_a_row():
    assert np.isnan(calibration_error(rows_of([], []), workers=2))
    assert np.isnan(calibration_error(rows_of([1], [1], [0])))
