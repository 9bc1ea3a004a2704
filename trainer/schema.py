"""What weights belong to: features and tasks by name, in the order in which the model was built. Imports no TensorFlow.

Weights are arrays whose rows, columns and slices stand for features and tasks by their position. A checkpoint holds the
schema that it was trained with; whoever restores it builds the model in that order, whatever the order of the
specification at hand.
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
        name: of the feature.
        channel: of the specification.
        cardinality: number of ids, of a categorical feature.
        width: of its embedding.
        max_hotness: most ids of a row, of a multi-hot feature. No weight depends on it, but what training sees does.
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
        name: the label.
        task: binary, multiclass or regression.
        classes: of a multiclass task.
        given: the label whose positives are its sample space.
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
        """The schema of a model that is built for a specification, with these embedding widths."""
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
        """A specification with its channels in the order of this schema.

        Args:
            spec, widths: as of `of`.
            saved, given: what has this schema and what has the specification, for the message.
            ignoring: what may differ, of MAX_HOTNESS, WIDTH and LABEL (all of the tasks).

        Raises:
            DataError: other features or tasks; names them and shows both sides.
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
    """One text per name whose two sides differ."""
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
