"""AITM: each task transfers what it has learned to the next one in a chain.

Xi et al., "Modeling the Sequential Dependence among Audience Multi-step Conversions with Multi-task Learning in
Targeted Display Advertising", KDD 2021.
"""

import math

import keras
import tensorflow as tf

from trainer.config import ModelOptions
from trainer.embeddings.tables import EmbeddingRows
from trainer.models.layers import ParallelDense, ParallelStack, Style
from trainer.models.ranking import RankingModel
from trainer.models.step_context import StepContext
from trainer.models.towers import Towers
from trainer.tasks.task import Task, logit_columns


def chain_of(tasks: tuple[Task, ...]) -> list[tuple[int, int | None]]:
    """Orders the tasks so that each one follows its predecessor.

    The predecessor of a task with `given` is the task of that label. The predecessor of a task without `given` is the
    previous such task in the label channel.

    Returns:
        (task, predecessor) pairs of positions in `tasks`; the predecessor of the first task is None.
    """
    roots = [place for place, task in enumerate(tasks) if task.given is None]
    chain: list[tuple[int, int | None]] = list(zip(roots, [None, *roots[:-1]], strict=True))
    placed = set(roots)
    while len(chain) < len(tasks):
        # Tasks whose given label is already in the chain can be appended to it.
        following = [(place, task.given) for place, task in enumerate(tasks) if task.given in placed - {place}]
        chain += [(place, above) for place, above in following if place not in placed]
        placed |= {place for place, _ in following}
    return chain


class Transfer(keras.layers.Layer):
    """Attention over a task's own features and those transferred from its predecessor (section 3.3 of the paper).

    z = sum over u in (handed_on, own) of softmax_u(key(u) . query(u) / sqrt(width)) value(u)

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

    def call(self, own: tf.Tensor, handed_on: tf.Tensor, training_pass: StepContext | None = None) -> tf.Tensor:
        """Returns the attention-weighted features, [batch, width] in the compute dtype."""
        handed_on = self.hand_on(handed_on, training_pass=training_pass)[0]
        batch = tf.shape(own)[0]
        # Both inputs share the projections: [2 * batch, width] -> [3, 2 * batch, width].
        projected = self.projections(tf.concat([handed_on, own], axis=0))
        values, keys, queries = tf.unstack(tf.reshape(projected, [3, 2, batch, own.shape[1]]))
        # The two scores of each row, [2, batch]; summed in float32 whatever the compute dtype.
        scores = tf.reduce_sum(tf.cast(keys * queries, tf.float32), axis=-1) * self._scale
        weights = tf.nn.softmax(scores, axis=0)[..., tf.newaxis]  # [2, batch, 1]
        return tf.reduce_sum(tf.cast(weights, values.dtype) * values, axis=0)


class Aitm(RankingModel):
    """A multilayer perceptron per task on shared embeddings, each connected to the next one by a Transfer.

    A binary task without `given` must not be more likely than a binary task that precedes it: `calibrator_weight` times
    max(p_task - p_before, 0) is added to the loss of every row (the paper's behavioural expectation calibrator). A
    task with `given` predicts a conditional probability, which has no such bound.
    """

    def make_layers(self, options: ModelOptions, style: Style, seed: int) -> None:
        """Creates a bottom perceptron per task, the transfers along the chain, and the towers."""
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

    def head(self, deep_input: tf.Tensor, training_pass: StepContext | None) -> tf.Tensor:
        """Runs the bottoms, the transfers along the chain and the towers; returns logits [batch, outputs] float32."""
        own = self.bottoms(deep_input, training_pass=training_pass)  # [tasks, batch, units]
        states: dict[int, tf.Tensor] = {}
        for task, above in self._chain:
            states[task] = (
                own[task]
                if above is None
                else self.transfers[task](own[task], states[above], training_pass=training_pass)
            )
        return self.towers(tf.stack([states[task] for task in range(len(self.tasks))]), training_pass=training_pass)

    def logits(
        self, rows: EmbeddingRows, ids: tf.Tensor, numerical: tf.Tensor, training_pass: StepContext | None = None
    ) -> tf.Tensor:
        """Computes logits [batch, outputs] float32; in training, also adds the calibrator's penalties."""
        logits = super().logits(rows, ids, numerical, training_pass)
        if training_pass is not None and self._calibrator_weight:
            columns = logit_columns(self.tasks)
            for task, above in self._chain:
                if above is None or self.tasks[task].given is not None:
                    continue
                if self.tasks[task].is_binary and self.tasks[above].is_binary:
                    likelier, likely = (tf.sigmoid(logits[:, columns[place]])[:, 0] for place in (task, above))
                    training_pass.penalties.append(self._calibrator_weight * tf.nn.relu(likelier - likely))
        return logits
