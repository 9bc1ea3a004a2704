"""The schema of a model: its features and tasks by name, in the order in which it was built. Imports no TensorFlow.

In the weights, features and tasks are identified by position alone. A checkpoint therefore stores the schema that it
was trained with, and the model is built in that order when it is restored, whatever the order of the specification.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from data.errors import DataError
from data.spec.feature_spec import FeatureSpec
from data.spec.features import (
    CHANNELS,
    INPUT_CHANNELS,
    LABEL,
    MULTIHOT,
    SEQUENCE,
    VECTOR,
    Encoder,
    Feature,
    FeatureSequence,
    Order,
)

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
        table: embedding table of a categorical feature, if it is not called like the feature.
        wide: whether a categorical feature is in the wide part "only" or "no", unless it is in both parts.
        weights: name of the column with the weights of a multi-hot feature's ids.
        combiner: how the deep part pools a multi-hot feature's ids, if the feature states it.
        serve: value in predictions of a feature that is known only in training.
        dimension: number of values of a vector.
        of: name of the feature whose ids a pretrained vector is looked up by.
        trained: whether a pretrained vector is trained.
        dtype: type in which the vectors are held that are looked up and not trained.
    """

    name: str
    channel: str
    cardinality: int | None = None
    width: int | None = None
    max_hotness: int | None = None
    table: str | None = None
    wide: str | None = None
    weights: str | None = None
    combiner: str | None = None
    serve: float | None = None
    dimension: int | None = None
    of: str | None = None
    trained: bool | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class SequenceEntry:
    """A sequence that the model reads.

    Attributes:
        name: name of the sequence.
        features: names of its features.
        target: names of the features that its steps are compared with.
        encoder: encoder of its steps.
        order: whether its lists end or begin with their newest step.
        max_hotness: largest number of its steps.
    """

    name: str
    features: tuple[str, ...]
    target: tuple[str, ...]
    encoder: Encoder
    order: Order
    max_hotness: int


@dataclass(frozen=True)
class TaskEntry:
    """A task of the model.

    Attributes:
        name: name of the label.
        task: task type, a key of TASK_TYPES.
        classes: number of classes of a multiclass task.
        given: name of the label whose positive rows are the task's sample space; None for all rows.
    """

    name: str
    task: str
    classes: int | None = None
    given: str | None = None


def _entry_of_vector(feature: Feature) -> FeatureEntry:
    if feature.pretrained is None:
        return FeatureEntry(feature.name, VECTOR, dimension=feature.dimension)
    return FeatureEntry(
        feature.name,
        VECTOR,
        dimension=feature.dimension,
        of=feature.of,
        trained=feature.trained or None,
        dtype=None if feature.trained else feature.table_dtype,
    )


Entries = Collection[FeatureEntry] | Collection[SequenceEntry] | Collection[TaskEntry]


@dataclass(frozen=True)
class ModelSchema:
    """Features, tasks and sequences in the order of the model's inputs and logits."""

    features: tuple[FeatureEntry, ...]
    tasks: tuple[TaskEntry, ...]
    sequences: tuple[SequenceEntry, ...] = ()

    @classmethod
    def of(cls, spec: FeatureSpec, widths: Mapping[str, int]) -> "ModelSchema":
        """Return the schema of a model for a specification with the given embedding widths."""
        features = [
            _entry_of_vector(spec.features[name])
            if channel == VECTOR
            else FeatureEntry(name, channel, serve=spec.features[name].serve)
            if spec.features[name].cardinality is None
            else FeatureEntry(
                name,
                channel,
                spec.features[name].cardinality,
                widths.get(name),
                (spec.features[name].max_hotness or 1) if channel == MULTIHOT else None,
                spec.features[name].table if spec.features[name].table != name else None,
                spec.features[name].wide if spec.features[name].wide != "too" else None,
                spec.features[name].weights,
                spec.features[name].combiner,
                spec.features[name].serve,
            )
            for channel in INPUT_CHANNELS
            for name in spec.channels.get(channel, ())
        ]
        tasks = [
            TaskEntry(label.name, label.task, label.cardinality if label.is_class else None, label.given or None)
            for label in spec.labels
        ]
        sequences = [
            SequenceEntry(own.name, own.features, own.target, own.encoder, own.order, own.length)
            for own in spec.sequences
        ]
        return cls(tuple(features), tuple(tasks), tuple(sequences))

    @property
    def widths(self) -> dict[str, int]:
        """The embedding width of each categorical feature."""
        return {entry.name: entry.width for entry in self.features if entry.width is not None}

    def spec(self) -> FeatureSpec:
        """Return a specification of these features and tasks, without data files."""
        features = {
            entry.name: Feature(
                name=entry.name,
                dtype=entry.dtype,
                cardinality=entry.cardinality,
                max_hotness=entry.max_hotness,
                weights=entry.weights,
                combiner=entry.combiner,  # type: ignore[arg-type]
                dimension=entry.dimension,
                pretrained=None if entry.of is None else entry.name,
                of=entry.of,
                trained=bool(entry.trained),
                table=entry.table,
                wide=entry.wide or "too",  # type: ignore[arg-type]
                serve=entry.serve,
            )
            for entry in self.features
        }
        features |= {
            task.name: Feature(name=task.name, task=task.task, cardinality=task.classes, given=task.given)
            for task in self.tasks
        }
        features |= {entry.weights: Feature(name=entry.weights) for entry in self.features if entry.weights}
        sequences = tuple(
            FeatureSequence(own.name, own.features, own.target, own.encoder, own.order, own.max_hotness)
            for own in self.sequences
        )
        channels: dict[str, tuple[str, ...]] = dict.fromkeys(CHANNELS, ())
        for channel in INPUT_CHANNELS:
            channels[channel] = tuple(entry.name for entry in self.features if entry.channel == channel)
        channels[LABEL] = tuple(task.name for task in self.tasks)
        return FeatureSpec(Path(), features, {}, channels, {}, sequences)

    def ordered(self, spec: FeatureSpec) -> FeatureSpec:
        """Reorder the features and sequences of a specification: what this schema has comes first, in its order.

        Tasks stay in the order of the specification, which has a meaning for some models.
        """
        names = [entry.name for entry in self.features]
        own = {sequence.name: sequence for sequence in self.sequences}
        sequences = sorted(spec.sequences, key=lambda one: list(own).index(one.name) if one.name in own else len(own))
        sequences = [
            replace(one, features=_known_first(own[one.name].features, one.features)) if one.name in own else one
            for one in sequences
        ]
        channels = {channel: _known_first(names, listed) for channel, listed in spec.channels.items()}
        channels[SEQUENCE] = tuple(name for sequence in sequences for name in sequence.features)
        return replace(spec, channels=channels, sequences=tuple(sequences))

    def arrange(
        self, spec: FeatureSpec, widths: Mapping[str, int], saved: str, given: str, ignoring: Collection[str] = ()
    ) -> FeatureSpec:
        """Reorder the channels and sequences of a specification to match this schema.

        If lists may have another length than in this schema, those of sequences are cut to the one that they have here:
        the model has weights for so many positions.

        Args:
            spec: the specification.
            widths: embedding width of each categorical feature.
            saved, given: names of the sources of this schema and of the specification, for the error message.
            ignoring: properties that may differ: MAX_HOTNESS, WIDTH or LABEL (everything about tasks).

        Returns:
            The specification with reordered channels and sequences.

        Raises:
            DataError: Features or tasks differ; the message shows both sides.
        """
        other = ModelSchema.of(spec, widths)
        differences = _differences("feature", self.features, other.features, ignoring)
        differences += _differences("sequence", self.sequences, other.sequences, ignoring)
        if LABEL not in ignoring:
            differences += _differences(LABEL, self.tasks, other.tasks, ignoring)
        if differences:
            more = f"; and {len(differences) - MAX_SHOWN} more" if len(differences) > MAX_SHOWN else ""
            raise DataError(
                f"{given} does not describe the features and tasks of {saved}: "
                f"{'; '.join(differences[:MAX_SHOWN])}{more}. Only their order may differ: use the specification and "
                "the embedding widths of its training, or another --model_dir or --checkpoint. To train its model "
                "further on other data, start a new run with --warm_start and another --model_dir."
            )
        channels = {
            channel: tuple(feature.name for feature in self.features if feature.channel == channel)
            for channel in INPUT_CHANNELS
        }
        if LABEL not in ignoring:
            channels[LABEL] = tuple(task.name for task in self.tasks)
        sequences = tuple(
            FeatureSequence(own.name, own.features, own.target, own.encoder, own.order, own.max_hotness)
            for own in self.sequences
        )
        lengths = {
            name: replace(spec.features[name], max_hotness=own.length) for own in sequences for name in own.features
        }
        return replace(spec, features=spec.features | lengths, channels=spec.channels | channels, sequences=sequences)


def _known_first(known: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Return names reordered: those that are known in the order of `known`, then the others."""
    return (*(name for name in known if name in names), *(name for name in names if name not in known))


def _differences(what: str, saved: Entries, given: Entries, ignoring: Collection[str]) -> list[str]:
    """Return one message for each feature, sequence or task that differs between the two sides."""
    before, now = ({entry.name: _describe(entry, ignoring) for entry in entries} for entries in (saved, given))
    return [
        f"{what} {name!r} was {before.get(name, 'absent')} and is {now.get(name, 'absent')}"
        for name in before | now
        if before.get(name) != now.get(name)
    ]


def _describe(entry: FeatureEntry | SequenceEntry | TaskEntry, ignoring: Collection[str]) -> str:
    if isinstance(entry, SequenceEntry):
        names = f"of {', '.join(sorted(entry.features))}, target {', '.join(sorted(entry.target)) or 'none'}"
        length = "" if MAX_HOTNESS in ignoring else f", max_hotness {entry.max_hotness}"
        return f"{names}, encoder {entry.encoder}, order {entry.order}{length}"
    if isinstance(entry, TaskEntry):
        classes = f" of {entry.classes} classes" if entry.classes else ""
        return f"{entry.task}{classes}, given {entry.given or 'none'}"
    properties = [field.name for field in fields(entry)[2:] if field.name not in ignoring]
    return ", ".join(
        [entry.channel, *(f"{name} {value}" for name in properties if (value := getattr(entry, name)) is not None)]
    )
