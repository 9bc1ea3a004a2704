"""Corrections and calibrators of probabilities: derivations, every place that applies them, and bad input."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import tensorflow as tf

from data.errors import DataError
from data.loading.batch import Batch
from data.spec.feature_spec import FeatureSpec
from data.spec.features import Feature
from data.storage.typed_json import read_typed
from tests.trainer.export.models import draw_inputs, predicted, write_run
from tests.trainer.export.test_formats import FORMATS
from tests.trainer.metrics.evaluations import make_rows
from trainer.checkpoint.store import NoCheckpointError
from trainer.comm import SingleWorker
from trainer.config import TrainingOptions
from trainer.export.comparison import expected_predictions
from trainer.metrics.calibration import probability
from trainer.tasks.binary import BinaryTask, with_logit_maps
from trainer.tasks.evaluation import Evaluation
from trainer.tasks.logit_map import Isotonic, LogitMap, Platt
from trainer.tasks.shifts import logit_shifts, weighted_positives, without_negative_factor

KNOTS = Isotonic((-3.0, -0.25, -0.125, 2.0), (-4.0, -1.0, 0.5, 0.5))
MAPS = [
    LogitMap(-1.5),
    LogitMap(0.25, Platt(0.5, -0.75)),
    LogitMap(0.0, KNOTS),
    LogitMap(0.5, Isotonic((0.5,), (-2.0,))),
    LogitMap(0.0, Isotonic(tuple(np.arange(-8.0, 8.0).tolist()), tuple(np.arange(16.0).tolist()))),
]


def by_hand(one: LogitMap, logit: float) -> float:
    """The mapped logit, knot by knot."""
    logit += one.shift
    if one.calibrator is None:
        return logit
    if isinstance(one.calibrator, Platt):
        return one.calibrator.slope * logit + one.calibrator.intercept
    knots = list(zip(one.calibrator.scores, one.calibrator.logits, strict=True))
    below, above = ([knot for knot in knots if knot[0] <= logit], [knot for knot in knots if knot[0] > logit])
    if not below or not above:
        score, value = below[-1] if below else above[0]
        return value + (logit - score) / 64
    (x0, y0), (x1, y1) = below[-1], above[0]
    return y0 + (y1 - y0) * (logit - x0) / (x1 - x0)


@pytest.mark.parametrize("one", MAPS)
def test_arrays_and_graphs_apply_the_same_map(one):
    logits = np.concatenate([np.linspace(-9, 9, 97), [-80, 80, -0.25, -0.125, 2.0]]).astype(np.float32)
    expected = [by_hand(one, float(logit)) for logit in logits]
    np.testing.assert_allclose(one(logits), expected, rtol=1e-6, atol=1e-6)
    graph = tf.function(one.in_graph, input_signature=[tf.TensorSpec([None, 1], tf.float32)])
    np.testing.assert_allclose(graph(logits[:, np.newaxis])[:, 0], expected, rtol=1e-5, atol=1e-5)
    assert np.isnan(one(np.float32([np.nan]))).all() and np.isnan(graph(np.float32([[np.nan]]))).all()
    stored = json.loads(json.dumps(asdict(one)))
    assert read_typed(LogitMap, stored, "map") == one


def test_no_map_changes_no_bit():
    logits = np.float32([-1e30, -0.0, 0.1, 5])
    assert LogitMap()(logits) is logits and LogitMap().is_identity


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Platt(-0.1, 0.0), "slope is -0.1, expected at least 0"),
        (lambda: Isotonic((), ()), "0 scores and 0 logits"),
        (lambda: Isotonic((1.0, 2.0), (1.0,)), "2 scores and 1 logits"),
        (lambda: Isotonic((1.0, 1.0), (1.0, 2.0)), "do not increase"),
        (lambda: Isotonic((1.0, 2.0), (1.0, 0.5)), "decrease"),
        (lambda: with_logit_maps([BinaryTask("click")], {"buy": LogitMap(1.0)}), "of buy, which are no binary labels"),
    ],
)
def test_what_is_no_map_is_rejected(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# What training adds


def spec_of(labels: dict[str, dict], rate: float | None = 0.1, weight: bool = True) -> FeatureSpec:
    features = {name: Feature(name=name, **keys) for name, keys in labels.items()}
    if weight:
        features["weight"] = Feature(name="weight", role="sample_weight", negative_rate=rate)
    return FeatureSpec(None, features, {}, {"label": tuple(labels)}, {})


def shifts(labels: dict[str, dict], mapping: str = "train", joint: bool = False, rate=0.1, weight=True, **flags):
    spec = spec_of(labels, rate, weight)
    return logit_shifts(spec, mapping, TrainingOptions(**flags), trains_joint_probabilities=joint)


def test_a_shift_undoes_what_keeping_negatives_does():
    p, r = np.array([0.001, 0.02, 0.5, 0.9]), 0.1
    kept = p / (p + r * (1 - p))
    found = shifts({"click": {}}, negatives="logit")
    corrected = probability(np.log(kept / (1 - kept)) + found["click"])
    np.testing.assert_allclose(corrected, p, rtol=1e-12)
    np.testing.assert_allclose(corrected, kept / (kept + (1 - kept) / r), rtol=1e-12)


def test_a_shift_undoes_a_positive_weight():
    grid = np.linspace(1e-4, 1 - 1e-4, 200_001)
    for p in (0.02, 0.4):
        best = grid[np.argmin(-5 * p * np.log(grid) - (1 - p) * np.log(1 - grid))]
        found = shifts({"click": {"positive_weight": 5.0}}, correct_positive_weight=True)
        assert probability(np.log(best / (1 - best)) + found["click"]) == pytest.approx(p, abs=1e-4)


def test_shifts_of_several_labels():
    labels = {
        "click": {"positive_weight": 2.0},
        "buy": {"given": "click", "positive_weight": 4.0},
        "n": {"given": "buy"},
    }
    found = shifts(labels, negatives="logit", correct_positive_weight=True)
    assert found == {"click": pytest.approx(np.log(0.1 / 2)), "buy": pytest.approx(-np.log(4))}
    assert shifts(labels) == {}
    assert shifts(labels, negatives="logit", joint=True) == {"click": pytest.approx(np.log(0.1))}


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"rate": None}, "the weights state no negative_rate.*Write it with preprocess.py and keep_negatives"),
        ({"weight": False}, "it has no sample weights"),
        ({"mapping": "fold_1"}, "--train_mapping fold_1 all of them; remove one of the flags"),
        ({"labels": {"click": {}, "like": {}}}, "of click, like. It needs one binary label.*--negatives weights"),
        ({"labels": {"stars": {"task": "regression"}}}, "of stars. It needs one binary label"),
    ],
)
def test_negatives_that_no_shift_corrects(how, words):
    with pytest.raises(DataError, match=words):
        shifts(**({"labels": {"click": {}}, "negatives": "logit"} | how))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"labels": {"click": {}}}, "no label of the feature specification has a positive_weight"),
        (
            {"labels": {"click": {}, "buy": {"given": "click", "positive_weight": 2.0}}, "joint": True},
            "product of probabilities",
        ),
    ],
)
def test_positive_weights_that_no_shift_corrects(how, words):
    with pytest.raises(DataError, match=words):
        shifts(**how, correct_positive_weight=True)


def test_a_positive_weight_warns_until_it_is_corrected():
    spec = spec_of({"click": {"positive_weight": 5.0}, "like": {}})
    (text,) = weighted_positives(spec, TrainingOptions())
    assert "'click' has positive_weight 5" in text and "--correct_positive_weight" in text
    assert not list(weighted_positives(spec, TrainingOptions(correct_positive_weight=True)))
    assert not list(weighted_positives(spec, TrainingOptions(calibrate="platt")))


def test_only_the_factor_of_negatives_leaves_the_weights():
    spec = spec_of({"click": {}, "stars": {"task": "regression"}, "buy": {"given": "click", "missing": "ignore"}}, 0.3)
    own = np.float32([1, 2.5, 0.7, 3, 0])
    labels = np.float32([[0, 5, 0], [1, 0, 0], [0, 0, np.nan], [0, 1, 1], [0, 0, 0]])
    negative = np.array([True, False, True, False, True])
    weights = np.where(negative, own / 0.3, own).astype(np.float32)
    empty = np.zeros((5, 0), np.float32)
    batch = Batch(**{name: empty for name in Batch.__annotations__} | {"labels": labels, "weights": weights})
    without_negative_factor(spec)(batch, 0)
    np.testing.assert_allclose(batch.weights, own, rtol=1e-7)


# Where maps apply


def test_an_evaluation_measures_what_is_predicted():
    rows = make_rows(900, groups=5)
    others = make_rows(900, groups=5, seed=1)
    tasks = BinaryTask("click"), BinaryTask("buy", given=0)
    maps = {"click": MAPS[2], "buy": MAPS[1]}
    labels = np.stack([rows.labels, others.labels * rows.labels], axis=1)
    logits = np.stack([rows.logits, others.logits], axis=1)

    def measured(tasks, logits):
        evaluation = Evaluation(tasks, with_group=False)
        evaluation.update(logits, labels, rows.weights)
        return evaluation.result(SingleWorker()), evaluation

    mapped = np.stack([maps["click"](logits[:, 0]), maps["buy"](logits[:, 1])], axis=1)
    expected, _ = measured(tasks, mapped)
    found, evaluation = measured(with_logit_maps(tasks, maps), logits)
    assert found == expected
    shifted, before = measured(tasks, logits + np.float32([0, maps["buy"].shift]))
    for name in ("click", "buy", "click+buy"):
        for column, wanted in zip(
            evaluation.curves[f"uncalibrated_curve/{name}"], before.curves[f"calibration_curve/{name}"], strict=True
        ):
            np.testing.assert_allclose(column, wanted, rtol=1e-6)
    evaluation.tasks = tasks  # for the rows that are already there
    evaluation.update(logits[:0], labels[:0], rows.weights[:0])
    assert evaluation.result(SingleWorker())["loss_val/click"] == shifted["loss_val/click"]
    assert not any("uncalibrated" in key for key in evaluation.curves)


def test_infinite_logits_are_reported_although_a_map_would_hide_them():
    evaluation = Evaluation(with_logit_maps([BinaryTask("click")], {"click": MAPS[2]}), with_group=False)
    evaluation.update(np.float32([[np.inf], [0]]), np.float32([[1], [0]]), np.ones(2, np.float32))
    with pytest.raises(FloatingPointError, match="click"):
        evaluation.result(SingleWorker())


@pytest.mark.parametrize(("labels", "lacks"), [([0, 0], "positive"), ([1, 1], "negative"), ([np.nan] * 2, "positive")])
def test_a_calibrator_needs_both_labels(labels, lacks):
    evaluation = Evaluation([BinaryTask("click")], with_group=False)
    evaluation.update(np.float32([[1], [0]]), np.float32(labels)[:, np.newaxis], np.ones(2, np.float32))
    with pytest.raises(DataError, match=f"'click' has no {lacks}"):
        list(evaluation.binary_rows(SingleWorker()))


@pytest.mark.parametrize("make", FORMATS)
@pytest.mark.parametrize("one", [MAPS[1], MAPS[2]])
def test_exports_apply_the_maps_of_the_model(make, one, tmp_path):
    saved = write_run(tmp_path / "run", model="wide_deep", logit_maps={"click": one})
    inputs = draw_inputs(500)
    plain = predicted(saved, inputs)
    logits = np.log(plain["click"]) - np.log1p(-plain["click"])
    wanted = plain | {"click": 1 / (1 + np.exp(-np.vectorize(lambda logit: by_hand(one, logit))(logits)))}
    assert np.abs(wanted["click"] - plain["click"]).max() > 0.1
    found = make(tmp_path / "export", saved)(inputs)
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=1e-5)
    ids = np.concatenate([inputs[name] for name in ("user", "day", "tags")], axis=1)
    numerical = np.concatenate([inputs[name] for name in ("age", "price")], axis=1)
    compared = expected_predictions(saved.tasks, saved.model(ids, numerical).numpy())
    np.testing.assert_allclose(compared["click"], wanted["click"], atol=1e-5)


def test_a_map_that_is_none_makes_no_model(tmp_path):
    wrong = {"spend": LogitMap(1.0)}
    with pytest.raises(NoCheckpointError, match="spend, which are no binary labels"):
        write_run(tmp_path, model="wide_deep", logit_maps=wrong)
    broken = replace(MAPS[2], calibrator=None)
    object.__setattr__(broken, "calibrator", {"scores": [2.0, 1.0], "logits": [0.0, 1.0]})
    with pytest.raises(NoCheckpointError, match="architecture.json"):
        write_run(tmp_path, model="wide_deep", logit_maps={"click": broken})
