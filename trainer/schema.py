"""The schema of a model: its features and tasks by name, in the order in which it was built. Imports no TensorFlow.

In the weights, features and tasks are identified by position alone. A checkpoint therefore stores the schema that it
was trained with, and the model is built in that order when it is restored, whatever the order of the specification.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace

from data.errors import DataError
from data.specification.feature_spec import FeatureSpec
from data.specification.parts import INPUT_CHANNELS, LABEL, MULTIHOT, NUMERICAL

MAX_HOTNESS, WIDTH = "max_hotness", "width"
MAX_SHOWN = 5


@dataclass(frozen=True)
class InputSchema:
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
class TaskSchema:
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

    features: tuple[InputSchema, ...]
    tasks: tuple[TaskSchema, ...]

    @classmethod
    def of(cls, spec: FeatureSpec, widths: Mapping[str, int]) -> "Schema":
        """Returns the schema of a model for a specification with the given embedding widths."""
        features = [
            InputSchema(name, channel)
            if channel == NUMERICAL
            else InputSchema(
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
            TaskSchema(
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
    saved: Collection[InputSchema] | Collection[TaskSchema],
    given: Collection[InputSchema] | Collection[TaskSchema],
    ignoring: Collection[str],
) -> list[str]:
    """Return one message for each feature or task that differs between the two sides."""
    sides = [{entry.name: _described(entry, ignoring) for entry in entries} for entries in (saved, given)]
    both = [(name, *(side.get(name, "absent") for side in sides)) for name in dict.fromkeys((*sides[0], *sides[1]))]
    return [f"{what} {name!r} was {there} and is {here}" for name, there, here in both if there != here]


def _described(entry: InputSchema | TaskSchema, ignoring: Collection[str]) -> str:
    if isinstance(entry, TaskSchema):
        classes = f" of {entry.classes} classes" if entry.classes else ""
        return f"{entry.task}{classes}, given {entry.given or 'none'}"
    numbers = [field.name for field in fields(entry)[2:] if field.name not in ignoring]
    told = [f"{name} {value}" for name in numbers if (value := getattr(entry, name)) is not None]
    return ", ".join([entry.channel, *told])
