"""Layers that the models share."""

import keras
import tensorflow as tf


class HiddenLayers(keras.layers.Layer):
    """A stack of dense layers with ReLU, each followed by dropout.

    Dropout is a pure function of the seed that it is handed: a step computes the same masks whenever and on
    whichever machine it is repeated, and nothing random has to be saved.

    Args:
        units: width of each layer.
        dropout: share of units that is dropped in training.
        compute_dtype: type of the products; weights are float32.
        seed: of the initial weights (Glorot uniform; biases start at zero).

    Input:  [batch, width] float.
    Output: [batch, units[-1]] in the compute dtype.
    """

    def __init__(self, units: tuple[int, ...], *, dropout: float, compute_dtype: str, seed: int):
        policy = "float32" if compute_dtype == "float32" else f"mixed_{compute_dtype}"
        super().__init__(name="hidden", dtype=policy)
        self.dropout = dropout
        self.dense = [
            keras.layers.Dense(
                width,
                activation="relu",
                kernel_initializer=keras.initializers.GlorotUniform(seed=seed + index),
                name=f"hidden_{index + 1}",
                dtype=policy,
            )
            for index, width in enumerate(units)
        ]

    def call(self, x: tf.Tensor, dropout_seed: tf.Tensor | None = None) -> tf.Tensor:
        """See the class."""
        for index, layer in enumerate(self.dense):
            x = layer(x)
            if dropout_seed is not None and self.dropout > 0:
                x = tf.nn.experimental.stateless_dropout(x, self.dropout, seed=dropout_seed + [0, index])
        return x
