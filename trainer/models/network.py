"""Base class of the networks between the embeddings and the logits: the part in which models differ."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.config import ModelOptions
from trainer.lazy import tf
from trainer.models.lazy import layers
from trainer.tasks.task import Task

if TYPE_CHECKING:
    import keras
    import numpy as np

    from trainer.models.axes import Axes, Names
    from trainer.models.step_context import StepContext


def count_weights(*widths: int) -> int:
    """Return the number of weights in the kernels of dense layers in a row.

    Args:
        *widths: width of the input, then of each layer.
    """
    return sum(before * after for before, after in pairwise(widths))


class Network:
    """A network from the embeddings and numerical features to the logits, without the wide part.

    A new model is a subclass in a file of its own, with a class of flags if it has any, and an entry in `MODELS`.
    `build` creates Keras layers as attributes and `call` applies them; Keras creates their weights in the first call.

    Args:
        options: the model's flags, an instance of `options_class`.
        tasks: prediction tasks.
        dense_config: configuration of the hidden layers.

    Attributes:
        options_class: class of the model's flags.
        trains_joint_probabilities: whether tasks with `given` are trained on the probability that both labels are 1, on
            all rows.
        takes_parts: whether `call` passes its input to layers alone, which take the rows of a ranking request in parts
            (`trainer.models.parts`). Otherwise they are joined before.
    """

    options_class: ClassVar[type[ModelOptions]] = ModelOptions
    trains_joint_probabilities: ClassVar[bool] = False
    takes_parts: ClassVar[bool] = False
    options: ModelOptions

    @classmethod
    def axes(cls, options: Any, tasks: Sequence[Task], inputs: Names) -> dict[str, Axes]:
        """Return what the axes of the network's weights stand for, by layer (see `trainer.models.axes`).

        A warm start matches weights by it. Without it, as here, all weights start cold where features or tasks have
        been added, removed or reordered.

        Args:
            options: the model's flags, an instance of `options_class`.
            tasks: prediction tasks.
            inputs: the names of the columns of the network's input.
        """
        return {}

    def __init__(self, options: ModelOptions, tasks: Sequence[Task], dense_config: layers.DenseConfig):
        self.options, self.tasks, self.dense_config = options, tuple(tasks), dense_config
        self.build()

    def build(self) -> None:
        """Create the layers, as attributes."""
        raise NotImplementedError

    def call(self, x: tf.Tensor, context: StepContext | None = None) -> tf.Tensor:
        """Compute the logits.

        Args:
            x: [batch, embedding width + numerical] float32.
            context: None outside training; passed on to the layers, as a keyword argument.

        Returns:
            [batch, outputs] float32, the tasks' logits side by side.
        """
        raise NotImplementedError

    def start_at(self, logits: np.ndarray) -> None:
        """Set the last layer's biases so that training starts near these logits, [outputs] float32.

        A model whose last layer has no biases starts at zero.
        """

    def add_penalties(self, logits: tf.Tensor, context: StepContext) -> None:
        """Add terms of the loss that depend on the logits, [batch, outputs], to `context.penalties`."""
        return  # AutoGraph cannot transform a function without a statement, and warns about it

    @property
    def outputs(self) -> int:
        """Number of logits: one per task, or one per class."""
        return sum(task.width for task in self.tasks)

    @property
    def shared_weights(self) -> list[keras.Variable]:
        """Weights that are trained by several tasks, those nearest to the tasks last."""
        return []
