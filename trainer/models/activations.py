"""Activations, and the dropout behind them."""

from collections.abc import Callable

import tensorflow as tf

ACTIVATIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "relu": tf.nn.relu,
    "gelu": tf.nn.gelu,
    "silu": tf.nn.silu,
    "tanh": tf.math.tanh,
    "linear": tf.identity,
}


def keep_mask(shape: tf.Tensor, rate: float, seed: tf.Tensor) -> tf.Tensor:
    """Bool tensor of a shape, False with probability `rate`, a pure function of the seed.

    Random bits are what dropout costs most, so a value gets no more than 8 of them. They are compared with one of the
    two whole numbers around 256 rate, drawn for every row so that its mean is 256 rate: values are dropped with
    exactly the probability asked for, to the 2^-24 of float32 draws per row.

    Args:
        shape: [rank] int32; values along the last axis are a row.
        rate: in [0, 255 / 256].
        seed: [2] int32.
    """
    values, lower = tf.reduce_prod(shape), int(256 * rate)
    words = tf.random.stateless_uniform([(values + 3) // 4], seed, minval=None, maxval=None, dtype=tf.int32)
    bytes_ = tf.reshape(tf.reshape(tf.bitcast(words, tf.uint8), [-1])[:values], shape)
    row_draws = tf.random.stateless_uniform(tf.concat([shape[:-1], [1]], axis=0), seed + [2**30, 0])
    return bytes_ >= tf.cast(row_draws < 256 * rate - lower, tf.uint8) + tf.constant(lower, tf.uint8)


def relu_with_dropout(x: tf.Tensor, keep: tf.Tensor | None, dtype: str) -> tf.Tensor:
    """relu(x) where `keep` and else 0, rounded to a type.

    Where the result is not 0 the gradient passes, and nowhere else: nothing but the result is stored for it. Dropout's
    factor 1 / (1 - rate) must be in x, since relu(s x) = s relu(x).

    Args:
        x: float.
        keep: bool, of the shape of x; None keeps all.
        dtype: of the result.
    """

    @tf.custom_gradient
    def rectified(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        result = tf.cast(tf.nn.relu(x), dtype)
        if keep is not None:
            result = tf.where(keep, result, tf.zeros((), dtype))

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            return tf.cast(tf.raw_ops.ReluGrad(gradients=upstream, features=result), x.dtype)

        return result, gradient

    return tf.convert_to_tensor(rectified(x))
