"""ESMM (Ma et al., "Entire Space Multi-Task Model", SIGIR 2018): a conditional task learned on all rows."""

import tensorflow as tf

from trainer.flags.model_options import ModelOptions
from trainer.models.layers import Style
from trainer.models.ranking import RankingModel
from trainer.models.towers import Towers
from trainer.models.training_pass import TrainingPass


class Esmm(RankingModel):
    """Embeddings that all tasks share, and a perceptron of each task's own.

    A task whose `given` is another one is trained through the product of both probabilities, p(click) p(buy | click),
    on all rows, and predicts the conditional one: it learns from the rows without a click, too. Tasks without `given`
    are trained as they are.
    """

    trains_joint_probabilities = True

    def make_layers(self, options: ModelOptions, style: Style, seed: int) -> None:
        """See RankingModel."""
        self.towers = Towers(
            self.tasks,
            self.layout.width,
            [(*options.expert_hidden_units, *options.tower_units(task.name)) for task in self.tasks],
            style=style,
            seed=seed + 100_000,
        )

    def head(self, deep_input: tf.Tensor, training_pass: TrainingPass | None) -> tf.Tensor:
        """See RankingModel."""
        return self.towers(deep_input, training_pass=training_pass)
