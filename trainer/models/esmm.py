"""ESMM (Ma et al., "Entire Space Multi-Task Model", SIGIR 2018): trains conditional tasks on all rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer.lazy import tf
from trainer.models.axes import Axes, Names, tower_axes
from trainer.models.lazy import layers
from trainer.models.multitask import MultiTaskOptions
from trainer.models.network import Network
from trainer.tasks.task import Task

if TYPE_CHECKING:
    import numpy as np

    from trainer.models.step_context import StepContext


class Esmm(Network):
    """A multilayer perceptron per task on shared embeddings.

    A task with `given` predicts the conditional probability, but is trained through the product of both probabilities,
    p(click) p(buy | click), on all rows: it also learns from rows without a click. Tasks without `given` are trained
    as usual.
    """

    options_class = MultiTaskOptions
    options: MultiTaskOptions
    trains_joint_probabilities = True
    takes_parts = True

    @classmethod
    def axes(cls, options: MultiTaskOptions, tasks: Sequence[Task], inputs: Names) -> dict[str, Axes]:
        """Return the names along the axes of the towers, which are those of the tasks."""
        units = [(*options.expert_hidden_units, *options.tower_units(task.name)) for task in tasks]
        return tower_axes("towers", tasks, units, inputs)

    def build(self) -> None:
        """Create a tower per task, whose hidden layers are the expert layers followed by the task's tower layers."""
        units = [(*self.options.expert_hidden_units, *self.options.tower_units(task.name)) for task in self.tasks]
        self.towers = layers.Towers(self.tasks, units, self.dense_config, name="towers")

    def start_at(self, logits: np.ndarray) -> None:
        """Set the biases of the towers' logits, [outputs]."""
        self.towers.start_at(logits)

    def call(self, x: tf.Tensor, context: StepContext | None = None) -> tf.Tensor:
        """Compute the towers' logits, [batch, outputs] float32."""
        return self.towers(x, context=context)
