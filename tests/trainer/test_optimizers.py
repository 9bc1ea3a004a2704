import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.config import DeepOptimizer
from trainer.optimizers.loss_scale import GROWTH_STEPS, LossScale
from trainer.optimizers.optimizer import Optimizer
from trainer.optimizers.rules import Adam, Ftrl, RMSprop, make_rule
from trainer.optimizers.schedules import Constant, WarmupThenConstant, WarmupThenSteps, make_schedule


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


KERAS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "adagrad": lambda: keras.optimizers.Adagrad(0.01),
    "sgd": lambda: keras.optimizers.SGD(0.01),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.004),
}


def deep_optimizer(rule: str) -> DeepOptimizer:
    return DeepOptimizer(rule=rule, rate=0.01, schedule="constant", warmup_epochs=0, weight_decay=0.004)


@pytest.mark.parametrize("rule", KERAS)
def test_weights_that_are_updated_whole_go_where_keras_takes_them(rule):
    start = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    own, other = tf.Variable(start), keras.Variable(start)
    decay = 0.004 if rule == "adamw" else 0.0
    optimizer = Optimizer(make_rule(deep_optimizer(rule)), Constant(0.01), {"w": own}, {}, decay=decay)
    reference = KERAS[rule]()
    reference.build([other])
    rng = np.random.default_rng(2)
    for step in range(1, 31):
        gradient = tf.constant(rng.normal(size=(20, 4)), tf.float32)
        optimizer.update_whole("w", gradient, tf.constant(step))
        reference.apply([gradient], [other])
    np.testing.assert_allclose(own.numpy(), other.numpy(), atol=1e-5)


@pytest.mark.parametrize("rule", ["adagrad", "sgd"])
def test_lazy_updates_equal_dense_ones_where_a_zero_gradient_changes_nothing(rule):
    start = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    lazy, whole = tf.Variable(start), tf.Variable(start)
    rules = [Optimizer(make_rule(deep_optimizer(rule)), Constant(0.01), {}, {"table": t}) for t in (lazy, whole)]
    for step, (ids, gradients) in enumerate(skewed_updates(200, 500, 4), start=1):
        dense = np.zeros((500, 4), np.float32)
        np.add.at(dense, ids, gradients)
        touched = np.unique(ids)
        rules[0].update_rows("table", tf.constant(touched), tf.constant(dense[touched]), tf.constant(step))
        rules[1].update_whole("table", tf.constant(dense), tf.constant(step))
    np.testing.assert_allclose(lazy.numpy(), whole.numpy(), atol=1e-6)


def test_lazy_adam_has_the_moments_of_dense_adam_and_moves_a_row_only_when_it_is_touched():
    lazy, dense = tf.Variable(np.ones((2, 1), np.float32)), tf.Variable(np.ones((2, 1), np.float32))
    own = Optimizer(Adam(), Constant(0.01), {}, {"table": lazy})
    other = Optimizer(Adam(), Constant(0.01), {"table": dense}, {})
    for step in range(1, 6):
        gradient = np.array([[1.0], [1.0 if step in (1, 5) else 0.0]], np.float32)
        touched = [0, 1] if step in (1, 5) else [0]
        before = lazy.numpy()[1].item()
        own.update_rows("table", tf.constant(touched), tf.constant(gradient[touched]), tf.constant(step))
        other.update_whole("table", tf.constant(gradient), tf.constant(step))
        assert (lazy.numpy()[1].item() == before) == (step not in (1, 5))
    for slot in ("table.mean", "table.mean_square"):
        np.testing.assert_allclose(own.state[slot].numpy(), other.state[slot].numpy(), rtol=1e-5)
    np.testing.assert_allclose(lazy.numpy()[0], dense.numpy()[0], rtol=1e-6)


@pytest.mark.parametrize("rule", ["rmsprop", "adam", "adagrad", "sgd"])
def test_a_table_goes_where_it_goes_however_its_gradient_comes(rule):
    start = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    by_rows, whole = tf.Variable(start), tf.Variable(start)
    both = [
        Optimizer(make_rule(deep_optimizer(rule)), Constant(0.01), {}, {"t": table}, l2={"t": 0.1}, decay=0.1)
        for table in (by_rows, whole)
    ]
    for step, (ids, gradients) in enumerate(skewed_updates(30, 50, 4), start=1):
        dense = np.zeros((50, 4), np.float32)
        np.add.at(dense, ids[:8], gradients[:8])
        touched = np.unique(ids[:8])
        both[0].update_rows("t", tf.constant(touched), tf.constant(dense[touched]), tf.constant(step))
        both[1].update_whole("t", tf.constant(dense), tf.constant(step))
        # The ways may be mixed: the next step of a table is right, whichever the last one was.
        both.reverse()
    assert not np.array_equal(by_rows.numpy(), start)
    for name, variable in both[0].state.items():
        np.testing.assert_allclose(variable.numpy(), both[1].state[name].numpy(), atol=1e-6, err_msg=name)
    np.testing.assert_allclose(by_rows.numpy(), whole.numpy(), atol=1e-6)


def test_a_constant_schedule_rises_over_its_warm_up_and_stays():
    schedule = make_schedule(
        DeepOptimizer(rule="adam", rate=0.01, schedule="constant", warmup_epochs=0.5, weight_decay=0), 8, 3
    )
    rates = [float(schedule(tf.constant(step))) for step in (1, 2, 4, 5, 24)]
    np.testing.assert_allclose(rates, [0.0025, 0.005, 0.01, 0.01, 0.01], rtol=1e-6)
    assert float(WarmupThenConstant(0.01, 0)(tf.constant(1))) == pytest.approx(0.01)


@pytest.mark.parametrize("whole", [False, True])
def test_l2_and_decay_act_on_the_rows_that_a_batch_touches(whole):
    table = tf.Variable(tf.ones((4, 2)))
    optimizer = Optimizer(make_rule(deep_optimizer("sgd")), Constant(0.1), {}, {"t": table}, l2={"t": 0.5}, decay=0.2)
    if whole:
        optimizer.update_whole("t", tf.constant([[0.0, 0.0], [3.0, 0.0], [0.0, 0.0], [1.0, 1.0]]), tf.constant(1))
    else:
        optimizer.update_rows("t", tf.constant([3, 1]), tf.constant([[1.0, 1.0], [3.0, 0.0]]), tf.constant(1))
    # w - rate (g + 2 l2 w) - rate decay w
    touched = [1 - 0.1 * (3 + 1) - 0.02, 1 - 0.1 * (0 + 1) - 0.02]
    np.testing.assert_allclose(table.numpy(), [[1, 1], touched, [1, 1], [0.78, 0.78]], rtol=1e-6)


def test_l2_of_other_names_is_none():
    weight = tf.Variable([1.0])
    optimizer = Optimizer(make_rule(deep_optimizer("sgd")), Constant(0.1), {"bias": weight}, {}, l2={"kernel": 0.5})
    optimizer.update_whole("bias", tf.constant([0.0]), tf.constant(1))
    assert weight.numpy() == [1.0]
