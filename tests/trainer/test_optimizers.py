import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.loss_scale import GROWTH_STEPS, LossScale
from trainer.optimizers.optimizer import Optimizer
from trainer.optimizers.rules import Ftrl, RMSprop
from trainer.optimizers.schedules import Constant, WarmupThenSteps


def skewed_updates(steps: int, rows: int, width: int):  # type: ignore[no-untyped-def]
    """For each step: ids with repeats, 9 in 10 of them among few rows, and a gradient for each."""
    rng = np.random.default_rng(1)
    for _ in range(steps):
        ids = np.where(rng.random(64) < 0.9, rng.integers(0, 10, 64), rng.integers(0, rows, 64)).astype(np.int32)
        yield ids, rng.normal(size=(64, width)).astype(np.float32)


@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_lazy_rmsprop_equals_dense_rmsprop_over_200_steps(rho):
    start = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    lazy, whole = tf.Variable(start), tf.Variable(start)
    optimizers = [Optimizer(RMSprop(rho), Constant(0.01), {}, {"table": table}) for table in (lazy, whole)]
    square, expected = np.zeros((500, 4)), start.astype(np.float64)
    for step, (ids, gradients) in enumerate(skewed_updates(200, 500, 4), start=1):
        dense = np.zeros((500, 4), np.float32)
        np.add.at(dense, ids, gradients)
        touched = np.unique(ids)
        optimizers[0].update_rows("table", tf.constant(touched), tf.constant(dense[touched]), tf.constant(step))
        optimizers[1].update_whole("table", tf.constant(dense), tf.constant(step))
        square = rho * square + (1 - rho) * dense.astype(np.float64) ** 2
        expected -= 0.01 * dense / (np.sqrt(square) + 1e-7)
    np.testing.assert_allclose(lazy.numpy(), whole.numpy(), atol=1e-6)
    np.testing.assert_allclose(lazy.numpy(), expected, atol=2e-5)


def test_lazy_ftrl_equals_keras_dense_ftrl_over_200_steps():
    lazy, dense = tf.Variable(np.zeros((500, 1), np.float32)), keras.Variable(np.zeros((500, 1), np.float32))
    own = Optimizer(Ftrl(), Constant(0.02), {}, {"wide": lazy})
    other = keras.optimizers.Ftrl(0.02)
    other.build([dense])
    for step, (ids, gradients) in enumerate(skewed_updates(200, 500, 1), start=1):
        summed = np.zeros((500, 1), np.float32)
        np.add.at(summed, ids, gradients)
        touched = np.unique(ids)
        own.update_rows("wide", tf.constant(touched), tf.constant(summed[touched]), tf.constant(step))
        other.apply([tf.constant(summed)], [dense])
    np.testing.assert_allclose(lazy.numpy(), dense.numpy(), atol=1e-6)


def test_a_table_may_be_updated_whole_in_one_step_and_by_rows_in_the_next():
    start = np.ones((6, 2), np.float32)
    mixed, whole = tf.Variable(start), tf.Variable(start)
    first = Optimizer(RMSprop(), Constant(0.1), {}, {"table": mixed})
    second = Optimizer(RMSprop(), Constant(0.1), {}, {"table": whole})
    gradient = np.arange(12, dtype=np.float32).reshape(6, 2)
    for step in range(1, 7):
        second.update_whole("table", tf.constant(gradient), tf.constant(step))
        if step % 2:
            first.update_whole("table", tf.constant(gradient), tf.constant(step))
        else:
            rows = tf.range(6)
            first.update_rows("table", rows, tf.constant(gradient), tf.constant(step))
    np.testing.assert_allclose(mixed.numpy(), whole.numpy(), rtol=1e-6)


def test_the_schedule_is_the_published_one_with_its_first_update_inside_the_warm_up():
    schedule = WarmupThenSteps(base=0.00012, warmup_steps=6 * 457, total_steps=20 * 457)
    rates = {step: float(schedule(tf.constant(step))) for step in (1, 2741, 2742, 5941, 5942, 9140)}
    expected = {
        1: 0.00012 / 2742,
        2741: 0.00012 * 2741 / 2742,
        2742: 0.00003,
        5941: 0.00003,
        5942: 0.000015,
        9140: 0.000015,
    }
    for step, rate in expected.items():
        np.testing.assert_allclose(rates[step], rate, rtol=1e-5)


def test_without_a_warm_up_the_rate_starts_where_the_warm_up_would_have_ended():
    schedule = WarmupThenSteps(base=1.0, warmup_steps=0, total_steps=10)
    assert [float(schedule(tf.constant(step))) for step in (1, 5, 6)] == [0.25, 0.25, 0.125]


def test_the_loss_scale_halves_on_overflow_and_doubles_after_good_steps():
    scale = LossScale(dynamic=True)
    scale.update(tf.constant(False))
    assert float(scale.scale) == 2.0**14
    for _ in range(GROWTH_STEPS):
        scale.update(tf.constant(True))
    assert float(scale.scale) == 2.0**15
    assert int(scale.good_steps) == 0


def test_the_state_names_every_slot_once():
    optimizer = Optimizer(RMSprop(), Constant(1.0), {"w": tf.Variable([1.0])}, {"t": tf.Variable([[1.0]])})
    assert sorted(optimizer.state) == ["t.last_step", "t.mean_square", "w.mean_square"]
