"""ESMM (Ma et al., "Entire Space Multi-Task Model", SIGIR 2018): trains conditional tasks on all rows."""

import tensorflow as tf

from trainer.config import ModelOptions
from trainer.models.layers import Style
from trainer.models.ranking import RankingModel
from trainer.models.step_context import StepContext
from trainer.models.towers import Towers


class Esmm(RankingModel):
    """A multilayer perceptron per task on shared embeddings.

    A task with `given` predicts the conditional probability, but is trained through the product of both probabilities,
    p(click) p(buy | click), on all rows: it also learns from rows without a click. Tasks without `given` are trained
    as usual.
    """

    trains_joint_probabilities = True

    def make_layers(self, options: ModelOptions, style: Style, seed: int) -> None:
        """Creates a tower per task, whose hidden layers are the expert layers followed by the task's tower layers."""
        self.towers = Towers(
            self.tasks,
            self.layout.width,
            [(*options.expert_hidden_units, *options.tower_units(task.name)) for task in self.tasks],
            style=style,
            seed=seed + 100_000,
        )

    def head(self, deep_input: tf.Tensor, training_pass: StepContext | None) -> tf.Tensor:
        """Computes the towers' logits, [batch, outputs] float32."""
        return self.towers(deep_input, training_pass=training_pass)
