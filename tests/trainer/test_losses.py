"""The losses of tasks of all types, side by side."""

import numpy as np
import pytest
import tensorflow as tf

from tests.trainer.local_workers import run_workers
from tests.trainer.small_models import Rows, differences, make_batches, make_model, make_step, part, run, run_eagerly
from trainer.tasks.binary import BinaryTask
from trainer.tasks.losses import row_weights, task_losses
from trainer.tasks.multiclass import MulticlassTask
from trainer.tasks.regression import RegressionTask
from trainer.tasks.task import logit_columns, restrict_to_sample_space

TASKS = (
    MulticlassTask("kind", num_classes=4, loss_weight=0.5),
    BinaryTask("click", positive_weight=2.0),
    MulticlassTask("stars", num_classes=3, given=1),
    RegressionTask("minutes"),
)


def labels_of(rows: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    classes = [random.integers(0, count, rows) for count in (4, 2, 3)]
    labels = np.column_stack([*classes, random.normal(size=rows)]).astype(np.float32)
    labels[random.random(rows) < 0.2, 0] = np.nan
    return restrict_to_sample_space(labels, TASKS)


def softmax_loss(logits: np.ndarray, classes: np.ndarray) -> np.ndarray:
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return -np.log(probabilities[np.arange(len(classes)), classes.astype(int)])


def test_each_task_has_its_columns_of_the_logits():
    assert logit_columns(TASKS) == (slice(0, 4), slice(4, 5), slice(5, 8), slice(8, 9))


def test_tasks_have_their_own_rows_and_columns():
    labels, random = labels_of(50, 1), np.random.default_rng(2)
    logits, weights = random.normal(size=(50, 9)).astype(np.float32), random.choice([0, 0.5, 2], 50).astype(np.float32)
    counts = row_weights(tf.constant(labels), tf.constant(weights))
    found = task_losses(tf.constant(logits), tf.constant(labels), counts, tf.reduce_sum(counts, axis=0), TASKS).numpy()
    kind, click, stars, minutes = labels.T
    p = 1 / (1 + np.exp(-logits[:, 4].astype(np.float64)))
    per_row = [
        softmax_loss(logits[:, :4], np.nan_to_num(kind)),
        -(2 * click * np.log(p) + (1 - click) * np.log(1 - p)),
        softmax_loss(logits[:, 5:8], np.nan_to_num(stars)),
        (logits[:, 8] - minutes) ** 2,
    ]
    assert np.isnan(stars).sum() > 10 and np.isnan(kind).sum() > 3
    for index, losses in enumerate(per_row):
        known = ~np.isnan(labels[:, index])
        assert found[index] == pytest.approx(np.average(losses[known], weights=weights[known]), rel=1e-5)


def batches_of(count: int) -> list[Rows]:
    batches = make_batches(count)
    return [batch._replace(labels=tf.constant(labels_of(16, seed))) for seed, batch in enumerate(batches)]


@pytest.mark.parametrize("xla", [pytest.param(False, marks=pytest.mark.slow), True])
def test_one_worker_and_two_agree_on_all_types(xla):
    batches = batches_of(6)

    def work(comm):
        model = make_model(tasks=TASKS)
        step, losses = make_step(model, comm=comm, xla=xla), []
        for number, batch in enumerate(batches, start=1):
            rows = batch if comm.size == 1 else part(batch, slice(0, 9) if comm.rank == 0 else slice(9, 16))
            result = run_eagerly(step, rows, number)
            losses.append(result.losses.numpy())
        return model, losses

    [(_, alone)] = run_workers(1, work)
    together = run_workers(2, work)
    for _, losses in together:
        np.testing.assert_allclose(losses, alone, rtol=1e-4)
    assert differences(together[0][0], together[1][0]) == 0


def test_batch_without_rows_of_a_task():
    model = make_model(tasks=TASKS)
    batch = batches_of(1)[0]
    labels = batch.labels.numpy()
    labels[:, [0, 2]] = np.nan
    losses = run(make_step(model), batch._replace(labels=tf.constant(labels)), 1)
    assert losses[[0, 2]].tolist() == [0, 0] and (losses[[1, 3]] > 0).all()
    assert all(np.isfinite(variable.numpy()).all() for variable in model.variables)


def test_classes_are_learned_from_inputs():
    model, task = make_model(tasks=(MulticlassTask("kind", num_classes=3),)), make_batches(80)
    step, losses = make_step(model), []
    for number, batch in enumerate(task, start=1):
        classes = tf.cast(batch.numerical[:, :1] > 0, tf.float32) + tf.cast(batch.numerical[:, 1:] > 0, tf.float32)
        losses.append(run(step, batch._replace(labels=classes), number).item())
    assert losses[0] == pytest.approx(np.log(3), abs=0.4)
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])
