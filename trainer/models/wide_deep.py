"""Wide & Deep (Cheng et al., "Wide & Deep Learning for Recommender Systems", DLRS 2016)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trainer.config import ModelOptions, Units, option
from trainer.lazy import tf
from trainer.models.axes import Axes, Names, output_names
from trainer.models.lazy import layers
from trainer.models.network import Network, count_weights
from trainer.tasks.task import Task

if TYPE_CHECKING:
    import keras
    import numpy as np

    from trainer.models.step_context import StepContext


@dataclass(frozen=True, kw_only=True)
class WideDeepOptions(ModelOptions):
    """Flags of wide_deep. The defaults of its optimizer are those of the published recipe."""

    default_rule: ClassVar[str] = "rmsprop"
    default_rate: ClassVar[float] = 0.00012
    default_schedule: ClassVar[str] = "steps"

    deep_hidden_units: Units = option((1024,) * 5, "units of each hidden layer of wide_deep", at_least=1, required=True)

    @property
    def has_wide_part(self) -> bool:
        """Always true."""
        return True

    def dense_weights(self, inputs: int, outputs: Mapping[str, int]) -> int:
        """Return the number of weights in the kernels."""
        return count_weights(inputs, *self.deep_hidden_units, sum(outputs.values()))

    def kept_values(self, outputs: Mapping[str, int]) -> tuple[int, ...]:
        """Return the number of units of each hidden layer."""
        return self.deep_hidden_units


class WideDeep(Network):
    """A linear model of all features plus a multilayer perceptron on their embeddings.

    logit = b + sum of the IDs' wide weights + numerical @ k  +  head(hidden([embeddings, numerical]))

    Both parts see every feature. Tasks share the hidden layers; each has its own head and wide part.
    """

    options_class = WideDeepOptions
    takes_parts = True
    options: WideDeepOptions

    @classmethod
    def axes(cls, options: WideDeepOptions, tasks: Sequence[Task], inputs: Names) -> dict[str, Axes]:
        """Return the names along the axes of the first hidden layer and of the head."""
        return {"hidden/layer_1": Axes(inputs=inputs), "head": Axes(units=output_names(tasks))}

    def build(self) -> None:
        """Create the hidden layers and a linear head for all tasks."""
        self.hidden = layers.MLP(self.options.deep_hidden_units, self.dense_config, name="hidden")
        # Logits are float32, whatever the compute dtype of the hidden layers.
        self.head = layers.Dense(self.outputs, self.dense_config.logits, name="head")

    def call(self, x: tf.Tensor, context: StepContext | None = None) -> tf.Tensor:
        """Compute the deep part's logits, [batch, outputs] float32."""
        return self.head(self.hidden(x, context=context))

    def start_at(self, logits: np.ndarray) -> None:
        """Set the biases of the head, [outputs]."""
        self.head.start_at(logits)

    @property
    def shared_weights(self) -> list[keras.Variable]:
        """Weights of the hidden layers, which all tasks share."""
        return self.hidden.trainable_variables
