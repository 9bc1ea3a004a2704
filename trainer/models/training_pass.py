"""What a forward pass in training has besides its inputs."""

from collections.abc import Callable
from dataclasses import dataclass, field

import keras
import tensorflow as tf

from trainer.models.activations import Draws, draw

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
        xla: compile element-wise work.
        penalties: [batch] float32 each, to be added to the loss of their rows.
        moments: moving moments and their new values, to be assigned when the step is applied.
    """

    dropout_seed: tf.Tensor
    present: tf.Tensor
    sum_over_workers: SumOverWorkers
    xla: bool = False
    penalties: list[tf.Tensor] = field(default_factory=list)
    moments: list[tuple[keras.Variable, tf.Tensor]] = field(default_factory=list)

    def draw(self, shape: tf.Tensor, rate: float, place: int) -> Draws:
        """Draws that drop a share `rate` of the values of a tensor; `place` tells those of a step apart."""
        return draw(shape, rate, self.dropout_seed + [0, place % 2**20])
