"""Layers: dense layers, batch normalization, gates over experts, and the towers of tasks.

Layers of equal shape, such as experts, run side by side as stacks of one layer, whose products are batched. The rows of
a ranking request may come in parts (`trainer.models.parts`): a layer then computes once what they share.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import keras
import numpy as np
import tensorflow as tf

from trainer.models.parts import Parts
from trainer.models.step_context import ACTIVATIONS, StepContext, relu_with_dropout
from trainer.process.device import has_units, on_gpu, own_flags
from trainer.seeds import seed_of
from trainer.tasks.task import Task


@dataclass(frozen=True)
class DenseConfig:
    """Configuration of dense layers apart from their widths.

    Attributes:
        activation: key of ACTIVATIONS.
        dropout: share of units dropped after a layer in training.
        batch_norm: whether layers are normalized before their activation; they then have no bias.
        compute_dtype: dtype of the products; weights are float32.
        seed: seed of the run, from which each layer derives the seed of its initial weights by its path.
    """

    activation: str = "linear"
    dropout: float = 0.0
    batch_norm: bool = False
    compute_dtype: str = "float32"
    seed: int = 0

    @property
    def linear(self) -> "DenseConfig":
        """Configuration of linear layers without normalization and dropout."""
        return DenseConfig(compute_dtype=self.compute_dtype, seed=self.seed)

    @property
    def logits(self) -> "DenseConfig":
        """Configuration of linear layers that compute in float32, whatever the compute dtype."""
        return DenseConfig(seed=self.seed)


def product_dtype(compute_dtype: str) -> str:
    """Return the dtype in which products of the compute dtype are computed.

    CPUs without native support for a half-precision dtype take several times as long with it as with float32. There,
    operands are rounded to the compute dtype and multiplied as float32, which is what native units do, too; only
    rounding the result is left to the caller.
    """
    return compute_dtype if on_gpu() or has_units(compute_dtype, own_flags()) else "float32"


def operand(x: tf.Tensor, compute_dtype: str) -> tf.Tensor:
    """Round `x` to the compute dtype and return it in the dtype of products."""
    return tf.cast(tf.cast(x, compute_dtype), product_dtype(compute_dtype))


def matmul(x: tf.Tensor, y: tf.Tensor, compute_dtype: str) -> tf.Tensor:
    """Compute the matrix product x y; its gradient's two products are computed in the same way.

    Args:
        x: [..., n, k] float.
        y: [..., k, m] float.
        compute_dtype: dtype that operands and gradients are rounded to.

    Returns:
        [..., n, m] in product_dtype(compute_dtype), to be rounded to the compute dtype by the caller.
    """
    return tf.linalg.matmul(operand(x, compute_dtype), operand(y, compute_dtype))


def add_bias(x: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Add the bias to every row of `x`.

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
    """Normalizes each unit: gamma (x - mean) / sqrt(variance + epsilon) + beta.

    In training, mean and (biased) variance are computed over the rows of all workers, without rows of weight 0 such as
    padding. Otherwise their moving averages are used, whose new values a training step leaves in
    `StepContext.moments`. They begin with the first batch: averaged with their initial values of 0 and 1, they would
    take a hundred steps to become as small as the values of small embeddings, and evaluations until then would be
    wrong. Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015.

    Input and output: [batch, units] or [stacks, batch, units] of any float dtype; computed in float32.
    """

    def __init__(self, *, name: str):
        super().__init__(name=name, dtype="float32", autocast=False)

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Create the weights, [units] or [stacks, 1, units]."""
        units = input_shape[-1]
        shape = (units,) if len(input_shape) == 2 else (input_shape[0], 1, units)
        self.gamma = self.add_weight(shape=shape, initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=shape, initializer="zeros", name="beta")
        self.moving_mean = self.add_weight(shape=shape, initializer="zeros", name="moving_mean", trainable=False)
        self.moving_variance = self.add_weight(shape=shape, initializer="ones", name="moving_variance", trainable=False)

    def call(self, x: tf.Tensor, context: StepContext | None = None) -> tf.Tensor:
        """Normalize `x` by the moments of the global batch in training, by the moving averages otherwise."""
        values = tf.cast(x, tf.float32)
        if context is None:
            mean, variance = self.moving_mean.value, self.moving_variance.value
        else:
            mean, variance = self._moments(values, context)
        scale = self.gamma.value * tf.math.rsqrt(variance + EPSILON)
        return tf.cast((values - mean) * scale + self.beta.value, x.dtype)

    def _moments(self, values: tf.Tensor, context: StepContext) -> tuple[tf.Tensor, tf.Tensor]:
        """Return mean and variance over the rows of all workers, and record the new moving averages."""
        shape, present = self.gamma.shape, context.present[:, tf.newaxis]  # present: [batch, 1]
        count, total = context.sum_over_workers(
            [tf.reduce_sum(context.present), tf.reshape(tf.reduce_sum(values * present, axis=-2), shape)]
        )
        mean = tf.math.divide_no_nan(total, count)
        # A second reduction after the mean is known: E[x^2] - mean^2 would cancel where the mean is large.
        squares = tf.reduce_sum(tf.math.squared_difference(values, mean) * present, axis=-2)
        variance = tf.math.divide_no_nan(context.sum_over_workers([tf.reshape(squares, shape)])[0], count)
        is_first = (self.moving_mean.value == 0.0) & (self.moving_variance.value == 1.0)  # of the units
        kept = tf.where(is_first, 0.0, MOMENTUM)
        # Not assigned here: the step assigns them only if it is applied.
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            context.moments.append((moving, kept * moving.value + (1 - kept) * value))
        return mean, variance


class Dense(keras.layers.Layer):
    """Computes activation(x W + b), with normalization and dropout as configured; optionally several stacks of it.

    Stack i computes  activation(x_i W_i + b_i). Each W_i is initialized as the Glorot uniform kernel of a single layer,
    with values of its own: stacks that start equal and are weighted equally would stay equal forever.

    Args:
        units: width of the output.
        config: configuration of the layer.
        name: name of the layer.
        stacks: number of stacks; None for a single layer whose tensors have no stack axis.
        use_bias: whether there is a bias, which starts at zero. Normalized layers have none.
        starts_at_zero: whether the kernel starts at zero, too.

    Input:  [batch, inputs], shared by all stacks, also in parts; or [stacks, batch, inputs].
    Output: [batch, units], or [stacks, batch, units] with stacks, in the compute dtype.
    """

    def __init__(
        self,
        units: int,
        config: DenseConfig,
        *,
        name: str,
        stacks: int | None = None,
        use_bias: bool = True,
        starts_at_zero: bool = False,
    ):
        super().__init__(name=name, dtype="float32", autocast=False)
        self.units, self.config, self.stacks = units, config, stacks
        self._has_bias, self._starts_at_zero = use_bias and not config.batch_norm, starts_at_zero
        self.norm = BatchNorm(name="norm") if config.batch_norm else None

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Create the weights, whose shapes depend on the input's width."""
        inputs = input_shape[-1]
        is_single = self.stacks is None
        kernel_shape = (inputs, self.units) if is_single else (self.stacks, inputs, self.units)
        bias_shape = (self.units,) if is_single else (self.stacks, 1, self.units)
        limit = math.sqrt(6 / (inputs + self.units))  # Glorot's limit for the kernel of one stack
        seed = seed_of(self.config.seed, f"{self.path}/kernel")
        random = keras.initializers.RandomUniform(-limit, limit, seed=seed)
        self.kernel = self.add_weight(
            shape=kernel_shape, initializer="zeros" if self._starts_at_zero else random, name="kernel"
        )
        self.bias = self.add_weight(shape=bias_shape, initializer="zeros", name="bias") if self._has_bias else None
        self.mask_id = seed_of(0, self.path)  # layers differ in it, so their dropout masks differ, too

    def start_at(self, bias: np.ndarray) -> None:
        """Set the bias, [units] or [stacks, 1, units]. Raise a ValueError if the layer has none."""
        if self.bias is None:
            raise ValueError(f"layer {self.name} has no bias")
        self.bias.assign(bias)

    def call(self, x: tf.Tensor | Parts, context: StepContext | None = None) -> tf.Tensor:
        """Apply the layer."""
        factor = self._weight_factor(context)
        bias = None if self.bias is None else self.bias.value * factor
        if self.stacks is not None and is_stacked(x):
            return self._activate(matmul(x, self.kernel.value * factor, self.config.compute_dtype), bias, context)
        # An input that stacks share takes a single product: [batch, inputs] @ [inputs, stacks * units]. Bias,
        # activation and dropout also run on this matrix, before it is split into stacks.
        if self.stacks is not None and bias is not None:
            bias = tf.reshape(bias, [-1])
        if isinstance(x, Parts):
            x, kernel, bias = self._folded(x, bias)
        else:
            kernel = self._side_by_side(self.kernel.value * factor)
        product = matmul(x, kernel, self.config.compute_dtype)
        if self.stacks is None:
            return self._activate(product, bias, context)
        if self.norm is None:
            return self._split(self._activate(product, bias, context))
        # Moments are per stack, [stacks, 1, units], so normalization needs the stacks split first.
        return self._activate(self._split(product), None if bias is None else self._split(bias[tf.newaxis]), context)

    def _folded(self, x: Parts, bias: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Return the input, kernel and bias of what rows do not share: what they share is computed once, as a bias.

        Args:
            x: the input.
            bias: [units] float32; None if the layer has none.
        """
        # Keras has made tensors of the places.
        places = [tf.get_static_value(own) for own in (x.shared_places, x.own_places)]
        # A graph that is being built gets the two parts of the kernel as constants: dividing it in every request would
        # copy all of it.
        with tf.init_scope():
            kernel = self._side_by_side(self.kernel.value).numpy()
        of_shared, of_own = (tf.constant(kernel[own]) for own in places)
        shared = matmul(x.shared, of_shared, self.config.compute_dtype)
        total = tf.reshape(tf.cast(shared, tf.float32), [of_shared.shape[1]])
        return x.own, of_own, total if bias is None else total + bias

    def _side_by_side(self, kernel: tf.Tensor) -> tf.Tensor:
        """Return the kernels of all stacks as one, [inputs, stacks * units]."""
        return kernel if self.stacks is None else tf.reshape(tf.transpose(kernel, [1, 0, 2]), [kernel.shape[1], -1])

    def _split(self, side_by_side: tf.Tensor) -> tf.Tensor:
        """Split [batch, stacks * units] into [stacks, batch, units]."""
        if self.stacks == 1:
            return side_by_side[tf.newaxis]
        return tf.transpose(tf.reshape(side_by_side, [-1, self.stacks, self.units]), [1, 0, 2])

    def _weight_factor(self, context: StepContext | None) -> float:
        """Return the factor of kernel and bias that replaces dropout's rescaling of the units.

        With relu, the weights are scaled by 1 / (1 - dropout) instead of the units, since relu(s x) = s relu(x). With
        other activations, before batch normalization (which would cancel it) and outside training, the factor is 1.
        """
        scales_weights = context is not None and self.config.activation == "relu" and not self.config.batch_norm
        return 1 / (1 - self.config.dropout) if scales_weights else 1.0

    def _activate(self, product: tf.Tensor, bias: tf.Tensor | None, context: StepContext | None) -> tf.Tensor:
        """Apply what follows the product: bias or normalization, activation, dropout.

        Args:
            product: [..., batch, units], the input times the kernel scaled by `_weight_factor`.
            bias: [units] or [..., 1, units] float32, scaled likewise; None if the layer has none.
            context: None outside training.

        Returns:
            [..., batch, units] in the compute dtype.
        """
        config, mask = self.config, None
        if context is not None and config.dropout:
            mask = context.dropout_mask(tf.shape(product), config.dropout, self.mask_id)
        if bias is not None:
            product = add_bias(product, tf.cast(bias, product.dtype))
        if self.norm is not None:
            product = self.norm(product, context=context)
        elif config.activation == "relu":  # dropout's factor is already in product and bias
            return relu_with_dropout(product, mask, config.compute_dtype, xla=context is not None and context.xla)
        result = tf.cast(ACTIVATIONS[config.activation](product), config.compute_dtype)
        if mask is None:
            return result
        return tf.where(mask.keep, result / (1 - config.dropout), tf.zeros((), result.dtype))


def is_stacked(x: tf.Tensor | Parts) -> bool:
    """Return whether an input has a stack axis, so that stacks of layers do not share it."""
    return not isinstance(x, Parts) and x.shape.rank == 3


class MLP(keras.layers.Layer):
    """Multilayer perceptron; optionally several of equal shape side by side, such as experts.

    Args:
        units: width of each layer; without any, the output is the input.
        config: configuration of the layers.
        name: name of the layer.
        stacks: number of perceptrons; None for a single one whose tensors have no stack axis.

    Input:  [batch, inputs], shared by all stacks, also in parts; or [stacks, batch, inputs].
    Output: [batch, units[-1]], or [stacks, batch, units[-1]] with stacks, in the compute dtype.
    """

    def __init__(self, units: Sequence[int], config: DenseConfig, *, name: str, stacks: int | None = None):
        super().__init__(name=name, dtype="float32", autocast=False)
        self.dense = [
            Dense(width, config, stacks=stacks, name=f"layer_{number}") for number, width in enumerate(units, start=1)
        ]
        self.built = True

    def call(self, x: tf.Tensor | Parts, context: StepContext | None = None) -> tf.Tensor:
        """Apply the layers in order."""
        for layer in self.dense:
            x = layer(x, context=context)
        return x


class Gates(keras.layers.Layer):
    """Softmax weights of experts, one gate per reader (a task, or the shared part of a level).

    weights_g(x) = softmax(logits_g(x) / temperature), over the experts that the gate may read.

    Two options keep a gate from relying on a single expert in training: `dropout` is the probability of setting a
    weight to 0, the others being rescaled to sum to 1 (Zhao et al., "Recommending What Video to Watch Next", RecSys
    2019, section 4.2.2); `entropy_weight` times the gates' negative entropy, in nats, is added as a penalty.

    Args:
        readable: [gates, experts] bool, which experts each gate may read.
        units: widths of the hidden layers; gates without any are linear.
        config: configuration of the hidden layers, which have no dropout; the softmax is float32.
        name: name of the layer.
        starts_uniform: whether all experts weigh the same at first.
        temperature: divides the logits.
        dropout: probability of dropping a weight in training.
        entropy_weight: factor of the penalty.

    Input:  [batch, inputs], also in parts; or [gates, batch, inputs].
    Output: [gates, batch, experts] float32; 0 for experts that a gate may not read.
    """

    def __init__(
        self,
        readable: np.ndarray,
        units: Sequence[int],
        config: DenseConfig,
        *,
        name: str,
        starts_uniform: bool = False,
        temperature: float = 1.0,
        dropout: float = 0.0,
        entropy_weight: float = 0.0,
    ):
        super().__init__(name=name, dtype="float32", autocast=False)
        gates, experts = readable.shape
        # [gates, 1, experts], added to the logits: -inf becomes a weight of exactly 0.
        self._blocked = tf.constant(np.where(readable, 0.0, -np.inf)[:, np.newaxis, :], tf.float32)
        self._temperature, self._dropout, self._entropy_weight = temperature, dropout, entropy_weight
        self.hidden = MLP(units, replace(config, dropout=0.0), stacks=gates, name="hidden")
        self.linear = Dense(
            experts, config.logits, stacks=gates, use_bias=False, starts_at_zero=starts_uniform, name="linear"
        )
        self.built = True

    def call(self, x: tf.Tensor | Parts, context: StepContext | None = None) -> tf.Tensor:
        """Return the experts' weights, [gates, batch, experts] float32."""
        logits = self.linear(self.hidden(x, context=context))
        weights = tf.nn.softmax(logits / self._temperature + self._blocked, axis=-1)
        if context is not None and self._entropy_weight:
            # Summed over gates and experts, [batch]; the floor keeps log finite where a weight underflows.
            negative_entropy = tf.reduce_sum(tf.math.xlogy(weights, tf.maximum(weights, 1e-30)), axis=[0, 2])
            context.penalties.append(self._entropy_weight * negative_entropy)
        if context is not None and self._dropout:
            keep = context.dropout_mask(tf.shape(weights), self._dropout, self.linear.mask_id).keep
            kept = tf.where(keep, weights, 0.0)
            total = tf.reduce_sum(kept, axis=-1, keepdims=True)
            # If dropout hits all experts of a gate, the row keeps its weights.
            weights = tf.where(total > 0, tf.math.divide_no_nan(kept, total), weights)
        return weights


def mix(weights: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """Mix the experts' outputs by the weights of each gate.

    Args:
        weights: [gates, batch, experts] float32.
        outputs: [experts, batch, units].

    Returns:
        [gates, batch, units] in the dtype of `outputs`.
    """
    # One small product per row: [batch, gates, experts] @ [batch, experts, units].
    weights_by_row, outputs_by_row = (tf.transpose(x, [1, 0, 2]) for x in (weights, outputs))
    mixed = matmul(weights_by_row, outputs_by_row, outputs.dtype.name)
    return tf.transpose(tf.cast(mixed, outputs.dtype), [1, 0, 2])


class Towers(keras.layers.Layer):
    """A multilayer perceptron and the logits of each task; towers of equal shape are stacks of one perceptron.

    Args:
        tasks: prediction tasks.
        units: widths of the hidden layers of each task's tower; without any, the logits are linear in the input.
        config: configuration of the hidden layers.
        name: name of the layer.

    Input:  [batch, inputs], shared by all tasks, also in parts; or [tasks, batch, inputs].
    Output: [batch, outputs] float32, the tasks' logits side by side.
    """

    def __init__(self, tasks: Sequence[Task], units: Sequence[tuple[int, ...]], config: DenseConfig, *, name: str):
        super().__init__(name=name, dtype="float32", autocast=False)
        self._widths = [task.width for task in tasks]
        shapes = [(hidden, task.width) for task, hidden in zip(tasks, units, strict=True)]
        distinct = list(dict.fromkeys(shapes))
        # Indices of the tasks of each shape.
        self._groups = [[index for index, own in enumerate(shapes) if own == shape] for shape in distinct]
        self.hidden, self.logits = [], []
        for number, ((hidden, width), group) in enumerate(zip(distinct, self._groups, strict=True), start=1):
            self.hidden.append(MLP(hidden, config, stacks=len(group), name=f"hidden_{number}"))
            self.logits.append(Dense(width, config.logits, stacks=len(group), name=f"logits_{number}"))
        self.built = True

    def call(self, x: tf.Tensor | Parts, context: StepContext | None = None) -> tf.Tensor:
        """Compute the logits of all tasks, [batch, outputs] float32."""
        by_task: dict[int, tf.Tensor] = {}
        for group, hidden, logits in zip(self._groups, self.hidden, self.logits, strict=True):
            own = tf.gather(x, group) if is_stacked(x) and len(self._groups) > 1 else x
            outputs = logits(hidden(own, context=context))  # [tasks of the group, batch, width]
            by_task |= dict(zip(group, tf.unstack(outputs), strict=True))
        return tf.concat([by_task[index] for index in sorted(by_task)], axis=1)

    def start_at(self, logits: np.ndarray) -> None:
        """Set the biases of the logits, [outputs]."""
        of_task = np.split(logits, np.cumsum(self._widths)[:-1])
        for group, layer in zip(self._groups, self.logits, strict=True):
            layer.start_at(np.stack([of_task[index] for index in group])[:, np.newaxis])  # [stacks, 1, width]
