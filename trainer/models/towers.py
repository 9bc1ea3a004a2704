"""Task towers, the last layers of every multi-task model."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from trainer.models.layers import ParallelDense, ParallelStack, Style
from trainer.models.step_context import StepContext
from trainer.tasks.task import Task


class Towers(keras.layers.Layer):
    """A multilayer perceptron and the logits of each task; towers of equal shape are computed side by side.

    Args:
        tasks: prediction tasks.
        inputs: width of the input.
        units: widths of the hidden layers of each task's tower; without any, the logits are linear in the input.
        style: configuration of the hidden layers.
        seed: seed of the weights.

    Input:  [batch, inputs], shared by all tasks, or [tasks, batch, inputs].
    Output: [batch, outputs] float32, the tasks' logits side by side.
    """

    def __init__(
        self, tasks: Sequence[Task], inputs: int, units: Sequence[tuple[int, ...]], *, style: Style, seed: int
    ):
        super().__init__(name="tasks", dtype="float32", autocast=False)
        shapes = [(own, task.width) for task, own in zip(tasks, units, strict=True)]
        # Tasks with equal widths form a group, which is one batched product per layer.
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

    def call(self, x: tf.Tensor, training_pass: StepContext | None = None) -> tf.Tensor:
        """Computes the logits of all tasks, [batch, outputs] float32."""
        logits: dict[int, tf.Tensor] = {}
        for places, hidden, head in zip(self._groups, self.hidden, self.heads, strict=True):
            own = tf.gather(x, places) if x.shape.rank == 3 and len(self._groups) > 1 else x
            # Logits are float32 whatever the compute dtype: [tasks of the group, batch, width].
            outputs = head(tf.cast(hidden(own, training_pass=training_pass), tf.float32))
            logits |= dict(zip(places, tf.unstack(outputs), strict=True))
        return tf.concat([logits[place] for place in sorted(logits)], axis=1)
