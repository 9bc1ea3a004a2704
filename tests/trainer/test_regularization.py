"""Batch normalization, dropout of experts and penalties: what a forward pass in training does besides."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import left_to_all
from tests.trainer.small_models import make_batches, make_model, make_step, run
from trainer.layout import RowValues
from trainer.models.layers import EPSILON, MOMENTUM, BatchNorm, DenseConfig, Gates
from trainer.models.step_context import StepContext

TASKS = ("click", "buy")


def step_context(rows: int, present: list[float] | None = None) -> StepContext:
    return StepContext(tf.constant([3, 64]), tf.constant(present or [1.0] * rows), lambda tensors: tensors)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(3.0, 2.0, size=shape).astype(np.float32)


@pytest.mark.parametrize("layers", [None, 4])
def test_batch_norm_ignores_absent_rows(layers):
    shape, x = ((5,), normal(20, 5)) if layers is None else ((layers, 1, 5), normal(layers, 20, 5))
    norm = BatchNorm(name="norm")
    norm.build(x.shape)
    norm.gamma.assign(np.full(shape, 2.0, np.float32))
    norm.beta.assign(np.full(shape, -1.0, np.float32))
    present = [1.0] * 15 + [0.0] * 5
    context = step_context(20, present)
    found = norm(tf.constant(x), context=context).numpy()
    there = x[..., :15, :].astype(np.float64)
    mean, variance = there.mean(axis=-2, keepdims=True), there.var(axis=-2, keepdims=True)
    np.testing.assert_allclose(found, 2 * (x - mean) / np.sqrt(variance + EPSILON) - 1, rtol=1e-4, atol=1e-4)
    (_, moving_mean), (_, moving_variance) = context.moments
    np.testing.assert_allclose(moving_mean, mean.reshape(shape), rtol=1e-5)
    np.testing.assert_allclose(moving_variance, variance.reshape(shape), rtol=1e-5)
    np.testing.assert_array_equal(norm.moving_mean.numpy(), 0)
    plain = norm(tf.constant(x)).numpy()
    np.testing.assert_allclose(plain, 2 * x / np.sqrt(1 + EPSILON) - 1, rtol=1e-5)


def test_moving_moments_begin_with_the_first_batch():
    batches = [normal(20, 5) * scale for scale in (1e-3, 1.5e-3, 0.5e-3)]
    norm = BatchNorm(name="norm")
    norm.build(batches[0].shape)
    mean, variance = batches[0].mean(axis=0), batches[0].var(axis=0)
    for number, batch in enumerate(batches):
        context = step_context(20)
        norm(tf.constant(batch), context=context)
        for variable, value in context.moments:
            variable.assign(value)
        if number:
            mean = MOMENTUM * mean + (1 - MOMENTUM) * batch.mean(axis=0)
            variance = MOMENTUM * variance + (1 - MOMENTUM) * batch.var(axis=0)
    np.testing.assert_allclose(norm.moving_mean, mean, rtol=1e-4)
    np.testing.assert_allclose(norm.moving_variance, variance, rtol=1e-4)


@pytest.mark.parametrize("model", left_to_all(["wide_deep", "mmoe", "ple", "aitm"], ("wide_deep", "mmoe")))
def test_evaluation_uses_moving_moments(model):
    batches, net = make_batches(25, tasks=2), make_model(model=model, tasks=TASKS, batch_norm=True)
    assert net.non_trainable_variables
    before = [variable.numpy() for variable in net.non_trainable_variables]
    step = make_step(net)
    first = net(batches[0].ids, batches[0].numerical).numpy()
    losses = [run(step, batch, number).sum() for number, batch in enumerate(batches, start=1)]
    for old, variable in zip(before, net.non_trainable_variables, strict=True):
        assert np.abs(variable.numpy() - old).max() > 1e-4
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert not np.allclose(first, net(batches[0].ids, batches[0].numerical))


def test_overflow_leaves_the_moments_unchanged():
    batch, net = make_batches(1)[0], make_model(batch_norm=True, compute_dtype="float16")
    step = make_step(net, compute_dtype="float16")
    run(step, batch._replace(numerical=batch.numerical * 1e30), 1)
    for variable in net.non_trainable_variables:
        assert set(np.unique(variable.numpy())) <= {0.0, 1.0}


def gates(**flags: object) -> Gates:
    return Gates(np.ones((2, 4), bool), (), DenseConfig(), name="g", **flags)


def test_dropped_experts_weigh_nothing():
    x = tf.constant(np.random.default_rng(1).normal(size=(4000, 6)), tf.float32)
    layer = gates(dropout=0.25)
    whole, found = layer(x).numpy(), layer(x, context=step_context(4000)).numpy()
    dropped = found == 0
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-5)
    # Weights stay where all four are dropped, 1 in 256.
    assert dropped.mean() == pytest.approx(0.25 - 0.25**4, abs=0.01)
    kept = np.where(dropped, 0, whole)
    np.testing.assert_allclose(found, kept / kept.sum(axis=-1, keepdims=True), rtol=1e-4)
    assert not np.array_equal(dropped[0], dropped[1])


def test_entropy_penalty_equals_negative_entropy():
    x, context = tf.constant(normal(7, 6)), step_context(7)
    weights = gates(entropy_weight=0.01)(x, context=context).numpy().astype(np.float64)
    expected = 0.01 * np.sum(weights * np.log(weights), axis=(0, 2))
    np.testing.assert_allclose(context.penalties[0], expected, rtol=1e-4)
    blocked = Gates(np.array([[True, False]]), (), DenseConfig(), name="blocked", entropy_weight=1.0)
    context = step_context(7)
    with tf.GradientTape() as tape:
        tape.watch(x)
        blocked(x, context=context)
        penalty = tf.reduce_sum(context.penalties[0])
    assert penalty.numpy() == 0 and np.isfinite(tape.gradient(penalty, x).numpy()).all()


def test_entropy_penalty_flattens_gates():
    batches, entropies = make_batches(40, tasks=2), {}
    for weight in (0.0, 1.0):
        model = make_model(model="mmoe", tasks=TASKS, gate_entropy_weight=weight)
        step = make_step(model)
        for number, batch in enumerate(batches, start=1):
            run(step, batch, number)
        batch = batches[0]
        deep_input = model.deep_input(model.embeddings.pool_padded(batch.ids), RowValues(batch.numerical))
        own = model.network.level_states(deep_input)[-1].gates.numpy()
        entropies[weight] = -np.sum(own * np.log(own), axis=-1).mean() / math.log(own.shape[-1])
    assert entropies[1.0] > entropies[0.0] and entropies[1.0] > 0.97
