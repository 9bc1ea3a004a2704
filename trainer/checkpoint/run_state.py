"""The state of a run that is stored as JSON beside the variables of a checkpoint. Imports no TensorFlow."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from data.loading.identity import DataIdentity
from data.storage.checksummed_dir import MANIFEST
from data.storage.typed_json import read_typed
from trainer.checkpoint.schema import ModelSchema
from trainer.checkpoint.store import Checkpoint, NoCheckpointError
from trainer.tasks.logit_map import LogitMap


@dataclass
class Position:
    """A position in a run, from which it can resume as if it had never stopped.

    Together with the weights and the optimizers' state this is all that is needed: the order of rows is a function of
    seed and epoch, and random numbers are functions of seed and step.

    Attributes:
        epoch: current epoch, counted from 0; after the last epoch, the number of epochs.
        steps: number of steps done in this epoch.
        losses: sum over these steps of each task's mean loss.
        is_evaluated: False if the previous epoch has been trained but not yet evaluated.
    """

    epoch: int = 0
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    is_evaluated: bool = True

    def step(self, steps_per_epoch: int) -> int:
        """Return the number of steps done in the run."""
        return self.epoch * steps_per_epoch + self.steps

    @property
    def is_between_epochs(self) -> bool:
        """Whether an epoch has been evaluated and the next one has not begun."""
        return self.epoch > 0 and self.steps == 0 and self.is_evaluated

    @property
    def mean_losses(self) -> list[float]:
        """Each task's mean loss over the epoch so far."""
        return [loss / max(1, self.steps) for loss in self.losses]


@dataclass(frozen=True)
class Origin:
    """What the model of a run had been trained for before the run: nothing, unless it is a warm start.

    Steps are numbered on from there, and so are the epochs that the order of the rows depends on. Epochs and steps of
    the run itself, which the learning-rate schedule follows, count from 0.

    Attributes:
        steps: number of steps.
        epochs: number of epochs.
        model: the model that the run has started from; "" without a warm start.
    """

    steps: int = 0
    epochs: int = 0
    model: str = ""


@dataclass
class EarlyStoppingState:
    """The state of early stopping between epochs.

    Attributes:
        metric: key of the metric in the log; the metric itself defines whether larger or smaller is better.
        best: best value so far; None if the metric has not been defined yet.
        epochs_since_best: number of epochs since the best value in which the metric was defined.
        epochs_without_improvement: number of epochs of the whole run in which the metric has not improved.
    """

    metric: str
    best: float | None = None
    epochs_since_best: int = 0
    epochs_without_improvement: int = 0


@dataclass(frozen=True)
class Identity:
    """Everything that determines which samples each step sees.

    Attributes:
        seed, global_batch_size, train_mapping: values of the flags of these names.
        training_data: what identifies the rows of the training mapping.
        negatives: value of the flag, which decides on the weights of negative samples.
    """

    seed: int
    global_batch_size: int
    train_mapping: str
    training_data: DataIdentity
    negatives: str


@dataclass(frozen=True)
class SavedRates:
    """The flags that determine the learning rates, with defaults resolved."""

    num_epochs: int
    deep_learning_rate: float
    deep_schedule: Literal["steps", "constant", "plateau", "cosine", "exponential"]
    deep_warmup_epochs: float
    linear_learning_rate: float


@dataclass(frozen=True)
class RunState:
    """The JSON state of a run's checkpoint: all that is needed to resume, besides the variables.

    Attributes:
        identity: everything that determines which samples each step sees.
        position: position in the run from which training resumes.
        stopping: state of early stopping.
        schema: features and tasks that the weights belong to.
        options: the run's flags; `trainer.checkpoint.saved_config` checks those of the model.
        metrics: metrics of the evaluation recorded in the checkpoint, None where undefined; empty without one.
        logit_maps: what predictions apply to the network's logits, by label; only labels where it changes something.
        origin: what the model had been trained for before the run.
        score: formula of the score in the predictions; None for no score.
    """

    identity: Identity
    position: Position
    stopping: EarlyStoppingState
    schema: ModelSchema
    options: dict[str, Any]
    metrics: dict[str, float | None]
    logit_maps: dict[str, LogitMap]
    origin: Origin = Origin()
    score: str | None = None

    @property
    def rates(self) -> SavedRates:
        """The flags that determine the learning rates."""
        names = [item.name for item in fields(SavedRates) if item.name in self.options]
        return read_typed(SavedRates, {name: self.options[name] for name in names}, "state.options")

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "RunState":
        """Read the state of a checkpoint.

        Raises:
            NoCheckpointError: A value is missing or of another type.
        """
        try:
            state: RunState = read_typed(cls, checkpoint.state, "state")
            _ = state.rates  # raises a ValueError here rather than at its first use
            return state
        except ValueError as error:
            raise NoCheckpointError(
                f"{checkpoint.path / MANIFEST}: {error}. It was written by another version of the program; give "
                "another --checkpoint or --model_dir."
            ) from error
