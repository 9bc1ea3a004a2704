"""The typed JSON state of a run's checkpoint, everything besides its arrays. Imports no TensorFlow."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from data.typed_json import read_typed
from trainer.checkpoints import Checkpoint, NoCheckpointError
from trainer.early_stopping import Stopping
from trainer.position import Position
from trainer.schema import Schema
from trainer.sealed.manifest import MANIFEST


@dataclass(frozen=True)
class Identity:
    """Everything that determines which samples each step sees.

    Attributes:
        seed, global_batch_size, train_mapping: values of the flags of these names.
        training_data: fingerprint of the training mapping's files.
    """

    seed: int
    global_batch_size: int
    train_mapping: str
    training_data: str


@dataclass(frozen=True)
class SavedRates:
    """The flags that determine the learning rates, with defaults resolved."""

    num_epochs: int
    deep_learning_rate: float
    deep_schedule: Literal["steps", "constant"]
    deep_warmup_epochs: float
    linear_learning_rate: float


@dataclass(frozen=True)
class RunFacts:
    """The state of a run's checkpoint.

    Attributes:
        identity: everything that determines which samples each step sees.
        position: position in the run from which training resumes.
        stopping: state of early stopping.
        schema: features and tasks that the weights belong to.
        options: the run's flags; `trainer.flags.model_flags` checks those of the model.
        metrics: metrics of the evaluation recorded in the checkpoint, None where undefined; empty without one.
    """

    identity: Identity
    position: Position
    stopping: Stopping
    schema: Schema
    options: dict[str, Any]
    metrics: dict[str, float | None]

    @property
    def rates(self) -> SavedRates:
        """The flags that determine the learning rates."""
        names = [item.name for item in fields(SavedRates) if item.name in self.options]
        return read_typed(SavedRates, {name: self.options[name] for name in names}, "state.options")

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "RunFacts":
        """Reads the state of a checkpoint.

        Raises:
            NoCheckpointError: a value is missing or of another type.
        """
        try:
            facts: RunFacts = read_typed(cls, checkpoint.state, "state")
            _ = facts.rates  # raises a ValueError here rather than at its first use
            return facts
        except ValueError as error:
            raise NoCheckpointError(
                f"{checkpoint.path / MANIFEST}: {error}. It was not written by this version of the program; give "
                "another --checkpoint or --model_dir."
            ) from error
