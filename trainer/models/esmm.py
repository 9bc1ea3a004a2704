"""ESMM (Ma et al., "Entire Space Multi-Task Model", SIGIR 2018): a conditional task learned on all rows."""

import tensorflow as tf

from trainer.layout import InputLayout
from trainer.model_options import ModelOptions
from trainer.models.experts import Towers
from trainer.models.ranking import RankingModel
from trainer.tasks import Task


class Esmm(RankingModel):
    """Embeddings that all tasks share, and a perceptron of each task's own.

    A task whose `given` is another one is trained through the product of both probabilities, p(click) p(buy | click),
    on all rows, and predicts the conditional one: it learns from the rows without a click, too. Tasks without `given`
    are trained as they are.
    """

    trains_joint_probabilities = True

    def __init__(
        self, options: ModelOptions, layout: InputLayout, tasks: tuple[Task, ...], *, compute_dtype: str, seed: int
    ):
        super().__init__(layout, tasks, combiner=options.combiner, wide=options.wide_part, seed=seed, name="esmm")
        self.towers = Towers(
            len(tasks),
            layout.embedding_width + len(layout.numerical),
            (*options.expert_hidden_units, *options.tower_hidden_units),
            activation=options.activation,
            dropout=options.deep_dropout,
            compute_dtype=compute_dtype,
            seed=seed + 100_000,
        )

    def head(self, deep_input: tf.Tensor, dropout_seed: tf.Tensor | None) -> tf.Tensor:
        """See RankingModel."""
        return self.towers(deep_input, dropout_seed)


def build(
    options: ModelOptions, layout: InputLayout, tasks: tuple[Task, ...], *, compute_dtype: str, seed: int
) -> Esmm:
    """See trainer.models.build_model."""
    return Esmm(options, layout, tasks, compute_dtype=compute_dtype, seed=seed).created()
