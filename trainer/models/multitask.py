"""Models for many tasks that differ in what stands between the embeddings and the tasks' towers.

shared_bottom   one stack for all tasks (Caruana, "Multitask Learning", Machine Learning 1997)
omoe            experts, and one gate for all tasks (Jacobs et al., "Adaptive Mixtures of Local Experts", 1991)
mmoe            experts, and a gate per task (Ma et al., "Modeling Task Relationships in Multi-task Learning with
                Multi-gate Mixture-of-Experts", KDD 2018)
cgc, ple        experts of each task's own and shared ones, in one level or several (Tang et al., "Progressive
                Layered Extraction", RecSys 2020)
"""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from trainer.layout import InputLayout
from trainer.model_options import ModelOptions
from trainer.models.experts import Gates, ParallelStack, Towers, mix
from trainer.models.ranking import RankingModel
from trainer.tasks import Task


@dataclass(frozen=True)
class Level:
    """Experts and gates of one level.

    Attributes:
        readable: [gates, experts] bool: which experts each gate reads. Gates 0, 1, ... are those of the tasks, or one
            gate for all of them; a further one makes the shared input of the next level.
        sources: [experts] int: for a level that is not the first, which of the previous level's gates feeds each
            expert. Empty for the first level, whose experts all read the embeddings.
    """

    readable: np.ndarray
    sources: tuple[int, ...] = ()


def levels_of(options: ModelOptions, tasks: int) -> list[Level]:
    """The levels of a model that `options` names, for so many tasks."""
    if options.model == "shared_bottom":
        return [Level(np.ones((1, 1), bool))]
    if options.model == "omoe":
        return [Level(np.ones((1, options.num_experts), bool))]
    if options.model == "mmoe":
        return [Level(np.ones((tasks, options.num_experts), bool))]
    owners = [task for task in range(tasks) for _ in range(options.num_task_experts)]
    owners += [tasks] * options.num_shared_experts
    own_or_shared = np.array([[owner in (task, tasks) for owner in owners] for task in range(tasks)])
    number = options.ple_levels if options.model == "ple" else 1
    between = np.vstack([own_or_shared, np.ones((1, len(owners)), bool)])
    return [
        Level(between if index < number - 1 else own_or_shared, tuple(owners) if index else ())
        for index in range(number)
    ]


class MultiTask(RankingModel):
    """Embeddings and numbers -> levels of gated experts -> a tower and a logit per task.

    logit_k = tower_k(sum over experts i of gate_k(x)_i expert_i(x))  [+ wide part of task k]

    With a single expert, as in shared_bottom, there is no gate.
    """

    def __init__(
        self, options: ModelOptions, layout: InputLayout, tasks: tuple[Task, ...], *, compute_dtype: str, seed: int
    ):
        super().__init__(
            layout, tasks, combiner=options.combiner, wide=options.wide_part, seed=seed, name=options.model
        )
        shared = {"activation": options.activation, "compute_dtype": compute_dtype}
        self._levels = levels_of(options, len(tasks))
        self.experts, self.gates = [], []
        width = layout.embedding_width + len(layout.numerical)
        for index, level in enumerate(self._levels):
            first = seed + 10_000 * (index + 1)
            gates, experts = level.readable.shape
            stack = ParallelStack(
                experts,
                width,
                options.expert_hidden_units,
                dropout=options.deep_dropout,
                seed=first,
                name=f"experts_{index + 1}",
                **shared,
            )
            self.experts.append(stack)
            if experts > 1:
                self.gates.append(
                    Gates(
                        level.readable,
                        width,
                        hidden_units=options.gate_hidden_units,
                        temperature=options.gate_temperature,
                        start=options.gate_init,
                        seed=first + ParallelStack.SEEDS,
                        name=f"gates_{index + 1}",
                        **shared,
                    )
                )
            width = stack.output_width
        self.towers = Towers(
            len(tasks),
            width,
            options.tower_hidden_units,
            dropout=options.deep_dropout,
            seed=seed + 100_000,
            **shared,
        )

    def head(self, deep_input: tf.Tensor, dropout_seed: tf.Tensor | None) -> tf.Tensor:
        """See RankingModel."""
        return self.towers(self.task_inputs(deep_input, dropout_seed)[-1], dropout_seed)

    def task_inputs(self, deep_input: tf.Tensor, dropout_seed: tf.Tensor | None) -> list[tf.Tensor]:
        """What the gates of each level make of their experts, [gates, batch, units] each; the last, [tasks, ...]."""
        outputs: list[tf.Tensor] = []
        for index, level in enumerate(self._levels):
            if level.sources:
                expert_input, gate_input = tf.gather(outputs[-1], level.sources), outputs[-1][: len(level.readable)]
            else:
                expert_input = gate_input = deep_input
            experts = self.experts[index](expert_input, dropout_seed)
            outputs.append(mix(self.gates[index](gate_input), experts) if self.gates else experts)
        if outputs[-1].shape[0] == 1:
            outputs[-1] = tf.tile(outputs[-1], [len(self.tasks), 1, 1])
        return outputs


def build(
    options: ModelOptions, layout: InputLayout, tasks: tuple[Task, ...], *, compute_dtype: str, seed: int
) -> MultiTask:
    """See trainer.models.build_model."""
    return MultiTask(options, layout, tasks, compute_dtype=compute_dtype, seed=seed).created()
