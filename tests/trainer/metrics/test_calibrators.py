"""Calibrators against their definitions: min-max over all ranges of scores, and the gradient of the likelihood."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.metrics.evaluations import cuts, evaluate, make_rows, rows_of, small_rows
from tests.trainer.metrics.workers import LocalWorkers, ThreadWorker
from trainer.metrics.rows import Rows
from trainer.tasks.calibrators import fit_isotonic, fit_platt

pytestmark = pytest.mark.filterwarnings("error")


def fitted(fit, rows, borders=()):
    """A calibrator of rows that are cut into workers at `borders`; fails unless all of them get the same."""
    rows = rows.counted
    edges = [0, *borders, len(rows.logits)]

    def work(comm: ThreadWorker):
        part = slice(*edges[comm.rank : comm.rank + 2])
        return fit(Rows(rows.logits[part], rows.labels[part], rows.weights[part], None), comm)

    results = LocalWorkers(len(edges) - 1).run(work)
    assert all(result == results[0] for result in results)
    return results[0]


def isotonic_by_definition(logits, labels, weights):
    """The regression at each distinct score: the largest, over starts, of the smallest mean up to any end.

    With a row of mean weight and the other label at either end. Returns scores and shares of positives.
    """
    scores = np.unique(logits)
    weights, mean = weights.astype(float), weights.astype(float).mean()
    positive = np.array([weights[(logits == score) & (labels == 1)].sum() for score in scores])
    total = np.array([weights[logits == score].sum() for score in scores])
    positive[0], total[0] = positive[0] + mean, total[0] + mean
    total[-1] += mean
    last = len(scores)
    return scores, np.array(
        [
            max(
                min(positive[start:end].sum() / total[start:end].sum() for end in range(at + 1, last + 1))
                for start in range(at + 1)
            )
            for at in range(last)
        ]
    )


def has_both(rows) -> bool:
    return len(np.unique(rows.counted.labels)) == 2


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_isotonic_is_its_definition_however_rows_are_spread(data):
    rows = data.draw(small_rows().filter(has_both))
    found = fitted(fit_isotonic, rows, data.draw(cuts(len(rows.counted.logits))))
    counted = rows.counted
    scores, shares = isotonic_by_definition(*counted[:3])
    levels = np.split(np.arange(len(scores)), np.flatnonzero(np.diff(shares) > 1e-9) + 1)
    weights = np.array([counted.weights[counted.logits == score].sum(dtype=float) for score in scores])
    centers = [np.average(scores[level].astype(float), weights=weights[level]) for level in levels]
    expected = [math.log(shares[level[0]] / (1 - shares[level[0]])) for level in levels]
    np.testing.assert_allclose(found.logits, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.scores, centers, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fit", [fit_platt, fit_isotonic])
@pytest.mark.parametrize("distinct_scores", [30, None])
def test_workers_and_order_do_not_matter(fit, distinct_scores):
    rows = make_rows(3000, groups=5, distinct_scores=distinct_scores)
    rows = rows._replace(labels=np.where(rows.logits > 1, 1, rows.labels).astype(np.float32))
    once = fitted(fit, rows)
    again = fitted(fit, rows.permuted(np.random.default_rng(1)), [700, 700, 1600])
    for name in once.__dataclass_fields__:
        np.testing.assert_allclose(getattr(again, name), getattr(once, name), rtol=1e-6, atol=1e-6)


def drawn(slope: float, intercept: float, count: int = 20_000):
    """Rows whose log-odds are a line in the logit."""
    random = np.random.default_rng(0)
    logits = random.normal(-1, 2, count)
    return rows_of(logits, random.random(count) < 1 / (1 + np.exp(-(slope * logits + intercept))))


def test_platt_finds_the_line():
    line = fitted(fit_platt, drawn(0.6, -0.4))
    assert line.slope == pytest.approx(0.6, abs=0.03) and line.intercept == pytest.approx(-0.4, abs=0.05)


@settings(max_examples=60, deadline=None)
@given(rows=small_rows().filter(has_both))
def test_platt_is_a_minimum(rows):
    counted = rows.counted
    line = fitted(fit_platt, rows)
    positive = (counted.labels == 1).sum()
    targets = np.where(counted.labels == 1, (positive + 1) / (positive + 2), 1 / (len(counted.labels) - positive + 2))
    scores, weights = counted.logits.astype(float), counted.weights.astype(float)

    def loss(slope: float, intercept: float) -> float:
        logits = slope * scores + intercept
        return float(weights @ (np.logaddexp(0, logits) - targets * logits) / weights.sum())

    best = loss(line.slope, line.intercept)
    for slope, intercept in ((0, 0.01), (0, -0.01), (0.01, 0), (-0.01, 0), (0.01, -0.01), (0.3, 0.3)):
        if line.slope + slope >= 0:
            assert best <= loss(line.slope + slope, line.intercept + intercept) + 1e-9


@pytest.mark.parametrize("fit", [fit_platt, fit_isotonic])
def test_separable_rows_give_finite_probabilities(fit):
    found = fitted(fit, rows_of([-2, -1, 1, 2], [0, 0, 1, 1]))
    mapped = found(np.array([-1e30, -2, 0, 2, 1e30]))
    assert (np.diff(mapped) > 0).all() and np.isfinite(mapped).all()


@pytest.mark.parametrize("fit", [fit_platt, fit_isotonic])
def test_rows_in_the_wrong_order_get_one_probability(fit):
    random = np.random.default_rng(0)
    logits = random.normal(size=2000)
    found = fitted(fit, rows_of(logits, random.random(2000) < 1 / (1 + np.exp(logits))))
    probabilities = 1 / (1 + np.exp(-found(np.linspace(-3, 3, 7))))
    assert np.ptp(probabilities) < 0.1 if fit is fit_isotonic else found.slope == 0
    assert probabilities.mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("fit", [fit_platt, fit_isotonic])
def test_calibration_is_better_and_the_order_stays(fit):
    rows = drawn(0.5, -1.0)
    mapped = rows._replace(logits=np.float32(fitted(fit, rows)(rows.logits.astype(float))))
    before, after = evaluate(rows), evaluate(mapped)
    assert before["calibration_error"] > 0.05 and after["calibration_error"] < 0.2 * before["calibration_error"]
    assert abs(after["calibration"] - 1) < 0.01 and after["loss_val"] < before["loss_val"]
    assert after["auc_roc"] == pytest.approx(before["auc_roc"], abs=1e-6)  # ties by rounding
