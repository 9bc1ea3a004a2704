"""AITM: each task transfers what it has learned to the next one in a chain.

Xi et al., "Modeling the Sequential Dependence among Audience Multi-step Conversions with Multi-task Learning in
Targeted Display Advertising", KDD 2021.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.config import option
from trainer.lazy import tf
from trainer.models.axes import Axes, Names, stack_axes, tower_axes
from trainer.models.lazy import layers
from trainer.models.multitask import MultiTaskOptions
from trainer.models.network import Network
from trainer.tasks.binary import BinaryTask
from trainer.tasks.task import Task, logit_columns

if TYPE_CHECKING:
    import numpy as np

    from trainer.models.step_context import StepContext


@dataclass(frozen=True, kw_only=True)
class AitmOptions(MultiTaskOptions):
    """Flags of aitm."""

    calibrator_weight: float = option(
        0.6, "of aitm's penalty on a task that is likelier than the one before it", at_least=0
    )

    def kept_values(self, outputs: Mapping[str, int]) -> tuple[int, ...]:
        """Return the number of values in the bottoms, the transfers and the towers.

        A transfer has what is handed on, the inputs of the attention, and their values, keys and queries.
        """
        width = self.expert_hidden_units[-1]
        return (*super().kept_values(outputs), *(len(outputs) - 1) * (width, 2 * width, 6 * width))


class Aitm(Network):
    """A multilayer perceptron per task on shared embeddings, each of which transfers features to the next one.

    A binary task without `given` must not be more likely than a binary task that precedes it: `calibrator_weight` times
    max(p_task - p_before, 0) is added to the loss of every row (the paper's behavioural expectation calibrator). A
    task with `given` predicts a conditional probability, which has no such bound.
    """

    options_class = AitmOptions
    takes_parts = True
    options: AitmOptions

    @classmethod
    def axes(cls, options: AitmOptions, tasks: Sequence[Task], inputs: Names) -> dict[str, Axes]:
        """Return the names along the axes of all layers, and those of the tasks that the transfers are between."""
        names = tuple(task.name for task in tasks)
        found = stack_axes("bottoms", len(options.expert_hidden_units), names, inputs)
        for task, above in chain_of(tasks):
            if above is not None:
                pair = f"from {names[above]} to {names[task]}"
                found[f"hand_on_{task + 1}"] = Axes(key=f"hand_on {pair}")
                found[f"attention_{task + 1}"] = Axes(key=f"attention {pair}", stacked=True)
        return found | tower_axes("towers", tasks, [options.tower_units(name) for name in names])

    def build(self) -> None:
        """Create a bottom perceptron per task, the transfers along the chain, and the towers."""
        units, number = self.options.expert_hidden_units, len(self.tasks)
        self.chain = chain_of(self.tasks)
        self.bottoms = layers.MLP(units, self.dense_config, stacks=number, name="bottoms")
        self.hand_on, self.attention = {}, {}
        for task, above in self.chain:
            if above is not None:
                self.hand_on[task] = layers.MLP(units[-1:], self.dense_config, name=f"hand_on_{task + 1}")
                # Projections of values, keys and queries.
                self.attention[task] = layers.Dense(
                    units[-1], self.dense_config.linear, stacks=3, name=f"attention_{task + 1}"
                )
        towers = [self.options.tower_units(task.name) for task in self.tasks]
        self.towers = layers.Towers(self.tasks, towers, self.dense_config, name="towers")

    def start_at(self, logits: np.ndarray) -> None:
        """Set the biases of the towers' logits, [outputs]."""
        self.towers.start_at(logits)

    def call(self, x: tf.Tensor, context: StepContext | None = None) -> tf.Tensor:
        """Run the bottoms, the transfers along the chain and the towers; return logits [batch, outputs] float32."""
        own = self.bottoms(x, context=context)  # [tasks, batch, units]
        states: dict[int, tf.Tensor] = {}
        for task, above in self.chain:
            states[task] = own[task]
            if above is not None:
                handed_on = self.hand_on[task](states[above], context=context)
                states[task] = attend(own[task], handed_on, self.attention[task])
        return self.towers(tf.stack([states[task] for task in range(len(self.tasks))]), context=context)

    def add_penalties(self, logits: tf.Tensor, context: StepContext) -> None:
        """Add the calibrator's penalty of each task with a predecessor, [batch]."""
        if not self.options.calibrator_weight:
            return
        columns = logit_columns(self.tasks)
        for task, above in self.chain:
            if above is None or self.tasks[task].given is not None:
                continue
            binary = [(self.tasks[index], columns[index]) for index in (task, above)]
            p_own = [tf.sigmoid(one.logit(logits[:, own])) for one, own in binary if isinstance(one, BinaryTask)]
            if len(p_own) == 2:
                p_task, p_before = p_own
                context.penalties.append(self.options.calibrator_weight * tf.nn.relu(p_task - p_before))


def attend(own: tf.Tensor, handed_on: tf.Tensor, projections: layers.Dense) -> tf.Tensor:
    """Compute attention over a task's own features and those of its predecessor (section 3.3 of the paper).

    z = sum over u in (handed_on, own) of softmax_u(key(u) . query(u) / sqrt(width)) value(u)

    Args:
        own, handed_on: [batch, width] each.
        projections: three linear layers side by side, of values, keys and queries; both inputs share them.

    Returns:
        [batch, width] in the compute dtype.
    """
    batch, width = tf.shape(own)[0], own.shape[1]
    projected = projections(tf.concat([handed_on, own], axis=0))  # [3, 2 * batch, width]
    values, keys, queries = tf.unstack(tf.reshape(projected, [3, 2, batch, width]))
    # The two scores of each row, [2, batch]; summed in float32 whatever the compute dtype.
    scores = tf.reduce_sum(tf.cast(keys * queries, tf.float32), axis=-1) / math.sqrt(width)
    weights = tf.nn.softmax(scores, axis=0)[..., tf.newaxis]  # [2, batch, 1]
    return tf.reduce_sum(tf.cast(weights, values.dtype) * values, axis=0)


def chain_of(tasks: Sequence[Task]) -> list[tuple[int, int | None]]:
    """Order the tasks so that each one follows its predecessor.

    The predecessor of a task with `given` is the task of that label. The predecessor of a task without `given` is the
    previous such task in the label channel.

    Returns:
        (task, predecessor) pairs of indices in `tasks`; the predecessor of the first task is None.
    """
    roots = [index for index, task in enumerate(tasks) if task.given is None]
    chain: list[tuple[int, int | None]] = list(zip(roots, [None, *roots[:-1]], strict=True))
    chained = set(roots)
    while len(chain) < len(tasks):
        # Tasks whose given label is already in the chain can be appended to it.
        following = [(index, task.given) for index, task in enumerate(tasks) if task.given in chained - {index}]
        chain += [(index, above) for index, above in following if index not in chained]
        chained |= {index for index, _ in following}
    return chain
