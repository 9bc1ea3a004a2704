"""What a run's checkpoint says besides its arrays. Imports no TensorFlow."""

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
    """What decides which samples each step has.

    Attributes:
        seed, global_batch_size, train_mapping: the flags.
        training_data: fingerprint of the training mapping.
    """

    seed: int
    global_batch_size: int
    train_mapping: str
    training_data: str


@dataclass(frozen=True)
class SavedRates:
    """The flags that learning rates follow from, defaults resolved."""

    num_epochs: int
    deep_learning_rate: float
    deep_schedule: Literal["steps", "constant"]
    deep_warmup_epochs: float
    linear_learning_rate: float


@dataclass(frozen=True)
class RunFacts:
    """The state of a checkpoint, in the types of its parts.

    Attributes:
        identity: of the run.
        position: where it resumes.
        metrics: of the evaluation that it was saved after, None where undefined; empty without an evaluation.
        stopping: the best value so far with its metric.
        options: the run's flags; those of the model are looked at by `trainer.flags.model_flags`.
        schema: what the weights belong to.
    """

    identity: Identity
    position: Position
    stopping: Stopping
    schema: Schema
    options: dict[str, Any]
    metrics: dict[str, float | None]

    @property
    def rates(self) -> SavedRates:
        """Those of the flags that learning rates follow from."""
        names = [item.name for item in fields(SavedRates) if item.name in self.options]
        return read_typed(SavedRates, {name: self.options[name] for name in names}, "state.options")

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "RunFacts":
        """Those of a checkpoint.

        Raises:
            NoCheckpointError: something is missing or of another type.
        """
        try:
            facts: RunFacts = read_typed(cls, checkpoint.state, "state")
            _ = facts.rates
            return facts
        except ValueError as error:
            raise NoCheckpointError(
                f"{checkpoint.path / MANIFEST}: {error}. It was not written by this version of the program; give "
                "another --checkpoint or --model_dir."
            ) from error
