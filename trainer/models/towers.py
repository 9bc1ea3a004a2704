"""The end of every multi-task model: a tower and the logits of each task."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from trainer.models.layers import ParallelDense, ParallelStack, Style
from trainer.models.training_pass import TrainingPass
from trainer.tasks import Task


class Towers(keras.layers.Layer):
    """A perceptron and the logits of each task; those of one shape are computed side by side.

    Args:
        tasks: what is predicted.
        inputs: width of the input.
        units: of the hidden layers of each task's tower; without any, the logits are linear.
        style: of the hidden layers.
        seed: of the weights.

    Input:  [batch, inputs], the same for all tasks, or [tasks, batch, inputs].
    Output: [batch, outputs] float32, the tasks' logits side by side.
    """

    def __init__(
        self, tasks: Sequence[Task], inputs: int, units: Sequence[tuple[int, ...]], *, style: Style, seed: int
    ):
        super().__init__(name="tasks", dtype="float32", autocast=False)
        shapes = [(own, task.width) for task, own in zip(tasks, units, strict=True)]
        distinct = list(dict.fromkeys(shapes))
        self._groups = [[place for place, shape in enumerate(shapes) if shape == wanted] for wanted in distinct]
        self.hidden, self.heads = [], []
        for index, ((own_units, width), places) in enumerate(zip(distinct, self._groups, strict=True)):
            first, suffix = seed + index * 20 * ParallelStack.SEEDS, f"_{index + 1}" if index else ""
            hidden = ParallelStack(len(places), inputs, own_units, style=style, seed=first, name=f"towers{suffix}")
            self.hidden.append(hidden)
            self.heads.append(
                ParallelDense(
                    len(places),
                    hidden.output_width,
                    width,
                    style=Style(),
                    seed=first + 10 * ParallelStack.SEEDS,
                    name=f"heads{suffix}",
                )
            )
        self.built = True

    def call(self, x: tf.Tensor, training_pass: TrainingPass | None = None) -> tf.Tensor:
        """See the class."""
        logits: dict[int, tf.Tensor] = {}
        for places, hidden, head in zip(self._groups, self.hidden, self.heads, strict=True):
            own = tf.gather(x, places) if x.shape.rank == 3 and len(self._groups) > 1 else x
            outputs = head(tf.cast(hidden(own, training_pass=training_pass), tf.float32))
            logits |= dict(zip(places, tf.unstack(outputs), strict=True))
        return tf.concat([logits[place] for place in sorted(logits)], axis=1)
