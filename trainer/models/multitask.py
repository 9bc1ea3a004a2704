"""Multi-task models, which differ in what lies between the embeddings and the tasks' towers.

shared_bottom   one stack for all tasks (Caruana, "Multitask Learning", Machine Learning 1997)
omoe            experts, and one gate for all tasks (Jacobs et al., "Adaptive Mixtures of Local Experts", 1991)
mmoe            experts, and a gate per task (Ma et al., "Modeling Task Relationships in Multi-task Learning with
                Multi-gate Mixture-of-Experts", KDD 2018)
cgc, ple        task-specific and shared experts, in one level (cgc) or several (ple) (Tang et al., "Progressive
                Layered Extraction", RecSys 2020)
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from trainer.config import ModelOptions
from trainer.models.layers import ParallelDense, ParallelStack, Style, matmul
from trainer.models.ranking import RankingModel
from trainer.models.step_context import StepContext
from trainer.models.towers import Towers


class Gates(keras.layers.Layer):
    """Softmax weights of experts, one gate per reader (a task, or the shared part of a level).

    weights_g(x) = softmax(logits_g(x) / temperature), over the experts that the gate may read.

    Two options keep a gate from relying on a single expert in training: `expert_dropout` is the probability of setting
    a weight to 0, the others being rescaled to sum to 1 (Zhao et al., "Recommending What Video to Watch Next", RecSys
    2019, section 4.2.2); `gate_entropy_weight` times the gates' negative entropy, in nats, is added as a penalty.

    Args:
        readable: [gates, experts] bool, which experts each gate may read.
        inputs: width of the input.
        options: model flags: hidden units (gates without any are linear), initialisation, temperature, dropout and
            entropy weight.
        compute_dtype: dtype of the hidden layers' products; the softmax is float32.
        seed: seed of the weights.
        name: name of the layer.

    Input:  [batch, inputs] or [gates, batch, inputs].
    Output: [gates, batch, experts] float32; 0 for experts that a gate may not read.
    """

    def __init__(
        self,
        readable: np.ndarray,
        inputs: int,
        *,
        options: ModelOptions,
        compute_dtype: str,
        seed: int,
        name: str,
    ):
        super().__init__(name=name, dtype="float32", autocast=False)
        gates, experts = readable.shape
        # [gates, 1, experts], added to the logits: -inf becomes a weight of exactly 0.
        self._blocked = tf.constant(np.where(readable, 0.0, -np.inf)[:, np.newaxis, :], tf.float32)
        self._options, self._seed = options, seed
        self.hidden = ParallelStack(
            gates,
            inputs,
            options.gate_hidden_units,
            style=replace(Style.of(options, compute_dtype), dropout=0.0),
            seed=seed,
            name=f"{name}_hidden",
        )
        self.linear = ParallelDense(
            gates,
            self.hidden.output_width,
            experts,
            style=Style(),
            use_bias=False,
            start="zero" if options.gate_init == "uniform" else "random",
            seed=seed + ParallelStack.SEEDS // 2,
            name=f"{name}_linear",
        )
        self.built = True

    def call(self, x: tf.Tensor, training_pass: StepContext | None = None) -> tf.Tensor:
        """Returns the experts' weights, [gates, batch, experts] float32."""
        hidden = self.hidden(x, training_pass=training_pass) if self.hidden.dense else x
        weights = tf.nn.softmax(self.linear(hidden) / self._options.gate_temperature + self._blocked, axis=-1)
        if training_pass is None:
            return weights
        if self._options.gate_entropy_weight:
            # Summed over gates and experts, [batch]; the floor keeps log finite where a weight underflows.
            negative_entropy = tf.reduce_sum(tf.math.xlogy(weights, tf.maximum(weights, 1e-30)), axis=[0, 2])
            training_pass.penalties.append(self._options.gate_entropy_weight * negative_entropy)
        if self._options.expert_dropout:
            draws = training_pass.dropout_mask(tf.shape(weights), self._options.expert_dropout, self._seed)
            kept = tf.where(draws.keep, weights, 0.0)
            total = tf.reduce_sum(kept, axis=-1, keepdims=True)
            # If dropout hits all experts of a gate, the row keeps its weights.
            weights = tf.where(total > 0, tf.math.divide_no_nan(kept, total), weights)
        return weights


def mix(weights: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """Mixes the experts' outputs by the weights of each gate.

    Args:
        weights: [gates, batch, experts] float32.
        outputs: [experts, batch, units].

    Returns:
        [gates, batch, units] in the dtype of `outputs`.
    """
    by_row = [tf.transpose(x, [1, 0, 2]) for x in (weights, outputs)]
    # One small product per row: [batch, gates, experts] @ [batch, experts, units].
    mixed = matmul(by_row[0], by_row[1], outputs.dtype.name)
    return tf.transpose(tf.cast(mixed, outputs.dtype), [1, 0, 2])


@dataclass(frozen=True)
class Level:
    """Experts and gates of one level.

    Attributes:
        readable: [gates, experts] bool, which experts each gate reads. The first gates belong to the tasks, or one gate
            serves all of them; an extra last gate produces the shared input of the next level.
        sources: [experts] int, for levels after the first: which gate of the previous level feeds each expert. Empty
            for the first level, whose experts all read the embeddings.
    """

    readable: np.ndarray
    sources: tuple[int, ...] = ()


def levels_of(options: ModelOptions, tasks: int) -> list[Level]:
    """Returns the levels of the model that `options` selects, for the given number of tasks."""
    if options.model == "shared_bottom":
        return [Level(np.ones((1, 1), bool))]
    if options.model == "omoe":
        return [Level(np.ones((1, options.num_experts), bool))]
    if options.model == "mmoe":
        return [Level(np.ones((tasks, options.num_experts), bool))]
    # Expert -> the task that owns it; the number of tasks stands for "shared".
    owners = [task for task in range(tasks) for _ in range(options.num_task_experts)]
    owners += [tasks] * options.num_shared_experts
    own_or_shared = np.array([[owner in (task, tasks) for owner in owners] for task in range(tasks)])
    number = options.ple_levels if options.model == "ple" else 1
    # All levels but the last have one more gate, which reads all experts and feeds the next shared experts.
    between = np.vstack([own_or_shared, np.ones((1, len(owners)), bool)])
    return [
        Level(between if index < number - 1 else own_or_shared, tuple(owners) if index else ())
        for index in range(number)
    ]


class LevelState(NamedTuple):
    """Outputs of a level for one batch.

    Attributes:
        experts: [experts, batch, units] in the compute dtype.
        gates: [gates, batch, experts] float32; None for a single expert, which needs no gate.
        outputs: [gates, batch, units], the experts mixed by each gate.
    """

    experts: tf.Tensor
    gates: tf.Tensor | None
    outputs: tf.Tensor


class MultiTask(RankingModel):
    """Shared embeddings and numerical features -> levels of gated experts -> a tower and the logits of each task.

    logit_k = tower_k(sum over experts i of gate_k(x)_i expert_i(x))  [+ wide part of task k]

    With a single expert, as in shared_bottom, there is no gate.
    """

    def make_layers(self, options: ModelOptions, style: Style, seed: int) -> None:
        """Creates the experts and gates of each level, and the towers."""
        tasks, width = self.tasks, self.layout.width
        self.levels = levels_of(options, len(tasks))
        self.experts, self.gates = [], []
        for index, level in enumerate(self.levels):
            first = seed + 10_000 * (index + 1)
            experts = level.readable.shape[1]
            stack = ParallelStack(
                experts, width, options.expert_hidden_units, style=style, seed=first, name=f"experts_{index + 1}"
            )
            self.experts.append(stack)
            if experts > 1:
                self.gates.append(
                    Gates(
                        level.readable,
                        width,
                        options=options,
                        compute_dtype=style.compute_dtype,
                        seed=first + ParallelStack.SEEDS,
                        name=f"gates_{index + 1}",
                    )
                )
            width = stack.output_width
        self.towers = Towers(
            tasks, width, [options.tower_units(task.name) for task in tasks], style=style, seed=seed + 100_000
        )

    def head(self, deep_input: tf.Tensor, training_pass: StepContext | None) -> tf.Tensor:
        """Runs the levels and the towers; returns logits [batch, outputs] float32."""
        last = self.level_states(deep_input, training_pass=training_pass)[-1].outputs
        # A single gate or expert serves all tasks: [1, batch, units] -> [tasks, batch, units].
        if last.shape[0] < len(self.tasks):
            last = tf.tile(last, [len(self.tasks), 1, 1])
        return self.towers(last, training_pass=training_pass)

    def level_states(self, deep_input: tf.Tensor, training_pass: StepContext | None = None) -> list[LevelState]:
        """Computes all levels; the last one's outputs are in the order of the tasks, or a single one for all tasks."""
        states: list[LevelState] = []
        for index, level in enumerate(self.levels):
            if level.sources:
                below = states[-1].outputs
                # Expert inputs are [experts, batch, units]; each gate reads its own output of the level below.
                expert_input, gate_input = tf.gather(below, level.sources), below[: len(level.readable)]
            else:
                expert_input = gate_input = deep_input
            experts = self.experts[index](expert_input, training_pass=training_pass)
            gates = self.gates[index](gate_input, training_pass=training_pass) if self.gates else None
            states.append(LevelState(experts, gates, experts if gates is None else mix(gates, experts)))
        return states

    @property
    def shared_weights(self) -> list[keras.Variable]:
        """Trainable weights of any gate that serves all tasks, then those of the experts."""
        common_gates = [
            gates for gates, level in zip(self.gates, self.levels, strict=False) if len(level.readable) == 1
        ]
        layers: list[keras.layers.Layer] = [*common_gates, *self.experts]
        return [weight for layer in layers for weight in layer.trainable_variables]
