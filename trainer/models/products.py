"""Matrix products in the compute type, as fast as the device at hand can take them."""

from collections.abc import Callable

import tensorflow as tf

from trainer.process.cpu import has_units, own_flags
from trainer.process.device import on_gpu


def product_dtype(compute_dtype: str) -> str:
    """The type in which products of the compute type are taken.

    A processor without units for a half-width type takes several times as long over it as over float32. There the
    operands are rounded to the compute type and multiplied as float32, which is what such units do, too; only rounding
    the result is left to the caller.
    """
    return compute_dtype if on_gpu() or has_units(compute_dtype, own_flags()) else "float32"


def operand(x: tf.Tensor, compute_dtype: str) -> tf.Tensor:
    """x rounded to the compute type, in the type that products are taken in."""
    return tf.cast(tf.cast(x, compute_dtype), product_dtype(compute_dtype))


def matmul(x: tf.Tensor, y: tf.Tensor, compute_dtype: str) -> tf.Tensor:
    """x y, and both products of its gradient.

    Args:
        x: [..., n, k] float.
        y: [..., k, m] float.
        compute_dtype: which operands and gradients are rounded to.

    Returns:
        [..., n, m] in product_dtype(compute_dtype); to be rounded to the compute type.
    """
    return tf.linalg.matmul(operand(x, compute_dtype), operand(y, compute_dtype))


def add_bias(x: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """x + bias, which is added to every row.

    The gradient of the bias is a sum over rows. Taken as a product with ones, it costs about half.

    Args:
        x: [..., rows, units].
        bias: [units] or [..., 1, units], in the type of x.
    """

    @tf.custom_gradient
    def added(x: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], list[tf.Tensor]]]:
        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            ones = tf.ones([*[1] * (x.shape.rank - 1), tf.shape(x)[-2]], x.dtype)
            return [upstream, tf.reshape(tf.linalg.matmul(ones, upstream), bias.shape)]

        # The operation of this name is what the graph optimizer joins to the product before it.
        return tf.nn.bias_add(x, bias) if bias.shape.rank == 1 else x + bias, gradient

    return tf.convert_to_tensor(added(x, bias))
