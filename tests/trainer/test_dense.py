"""Dense layers against their plain form, and what dropout drops."""

import numpy as np
import pytest
import tensorflow as tf

from trainer.models import layers as products
from trainer.models.layers import Dense, DenseConfig
from trainer.models.step_context import ACTIVATIONS, StepContext, dropout_mask, uniform

ROWS, INPUTS, UNITS, RATE = 64, 12, 20, 0.5
# Relative to the largest value: the rounding of gradients and results.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2**-7, "float16": 2**-10}


def mask(shape: tuple[int, ...], rate: float, seed: list[int]) -> np.ndarray:
    return dropout_mask(tf.constant(shape), rate, tf.constant(seed)).keep.numpy()


def step_context(step: int = 64, *, xla: bool = False) -> StepContext:
    return StepContext(tf.constant([3, step]), tf.ones(ROWS), lambda tensors: tensors, xla)


def normal(*shape: int, seed: int) -> tf.Tensor:
    return tf.constant(np.random.default_rng(seed).normal(size=shape), tf.float32)


def quarters(*shape: int, seed: int) -> tf.Tensor:
    """Numbers that every type holds exactly, twice them too: no rounding decides on which side of 0 relu's input is."""
    return tf.constant(np.random.default_rng(seed).integers(-8, 9, size=shape) / 4, tf.float32)


def plain_form(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, activation: str, keep: tf.Tensor) -> tf.Tensor:
    """The layer written out in float64."""
    result = ACTIVATIONS[activation](tf.linalg.matmul(x, kernel) + bias)
    return tf.where(keep, result / (1 - RATE), tf.zeros((), tf.float64))


def with_gradients(function, inputs: list[tf.Tensor], upstream: tf.Tensor) -> list[np.ndarray]:  # type: ignore[no-untyped-def]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        result = function(*inputs)
    gradients = tape.gradient(result, inputs, output_gradients=tf.cast(upstream, result.dtype))
    return [tf.cast(value, tf.float64).numpy() for value in (result, *gradients)]


def assert_close(found: list[np.ndarray], expected: list[np.ndarray], dtype: str) -> None:
    for own, other in zip(found, expected, strict=True):
        assert own.shape == other.shape
        np.testing.assert_allclose(own, other, atol=TOLERANCE[dtype] * np.abs(other).max(), rtol=0)


@pytest.mark.parametrize("multiplied_as", ["itself", "float32"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize(
    ("stacks", "shared_input", "xla"), [(None, True, False), (None, True, True), (3, False, True), (3, True, False)]
)
def test_layer_and_gradients_equal_the_plain_form(
    monkeypatch, stacks, shared_input, xla, activation, dtype, multiplied_as
):
    monkeypatch.setattr(products, "product_dtype", lambda own: own if multiplied_as == "itself" else "float32")
    config = DenseConfig(activation, RATE, compute_dtype=dtype)
    layer = Dense(UNITS, config, stacks=stacks, name="d")
    layer.build((None, INPUTS))
    for seed, weight in enumerate((layer.kernel, layer.bias), start=1):
        weight.assign(quarters(*weight.shape, seed=seed))
    weights, several = [layer.kernel.value, layer.bias.value], [] if stacks is None else [stacks]
    x = quarters(*[] if shared_input else several, ROWS, INPUTS, seed=0)
    context, upstream = step_context(xla=xla), quarters(*several, ROWS, UNITS, seed=3)
    if several and shared_input:
        keep = context.dropout_mask(tf.constant([ROWS, stacks * UNITS]), RATE, layer.mask_id).keep
        keep = tf.stack(tf.split(keep, stacks, axis=1))
    else:
        keep = context.dropout_mask(tf.constant([*several, ROWS, UNITS]), RATE, layer.mask_id).keep
    found = with_gradients(lambda x, *_: layer(x, context=context), [x, *weights], upstream)
    exact = [tf.cast(value, tf.float64) for value in (x, *weights)]
    plain = with_gradients(lambda x, kernel, bias: plain_form(x, kernel, bias, activation, keep), exact, upstream)
    assert_close(found, plain, dtype)
    assert layer(x, context=context).dtype == dtype
    assert (found[0] == 0).mean() > 0.2


def test_products_are_rounded_to_the_compute_dtype():
    x, y = normal(ROWS, INPUTS, seed=0), normal(INPUTS, UNITS, seed=1)
    rounded = [tf.cast(tf.cast(value, tf.bfloat16), tf.float64) for value in (x, y)]
    exact = [tf.cast(value, tf.float64) for value in (x, y)]
    found = tf.cast(products.matmul(x, y, "bfloat16"), tf.float64)
    is_rounded = products.product_dtype("bfloat16") == "bfloat16"

    def share_equal(operands: list[tf.Tensor]) -> float:
        product = operands[0] @ operands[1]
        wanted = tf.cast(tf.cast(product, tf.bfloat16), tf.float64) if is_rounded else product
        return float(np.mean(np.abs(found - wanted) < 1e-5))

    # Sums of another order may round a result the other way, rarely.
    assert share_equal(rounded) > 0.98 and share_equal(exact) < 0.8


def test_product_dtype_follows_the_processor(monkeypatch):
    for flags, expected in ((frozenset({"avx512f"}), "float32"), (frozenset({"amx_bf16"}), "bfloat16")):
        monkeypatch.setattr(products, "own_flags", lambda flags=flags: flags)
        assert [products.product_dtype(dtype) for dtype in ("float32", "bfloat16")] == ["float32", expected]
        product = products.matmul(tf.ones((2, 3)), tf.ones((3, 4)), "bfloat16")
        assert product.dtype == expected


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.25, 0.5, 0.9, 255 / 256])
def test_dropout_probability(rate):
    shape = (4000, 1001)
    dropped = ~mask(shape, rate, [1, 2])
    # Five deviations of the mean; the rows' own thresholds add less than 1 / 512 per row.
    deviation = np.sqrt(rate * (1 - rate) / dropped.size) + 1 / 512 / np.sqrt(shape[0])
    assert dropped.mean() == pytest.approx(rate, abs=5 * deviation)
    by_row, by_unit = dropped.mean(axis=1), dropped.mean(axis=0)
    assert by_row.std() < 1.3 * np.sqrt(rate * (1 - rate) / shape[1]) + 1 / 500
    assert by_unit.std() == pytest.approx(np.sqrt(rate * (1 - rate) / shape[0]), rel=0.15)


def test_xla_draws_the_same_numbers():
    """Else a pass that XLA compiles would drop other values than one that it does not."""

    def draw(seed: tf.Tensor) -> tuple[tf.Tensor, ...]:
        # An odd number of values, so that not all bytes of the last word are used.
        return *dropout_mask(tf.constant([2, 33, 7]), 0.3, seed), uniform(tf.constant([1001, 3]), seed)

    plain, compiled = draw(tf.constant([5, 6])), tf.function(draw, jit_compile=True)(tf.constant([5, 6]))
    for own, other in zip(plain, compiled, strict=True):
        np.testing.assert_array_equal(own, other)
    assert set(np.unique(plain[1])) == {76, 77}  # both thresholds: 256 * 0.3 lies between them
    np.testing.assert_array_equal(plain[2], tf.random.stateless_uniform([1001, 3], [5, 6]))


def test_dropout_masks_are_independent():
    shape = (2000, 500)
    own = mask(shape, 0.1, [5, 6])
    others = [mask(shape, 0.1, seed) for seed in ([5, 7], [6, 6])]
    for other in (*others, np.roll(own, 1, axis=0), np.roll(own, 1, axis=1)):
        assert abs(np.corrcoef(own.ravel(), other.ravel())[0, 1]) < 0.005
    np.testing.assert_array_equal(own, mask(shape, 0.1, [5, 6]))


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_dropout_keeps_the_expected_output(activation):
    layer = Dense(UNITS, DenseConfig(activation, 0.1), name="d")
    x, total = normal(ROWS, INPUTS, seed=0), 0.0
    whole = layer(x).numpy()
    for step in range(400):
        total += layer(x, context=step_context(64 * step)).numpy()
    np.testing.assert_allclose(total / 400, whole, atol=5 * np.abs(whole).max() * np.sqrt(0.1 / 0.9 / 400))
    assert abs(np.sum(total / 400 - whole)) < 0.02 * np.abs(whole).sum()


def test_dropout_differs_by_layer_step_and_worker():
    x, config = normal(ROWS, INPUTS, seed=0), DenseConfig("relu", 0.5)
    layer, other = (Dense(UNITS, config, name=name) for name in ("d", "e"))
    layer.build(x.shape)
    other.build(x.shape)
    other.kernel.assign(layer.kernel)
    seeds = {"same": [3, 64], "step": [3, 128], "worker": [4, 64]}
    found = {
        name: layer(x, context=StepContext(tf.constant(seed), tf.ones(ROWS), list)).numpy()
        for name, seed in seeds.items()
    }
    found["layer"] = other(x, context=step_context()).numpy()
    np.testing.assert_array_equal(found["same"], layer(x, context=step_context()))
    for name in ("step", "worker", "layer"):
        assert (found[name] != found["same"]).mean() > 0.2, name
