"""What a forward pass in training has besides its inputs."""

from collections.abc import Callable
from dataclasses import dataclass, field

import keras
import tensorflow as tf

SumOverWorkers = Callable[[list[tf.Tensor]], list[tf.Tensor]]


@dataclass
class TrainingPass:
    """What layers are handed in training, and what they leave behind besides their output.

    Dropout is a pure function of the seed: a step computes the same masks whenever and on whichever machine it is
    repeated, and nothing random has to be saved.

    Attributes:
        dropout_seed: [2] int32, another one in every step and on every worker.
        present: [batch] float32, 1 for rows and 0 for pads.
        sum_over_workers: element-wise sums of float32 tensors over all workers, through which gradients flow.
        penalties: [batch] float32 each, to be added to the loss of their rows.
        moments: moving moments and their new values, to be assigned when the step is applied.
    """

    dropout_seed: tf.Tensor
    present: tf.Tensor
    sum_over_workers: SumOverWorkers
    penalties: list[tf.Tensor] = field(default_factory=list)
    moments: list[tuple[keras.Variable, tf.Tensor]] = field(default_factory=list)

    def dropout(self, x: tf.Tensor, rate: float, place: int) -> tf.Tensor:
        """x with a share `rate` of its values dropped and the others scaled up; `place` tells the masks apart."""
        if rate == 0:
            return x
        return tf.nn.experimental.stateless_dropout(x, rate, seed=self.dropout_seed + [0, place % 2**20])

    def keep_mask(self, shape: tf.Tensor, rate: float, place: int) -> tf.Tensor:
        """Float32 tensor of a shape, 0 with probability `rate` and else 1."""
        draws = tf.random.stateless_uniform(shape, seed=self.dropout_seed + [0, place % 2**20])
        return tf.cast(draws >= rate, tf.float32)
