"""What a training step passes to the layers of a model: dropout masks and sums over the workers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import keras
import tensorflow as tf

ACTIVATIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "relu": tf.nn.relu,
    "gelu": tf.nn.gelu,
    "silu": tf.nn.silu,
    "tanh": tf.math.tanh,
    "linear": tf.identity,
}


class DropoutMask(NamedTuple):
    """A random mask: values whose byte is below the threshold of their row are dropped.

    Attributes:
        bytes: [..., units] uint8 random bytes.
        thresholds: [..., 1] uint8 threshold of each row.
    """

    bytes: tf.Tensor
    thresholds: tf.Tensor

    @property
    def keep(self) -> tf.Tensor:
        """Mask of the values to keep, [..., units] bool."""
        return self.bytes >= self.thresholds


@dataclass
class StepContext:
    """What a training step passes to the layers, and collects from them besides their outputs.

    Dropout is a pure function of the seed: a repeated step uses the same masks on any machine, and no random state has
    to be saved.

    Attributes:
        dropout_seed: [2] int32 seed, different in every step and on every worker.
        present: [batch] float32, 1 for rows of positive weight and 0 for others, such as padding.
        sum_over_workers: differentiable element-wise sum of float32 tensors over all workers.
        xla: whether to compile element-wise operations.
        penalties: [batch] float32 tensors to add to the loss of each row.
        moments: moving averages and their new values, to be assigned when the step is applied.
    """

    dropout_seed: tf.Tensor
    present: tf.Tensor
    sum_over_workers: Callable[[list[tf.Tensor]], list[tf.Tensor]]
    xla: bool = False
    penalties: list[tf.Tensor] = field(default_factory=list)
    moments: list[tuple[keras.Variable, tf.Tensor]] = field(default_factory=list)

    def dropout_mask(self, shape: tf.Tensor, rate: float, mask_id: int) -> DropoutMask:
        """Draw a mask that drops each value with probability `rate`; the masks of a step differ in `mask_id`."""
        return dropout_mask(shape, rate, self.dropout_seed + [0, mask_id % 2**20])


def dropout_mask(shape: tf.Tensor, rate: float, seed: tf.Tensor) -> DropoutMask:
    """Draw a mask that drops each value with probability `rate`, as a pure function of the seed.

    Generating random bits dominates the cost of dropout, so each value gets only 8. They are compared with one of the
    two integers around 256 rate, chosen at random per row so that its mean is 256 rate: the drop probability is exactly
    `rate`, up to 2^-31, the resolution of a row's 23-bit float32 random number.

    Args:
        shape: [rank] int32 shape of the mask; values along the last axis form a row.
        rate: drop probability, in [0, 255 / 256].
        seed: [2] int32 seed.
    """
    values, lower = tf.reduce_prod(shape), int(256 * rate)
    # Each 32-bit word yields four bytes, and the last word may have bytes to spare.
    words = tf.random.stateless_uniform([(values + 3) // 4], seed, minval=None, maxval=None, dtype=tf.int32)
    random_bytes = tf.reshape(tf.bitcast(words, tf.uint8), [-1])[:values]
    # A different seed, so that thresholds do not depend on the bytes they are compared with.
    per_row = uniform(tf.concat([shape[:-1], [1]], axis=0), seed + [2**30, 0])  # [..., 1]
    thresholds = tf.cast(per_row < 256 * rate - lower, tf.uint8) + tf.constant(lower, tf.uint8)
    return DropoutMask(tf.reshape(random_bytes, shape), thresholds)


def uniform(shape: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draw numbers from [0, 1) as a pure function of the seed, the same with and without XLA.

    Args:
        shape: [rank] int32 shape of the result.
        seed: [2] int32 seed.

    Returns:
        Multiples of 2^-23, float32: the numbers that tf.random.stateless_uniform draws without XLA.
    """
    # XLA draws the same bits as TensorFlow, but makes other floats of them.
    words = tf.random.stateless_uniform(shape, seed, minval=None, maxval=None, dtype=tf.int32)
    return tf.cast(tf.bitwise.bitwise_and(words, 2**23 - 1), tf.float32) * 2.0**-23


def relu_with_dropout(x: tf.Tensor, mask: DropoutMask | None, dtype: str, *, xla: bool) -> tf.Tensor:
    """Compute relu(x) with dropout, rounded to `dtype`.

    The gradient passes exactly where the result is not 0, so the result is all that is stored for the backward pass.
    `x` must already contain dropout's factor 1 / (1 - rate), which is possible because relu(s x) = s relu(x).

    Args:
        x: float input.
        mask: dropout mask of the shape of `x`; None keeps all values.
        dtype: dtype of the result.
        xla: compile the operation if there is dropout, so that it takes a single pass over `x`.
    """
    # Without dropout, TensorFlow fuses relu into the preceding matmul, which is faster still.
    forward = tf.function(_rectified, jit_compile=True) if xla and mask is not None else _rectified

    @tf.custom_gradient
    def rectified(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        result = forward(x, mask, dtype)

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            # Dropped values are 0 in the result, so ReluGrad blocks their gradient as well.
            return tf.cast(tf.raw_ops.ReluGrad(gradients=upstream, features=result), x.dtype)

        return result, gradient

    return tf.convert_to_tensor(rectified(x))


def _rectified(x: tf.Tensor, mask: DropoutMask | None, dtype: str) -> tf.Tensor:
    result = tf.cast(tf.nn.relu(x), dtype)
    return result if mask is None else tf.where(mask.keep, result, tf.zeros((), dtype))
