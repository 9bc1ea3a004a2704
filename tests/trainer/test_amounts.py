"""Task types of amounts: losses, gradients and links by hand, and in every output of a trained model."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import yaml
from scipy import stats
from scipy.integrate import quad
from scipy.special import xlogy

import export
from data.errors import DataError
from data.spec.features import Feature
from data.spec.task_types import TASK_TYPES, LabelKind
from main import main
from tests.helpers import make_dataset, metrics, must
from tests.trainer.metrics.evaluations import TASK_OF_KIND, evaluate, rows_of
from trainer.tasks.amount import AmountTask
from trainer.tasks.task import task_type

KINDS = [name for name, kind in TASK_TYPES.items() if kind is LabelKind.AMOUNT]
POWER, SMALLEST = 1.3, 0.01


def sigma_of(logits: np.ndarray) -> np.ndarray:
    return SMALLEST + np.log(1 + np.exp(logits[:, 2]))


def poisson(logits, labels):
    mean = np.exp(logits[:, 0])
    return stats.poisson.logpmf(labels, labels) - stats.poisson.logpmf(labels, mean)


def tweedie(logits, labels):
    """Half the deviance: the integral of (y - u) / u^p from the mean to y."""
    pairs = zip(np.exp(logits[:, 0]), labels, strict=True)
    return np.array([quad(lambda u, y=y: (y - u) * u**-POWER, mean, y)[0] for mean, y in pairs])


def ziln(logits, labels):
    p, sigma = 1 / (1 + np.exp(-logits[:, 0])), sigma_of(logits)
    amounts = np.where(labels > 0, labels, 1)
    constants = np.log(amounts) + np.log(SMALLEST * np.sqrt(2 * np.pi))
    density = p * stats.lognorm.pdf(amounts, sigma, scale=np.exp(logits[:, 1]))
    return -np.log(np.where(labels > 0, density * np.exp(constants), 1 - p))


def weighted_logistic(logits, labels):
    p = 1 / (1 + np.exp(-logits[:, 0]))
    return -(xlogy(labels, p) + (labels == 0) * np.log(1 - p))


LOSSES = {
    "log1p": lambda logits, labels: (logits[:, 0] - np.log(1 + labels)) ** 2,
    "poisson": poisson,
    "tweedie": tweedie,
    "ziln": ziln,
    "weighted_logistic": weighted_logistic,
}
LINKS = {
    "log1p": lambda logits: np.exp(logits[:, 0]) - 1,
    "ziln": lambda logits: np.exp(logits[:, 1] + sigma_of(logits) ** 2 / 2) / (1 + np.exp(-logits[:, 0])),
}


def link(kind: str, logits: np.ndarray) -> np.ndarray:
    return LINKS[kind](logits) if kind in LINKS else np.exp(logits[:, 0])


def draw(kind: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits, [rows, width], and labels, a third of them 0; integers, for the probabilities of Poisson."""
    random = np.random.default_rng(3)
    logits = random.normal(0.5, 1, (rows, TASK_OF_KIND[kind].width)).astype(np.float32)
    return logits, (random.integers(0, 3, rows) * random.integers(1, 9, rows)).astype(np.float32)


def gradients(task: AmountTask, logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = tf.constant(logits, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(values)
        loss = task.loss(values, tf.constant(labels, tf.float32))
    return loss.numpy(), tape.gradient(loss, values).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_link_by_hand(kind):
    task, (logits, labels) = TASK_OF_KIND[kind], draw(kind, 300)
    exact = LOSSES[kind](logits.astype(np.float64), labels.astype(np.float64))
    assert (exact >= 0).all() and (labels == 0).any()
    np.testing.assert_allclose(task.loss(tf.constant(logits), tf.constant(labels)), exact, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(task.losses(logits.astype(float), labels.astype(float)), exact, rtol=1e-6, atol=1e-9)
    amounts = link(kind, logits.astype(np.float64))
    np.testing.assert_allclose(task.predictions(logits)[:, 0], amounts, rtol=1e-12)
    np.testing.assert_allclose(task.activation(tf.constant(logits))[:, 0], amounts, rtol=1e-5, atol=1e-6)
    found = evaluate(rows_of(logits if task.width > 1 else logits[:, 0], labels), kind=kind)
    errors = amounts - labels
    expected = {"loss_val": exact.mean(), "rmse": np.sqrt((errors**2).mean()), "mae": np.abs(errors).mean()}
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_no_logit_overflows(kind):
    task = TASK_OF_KIND[kind]
    extremes = np.array([-1e6, -200, -90, 0, 90, 200, 1e6], np.float32)
    logits = np.stack([column.ravel() for column in np.meshgrid(*[extremes] * task.width)], axis=1)
    for label in (0, 1e-6, 1, 1e6):
        labels = np.full(len(logits), label, np.float32)
        loss, gradient = gradients(task, logits, labels)
        assert np.isfinite(loss).all() and np.isfinite(gradient).all()
        exact = task.losses(logits.astype(float), labels.astype(float))
        np.testing.assert_allclose(loss, exact, rtol=1e-4, atol=1e-4 * max(1, label))
    predicted, activated = task.predictions(logits), task.activation(tf.constant(logits)).numpy()
    assert np.isfinite(predicted).all() and np.isfinite(activated).all()
    moderate = np.abs(logits).max(axis=1) <= 200  # the sums of larger ones are no longer exact in float32
    np.testing.assert_allclose(activated[moderate], predicted[moderate], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["poisson", "tweedie"])
def test_predictions_beyond_the_limit_still_fall(kind):
    """The gradient does not vanish where the exponential is bounded."""
    _, gradient = gradients(TASK_OF_KIND[kind], np.array([[60.0], [300.0]]), np.ones(2))
    assert (gradient > 1e9).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_constant_is_what_the_task_type_says(kind):
    """A model that ignores its features: the logits at which the mean loss is least, in closed form."""
    task, (_, labels) = TASK_OF_KIND[kind], draw(kind, 400)
    positive = labels[labels > 0]
    logs = np.log(positive)
    best = {
        "log1p": [np.log1p(labels).mean()],
        "poisson": [np.log(labels.mean())],
        "tweedie": [np.log(labels.mean())],
        "ziln": [
            np.log(len(positive) / (labels == 0).sum()),
            logs.mean(),
            np.log(np.expm1(logs.std() - SMALLEST)),
        ],
        "weighted_logistic": [np.log(labels.sum() / (labels == 0).sum())],
    }[kind]
    _, gradient = gradients(task, np.tile(best, (len(labels), 1)), labels)
    assert np.abs(gradient.mean(axis=0)).max() < 1e-5 < np.abs(gradient).max(axis=0).min()


@pytest.mark.parametrize("label", [-0.5, np.inf])
def test_labels_that_are_no_amounts_are_rejected(label):
    with pytest.raises(DataError, match="'click': 1 of 2 evaluated rows have a value that is below 0, or infinite"):
        evaluate(rows_of([0, 0], [1, label]), kind="tweedie")


def test_the_power_is_that_of_the_specification():
    label = Feature(name="spend", task="tweedie", tweedie_power=1.8)
    assert task_type("tweedie").of(label, None).power == 1.8


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A dataset with a label of every type, and a model trained on it."""
    folder = tmp_path_factory.mktemp("amounts")
    labels = {f"amount_{kind}": {"task": kind, "missing": "ignore"} for kind in KINDS}
    features = {"user": {"cardinality": 20}, "price": {}, **labels}
    sources = {
        mapping: [{"type": "csv", "features": list(features), "files": [f"{mapping}.csv"]}]
        for mapping in ("train", "test")
    }
    channels = {"onehot_categorical": ["user"], "numerical": ["price"], "label": list(labels)}
    document = {"feature_spec": features, "source_spec": sources, "channel_spec": channels}
    (folder / "amounts.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    make_dataset(folder, folder / "amounts.yaml", rows=2000, signal=2)
    model = ["--model", "mmoe", "--num_experts", 2, "--expert_hidden_units", 16, "--tower_hidden_units", 8]
    flags = ["--num_epochs", 3, "--global_batch_size", 100, "--deep_learning_rate", 0.01, "--gradnorm_alpha", 1]
    must(main([*places(folder), *map(str, [*model, *flags, "--loss_weighting", "gradnorm"])]))
    return folder


def places(folder: Path) -> list[str]:
    paths = {"--dataset_path": folder / "data", "--model_dir": folder / "models", "--results_dir": folder / "results"}
    return [*(str(part) for pair in paths.items() for part in pair), "--cpu", "--recipe", "published"]


def test_the_link_is_in_evaluation_predictions_and_exports(folder):
    must(main([*places(folder), "--evaluate", "--predictions_file", str(folder / "predicted.parquet")]))
    found, rows = metrics(folder / "results"), pd.read_parquet(folder / "predicted.parquet")
    for kind in KINDS:
        amounts, labels = rows[f"prediction_amount_{kind}"], rows[f"label_amount_{kind}"]
        known = labels.notna()
        errors = (amounts - labels)[known]
        assert found[f"rmse/amount_{kind}"] == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-6)
        assert found[f"mae/amount_{kind}"] == pytest.approx(errors.abs().mean(), rel=1e-6)
        assert amounts.min() > -1 and amounts.std() > 0.05
    for name in ("savedmodel", "onnx"):
        if name == "onnx":
            pytest.importorskip("tf2onnx", reason="requirements/export.txt is not installed")
        # It compares the predictions with those of the model.
        must(export.main(["--model_dir", str(folder / "models"), "--output", str(folder / name), "--format", name]))
