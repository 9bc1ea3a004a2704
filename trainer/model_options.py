"""The flags that say what is trained."""

from dataclasses import dataclass
from typing import Literal

from data.errors import DataError
from trainer.option import at_least, each_at_least, option, positive

EXPERT_MODELS = ("omoe", "mmoe")
OWN_EXPERT_MODELS = ("cgc", "ple")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What is trained."""

    model: str = option("wide_deep", "architecture")
    deep_hidden_units: tuple[int, ...] = option((1024,) * 5, "units of each hidden layer of wide_deep")
    deep_dropout: float = option(0.1, "share of hidden units that is dropped in training")
    combiner: Literal["sum", "mean"] = option("sum", "pooling of multi-hot embeddings in the deep part")
    wide_part: bool = option(False, "give every task of a multi-task model a wide part, as wide_deep has it")
    expert_hidden_units: tuple[int, ...] = option((256, 128), "units of each layer of an expert, or the shared bottom")
    tower_hidden_units: tuple[int, ...] = option((64,), "units of each hidden layer of a task's tower")
    gate_hidden_units: tuple[int, ...] = option((), "units of each hidden layer of a gate; none makes gates linear")
    num_experts: int = option(8, "experts of omoe and mmoe")
    num_task_experts: int = option(2, "experts of each task's own, per level of cgc and ple")
    num_shared_experts: int = option(2, "shared experts per level of cgc and ple")
    ple_levels: int = option(2, "levels of ple")
    gate_init: Literal["random", "uniform"] = option("random", "start of the gates; uniform weighs all experts equally")
    gate_temperature: float = option(1.0, "divides the gates' logits; above 1 flattens the weights")
    activation: Literal["relu", "gelu", "silu", "tanh"] = option("relu", "of experts, towers and gates' hidden layers")

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name in ("deep_hidden_units", "expert_hidden_units", "tower_hidden_units", "gate_hidden_units"):
            each_at_least(name, getattr(self, name), 1)
        for name in ("num_experts", "num_task_experts", "ple_levels"):
            at_least(name, getattr(self, name), 1)
        at_least("num_shared_experts", self.num_shared_experts, 0)
        positive("gate_temperature", self.gate_temperature)
        for name in ("deep_hidden_units", "expert_hidden_units"):
            if not getattr(self, name):
                raise DataError(f"--{name} needs at least one layer")
        if not 0 <= self.deep_dropout < 1:
            raise DataError(f"--deep_dropout must lie in [0, 1), got {self.deep_dropout}")
