"""Several dense layers of one shape as one batched product, and mixtures of experts made of them."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

ACTIVATIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "relu": tf.nn.relu,
    "gelu": tf.nn.gelu,
    "silu": tf.nn.silu,
    "tanh": tf.math.tanh,
    "linear": tf.identity,
}


class ParallelDense(keras.layers.Layer):
    """Layers of one shape side by side.

    Layer number i of them computes  activation(x_i W_i + b_i).  All W_i are one weight [layers, inputs, units], but
    every slice starts as Glorot uniform of a Dense of its own, from a seed of its own: layers that start equal and
    are weighted equally stay equal for ever.

    Args:
        layers: how many.
        inputs, units: width of each.
        activation: name in ACTIVATIONS.
        use_bias: whether there are b_i, which start at zero.
        start: "random", or "zero" for all weights.
        compute_dtype: of the product; weights are float32.
        seed: of the first layer; the others have those that follow.
        name: of the layer.

    Input:  [batch, inputs], the same for all layers, or [layers, batch, inputs].
    Output: [layers, batch, units] in the compute dtype.
    """

    def __init__(
        self,
        layers: int,
        inputs: int,
        units: int,
        *,
        activation: str,
        compute_dtype: str,
        seed: int,
        name: str,
        use_bias: bool = True,
        start: str = "random",
    ):
        super().__init__(name=name, dtype="float32")
        self._activation, self._compute_dtype = ACTIVATIONS[activation], compute_dtype
        self.kernel = self.add_weight(shape=(layers, inputs, units), initializer="zeros", name="kernel")
        if start == "random":
            starts = [keras.initializers.GlorotUniform(seed=seed + index) for index in range(layers)]
            self.kernel.assign(tf.stack([initial((inputs, units)) for initial in starts]))
        self.bias = self.add_weight(shape=(layers, 1, units), initializer="zeros", name="bias") if use_bias else None
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """See the class."""
        kernel, x = tf.cast(self.kernel.value, self._compute_dtype), tf.cast(x, self._compute_dtype)
        product = tf.einsum("bi,liu->lbu", x, kernel) if x.shape.rank == 2 else tf.linalg.matmul(x, kernel)
        if self.bias is not None:
            product += tf.cast(self.bias.value, self._compute_dtype)
        return self._activation(product)


class ParallelStack(keras.layers.Layer):
    """Multilayer perceptrons of one shape side by side: experts, or the towers of tasks.

    Args:
        stacks: how many.
        inputs: width of the input.
        units: width of each layer; without any, the input itself comes out, once per stack.
        activation: name in ACTIVATIONS.
        dropout: share of units that is dropped after each layer in training.
        compute_dtype: of the products.
        seed: of the weights; `SEEDS` of them are used up.
        name: of the layer.

    Input:  [batch, inputs] or [stacks, batch, inputs].
    Output: [stacks, batch, units[-1]] in the compute dtype.
    """

    SEEDS = 1_000

    def __init__(
        self,
        stacks: int,
        inputs: int,
        units: tuple[int, ...],
        *,
        activation: str,
        dropout: float,
        compute_dtype: str,
        seed: int,
        name: str,
    ):
        super().__init__(name=name, dtype="float32")
        self.stacks, self.output_width = stacks, (inputs, *units)[-1]
        self._dropout, self._compute_dtype, self._seed = dropout, compute_dtype, seed
        widths = (inputs, *units)
        self.dense = [
            ParallelDense(
                stacks,
                widths[index],
                width,
                activation=activation,
                compute_dtype=compute_dtype,
                seed=seed + index * 100,
                name=f"{name}_{index + 1}",
            )
            for index, width in enumerate(units)
        ]
        self.built = True

    def call(self, x: tf.Tensor, dropout_seed: tf.Tensor | None = None) -> tf.Tensor:
        """See the class."""
        if not self.dense:
            x = tf.cast(x, self._compute_dtype)
            return x if x.shape.rank == 3 else tf.tile(x[tf.newaxis], [self.stacks, 1, 1])
        for index, layer in enumerate(self.dense):
            x = layer(x)
            if dropout_seed is not None and self._dropout > 0:
                seed = dropout_seed + [0, (self._seed + index) % 2**20]
                x = tf.nn.experimental.stateless_dropout(x, self._dropout, seed=seed)
        return x


class Towers(keras.layers.Layer):
    """A perceptron and a logit per task.

    Args:
        tasks: how many.
        inputs: width of the input.
        units: of each tower's hidden layers; none makes the logits linear.
        activation, dropout, compute_dtype: as ParallelStack has them.
        seed: of the weights.

    Input:  [batch, inputs], the same for all tasks, or [tasks, batch, inputs].
    Output: [batch, tasks] float32.
    """

    def __init__(
        self,
        tasks: int,
        inputs: int,
        units: tuple[int, ...],
        *,
        activation: str,
        dropout: float,
        compute_dtype: str,
        seed: int,
    ):
        super().__init__(name="tasks", dtype="float32")
        self.hidden = ParallelStack(
            tasks,
            inputs,
            units,
            activation=activation,
            dropout=dropout,
            compute_dtype=compute_dtype,
            seed=seed,
            name="towers",
        )
        self.heads = ParallelDense(
            tasks,
            self.hidden.output_width,
            1,
            activation="linear",
            compute_dtype="float32",
            seed=seed + 10 * ParallelStack.SEEDS,
            name="heads",
        )
        self.built = True

    def call(self, x: tf.Tensor, dropout_seed: tf.Tensor | None = None) -> tf.Tensor:
        """See the class."""
        return tf.transpose(self.heads(tf.cast(self.hidden(x, dropout_seed), tf.float32))[:, :, 0])


class Gates(keras.layers.Layer):
    """Softmax weights of experts, one gate per reader (a task, or the shared part of a level).

    weights_g(x) = softmax(logits_g(x) / temperature), over the experts that the gate may read.

    Args:
        readable: [gates, experts] bool.
        inputs: width of the input.
        hidden_units: of each gate's own hidden layers; none makes the gates linear.
        temperature: above 1 flattens the weights.
        start: "random", or "uniform" for equal weights at first.
        activation: of the hidden layers.
        compute_dtype: of the hidden layers' products; the softmax is float32.
        seed: of the weights.
        name: of the layer.

    Input:  [batch, inputs] or [gates, batch, inputs].
    Output: [gates, batch, experts] float32; 0 for experts that a gate may not read.
    """

    def __init__(
        self,
        readable: np.ndarray,
        inputs: int,
        *,
        hidden_units: tuple[int, ...],
        temperature: float,
        start: str,
        activation: str,
        compute_dtype: str,
        seed: int,
        name: str,
    ):
        super().__init__(name=name, dtype="float32")
        gates, experts = readable.shape
        self._blocked = tf.constant(np.where(readable, 0.0, -np.inf)[:, np.newaxis, :], tf.float32)
        self._temperature = temperature
        self.hidden = ParallelStack(
            gates,
            inputs,
            hidden_units,
            activation=activation,
            dropout=0.0,
            compute_dtype=compute_dtype,
            seed=seed,
            name=f"{name}_hidden",
        )
        self.linear = ParallelDense(
            gates,
            self.hidden.output_width,
            experts,
            activation="linear",
            use_bias=False,
            start="zero" if start == "uniform" else "random",
            compute_dtype="float32",
            seed=seed + ParallelStack.SEEDS // 2,
            name=f"{name}_linear",
        )
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """See the class."""
        hidden = self.hidden(x) if self.hidden.dense else x
        return tf.nn.softmax(self.linear(hidden) / self._temperature + self._blocked, axis=-1)


def mix(weights: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """What each gate makes of the experts, [gates, batch, units] in the outputs' dtype.

    Args:
        weights: [gates, batch, experts] float32.
        outputs: [experts, batch, units].
    """
    return tf.einsum("gbe,ebu->gbu", tf.cast(weights, outputs.dtype), outputs)
