import math

import numpy as np
import pytest
import tensorflow as tf

from tests.trainer.small_models import make_batches, make_model, make_step
from trainer.losses import joint
from trainer.tasks import Task

CLICK, BUY = Task("click"), Task("buy", given=0)
NAN = math.nan


def test_the_joint_label_is_both_labels_and_unknown_only_where_it_is_unknown():
    labels = tf.constant([[1.0, 1.0], [1.0, 0.0], [0.0, NAN], [1.0, NAN], [NAN, NAN]])
    _, found = joint(tf.zeros((5, 2)), labels, (CLICK, BUY))
    np.testing.assert_array_equal(found, [[1, 1], [1, 0], [0, 0], [1, NAN], [NAN, NAN]])


def test_a_chain_of_conditions_multiplies_all_of_its_probabilities():
    logits = np.array([[0.3, -1.0, 2.0]])
    p = 1 / (1 + np.exp(-logits[0]))
    tasks = (CLICK, BUY, Task("return", given=1))
    found, labels = joint(tf.constant(logits, tf.float32), tf.constant([[0.0, NAN, NAN]]), tasks)
    for column, product in enumerate(np.cumprod(p)):
        assert found.numpy()[0, column] == pytest.approx(math.log(product / (1 - product)), rel=1e-5)
    assert labels.numpy().tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("logit", [-80.0, -20.0, -1.0, 0.0, 1.0, 12.0, 40.0])
def test_extreme_logits_stay_finite_with_their_gradients(logit):
    logits = tf.constant([[logit, logit]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        found, _ = joint(logits, tf.constant([[1.0, 1.0]]), (CLICK, BUY))
        loss = tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(labels=tf.ones_like(found), logits=found))
    assert np.isfinite(found.numpy()).all()
    assert np.isfinite(tape.gradient(loss, logits).numpy()).all()
    exact = -2 * math.log1p(math.exp(-logit)) if logit > -700 else 2 * logit
    if logit < 10:
        assert found.numpy()[0, 1] == pytest.approx(exact - math.log(-math.expm1(exact)), rel=1e-4)


def test_esmm_takes_the_loss_of_both_on_all_rows_and_others_on_the_sample_space():
    batch = make_batches(1, tasks=2)[0]
    labels = batch.labels.numpy()
    labels[labels[:, 0] != 1, 1] = np.nan
    batch = batch._replace(labels=tf.constant(labels))
    for name in ("esmm", "shared_bottom"):
        model = make_model(model=name, tasks=(CLICK, BUY))
        p = 1 / (1 + np.exp(-model(batch.ids, batch.numerical).numpy().astype(np.float64)))
        found = make_step(model)(batch, tf.constant(1)).numpy()
        if name == "esmm":
            both, known = p[:, 0] * p[:, 1], np.nan_to_num(labels[:, 1])
        else:
            inside = labels[:, 0] == 1
            both, known = p[inside, 1], labels[inside, 1]
        buy = -np.mean(known * np.log(both) + (1 - known) * np.log(1 - both))
        click = -np.mean(labels[:, 0] * np.log(p[:, 0]) + (1 - labels[:, 0]) * np.log(1 - p[:, 0]))
        np.testing.assert_allclose(found, [click, buy], rtol=1e-5)
