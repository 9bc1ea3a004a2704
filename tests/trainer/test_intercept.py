"""The intercept fitted after training with kept negatives: its definition, and what labels it is fitted for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from data.spec.feature_spec import FeatureSpec
from data.spec.features import Feature
from tests.trainer.metrics.evaluations import cuts, make_rows
from tests.trainer.metrics.workers import LocalWorkers, ThreadWorker
from trainer.comm import SingleWorker
from trainer.config import TrainingOptions
from trainer.metrics.rows import Rows
from trainer.tasks.intercept import LIMIT, fit_intercept
from trainer.tasks.shifts import label_of_kept_negatives, logit_among_kept


def rows_of(logits, labels, weights=None) -> Rows:
    weights = np.ones(len(labels)) if weights is None else weights
    return Rows(*(np.asarray(column, np.float32) for column in (logits, labels, weights)), None)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_it_minimizes_the_log_loss_for_any_number_of_workers(data):
    rows = make_rows(data.draw(st.integers(50, 400)), groups=5, seed=data.draw(st.integers(0, 99)))
    rows = rows_of(rows.logits * 2 - 1, rows.labels, rows.weights).select(rows.weights > 0)
    logits, labels, weights = (column.astype(np.float64) for column in rows[:3])

    def loss(intercept: float) -> float:
        return float(weights @ (np.logaddexp(0, logits + intercept) - labels * (logits + intercept)))

    edges = [0, *data.draw(cuts(len(labels))), len(labels)]

    def work(comm: ThreadWorker) -> float:
        part = slice(*edges[comm.rank : comm.rank + 2])
        return fit_intercept(rows_of(*(column[part] for column in rows[:3])), comm)

    found = LocalWorkers(len(edges) - 1).run(work)
    assert len(set(found)) == 1
    assert found[0] == pytest.approx(minimize_scalar(loss, bounds=(-LIMIT, LIMIT), method="bounded").x, abs=1e-3)
    assert found[0] == pytest.approx(fit_intercept(rows, SingleWorker()), abs=1e-8)


def test_equal_logits_become_the_log_odds_of_the_weighted_labels():
    rows = rows_of([0.5, 0.5, 0.5], [1, 0, 0], [3, 1, 0.5])
    assert fit_intercept(rows, SingleWorker()) == pytest.approx(np.log(3 / 1.5) - 0.5, abs=1e-7)


@pytest.mark.parametrize(
    ("logits", "labels", "expected"),
    [([1, -2], [0, 0], 0), ([1, -2], [1, 1], 0), ([50, 60], [0, 1], -LIMIT), ([-50, -60], [0, 1], LIMIT)],
)
def test_it_stays_where_rows_or_models_are_of_no_use(logits, labels, expected):
    assert fit_intercept(rows_of(logits, labels), SingleWorker()) == expected


def spec_of(labels: dict[str, dict], rate: float | None = 0.1) -> FeatureSpec:
    features = {name: Feature(name=name, **keys) for name, keys in labels.items()}
    features["weight"] = Feature(name="weight", role="sample_weight", negative_rate=rate)
    return FeatureSpec(None, features, {}, {"label": tuple(labels)}, {})


@pytest.mark.parametrize("negatives", ["weights", "logit"])
def test_log_odds_among_kept_rows(negatives):
    rate, factor, p = 0.1, 3.0, 0.04
    spec = spec_of({"click": {"positive_weight": factor}}, rate)
    kept = p / (p + rate * (1 - p))
    weight = 1 / rate if negatives == "weights" else 1.0
    grid = np.linspace(1e-4, 1 - 1e-4, 400_001)
    learned = grid[np.argmin(-kept * factor * np.log(grid) - weight * (1 - kept) * np.log(1 - grid))]
    known = logit_among_kept(spec, spec.labels[0], TrainingOptions(negatives=negatives))
    found = 1 / (1 + np.exp(-np.log(learned / (1 - learned)) - known))
    assert found == pytest.approx(kept, abs=1e-5)


@pytest.mark.parametrize(
    ("labels", "rate", "mapping", "expected"),
    [
        ({"click": {}}, 0.1, "train", "click"),
        (
            {"click": {}, "buy": {"given": "click"}, "spend": {"given": "buy", "task": "regression"}},
            0.1,
            "train",
            "click",
        ),
        ({"click": {}}, None, "train", None),
        ({"click": {}}, 0.1, "fold_1", None),
        ({"click": {}, "like": {}}, 0.1, "train", None),
        ({"stars": {"task": "regression"}}, 0.1, "train", None),
        ({"click": {"task": "pairwise"}}, 0.1, "train", None),
    ],
)
def test_labels_it_is_fitted_for(labels, rate, mapping, expected):
    found = label_of_kept_negatives(spec_of(labels, rate), mapping)
    assert (None if found is None else found.name) == expected
