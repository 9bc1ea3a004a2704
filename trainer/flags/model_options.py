"""The flags that describe the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.errors import DataError
from data.specification.yaml_reader import read_yaml
from trainer.flags.option import at_least, each_at_least, option, positive, share

Units = tuple[int, ...]


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
        raise DataError(f"--tower_hidden_units takes whole numbers, or one YAML file, got {' '.join(words)}")
    return tuple(int(word) for word in words)


def _is_units(value: Any) -> bool:
    return isinstance(value, list) and all(type(unit) is int for unit in value)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What is trained."""

    model: str = option("wide_deep", "architecture")
    deep_hidden_units: Units = option((1024,) * 5, "units of each hidden layer of wide_deep")
    deep_dropout: float = option(0.1, "share of hidden units that is dropped in training")
    batch_norm: bool = option(False, "normalise hidden layers by the moments of the global batch")
    activation: Literal["relu", "gelu", "silu", "tanh"] = option("relu", "of all hidden layers")
    combiner: Literal["sum", "mean"] = option("sum", "pooling of multi-hot embeddings in the deep part")
    embedding_init_std: float | None = option(
        None, "deviation of the normal start of the deep tables; default: Glorot's, by the table's shape"
    )
    wide_part: bool = option(False, "give every task of a multi-task model a wide part, as wide_deep has it")
    expert_hidden_units: Units = option((256, 128), "units of each layer of an expert, or the shared bottom")
    tower_hidden_units: Units | dict[str, Units] = option(
        (64,),
        "units of each hidden layer of a task's tower; or a YAML file with a list of units per label",
        parse=read_tower_units,
    )
    gate_hidden_units: Units = option((), "units of each hidden layer of a gate; none makes gates linear")
    num_experts: int = option(8, "experts of omoe and mmoe")
    num_task_experts: int = option(2, "experts of each task's own, per level of cgc and ple")
    num_shared_experts: int = option(2, "shared experts per level of cgc and ple")
    ple_levels: int = option(2, "levels of ple")
    gate_init: Literal["random", "uniform"] = option("random", "start of the gates; uniform weighs all experts equally")
    gate_temperature: float = option(1.0, "divides the gates' logits; above 1 flattens the weights")
    gate_entropy_weight: float = option(
        0.0, "rewards the entropy of the gates in training, against gates that lean on one expert; try 0.001 to 0.003"
    )
    expert_dropout: float = option(0.0, "share of gate weights that is dropped in training, likewise; try 0.1")
    calibrator_weight: float = option(0.6, "of aitm's penalty on a task that is likelier than the one before it")

    def __post_init__(self) -> None:
        """Checks the ranges of all values. Raises a DataError if one is out of range."""
        for name in ("deep_hidden_units", "expert_hidden_units", "gate_hidden_units"):
            each_at_least(name, getattr(self, name), 1)
        towers = self.tower_hidden_units
        for units in towers.values() if isinstance(towers, dict) else [towers]:
            each_at_least("tower_hidden_units", units, 1)
        for name in ("num_experts", "num_task_experts", "ple_levels"):
            at_least(name, getattr(self, name), 1)
        at_least("num_shared_experts", self.num_shared_experts, 0)
        positive("gate_temperature", self.gate_temperature)
        if self.embedding_init_std is not None:
            positive("embedding_init_std", self.embedding_init_std)
        for name in ("gate_entropy_weight", "calibrator_weight"):
            at_least(name, getattr(self, name), 0)
        for name in ("deep_hidden_units", "expert_hidden_units"):
            if not getattr(self, name):
                raise DataError(f"--{name} needs at least one layer")
        for name in ("deep_dropout", "expert_dropout"):
            share(name, getattr(self, name), end=0.99)

    def tower_units(self, task: str) -> Units:
        """Returns the units of the hidden layers of a task's tower."""
        towers = self.tower_hidden_units
        return towers[task] if isinstance(towers, dict) else towers

    def check_towers(self, labels: Sequence[str]) -> None:
        """Raises a DataError if towers are given per label, but not for exactly these labels."""
        towers = self.tower_hidden_units
        if isinstance(towers, dict) and set(towers) != set(labels):
            raise DataError(
                f"--tower_hidden_units has towers for {', '.join(towers)}, and the labels are {', '.join(labels)}"
            )
