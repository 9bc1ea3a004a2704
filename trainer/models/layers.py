"""Dense layers, and layers of equal shape that run side by side as one batched product."""

from collections.abc import Callable
from dataclasses import dataclass

import keras
import tensorflow as tf

from trainer.config import ModelOptions
from trainer.models.step_context import ACTIVATIONS, StepContext, relu_with_dropout
from trainer.process.device import has_units, on_gpu, own_flags


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


MOMENTUM = 0.9
EPSILON = 1e-5


class BatchNorm(keras.layers.Layer):
    """Normalises each unit: gamma (x - mean) / sqrt(variance + epsilon) + beta.

    In training, mean and (biased) variance are computed over the rows of all workers, without rows of weight 0 such as
    padding. Otherwise their moving averages are used, whose new values a training pass leaves in
    `StepContext.moments`. Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015.

    Args:
        shape: shape of the moments, [units] or [layers, 1, units].
        name: name of the layer.

    Input and output: [batch, units] or [layers, batch, units] of any float dtype; computed in float32.
    """

    def __init__(self, shape: tuple[int, ...], *, name: str):
        super().__init__(name=name, dtype="float32", autocast=False)
        self.gamma = self.add_weight(shape=shape, initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=shape, initializer="zeros", name="beta")
        self.moving_mean = self.add_weight(shape=shape, initializer="zeros", name="moving_mean", trainable=False)
        self.moving_variance = self.add_weight(shape=shape, initializer="ones", name="moving_variance", trainable=False)
        self.built = True

    def call(self, x: tf.Tensor, training_pass: StepContext | None = None) -> tf.Tensor:
        """Normalises `x` by the moments of the global batch in training, by the moving averages otherwise."""
        values = tf.cast(x, tf.float32)
        if training_pass is None:
            mean, variance = self.moving_mean.value, self.moving_variance.value
        else:
            mean, variance = self._moments(values, training_pass=training_pass)
        scale = self.gamma.value * tf.math.rsqrt(variance + EPSILON)
        return tf.cast((values - mean) * scale + self.beta.value, x.dtype)

    def _moments(self, values: tf.Tensor, training_pass: StepContext) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns mean and variance over the rows of all workers, and records the new moving averages."""
        shape, present = self.gamma.shape, training_pass.present[:, tf.newaxis]  # present: [batch, 1]
        count, total = training_pass.sum_over_workers(
            [tf.reduce_sum(training_pass.present), tf.reshape(tf.reduce_sum(values * present, axis=-2), shape)]
        )
        mean = tf.math.divide_no_nan(total, count)
        # A second reduction after the mean is known: E[x^2] - mean^2 would cancel where the mean is large.
        squares = tf.reduce_sum(tf.math.squared_difference(values, mean) * present, axis=-2)
        variance = tf.math.divide_no_nan(training_pass.sum_over_workers([tf.reshape(squares, shape)])[0], count)
        # Not assigned here: the step assigns them only if it is applied.
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            training_pass.moments.append((moving, MOMENTUM * moving.value + (1 - MOMENTUM) * value))
        return mean, variance


@dataclass(frozen=True)
class Style:
    """Configuration of dense layers apart from their widths.

    Attributes:
        activation: key of ACTIVATIONS.
        dropout: share of units dropped after a layer in training.
        batch_norm: whether layers are normalised before their activation; they then have no bias.
        compute_dtype: dtype of the products; weights are float32.
    """

    activation: str = "linear"
    dropout: float = 0.0
    batch_norm: bool = False
    compute_dtype: str = "float32"

    @classmethod
    def of(cls, options: ModelOptions, compute_dtype: str) -> "Style":
        """Returns the style of hidden layers that the options ask for."""
        return cls(options.activation, options.deep_dropout, options.batch_norm, compute_dtype)


def activated(
    product: tf.Tensor,
    bias: tf.Tensor | None,
    norm: BatchNorm | None,
    *,
    style: Style,
    training_pass: StepContext | None,
    place: int,
) -> tf.Tensor:
    """Applies what follows a dense layer's product: bias or normalisation, activation, dropout.

    Args:
        product: [..., batch, units], the input times the weights scaled by `weight_factor`.
        bias: [units] or [..., 1, units] float32; None if the layer has none.
        norm: normalisation of the product; None if the layer has none.
        style: configuration of the layer.
        training_pass: None outside training.
        place: number that tells the dropout masks of a step apart.

    Returns:
        [..., batch, units] in the compute dtype.
    """
    rate = style.dropout if training_pass is not None else 0.0
    draws = training_pass.dropout_mask(tf.shape(product), rate, place) if training_pass is not None and rate else None
    if bias is not None:
        product = add_bias(product, tf.cast(bias * weight_factor(style, training_pass), product.dtype))
    if norm is not None:
        product = norm(product, training_pass=training_pass)
    # Here dropout's factor is already in product and bias; see weight_factor.
    if style.activation == "relu" and norm is None:
        return relu_with_dropout(
            product, draws, style.compute_dtype, xla=training_pass is not None and training_pass.xla
        )
    result = tf.cast(ACTIVATIONS[style.activation](product), style.compute_dtype)
    return result if draws is None else tf.where(draws.keep, result / (1 - rate), tf.zeros((), result.dtype))


def weight_factor(style: Style, training_pass: StepContext | None) -> float:
    """Returns the factor of kernel and bias that replaces dropout's rescaling of the units.

    With relu, the weights are scaled by 1 / (1 - dropout) instead of the units, since relu(s x) = s relu(x). With other
    activations, before batch normalisation (which would cancel it) and outside training, the factor is 1.
    """
    passes = training_pass is not None and style.activation == "relu" and not style.batch_norm
    return 1 / (1 - style.dropout) if passes else 1.0


class Dense(keras.layers.Layer):
    """Computes activation(x W + b), with normalisation and dropout as the style asks for.

    Args:
        units: width of the output.
        style: configuration of the layer.
        seed: seed of W, initialised as Glorot uniform (b is initialised to zero); also identifies the dropout masks.
        name: name of the layer.

    Input:  [batch, width] float.
    Output: [batch, units] in the compute dtype.
    """

    def __init__(self, units: int, *, style: Style, seed: int, name: str):
        super().__init__(name=name, dtype="float32", autocast=False)
        self.units, self._style, self._seed = units, style, seed
        self.norm = BatchNorm((units,), name=f"{name}_norm") if style.batch_norm else None

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Creates the weights, whose shapes depend on the input's width."""
        start = keras.initializers.GlorotUniform(seed=self._seed)
        self.kernel = self.add_weight(shape=(input_shape[-1], self.units), initializer=start, name="kernel")
        self.bias = (
            None if self._style.batch_norm else self.add_weight(shape=(self.units,), initializer="zeros", name="bias")
        )

    def call(self, x: tf.Tensor, training_pass: StepContext | None = None) -> tf.Tensor:
        """Applies the layer; returns [batch, units] in the compute dtype."""
        kernel = self.kernel.value * weight_factor(self._style, training_pass)
        bias = None if self.bias is None else self.bias.value
        product = matmul(x, kernel, self._style.compute_dtype)
        return activated(product, bias, self.norm, style=self._style, training_pass=training_pass, place=self._seed)


class HiddenLayers(keras.layers.Layer):
    """Stack of dense layers.

    Args:
        units: width of each layer.
        style: configuration of the layers.
        seed: seed of the initial weights (Glorot uniform; biases are zero).

    Input:  [batch, width] float.
    Output: [batch, units[-1]] in the compute dtype.
    """

    def __init__(self, units: tuple[int, ...], *, style: Style, seed: int):
        super().__init__(name="hidden", dtype="float32", autocast=False)
        self.dense = [
            Dense(width, style=style, seed=seed + index, name=f"hidden_{index + 1}")
            for index, width in enumerate(units)
        ]

    def call(self, x: tf.Tensor, training_pass: StepContext | None = None) -> tf.Tensor:
        """Applies the layers in order; returns [batch, units[-1]] in the compute dtype."""
        for layer in self.dense:
            x = layer(x, training_pass=training_pass)
        return x


class ParallelDense(keras.layers.Layer):
    """Dense layers of equal shape, computed side by side.

    Layer i computes  activation(x_i W_i + b_i).  All W_i are slices of one weight [layers, inputs, units], but each is
    initialised as the Glorot uniform kernel of a single Dense, from its own seed: layers that start equal and are
    weighted equally would stay equal forever.

    Args:
        layers: number of layers.
        inputs, units: input and output width of each layer.
        style: configuration of the layers.
        seed: seed of the first layer, followed by those of the others; also identifies the dropout masks.
        name: name of the layer.
        use_bias: whether there are b_i, which are initialised to zero.
        start: initial value of the W_i, "random" or "zero".

    Input:  [batch, inputs], shared by all layers, or [layers, batch, inputs].
    Output: [layers, batch, units] in the compute dtype.
    """

    def __init__(
        self,
        layers: int,
        inputs: int,
        units: int,
        *,
        style: Style,
        seed: int,
        name: str,
        use_bias: bool = True,
        start: str = "random",
    ):
        super().__init__(name=name, dtype="float32", autocast=False)
        self._style, self._seed = style, seed
        self.kernel = self.add_weight(shape=(layers, inputs, units), initializer="zeros", name="kernel")
        if start == "random":
            starts = [keras.initializers.GlorotUniform(seed=seed + index) for index in range(layers)]
            self.kernel.assign(tf.stack([initial((inputs, units)) for initial in starts]))
        self.bias = (
            self.add_weight(shape=(layers, 1, units), initializer="zeros", name="bias")
            if use_bias and not style.batch_norm
            else None
        )
        self.norm = BatchNorm((layers, 1, units), name=f"{name}_norm") if style.batch_norm else None
        self.built = True

    def call(self, x: tf.Tensor, training_pass: StepContext | None = None) -> tf.Tensor:
        """Applies all layers; returns [layers, batch, units] in the compute dtype."""
        kernel = self.kernel.value * weight_factor(self._style, training_pass)
        bias = None if self.bias is None else self.bias.value
        if x.shape.rank == 3:
            product = matmul(x, kernel, self._style.compute_dtype)
            return self._activated(product, bias, training_pass=training_pass)
        # A shared input takes a single product: [batch, inputs] @ [inputs, layers * units]. Bias, activation and
        # dropout also run on this matrix, before it is split into layers.
        side_by_side = tf.reshape(tf.transpose(kernel, [1, 0, 2]), [kernel.shape[1], -1])
        product = matmul(x, side_by_side, self._style.compute_dtype)
        # Moments are per layer, [layers, 1, units], so normalisation needs the layers split first.
        if self.norm is not None:
            return self._activated(self._apart(product), bias, training_pass=training_pass)
        flat_bias = None if bias is None else tf.reshape(bias, [-1])
        return self._apart(self._activated(product, flat_bias, training_pass=training_pass))

    def _activated(self, product: tf.Tensor, bias: tf.Tensor | None, training_pass: StepContext | None) -> tf.Tensor:
        return activated(product, bias, self.norm, style=self._style, training_pass=training_pass, place=self._seed)

    def _apart(self, side_by_side: tf.Tensor) -> tf.Tensor:
        """Splits [batch, layers * units] into [layers, batch, units]."""
        layers, _, units = self.kernel.shape
        if layers == 1:
            return side_by_side[tf.newaxis]
        return tf.transpose(tf.reshape(side_by_side, [-1, layers, units]), [1, 0, 2])


class ParallelStack(keras.layers.Layer):
    """Multilayer perceptrons of equal shape, computed side by side: experts, or the towers of tasks.

    Args:
        stacks: number of perceptrons.
        inputs: width of the input.
        units: width of each layer; without any, the output is the input, once per stack.
        style: configuration of the layers.
        seed: first seed of the weights; `SEEDS` seeds are reserved.
        name: name of the layer.

    Input:  [batch, inputs] or [stacks, batch, inputs].
    Output: [stacks, batch, units[-1]] in the compute dtype.
    """

    SEEDS = 1_000

    def __init__(self, stacks: int, inputs: int, units: tuple[int, ...], *, style: Style, seed: int, name: str):
        super().__init__(name=name, dtype="float32", autocast=False)
        self.stacks, self.output_width = stacks, (inputs, *units)[-1]
        self._style = style
        widths = (inputs, *units)
        self.dense = [
            ParallelDense(
                stacks, widths[index], width, style=style, seed=seed + index * 100, name=f"{name}_{index + 1}"
            )
            for index, width in enumerate(units)
        ]
        self.built = True

    def call(self, x: tf.Tensor, training_pass: StepContext | None = None) -> tf.Tensor:
        """Applies all perceptrons; returns [stacks, batch, units[-1]] in the compute dtype."""
        if not self.dense:
            x = tf.cast(x, self._style.compute_dtype)
            return x if x.shape.rank == 3 else tf.tile(x[tf.newaxis], [self.stacks, 1, 1])
        for layer in self.dense:
            x = layer(x, training_pass=training_pass)
        return x
