"""Multi-task models, which differ in what lies between the embeddings and the tasks' towers.

shared_bottom   one stack for all tasks (Caruana, "Multitask Learning", Machine Learning 1997)
omoe            experts, and one gate for all tasks (Jacobs et al., "Adaptive Mixtures of Local Experts", 1991)
mmoe            experts, and a gate per task (Ma et al., "Modeling Task Relationships in Multi-task Learning with
                Multi-gate Mixture-of-Experts", KDD 2018)
cgc, ple        task-specific and shared experts, in one level (cgc) or several (ple) (Tang et al., "Progressive
                Layered Extraction", RecSys 2020)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from data.errors import DataError
from data.spec.yaml_reader import read_yaml
from trainer.config import ModelOptions, Units, option
from trainer.lazy import tf
from trainer.models.axes import Axes, Names, stack_axes, tower_axes
from trainer.models.lazy import layers
from trainer.models.network import Network, count_weights
from trainer.tasks.task import Task

if TYPE_CHECKING:
    import keras

    from trainer.models.step_context import StepContext


def read_tower_units(words: Sequence[str]) -> Units | dict[str, Units]:
    """Parse tower units: numbers such as `64 32`, or the path of a YAML file with a list of units per label.

    Raises:
        DataError: the words are neither, or the file contains anything else.
    """
    if len(words) == 1 and words[0].endswith((".yaml", ".yml")):
        document = read_yaml(Path(words[0]))
        if not isinstance(document, dict) or not all(_is_units(units) for units in document.values()):
            raise DataError(f"{words[0]}: expected a list of whole numbers per label, as in `click: [64, 32]`")
        return {str(label): tuple(units) for label, units in document.items()}
    if not all(word.isdecimal() for word in words):
        raise DataError(f"--tower_hidden_units expects whole numbers, or one YAML file, got {' '.join(words)}")
    return tuple(int(word) for word in words)


def _is_units(value: Any) -> bool:
    return isinstance(value, list) and all(type(unit) is int for unit in value)


@dataclass(frozen=True, kw_only=True)
class MultiTaskOptions(ModelOptions):
    """Flags of all multi-task models."""

    expert_hidden_units: Units = option(
        (256, 128), "units of each layer of an expert, or the shared bottom", at_least=1, required=True
    )
    tower_hidden_units: Units | dict[str, Units] = option(
        (64,),
        "units of each hidden layer of a task's tower; or a YAML file with a list of units per label",
        at_least=1,
        parse=read_tower_units,
    )

    def tower_units(self, task: str) -> Units:
        """Return the units of the hidden layers of a task's tower."""
        towers = self.tower_hidden_units
        return towers[task] if isinstance(towers, dict) else towers

    def check_labels(self, labels: Sequence[str]) -> None:
        """Raise a DataError if towers are given per label, but not for exactly these labels."""
        towers = self.tower_hidden_units
        if isinstance(towers, dict) and set(towers) != set(labels):
            raise DataError(
                f"--tower_hidden_units has towers for {', '.join(towers)}, and the labels are {', '.join(labels)}"
            )

    def dense_weights(self, inputs: int, outputs: Mapping[str, int]) -> int:
        """Return a lower bound on the number of weights in dense kernels: those of one expert and of the towers."""
        return count_weights(inputs, *self.expert_hidden_units) + self.tower_weights(outputs)

    def tower_weights(self, outputs: Mapping[str, int]) -> int:
        """Return the number of weights in the kernels of the towers."""
        width = self.expert_hidden_units[-1]
        return sum(count_weights(width, *self.tower_units(task), logits) for task, logits in outputs.items())

    def kept_values(self, outputs: Mapping[str, int]) -> tuple[int, ...]:
        """Return the number of values in each layer of a stack of expert layers per task, and in the towers."""
        return (*self.stacked_values(len(outputs)), *self.tower_values(outputs))

    def stacked_values(self, stacks: int) -> tuple[int, ...]:
        """Return the number of values in each layer of stacks of expert layers.

        The first layer's are kept in two layouts: as the product of the input that all stacks share, and by stack.
        """
        units = [stacks * own for own in self.expert_hidden_units]
        return (units[0], *units)

    def tower_values(self, outputs: Mapping[str, int]) -> tuple[int, ...]:
        """Return the number of units in the hidden layers of each tower."""
        return tuple(unit for task in outputs for unit in self.tower_units(task))


@dataclass(frozen=True, kw_only=True)
class ExpertOptions(MultiTaskOptions):
    """Flags of models with experts and gates."""

    gate_hidden_units: Units = option((), "units of each hidden layer of a gate; none makes gates linear", at_least=1)
    num_experts: int = option(8, "experts of omoe and mmoe", at_least=1)
    num_task_experts: int = option(2, "experts of each task's own, per level of cgc and ple", at_least=1)
    num_shared_experts: int = option(2, "shared experts per level of cgc and ple", at_least=0)
    ple_levels: int = option(2, "levels of ple", at_least=1)
    gate_init: Literal["random", "uniform"] = option("random", "start of the gates; uniform weighs all experts equally")
    gate_temperature: float = option(1.0, "divides the gates' logits; above 1 flattens the weights", positive=True)
    gate_entropy_weight: float = option(
        0.0,
        "rewards the entropy of the gates in training, against gates that favor one expert; try 0.001 to 0.003",
        at_least=0,
    )
    expert_dropout: float = option(
        0.0, "share of gate weights that is dropped in training, likewise; try 0.1", at_least=0, below=0.99
    )

    def dense_weights(self, inputs: int, outputs: Mapping[str, int]) -> int:
        """Return a lower bound on the number of weights in dense kernels, with one gate per level."""
        units, experts = self.expert_hidden_units, self.experts_per_level(len(outputs))

        def level(width: int) -> int:
            gate = count_weights(width, *self.gate_hidden_units, experts) if experts > 1 else 0
            return experts * count_weights(width, *units) + gate

        further_levels = self.ple_levels - 1 if self.model == "ple" else 0
        return level(inputs) + further_levels * level(units[-1]) + self.tower_weights(outputs)

    def kept_values(self, outputs: Mapping[str, int]) -> tuple[int, ...]:
        """Return the number of values in the layers of all levels and in the towers.

        The experts' outputs are kept once more in the layout in which they are mixed row by row, and what the gates mix
        in both. Experts of further levels read copies of what the level below them has mixed.
        """
        tasks, width = len(outputs), self.expert_hidden_units[-1]
        experts = self.experts_per_level(tasks)
        gates = {"shared_bottom": 0, "omoe": 1}.get(self.model, tasks)
        of_gates = tuple(gates * units for units in (*self.gate_hidden_units, experts))
        mixed = (experts * width, gates * width, gates * width) if experts > 1 else ()
        level = (*self.stacked_values(experts), *of_gates, *mixed)
        further = (self.ple_levels - 1 if self.model == "ple" else 0) * (experts * width, *level)
        return (*level, *further, *self.tower_values(outputs))

    def experts_per_level(self, tasks: int) -> int:
        """Return the number of experts of each level, for a number of tasks."""
        if self.model == "shared_bottom":
            return 1
        if self.model in ("omoe", "mmoe"):
            return self.num_experts
        return tasks * self.num_task_experts + self.num_shared_experts


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


def levels_of(options: ExpertOptions, tasks: int) -> list[Level]:
    """Return the levels of the model that `options` selects, for the given number of tasks."""
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


def _level_names(options: ExpertOptions, tasks: Names, level: Level) -> tuple[Names, Names]:
    """Return the names of the gates and of the experts of a level: by task, or by number if they serve all."""
    gates, experts = level.readable.shape
    owned = [f"{task}/{number}" for task in tasks for number in range(options.num_task_experts)]
    of_experts = owned if options.model in ("cgc", "ple") else []
    of_experts += [f"shared/{number}" for number in range(experts - len(of_experts))]
    of_gates = ("all",) if options.model in ("shared_bottom", "omoe") else (*tasks, "shared")[:gates]
    return of_gates, tuple(of_experts)


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


class MultiTask(Network):
    """Levels of gated experts -> a tower and the logits of each task.

    logit_k = tower_k(sum over experts i of gate_k(x)_i expert_i(x))  [+ wide part of task k]

    With a single expert, as in shared_bottom, there is no gate.
    """

    options_class = ExpertOptions
    takes_parts = True
    options: ExpertOptions

    @classmethod
    def axes(cls, options: ExpertOptions, tasks: Sequence[Task], inputs: Names) -> dict[str, Axes]:
        """Return the names along the axes of experts, gates and towers."""
        names = tuple(task.name for task in tasks)
        found: dict[str, Axes] = {}
        for number, level in enumerate(levels_of(options, len(tasks)), start=1):
            gates, experts = _level_names(options, names, level)
            x = inputs if number == 1 else None
            found |= stack_axes(f"experts_{number}", len(options.expert_hidden_units), experts, x)
            hidden = len(options.gate_hidden_units)
            found |= stack_axes(f"gates_{number}/hidden", hidden, gates, x)
            found[f"gates_{number}/linear"] = Axes(stacks=gates, inputs=None if hidden else x, units=experts)
        return found | tower_axes("towers", tasks, [options.tower_units(name) for name in names])

    def build(self) -> None:
        """Create the experts and gates of each level, and the towers."""
        options = self.options
        self.levels = levels_of(options, len(self.tasks))
        self.experts, self.gates = [], []
        for number, level in enumerate(self.levels, start=1):
            experts = level.readable.shape[1]
            self.experts.append(
                layers.MLP(options.expert_hidden_units, self.dense_config, stacks=experts, name=f"experts_{number}")
            )
            if experts > 1:  # a single expert always weighs 1
                gates = layers.Gates(
                    level.readable,
                    options.gate_hidden_units,
                    self.dense_config,
                    name=f"gates_{number}",
                    starts_uniform=options.gate_init == "uniform",
                    temperature=options.gate_temperature,
                    dropout=options.expert_dropout,
                    entropy_weight=options.gate_entropy_weight,
                )
                self.gates.append(gates)
        towers = [options.tower_units(task.name) for task in self.tasks]
        self.towers = layers.Towers(self.tasks, towers, self.dense_config, name="towers")

    def start_at(self, logits: np.ndarray) -> None:
        """Set the biases of the towers' logits, [outputs]."""
        self.towers.start_at(logits)

    def call(self, x: tf.Tensor, context: StepContext | None = None) -> tf.Tensor:
        """Run the levels and the towers; return logits [batch, outputs] float32."""
        last = self.level_states(x, context)[-1].outputs
        # A single gate or expert serves all tasks: [1, batch, units] -> [tasks, batch, units].
        if last.shape[0] < len(self.tasks):
            last = tf.tile(last, [len(self.tasks), 1, 1])
        return self.towers(last, context=context)

    def level_states(self, x: tf.Tensor, context: StepContext | None = None) -> list[LevelState]:
        """Compute all levels; the last one's outputs are in the order of the tasks, or a single one for all tasks."""
        states: list[LevelState] = []
        for index, level in enumerate(self.levels):
            if level.sources:
                below = states[-1].outputs
                # Expert inputs are [experts, batch, units]; each gate reads its own output of the level below.
                expert_input, gate_input = tf.gather(below, level.sources), below[: len(level.readable)]
            else:
                expert_input = gate_input = x
            experts = self.experts[index](expert_input, context=context)
            gates = self.gates[index](gate_input, context=context) if self.gates else None
            states.append(LevelState(experts, gates, experts if gates is None else layers.mix(gates, experts)))
        return states

    @property
    def shared_weights(self) -> list[keras.Variable]:
        """Trainable weights of any gate that serves all tasks, then those of the experts."""
        common_gates = [
            gates for gates, level in zip(self.gates, self.levels, strict=False) if len(level.readable) == 1
        ]
        readers: list[keras.layers.Layer] = [*common_gates, *self.experts]
        return [weight for layer in readers for weight in layer.trainable_variables]
