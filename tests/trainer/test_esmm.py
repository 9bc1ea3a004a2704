import math

import numpy as np
import pytest
import tensorflow as tf

from tests.trainer.small_models import make_batches, make_model, make_step, run
from trainer.metrics.rows import Rows
from trainer.tasks import joint as in_numpy
from trainer.tasks.binary import BinaryTask
from trainer.tasks.losses import joint_labels, joint_logits
from trainer.tasks.multiclass import MulticlassTask
from trainer.tasks.regression import RegressionTask

CLICK, BUY = BinaryTask("click"), BinaryTask("buy", given=0)
NAN = math.nan


def test_joint_label_of_missing_labels():
    labels = tf.constant([[1.0, 1.0], [1.0, 0.0], [0.0, NAN], [1.0, NAN], [NAN, NAN]])
    np.testing.assert_array_equal(joint_labels(labels, (CLICK, BUY)), [[1, 1], [1, 0], [0, 0], [1, NAN], [NAN, NAN]])


def test_chain_multiplies_all_probabilities():
    logits = np.array([[0.3, -1.0, 2.0]])
    p = 1 / (1 + np.exp(-logits[0]))
    tasks = (CLICK, BUY, BinaryTask("return", given=1))
    found, labels = joint_logits(tf.constant(logits, tf.float32), tasks), tf.constant([[0.0, NAN, NAN]])
    for column, product in enumerate(np.cumprod(p)):
        assert found.numpy()[0, column] == pytest.approx(math.log(product / (1 - product)), rel=1e-5)
    assert joint_labels(labels, tasks).numpy().tolist() == [[0, 0, 0]]
    unknown = tf.constant([[NAN, 1.0, 1.0], [1.0, NAN, 1.0], [1.0, 1.0, NAN], [1.0, 1.0, 1.0]])
    np.testing.assert_array_equal(joint_labels(unknown, tasks)[:, 2], [NAN, NAN, NAN, 1])


def test_only_binary_tasks_become_joint():
    kind, spend = MulticlassTask("kind", num_classes=3), RegressionTask("spend", given=3)
    tasks = (kind, CLICK, spend, BinaryTask("buy", given=1))
    logits = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    found = joint_logits(tf.constant(logits), tasks).numpy()
    np.testing.assert_array_equal(found[:, :5], logits[:, :5])
    np.testing.assert_allclose(found[:, 5], joint_logits(tf.constant(logits[:, [3, 5]]), (CLICK, BUY))[:, 1])
    labels = np.float32([[2, 0, NAN, NAN]])
    np.testing.assert_array_equal(joint_labels(tf.constant(labels), tasks), [[2, 0, NAN, 0]])


def test_training_and_evaluation_agree_on_joint_events():
    tasks = (CLICK, BUY, BinaryTask("return", given=1))
    random = np.random.default_rng(3)
    logits = random.uniform(-60, 60, (200, 3)).astype(np.float32)
    labels = random.choice(np.float32([0, 1, NAN]), (200, 3))
    found = joint_logits(tf.constant(logits), tasks).numpy()
    found_labels = joint_labels(tf.constant(labels), tasks).numpy()
    for last in (1, 2):
        parts = [Rows(logits[:, i], labels[:, i], np.ones(200, np.float32), None) for i in range(last + 1)]
        rows = in_numpy.joint_rows(parts)
        np.testing.assert_array_equal(rows.labels, found_labels[:, last])
        np.testing.assert_allclose(in_numpy.joint_logits(rows.logits), found[:, last], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("logit", [-80.0, -20.0, -1.0, 0.0, 1.0, 12.0, 40.0])
def test_extreme_logits_have_finite_gradients(logit):
    logits = tf.constant([[logit, logit]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        found = joint_logits(logits, (CLICK, BUY))
        loss = tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(labels=tf.ones_like(found), logits=found))
    assert np.isfinite(found.numpy()).all()
    assert np.isfinite(tape.gradient(loss, logits).numpy()).all()
    exact = -2 * math.log1p(math.exp(-logit))
    assert found.numpy()[0, 1] == pytest.approx(exact - math.log(-math.expm1(exact)), rel=1e-5)


def test_esmm_trains_joint_labels_on_all_rows():
    batch = make_batches(1, tasks=2)[0]
    labels = batch.labels.numpy()
    labels[labels[:, 0] != 1, 1] = np.nan
    batch = batch._replace(labels=tf.constant(labels))
    for name in ("esmm", "shared_bottom"):
        model = make_model(model=name, tasks=(CLICK, BUY))
        p = 1 / (1 + np.exp(-model(batch.ids, batch.numerical).numpy().astype(np.float64)))
        found = run(make_step(model), batch, 1)
        if name == "esmm":
            both, known = p[:, 0] * p[:, 1], np.nan_to_num(labels[:, 1])
        else:
            inside = labels[:, 0] == 1
            both, known = p[inside, 1], labels[inside, 1]
        buy = -np.mean(known * np.log(both) + (1 - known) * np.log(1 - both))
        click = -np.mean(labels[:, 0] * np.log(p[:, 0]) + (1 - labels[:, 0]) * np.log(1 - p[:, 0]))
        np.testing.assert_allclose(found, [click, buy], rtol=1e-5)
