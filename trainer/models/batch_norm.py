"""Batch normalisation over the global batch."""

import keras
import tensorflow as tf

from trainer.models.training_pass import TrainingPass

MOMENTUM = 0.9
EPSILON = 1e-5


class BatchNorm(keras.layers.Layer):
    """Normalises each unit: gamma (x - mean) / sqrt(variance + epsilon) + beta.

    In training, mean and (biased) variance are computed over the rows of all workers, without rows of weight 0 such as
    padding. Otherwise their moving averages are used, whose new values a training pass leaves in
    `TrainingPass.moments`. Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015.

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

    def call(self, x: tf.Tensor, training_pass: TrainingPass | None = None) -> tf.Tensor:
        """Normalises `x` by the moments of the global batch in training, by the moving averages otherwise."""
        values = tf.cast(x, tf.float32)
        if training_pass is None:
            mean, variance = self.moving_mean.value, self.moving_variance.value
        else:
            mean, variance = self._moments(values, training_pass=training_pass)
        scale = self.gamma.value * tf.math.rsqrt(variance + EPSILON)
        return tf.cast((values - mean) * scale + self.beta.value, x.dtype)

    def _moments(self, values: tf.Tensor, training_pass: TrainingPass) -> tuple[tf.Tensor, tf.Tensor]:
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
