"""Context of a forward pass in training."""

from collections.abc import Callable
from dataclasses import dataclass, field

import keras
import tensorflow as tf

from trainer.models.activations import Draws, draw

SumOverWorkers = Callable[[list[tf.Tensor]], list[tf.Tensor]]


@dataclass
class TrainingPass:
    """What a training step passes to the layers, and collects from them besides their outputs.

    Dropout is a pure function of the seed: a repeated step uses the same masks on any machine, and no random state has
    to be saved.

    Attributes:
        dropout_seed: [2] int32 seed, different in every step and on every worker.
        present: [batch] float32, 1 for rows of positive weight and 0 for others, such as padding.
        sum_over_workers: differentiable element-wise sum of float32 tensors over all workers.
        xla: whether to compile element-wise operations.
        penalties: [batch] float32 tensors to add to the loss of each row.
        moments: moving averages and their new values, to be assigned when the step is applied.
    """

    dropout_seed: tf.Tensor
    present: tf.Tensor
    sum_over_workers: SumOverWorkers
    xla: bool = False
    penalties: list[tf.Tensor] = field(default_factory=list)
    moments: list[tuple[keras.Variable, tf.Tensor]] = field(default_factory=list)

    def draw(self, shape: tf.Tensor, rate: float, place: int) -> Draws:
        """Draws a mask that drops a share `rate` of a tensor's values; `place` tells the masks of a step apart."""
        return draw(shape, rate, self.dropout_seed + [0, place % 2**20])
