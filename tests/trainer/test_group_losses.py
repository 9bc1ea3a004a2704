"""Losses that compare the rows of groups: by hand, over workers, and in a trained model."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import yaml

import export
from data.loading.batch import PAD
from data.loading.loader import ParquetLoader
from data.spec.feature_spec import FeatureSpec
from main import main
from tests.helpers import make_dataset, metrics, must
from tests.trainer.local_workers import run_workers
from tests.trainer.metrics.evaluations import TASK_OF_KIND
from tests.trainer.small_models import differences, make_batches, make_model, make_step, part
from trainer.layout import RowValues
from trainer.recommender.interactions import TASK_KINDS
from trainer.step import step_input
from trainer.tasks.group import GroupTask

KINDS = [name for name, task in TASK_OF_KIND.items() if isinstance(task, GroupTask)]
GROUPS = np.array([0, 0, 0, 0, 1, 2, 2, 2, 3, 3, 4, 4, 4, 5, 6, 7], np.int32)  # the last three as padding
LABELS = np.array([1, 0, 1, 0, 1, 0, 0, 0, 1, 1, 0, 1, 0, 0, 0, 0], np.float32)
WEIGHTS = np.array([1, 2, 0.5, 1, 1, 1, 1, 3, 1, 2, 0, 1.5, 1, 0, 0, 0], np.float32)


def by_hand(kind: str, logits: np.ndarray, row: int) -> float:
    """The loss of one row."""
    group = [other for other in range(16) if GROUPS[other] == GROUPS[row] and WEIGHTS[other] > 0]

    def share(scores: np.ndarray) -> float:
        total = sum(WEIGHTS[other] * np.exp(scores[other]) for other in group)
        return -np.log(WEIGHTS[row] * np.exp(scores[row]) / total)

    if kind == "jrc":
        own = logits[row] - np.log(np.exp(logits[row]).sum())
        label = int(LABELS[row])
        return (-own[label] + share(logits[:, label])) / 2
    if LABELS[row] == 0:
        return 0.0
    if kind == "listwise":
        return share(logits[:, 0])
    negatives = [other for other in group if LABELS[other] == 0]
    pairs = [WEIGHTS[other] * np.log1p(np.exp(logits[other, 0] - logits[row, 0])) for other in negatives]
    return sum(pairs) / sum(WEIGHTS[other] for other in negatives) if negatives else 0.0


def weighted_loss(kind: str, logits: np.ndarray) -> float:
    return sum(WEIGHTS[row] * by_hand(kind, logits, row) for row in range(16) if WEIGHTS[row] > 0)


def losses_of(kind: str, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The losses of all rows, and the gradient of their weighted sum."""
    values = tf.constant(logits, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(values)
        loss = TASK_OF_KIND[kind].group_loss(values, tf.constant(LABELS), tf.constant(WEIGHTS), tf.constant(GROUPS))
        total = tf.reduce_sum(loss * WEIGHTS)
    return loss.numpy(), tape.gradient(total, values).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_by_hand(kind):
    logits = np.random.default_rng(2).normal(0, 2, (16, TASK_OF_KIND[kind].width))
    found, gradient = losses_of(kind, logits)
    for row in np.flatnonzero(WEIGHTS):
        assert found[row] == pytest.approx(by_hand(kind, logits, row), rel=1e-5, abs=1e-6)
    for place in np.ndindex(*logits.shape):
        step = np.zeros(logits.shape)
        step[place] = 1e-5
        slope = (weighted_loss(kind, logits + step) - weighted_loss(kind, logits - step)) / 2e-5
        assert gradient[place] == pytest.approx(slope, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_no_logit_overflows(kind):
    random = np.random.default_rng(4)
    for _ in range(20):
        logits = random.choice([-1e6, -100, 0, 100, 1e6], (16, TASK_OF_KIND[kind].width))
        found, gradient = losses_of(kind, logits)
        assert np.isfinite(found).all() and np.isfinite(gradient).all()


def test_jrc_predicts_the_probability_of_label_1():
    task, logits = TASK_OF_KIND["jrc"], np.array([[0.5, 2], [3, -1]], np.float32)
    expected = np.exp(logits[:, 1:]) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(task.predictions(logits), expected, rtol=1e-6)
    np.testing.assert_allclose(task.activation(tf.constant(logits)), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_xla_compiles_loss_and_gradient(kind):
    logits = tf.random.stateless_normal([16, TASK_OF_KIND[kind].width], seed=[1, 2])

    def losses(values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss = TASK_OF_KIND[kind].group_loss(values, tf.constant(LABELS), tf.constant(WEIGHTS), tf.constant(GROUPS))
        return loss, tape.gradient(loss, values)

    found = tf.function(losses, jit_compile=True, autograph=False)(logits)
    for compiled, eager in zip(found, losses(logits), strict=True):
        counts = WEIGHTS > 0
        np.testing.assert_allclose(compiled[counts], eager[counts], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_one_worker_and_two_agree(kind):
    """The workers take groups 0 to 1, and 2 and more."""
    (batch,) = make_batches(1)

    def work(comm):
        model = make_model(tasks=(TASK_OF_KIND[kind],))
        step = make_step(model, comm=comm)
        own = slice(0, 16) if comm.size == 1 else (slice(0, 5), slice(5, 16))[comm.rank]
        rows = part(batch._replace(labels=tf.constant(LABELS[:, None]), weights=tf.constant(WEIGHTS)), own)
        groups = tf.constant(GROUPS[own] - GROUPS[own][0], tf.int64)
        losses = []
        for number in range(1, 4):
            inputs = rows.input(model)._replace(groups=(groups,))
            result = step.run.python_function(step.packing.pack(inputs), tf.constant(number), tf.zeros(1))
            losses.append(result.losses.numpy().item())
        return model, losses

    [(_, alone)] = run_workers(1, work)
    together = run_workers(2, work)
    for _, losses in together:
        np.testing.assert_allclose(losses, alone, rtol=1e-4)
    assert alone[2] < alone[0] and differences(together[0][0], together[1][0]) == 0


def test_the_recommender_has_no_groups_to_compare():
    assert not set(TASK_KINDS) & set(KINDS) and "binary" in TASK_KINDS


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A dataset of sessions with a label of every type, and a model trained on it."""
    folder = tmp_path_factory.mktemp("groups")
    write_spec(folder, ["session"])
    make_dataset(folder, folder / "groups.yaml", rows=3000, signal=3)
    model = ["--model", "mmoe", "--num_experts", 2, "--expert_hidden_units", 16, "--tower_hidden_units", 8]
    must(main([*places(folder), *map(str, [*model, "--num_epochs", 3, "--deep_learning_rate", 0.01])]))
    return folder


def write_spec(folder: Path, groups: list[str]) -> None:
    features = {"user": {"cardinality": 20}, "price": {}, **{kind: {"task": kind} for kind in KINDS}, "session": {}}
    sources = {
        mapping: [{"type": "csv", "features": list(features), "files": [f"{mapping}.csv"]}]
        for mapping in ("train", "test")
    }
    channels = {"onehot_categorical": ["user"], "numerical": ["price"], "label": KINDS, "map": groups}
    document = {"feature_spec": features, "source_spec": sources, "channel_spec": channels}
    (folder / "groups.yaml").write_text(yaml.safe_dump(document, sort_keys=False))


def places(folder: Path) -> list[str]:
    paths = {"--dataset_path": folder / "data", "--model_dir": folder / "models", "--results_dir": folder / "results"}
    return [
        *(str(part) for pair in paths.items() for part in pair),
        *("--cpu", "--recipe", "published", "--global_batch_size", "100"),
    ]


def test_they_learn_to_rank_and_go_through_every_output(folder):
    must(main([*places(folder), "--evaluate", "--predictions_file", str(folder / "predicted.parquet")]))
    found, rows = metrics(folder / "results"), pd.read_parquet(folder / "predicted.parquet")
    for kind in KINDS:
        assert found[f"gauc/{kind}"] > 0.65
        assert rows[f"prediction_{kind}"].between(0, 1).all()
    assert 0.7 < found["calibration/jrc"] < 1.4
    must(export.main(["--model_dir", str(folder / "models"), "--output", str(folder / "s"), "--format", "savedmodel"]))


def test_groups_are_numbered_in_the_order_of_rows(folder):
    spec = FeatureSpec.read(folder / "data" / "feature_spec.yaml")
    loader = ParquetLoader(
        spec, "train", global_batch_size=100, workers=3, shuffle=True, with_group=True, whole_groups=True
    )
    for batch in loader.epoch(0):
        values = RowValues(batch.numerical, vectors=batch.vectors)
        (numbers,) = step_input(batch, (), values, [TASK_OF_KIND["jrc"]] * 3).groups
        real = batch.rows != PAD
        assert len(np.unique(numbers[real])) == len(np.unique(batch.group[real]))
        assert (np.diff(numbers) >= 0).all() and numbers[0] == 0 and (np.diff(numbers[~real]) == 1).all()
        assert (np.diff(batch.group[real]) == 0).tolist() == (np.diff(numbers[real]) == 0).tolist()


def test_a_mapping_without_groups_is_rejected(folder, tmp_path, capsys):
    text = (folder / "data" / "feature_spec.yaml").read_text()
    document = yaml.safe_load(text)
    document["channel_spec"]["map"] = []
    (folder / "data" / "without.yaml").write_text(yaml.safe_dump(document))
    arguments = [*places(folder), "--fspec_file", "without.yaml", "--model_dir", str(tmp_path)]
    assert main(arguments) == 2
    words = "label 'pairwise': task: pairwise compares the rows of a group, and mapping 'train' has no map feature"
    assert words in capsys.readouterr().err
