"""Matrix products in the compute dtype, in the form that is fastest on the device."""

from collections.abc import Callable

import tensorflow as tf

from trainer.process.cpu import has_units, own_flags
from trainer.process.device import on_gpu


def product_dtype(compute_dtype: str) -> str:
    """Returns the dtype in which products of the compute dtype are computed.

    CPUs without native support for a half-precision dtype take several times as long with it as with float32. There,
    operands are rounded to the compute dtype and multiplied as float32, which is what native units do, too; only
    rounding the result is left to the caller.
    """
    return compute_dtype if on_gpu() or has_units(compute_dtype, own_flags()) else "float32"


def operand(x: tf.Tensor, compute_dtype: str) -> tf.Tensor:
    """Rounds `x` to the compute dtype and returns it in the dtype of products."""
    return tf.cast(tf.cast(x, compute_dtype), product_dtype(compute_dtype))


def matmul(x: tf.Tensor, y: tf.Tensor, compute_dtype: str) -> tf.Tensor:
    """Computes the matrix product x y; its gradient's two products are computed in the same way.

    Args:
        x: [..., n, k] float.
        y: [..., k, m] float.
        compute_dtype: dtype that operands and gradients are rounded to.

    Returns:
        [..., n, m] in product_dtype(compute_dtype), to be rounded to the compute dtype by the caller.
    """
    return tf.linalg.matmul(operand(x, compute_dtype), operand(y, compute_dtype))


def add_bias(x: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Adds the bias to every row of `x`.

    The bias gradient is a sum over rows; as a product with ones, it takes about half the time.

    Args:
        x: [..., rows, units].
        bias: [units] or [..., 1, units], in the dtype of `x`.
    """

    @tf.custom_gradient
    def added(x: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], list[tf.Tensor]]]:
        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            ones = tf.ones([*[1] * (x.shape.rank - 1), tf.shape(x)[-2]], x.dtype)  # [..., 1, rows]
            return [upstream, tf.reshape(tf.linalg.matmul(ones, upstream), bias.shape)]

        # The graph optimizer fuses BiasAdd, but not a plain addition, into the preceding matmul.
        return tf.nn.bias_add(x, bias) if bias.shape.rank == 1 else x + bias, gradient

    return tf.convert_to_tensor(added(x, bias))
