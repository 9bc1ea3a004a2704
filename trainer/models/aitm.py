"""AITM: what a task has learned is handed on to the next (Xi et al., "Modeling the Sequential Dependence among
Audience Multi-step Conversions with Multi-task Learning in Targeted Display Advertising", KDD 2021)."""

import math

import keras
import tensorflow as tf

from trainer.embeddings.tables import Rows
from trainer.flags.model_options import ModelOptions
from trainer.models.layers import ParallelDense, ParallelStack, Style
from trainer.models.ranking import RankingModel
from trainer.models.towers import Towers
from trainer.models.training_pass import TrainingPass
from trainer.tasks import Task, logit_columns


def chain_of(tasks: tuple[Task, ...]) -> list[tuple[int, int | None]]:
    """(task, the task before it), every task behind the one before it.

    Before a task with `given` stands that label; before one without, the one without that precedes it in the label
    channel.
    """
    roots = [place for place, task in enumerate(tasks) if task.given is None]
    chain: list[tuple[int, int | None]] = list(zip(roots, [None, *roots[:-1]], strict=True))
    placed = set(roots)
    while len(chain) < len(tasks):
        following = [(place, task.given) for place, task in enumerate(tasks) if task.given in placed - {place}]
        chain += [(place, above) for place, above in following if place not in placed]
        placed |= {place for place, _ in following}
    return chain


class Transfer(keras.layers.Layer):
    """Attention over a task's own features and what the task before it hands on (section 3.3 of the paper).

    z = sum over u in (handed on, own) of softmax_u(key(u) . query(u) / sqrt(width)) value(u)

    Input:  own and handed_on, [batch, width] each.
    Output: [batch, width] in the compute dtype.
    """

    def __init__(self, width: int, *, style: Style, seed: int, name: str):
        super().__init__(name=name, dtype="float32", autocast=False)
        self._scale = 1 / math.sqrt(width)
        linear = Style(compute_dtype=style.compute_dtype)
        self.hand_on = ParallelStack(1, width, (width,), style=style, seed=seed, name=f"{name}_hand_on")
        self.projections = ParallelDense(3, width, width, style=linear, seed=seed + 500, name=f"{name}_attention")
        self.built = True

    def call(self, own: tf.Tensor, handed_on: tf.Tensor, training_pass: TrainingPass | None = None) -> tf.Tensor:
        """See the class."""
        handed_on = self.hand_on(handed_on, training_pass=training_pass)[0]
        batch = tf.shape(own)[0]
        projected = self.projections(tf.concat([handed_on, own], axis=0))
        values, keys, queries = tf.unstack(tf.reshape(projected, [3, 2, batch, own.shape[1]]))
        scores = tf.reduce_sum(tf.cast(keys * queries, tf.float32), axis=-1) * self._scale
        weights = tf.nn.softmax(scores, axis=0)[..., tf.newaxis]
        return tf.reduce_sum(tf.cast(weights, values.dtype) * values, axis=0)


class Aitm(RankingModel):
    """A perceptron of each task's own on shared embeddings; each hands on to the next through a Transfer.

    A task that is not conditional must not be likelier than the binary task before it: `calibrator_weight` times
    max(p_task - p_before, 0) is added to the loss of every row (the paper's behavioural expectation calibrator). A
    task with `given` predicts the conditional probability, of which nothing of the kind holds.
    """

    def make_layers(self, options: ModelOptions, style: Style, seed: int) -> None:
        """See RankingModel."""
        tasks, units = self.tasks, options.expert_hidden_units
        self._chain, self._calibrator_weight = chain_of(tasks), options.calibrator_weight
        self.bottoms = ParallelStack(
            len(tasks), self.layout.width, units, style=style, seed=seed + 10_000, name="bottoms"
        )
        self.transfers = {
            task: Transfer(units[-1], style=style, seed=seed + 20_000 + 1_000 * task, name=f"transfer_{task + 1}")
            for task, above in self._chain
            if above is not None
        }
        self.towers = Towers(
            tasks, units[-1], [options.tower_units(task.name) for task in tasks], style=style, seed=seed + 100_000
        )

    def head(self, deep_input: tf.Tensor, training_pass: TrainingPass | None) -> tf.Tensor:
        """See RankingModel."""
        own = self.bottoms(deep_input, training_pass=training_pass)
        states: dict[int, tf.Tensor] = {}
        for task, above in self._chain:
            states[task] = (
                own[task]
                if above is None
                else self.transfers[task](own[task], states[above], training_pass=training_pass)
            )
        return self.towers(tf.stack([states[task] for task in range(len(self.tasks))]), training_pass=training_pass)

    def logits(
        self, rows: Rows, ids: tf.Tensor, numerical: tf.Tensor, training_pass: TrainingPass | None = None
    ) -> tf.Tensor:
        """See RankingModel."""
        logits = super().logits(rows, ids, numerical, training_pass)
        if training_pass is not None and self._calibrator_weight:
            columns = logit_columns(self.tasks)
            for task, above in self._chain:
                if above is None or self.tasks[task].given is not None:
                    continue
                if {self.tasks[task].kind, self.tasks[above].kind} == {"binary"}:
                    likelier, likely = (tf.sigmoid(logits[:, columns[place]])[:, 0] for place in (task, above))
                    training_pass.penalties.append(self._calibrator_weight * tf.nn.relu(likelier - likely))
        return logits
