"""The schema of a model: its features and tasks by name, in the order in which it was built. Imports no TensorFlow.

In the weights, features and tasks are identified by position alone. A checkpoint therefore stores the schema that it
was trained with, and the model is built in that order when it is restored, whatever the order of the specification.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from data.errors import DataError
from data.spec.feature_spec import FeatureSpec
from data.spec.features import INPUT_CHANNELS, LABEL, MULTIHOT, NUMERICAL
from data.storage.checksummed_dir import MANIFEST
from data.storage.typed_json import read_typed
from trainer.checkpoint.store import Checkpoint, NoCheckpointError


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
        """Returns the number of steps done in the whole run."""
        return self.epoch * steps_per_epoch + self.steps

    def add(self, losses: list[float]) -> None:
        """Adds the losses of one more step."""
        sums = self.losses or [0.0] * len(losses)
        self.steps, self.losses = self.steps + 1, [one + more for one, more in zip(sums, losses, strict=True)]

    @property
    def is_between_epochs(self) -> bool:
        """Whether an epoch has been evaluated and the next one has not begun."""
        return self.epoch > 0 and self.steps == 0 and self.is_evaluated

    @property
    def mean_losses(self) -> list[float]:
        """Each task's mean loss over the epoch so far."""
        return [loss / max(1, self.steps) for loss in self.losses]


@dataclass
class EarlyStoppingState:
    """The state of early stopping between epochs.

    Attributes:
        metric: key of the metric in the log; the metric itself defines whether larger or smaller is better.
        best: best value so far; None if the metric has not been defined yet.
        epochs_since_best: number of epochs since the best value in which the metric was defined.
    """

    metric: str
    best: float | None = None
    epochs_since_best: int = 0


MAX_HOTNESS, WIDTH = "max_hotness", "width"
MAX_SHOWN = 5


@dataclass(frozen=True)
class FeatureEntry:
    """A feature that the model reads.

    Attributes:
        name: name of the feature.
        channel: channel of the specification that the feature belongs to.
        cardinality: number of ids of a categorical feature.
        width: embedding width of a categorical feature.
        max_hotness: maximum number of ids per row of a multi-hot feature. No weight depends on it, but the ids that
            training sees do.
    """

    name: str
    channel: str
    cardinality: int | None = None
    width: int | None = None
    max_hotness: int | None = None


@dataclass(frozen=True)
class TaskEntry:
    """A task of the model.

    Attributes:
        name: name of the label.
        task: kind of the task: binary, multiclass or regression.
        classes: number of classes of a multiclass task.
        given: name of the label whose positive rows are the task's sample space; None for all rows.
    """

    name: str
    task: str
    classes: int | None = None
    given: str | None = None


@dataclass(frozen=True)
class Schema:
    """Features and tasks in the order of the model's inputs and logits."""

    features: tuple[FeatureEntry, ...]
    tasks: tuple[TaskEntry, ...]

    @classmethod
    def of(cls, spec: FeatureSpec, widths: Mapping[str, int]) -> "Schema":
        """Returns the schema of a model for a specification with the given embedding widths."""
        features = [
            FeatureEntry(name, channel)
            if channel == NUMERICAL
            else FeatureEntry(
                name,
                channel,
                spec.features[name].cardinality,
                widths.get(name),
                (spec.features[name].max_hotness or 1) if channel == MULTIHOT else None,
            )
            for channel in INPUT_CHANNELS
            for name in spec.channels[channel]
        ]
        tasks = [
            TaskEntry(
                label.name, label.task, label.cardinality if label.task == "multiclass" else None, label.given or None
            )
            for label in spec.labels
        ]
        return cls(tuple(features), tuple(tasks))

    def arrange(
        self, spec: FeatureSpec, widths: Mapping[str, int], saved: str, given: str, ignoring: Collection[str] = ()
    ) -> FeatureSpec:
        """Reorders the channels of a specification to match this schema.

        Args:
            spec: the specification.
            widths: embedding width of each categorical feature.
            saved, given: names of the sources of this schema and of the specification, for the error message.
            ignoring: properties that may differ: MAX_HOTNESS, WIDTH or LABEL (everything about tasks).

        Returns:
            The specification with reordered channels.

        Raises:
            DataError: features or tasks differ; the message shows both sides.
        """
        other = Schema.of(spec, widths)
        differences = _differences("feature", self.features, other.features, ignoring)
        if LABEL not in ignoring:
            differences += _differences(LABEL, self.tasks, other.tasks, ignoring)
        if differences:
            more = f"; and {len(differences) - MAX_SHOWN} more" if len(differences) > MAX_SHOWN else ""
            raise DataError(
                f"{given} does not describe the features and tasks of {saved}: "
                f"{'; '.join(differences[:MAX_SHOWN])}{more}. Their order is free, all else must be the same: use "
                "the specification and the embedding widths of its training, or another --model_dir or --checkpoint."
            )
        channels = {
            channel: tuple(feature.name for feature in self.features if feature.channel == channel)
            for channel in INPUT_CHANNELS
        }
        if LABEL not in ignoring:
            channels[LABEL] = tuple(task.name for task in self.tasks)
        return replace(spec, channels=spec.channels | channels)


def _differences(
    what: str,
    saved: Collection[FeatureEntry] | Collection[TaskEntry],
    given: Collection[FeatureEntry] | Collection[TaskEntry],
    ignoring: Collection[str],
) -> list[str]:
    """Return one message for each feature or task that differs between the two sides."""
    sides = [{entry.name: _described(entry, ignoring) for entry in entries} for entries in (saved, given)]
    both = [(name, *(side.get(name, "absent") for side in sides)) for name in dict.fromkeys((*sides[0], *sides[1]))]
    return [f"{what} {name!r} was {there} and is {here}" for name, there, here in both if there != here]


def _described(entry: FeatureEntry | TaskEntry, ignoring: Collection[str]) -> str:
    if isinstance(entry, TaskEntry):
        classes = f" of {entry.classes} classes" if entry.classes else ""
        return f"{entry.task}{classes}, given {entry.given or 'none'}"
    numbers = [field.name for field in fields(entry)[2:] if field.name not in ignoring]
    told = [f"{name} {value}" for name in numbers if (value := getattr(entry, name)) is not None]
    return ", ".join([entry.channel, *told])


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
        options: the run's flags; `trainer.checkpoint.saved_config` checks those of the model.
        metrics: metrics of the evaluation recorded in the checkpoint, None where undefined; empty without one.
    """

    identity: Identity
    position: Position
    stopping: EarlyStoppingState
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
