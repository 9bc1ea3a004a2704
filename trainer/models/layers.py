"""Dense layers: one stack of them, or several of one shape side by side as one batched product."""

from collections.abc import Callable
from dataclasses import dataclass

import keras
import tensorflow as tf

from trainer.model_options import ModelOptions
from trainer.models.batch_norm import BatchNorm
from trainer.models.training_pass import TrainingPass

ACTIVATIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "relu": tf.nn.relu,
    "gelu": tf.nn.gelu,
    "silu": tf.nn.silu,
    "tanh": tf.math.tanh,
    "linear": tf.identity,
}


@dataclass(frozen=True)
class Style:
    """How dense layers compute, whatever their widths.

    Attributes:
        activation: name in ACTIVATIONS.
        dropout: share of units that is dropped after a layer in training.
        batch_norm: whether a layer is normalised before its activation; it then has no bias of its own.
        compute_dtype: of the products; weights are float32.
    """

    activation: str = "linear"
    dropout: float = 0.0
    batch_norm: bool = False
    compute_dtype: str = "float32"

    @classmethod
    def of(cls, options: ModelOptions, compute_dtype: str) -> "Style":
        """The hidden layers' style that the options ask for."""
        return cls(options.activation, options.deep_dropout, options.batch_norm, compute_dtype)


class HiddenLayers(keras.layers.Layer):
    """A stack of dense layers.

    Args:
        units: width of each layer.
        style: of the layers.
        seed: of the initial weights (Glorot uniform; biases start at zero).

    Input:  [batch, width] float.
    Output: [batch, units[-1]] in the compute dtype.
    """

    def __init__(self, units: tuple[int, ...], *, style: Style, seed: int):
        policy = "float32" if style.compute_dtype == "float32" else f"mixed_{style.compute_dtype}"
        super().__init__(name="hidden", dtype=policy)
        self._style, self._activation = style, ACTIVATIONS[style.activation]
        self.dense = [
            keras.layers.Dense(
                width,
                use_bias=not style.batch_norm,
                kernel_initializer=keras.initializers.GlorotUniform(seed=seed + index),
                name=f"hidden_{index + 1}",
                dtype=policy,
            )
            for index, width in enumerate(units)
        ]
        self.norms = [
            BatchNorm((width,), name=f"hidden_{index + 1}_norm")
            for index, width in enumerate(units)
            if style.batch_norm
        ]

    def call(self, x: tf.Tensor, training_pass: TrainingPass | None = None) -> tf.Tensor:
        """See the class."""
        for index, layer in enumerate(self.dense):
            x = layer(x)
            if self.norms:
                x = self.norms[index](x, training_pass=training_pass)
            x = self._activation(x)
            if training_pass is not None:
                x = training_pass.dropout(x, self._style.dropout, index)
        return x


class ParallelDense(keras.layers.Layer):
    """Layers of one shape side by side.

    Layer number i of them computes  activation(x_i W_i + b_i).  All W_i are one weight [layers, inputs, units], but
    every slice starts as Glorot uniform of a Dense of its own, from a seed of its own: layers that start equal and
    are weighted equally stay equal for ever.

    Args:
        layers: how many.
        inputs, units: width of each.
        style: of the layers; dropout is not applied here.
        seed: of the first layer; the others have those that follow.
        name: of the layer.
        use_bias: whether there are b_i, which start at zero.
        start: "random", or "zero" for all weights.

    Input:  [batch, inputs], the same for all layers, or [layers, batch, inputs].
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
        self._activation, self._compute_dtype = ACTIVATIONS[style.activation], style.compute_dtype
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

    def call(self, x: tf.Tensor, training_pass: TrainingPass | None = None) -> tf.Tensor:
        """See the class."""
        kernel, x = tf.cast(self.kernel.value, self._compute_dtype), tf.cast(x, self._compute_dtype)
        product = tf.einsum("bi,liu->lbu", x, kernel) if x.shape.rank == 2 else tf.linalg.matmul(x, kernel)
        if self.bias is not None:
            product += tf.cast(self.bias.value, self._compute_dtype)
        if self.norm is not None:
            product = self.norm(product, training_pass=training_pass)
        return self._activation(product)


class ParallelStack(keras.layers.Layer):
    """Multilayer perceptrons of one shape side by side: experts, or the towers of tasks.

    Args:
        stacks: how many.
        inputs: width of the input.
        units: width of each layer; without any, the input itself comes out, once per stack.
        style: of the layers.
        seed: of the weights; `SEEDS` of them are used up.
        name: of the layer.

    Input:  [batch, inputs] or [stacks, batch, inputs].
    Output: [stacks, batch, units[-1]] in the compute dtype.
    """

    SEEDS = 1_000

    def __init__(self, stacks: int, inputs: int, units: tuple[int, ...], *, style: Style, seed: int, name: str):
        super().__init__(name=name, dtype="float32", autocast=False)
        self.stacks, self.output_width = stacks, (inputs, *units)[-1]
        self._style, self._seed = style, seed
        widths = (inputs, *units)
        self.dense = [
            ParallelDense(
                stacks, widths[index], width, style=style, seed=seed + index * 100, name=f"{name}_{index + 1}"
            )
            for index, width in enumerate(units)
        ]
        self.built = True

    def call(self, x: tf.Tensor, training_pass: TrainingPass | None = None) -> tf.Tensor:
        """See the class."""
        if not self.dense:
            x = tf.cast(x, self._style.compute_dtype)
            return x if x.shape.rank == 3 else tf.tile(x[tf.newaxis], [self.stacks, 1, 1])
        for index, layer in enumerate(self.dense):
            x = layer(x, training_pass=training_pass)
            if training_pass is not None:
                x = training_pass.dropout(x, self._style.dropout, self._seed + index)
        return x
