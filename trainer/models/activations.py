"""Activations, and the dropout behind them."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

ACTIVATIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "relu": tf.nn.relu,
    "gelu": tf.nn.gelu,
    "silu": tf.nn.silu,
    "tanh": tf.math.tanh,
    "linear": tf.identity,
}


class Draws(NamedTuple):
    """What decides which values are dropped: those whose byte is below their row's threshold.

    Attributes:
        bytes: [..., units] uint8.
        thresholds: [..., 1] uint8.
    """

    bytes: tf.Tensor
    thresholds: tf.Tensor

    @property
    def keep(self) -> tf.Tensor:
        """[..., units] bool, False for values that are dropped."""
        return self.bytes >= self.thresholds


def draw(shape: tf.Tensor, rate: float, seed: tf.Tensor) -> Draws:
    """Draws that drop each value with probability `rate`, a pure function of the seed.

    Random bits are what dropout costs most, so a value gets no more than 8 of them. They are compared with one of the
    two whole numbers around 256 rate, drawn for every row so that its mean is 256 rate: values are dropped with the
    very probability asked for, to the 2^-31 that the 23 bits of a row's float32 draw tell apart.

    Args:
        shape: [rank] int32; values along the last axis are a row.
        rate: in [0, 255 / 256].
        seed: [2] int32.
    """
    values, lower = tf.reduce_prod(shape), int(256 * rate)
    words = tf.random.stateless_uniform([(values + 3) // 4], seed, minval=None, maxval=None, dtype=tf.int32)
    in_order = tf.reshape(tf.bitcast(words, tf.uint8), [-1])[:values]
    of_rows = tf.random.stateless_uniform(tf.concat([shape[:-1], [1]], axis=0), seed + [2**30, 0])
    thresholds = tf.cast(of_rows < 256 * rate - lower, tf.uint8) + tf.constant(lower, tf.uint8)
    return Draws(tf.reshape(in_order, shape), thresholds)


def relu_with_dropout(x: tf.Tensor, draws: Draws | None, dtype: str, *, xla: bool) -> tf.Tensor:
    """relu(x), 0 where the draws say so, rounded to a type.

    Where the result is not 0 the gradient passes, and nowhere else: nothing but the result is stored for it. Dropout's
    factor 1 / (1 - rate) must be in x, since relu(s x) = s relu(x).

    Args:
        x: float.
        draws: of the shape of x; None keeps all.
        dtype: of the result.
        xla: compile it, so that all is done in one pass over x.
    """
    # Without dropout, TensorFlow joins relu to the product before it, which is better still.
    forward = tf.function(_rectified, jit_compile=True) if xla and draws is not None else _rectified

    @tf.custom_gradient
    def rectified(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        result = forward(x, draws, dtype)

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            return tf.cast(tf.raw_ops.ReluGrad(gradients=upstream, features=result), x.dtype)

        return result, gradient

    return tf.convert_to_tensor(rectified(x))


def _rectified(x: tf.Tensor, draws: Draws | None, dtype: str) -> tf.Tensor:
    result = tf.cast(tf.nn.relu(x), dtype)
    return result if draws is None else tf.where(draws.keep, result, tf.zeros((), dtype))
