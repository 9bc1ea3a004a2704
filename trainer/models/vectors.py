"""Vectors, such as pretrained embeddings, on their way to the interaction of any model."""

import keras
import tensorflow as tf

from trainer.config import ModelOptions
from trainer.layout import InputSchema
from trainer.models.layers import EPSILON, Dense, DenseConfig
from trainer.models.step_context import StepContext


class Vectors(keras.layers.Layer):
    """Normalizes and projects vectors, each with weights of its own.

    With --vector_norm layer, v becomes gamma (v - mean(v)) / sqrt(variance(v) + 1e-5) + beta, with the mean and the
    variance of its own numbers (Ba, Kiros and Hinton, "Layer Normalization", 2016): pretrained vectors differ in scale
    by orders of magnitude. A vector of a single number stays as it is, since it would become a constant. With
    --vector_units N, it is then multiplied by a matrix of N columns, and a bias is added.

    Args:
        options: the model's flags.
        layout: layout of the inputs.
        config: configuration of hidden layers, of which the compute dtype counts.
    """

    def __init__(self, options: ModelOptions, layout: InputSchema, config: DenseConfig):
        super().__init__(name="vectors", dtype="float32", autocast=False)
        self.dimensions = layout.vector_dimensions
        self.is_normalized = [options.vector_norm == "layer" and dimension > 1 for dimension in self.dimensions]
        self.projections = {
            f"units_{number}": Dense(options.vector_units, config.linear, name=f"units_{number}")
            for number in range(1, len(self.dimensions) + 1)
            if options.vector_units
        }

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the weights of the normalization, [dimension] for each vector."""
        self.scales: dict[str, tuple[keras.Variable, keras.Variable]] = {}
        for number, dimension in enumerate(self.dimensions, start=1):
            if self.is_normalized[number - 1]:
                gamma = self.add_weight(shape=(dimension,), initializer="ones", name=f"gamma_{number}")
                beta = self.add_weight(shape=(dimension,), initializer="zeros", name=f"beta_{number}")
                self.scales[f"norm_{number}"] = gamma, beta

    def call(self, vectors: tf.Tensor, context: StepContext | None = None) -> tf.Tensor:
        """Return what the interaction sees of the vectors.

        Args:
            vectors: all vectors of `InputSchema.vector_dimensions` side by side, [batch, sum of dimensions] float32.
            context: None outside training.

        Returns:
            The vectors side by side, [batch, sum of dimensions or vectors * --vector_units] float32.
        """
        parts = tf.split(vectors, self.dimensions, axis=1)
        return tf.concat([self.one(number, x, context) for number, x in enumerate(parts, start=1)], axis=1)

    def one(self, number: int, x: tf.Tensor, context: StepContext | None = None) -> tf.Tensor:
        """Return what the interaction sees of one vector.

        Args:
            number: its number among all vectors, from 1 on.
            x: [batch, dimension] float32.
            context: None outside training.

        Returns:
            [batch, dimension or --vector_units] float32.
        """
        if (scale := self.scales.get(f"norm_{number}")) is not None:
            x = _normalized(x) * scale[0].value + scale[1].value
        if (projection := self.projections.get(f"units_{number}")) is not None:
            x = tf.cast(projection(x, context=context), tf.float32)
        return x


def _normalized(x: tf.Tensor) -> tf.Tensor:
    """Return the rows of a matrix with mean 0 and variance 1."""
    centered = x - tf.reduce_mean(x, axis=1, keepdims=True)
    return centered * tf.math.rsqrt(tf.reduce_mean(tf.square(centered), axis=1, keepdims=True) + EPSILON)
