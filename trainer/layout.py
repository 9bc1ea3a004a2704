"""The layout of a model's input: which columns belong to which feature, and which table a feature looks up."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from data.loading.batch import PAD, Batch, Ids
from data.loading.lists import Lists
from data.spec.feature_spec import FeatureSpec
from data.spec.features import CANDIDATE, ONEHOT, FeatureSequence, Wide


@dataclass(frozen=True)
class CategoricalInput:
    """The columns of one categorical feature in the id matrix, in which lists are padded.

    Attributes:
        name: name of the feature.
        start: index of its first column.
        hotness: number of its columns.
        multihot: whether rows may have fewer ids than columns; the rest is padded with -1.
        cardinality: number of ids, which lie in [0, cardinality).
        width: width of its embedding in the deep part.
        table: name of the embedding table of its deep part, which features may share; "" for the feature's name.
        unseen_id: id that exports take for ids out of range; None to fail on these.
        wide: whether the feature is in the wide part only, there too, or not.
        weights: name of the column with a weight for each id; "" if all ids weigh 1.
        combiner: how the deep part pools several ids, "sum" or "mean"; "" for that of the model.
        sequence: name of the sequence that it belongs to, with an id per step; "" if its ids are pooled.
    """

    name: str
    start: int
    hotness: int
    multihot: bool
    cardinality: int
    width: int
    table: str = ""
    unseen_id: int | None = None
    wide: Wide = "too"
    weights: str = ""
    combiner: str = ""
    sequence: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", self.table or self.name)

    @property
    def stop(self) -> int:
        """The index one past its last column."""
        return self.start + self.hotness


@dataclass(frozen=True)
class SequenceInput:
    """A sequence of steps, such as the items that a user clicked, whose features have an id or a number per step.

    Attributes:
        name: name of the sequence.
        length: largest number of steps.
        encoder: how the steps become one vector per categorical feature, a key of `trainer.models.sequences.ENCODERS`.
        features: names of its categorical features.
        numbers: names of its numerical features.
        targets: for each of `features`, the name of the one-hot feature that its steps are compared with; "" if there
            is none.
        newest_first: whether lists begin with their newest step, not with their oldest.
    """

    name: str
    length: int
    encoder: str
    features: tuple[str, ...]
    numbers: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    newest_first: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", self.targets or ("",) * len(self.features))


@dataclass(frozen=True)
class TrainingOnly:
    """The features that are known only in training, those with ids first.

    Attributes:
        names: names of the features.
        cardinalities: number of ids of each feature with ids.
        serve: the id or number that each feature has in predictions.
    """

    names: tuple[str, ...] = ()
    cardinalities: tuple[int, ...] = ()
    serve: tuple[float, ...] = ()


@dataclass(frozen=True)
class VectorInput:
    """A vector of numbers in every row, such as a pretrained embedding of a text or an image.

    Attributes:
        name: name of the feature.
        dimension: how many numbers it has.
    """

    name: str
    dimension: int


@dataclass(frozen=True)
class PretrainedInput:
    """A vector that is looked up by the id of a categorical feature; the mean of the vectors of several ids.

    Attributes:
        name: name of the feature.
        of: name of the categorical feature outside of sequences, whose ids it is looked up by.
        dimension: how many numbers it has.
        trained: whether the vectors are trained further; otherwise they keep the values of their file.
        dtype: type in which vectors that are not trained are held, "float16" or "float32".
    """

    name: str
    of: str
    dimension: int
    trained: bool = False
    dtype: str = "float32"


class SequenceSteps(NamedTuple):
    """The steps of a sequence in the rows of a batch, counted from the newest one: NumPy arrays or tensors.

    Attributes:
        present: [batch, length] float32, 1 for a step and 0 for padding.
        numbers: [batch, length, numbers] float32, the numerical features of each step; 0 for padding.
    """

    present: Any
    numbers: Any


class ModelInputs(NamedTuple):
    """The matrices that a model is called with: NumPy arrays or tensors.

    Attributes:
        ids: ids of the categorical features, [batch, id columns] int32; lists are padded with negative numbers.
        numerical: [batch, numerical features] float32.
        weights: weights of the ids in lists, [batch, weight columns] float32; those of padding have no effect.
        numbers: numbers of the steps of sequences, [batch, number columns] float32; those of padding have no effect.
        vectors: the vectors side by side, [batch, vector columns] float32.
    """

    ids: Any
    numerical: Any
    weights: Any
    numbers: Any
    vectors: Any


class RowValues(NamedTuple):
    """What a model reads of the rows of a batch besides embeddings: NumPy arrays, tensors or their types.

    Attributes:
        numerical: [batch, numerical] float32.
        sequences: the steps of each sequence.
        vectors: the vectors side by side, [batch, vector columns] float32; not needed if there are none.
        training_only: features known only in training, [batch, features] float32; empty if there are none, and for the
            constants of predictions.
    """

    numerical: Any
    sequences: tuple[SequenceSteps, ...] = ()
    vectors: Any = None
    training_only: tuple[Any, ...] = ()


class Table(NamedTuple):
    """An embedding table.

    Attributes:
        name: name of the table; the feature's name unless several features share it.
        rows: number of rows.
        width: number of columns.
        hotness: largest number of ids in a row of a batch, over all of its features.
    """

    name: str
    rows: int
    width: int
    hotness: int


def tables_of(features: Iterable[CategoricalInput]) -> tuple[Table, ...]:
    """Return the tables of some features, each once, in the order of their first features."""
    found: dict[str, Table] = {}
    for feature in features:
        table = found.get(feature.table, Table(feature.table, feature.cardinality, feature.width, 0))
        found[feature.table] = table._replace(hotness=table.hotness + feature.hotness)
    return tuple(found.values())


@dataclass(frozen=True)
class InputSchema:
    """The inputs of a model: ids of each categorical feature, and numerical [batch, numerical] float32.

    Training and evaluation look up the `Ids` of a batch. Models that are called or exported take matrices in which
    lists are padded (see `ModelInputs`).

    Attributes:
        categorical: columns of each categorical feature: one-hot features, then multi-hot ones, then those of
            sequences.
        numerical: names of the numerical features, those of sequences excepted.
        sequences: the sequences.
        vectors: the vectors that rows have.
        pretrained: the vectors that are looked up, those that are trained first.
        training_only: the features that are known only in training, which are none of the others.
        candidates: names of the inputs that a ranking request states for each candidate: features, and weights of ids.
    """

    categorical: tuple[CategoricalInput, ...]
    numerical: tuple[str, ...]
    sequences: tuple[SequenceInput, ...] = ()
    vectors: tuple[VectorInput, ...] = ()
    pretrained: tuple[PretrainedInput, ...] = ()
    training_only: TrainingOnly = TrainingOnly()
    candidates: frozenset[str] = frozenset()

    @cached_property
    def sides(self) -> "tuple[InputSchema, InputSchema]":
        """The inputs that a ranking request states once, and those that it states for each candidate."""
        names = {*(one.name for one in self.categorical), *(one.name for one in self.vectors)}
        names |= {*self.numerical, *self.sequence_numbers}
        return self._with(names - self.candidates), self._with(names & self.candidates)

    def _with(self, names: Collection[str]) -> "InputSchema":
        """Return the layout of some of the inputs."""
        categorical, start = list[CategoricalInput](), 0
        for feature in self.categorical:
            if feature.name in names:
                categorical.append(replace(feature, start=start))
                start += feature.hotness
        return InputSchema(
            tuple(categorical),
            tuple(name for name in self.numerical if name in names),
            tuple(sequence for sequence in self.sequences if sequence.features[0] in names),
            tuple(vector for vector in self.vectors if vector.name in names),
            tuple(vector for vector in self.pretrained if vector.of in names),
            candidates=self.candidates,
        )

    @cached_property
    def numerical_places(self) -> np.ndarray:
        """The column of each numerical feature, [numerical] int32, if those of one of `sides` follow the other's."""
        request, candidates = self.sides
        joined = [*request.numerical, *candidates.numerical]
        return np.array([joined.index(name) for name in self.numerical], np.int32)

    @property
    def has_inputs(self) -> bool:
        """Whether there are inputs at all."""
        return bool(self.categorical or self.numerical or self.vectors)

    @cached_property
    def columns(self) -> Mapping[str, int]:
        """The column of each categorical feature in `Ids.onehot` or, if it may have several ids, in `Ids.id_lists`.

        Vectors that are looked up have the column of the feature whose ids they are looked up by.
        """
        ordered = sorted(self.categorical, key=lambda feature: feature.multihot)
        columns = {
            feature.name: column
            for _, features in groupby(ordered, key=lambda feature: feature.multihot)
            for column, feature in enumerate(features)
        }
        return columns | {vector.name: columns[vector.of] for vector in self.pretrained}

    def named(self, name: str) -> CategoricalInput:
        """Return the categorical feature of this name."""
        return next(feature for feature in self.categorical if feature.name == name)

    @property
    def deep(self) -> tuple[CategoricalInput, ...]:
        """The categorical features of the deep part."""
        return tuple(feature for feature in self.categorical if feature.wide != "only")

    @property
    def wide(self) -> tuple[CategoricalInput, ...]:
        """The categorical features of the wide part, if there is one."""
        return tuple(feature for feature in self.categorical if feature.wide != "no")

    @cached_property
    def weighted(self) -> Mapping[CategoricalInput, slice]:
        """The features whose ids have weights, and their columns in the matrix of weights."""
        weighted = [feature for feature in self.categorical if feature.weights]
        stops = np.cumsum([feature.hotness for feature in weighted]).tolist()
        return {feature: slice(stop - feature.hotness, stop) for feature, stop in zip(weighted, stops, strict=True)}

    @property
    def weight_columns(self) -> int:
        """The width of the matrix of weights."""
        return sum(feature.hotness for feature in self.weighted)

    @cached_property
    def sequence_numbers(self) -> Mapping[str, slice]:
        """The numerical features of sequences, and their columns in the matrix of numbers."""
        lengths = [(name, sequence.length) for sequence in self.sequences for name in sequence.numbers]
        stops = np.cumsum([length for _, length in lengths]).tolist()
        return {name: slice(stop - length, stop) for (name, length), stop in zip(lengths, stops, strict=True)}

    @property
    def number_columns(self) -> int:
        """The width of the matrix of numbers."""
        return sum(sequence.length * len(sequence.numbers) for sequence in self.sequences)

    @property
    def deep_numerical(self) -> tuple[str, ...]:
        """The numerical features of the deep part: those of sequences are pooled to one number each."""
        return (*self.numerical, *self.sequence_numbers)

    @property
    def looked_up(self) -> tuple[CategoricalInput, ...]:
        """The vectors in `pretrained` as features with the ids that they are looked up by, and tables of their own."""
        return tuple(
            replace(self.named(own.of), name=own.name, table=own.name, width=own.dimension, combiner="mean", wide="no")
            for own in self.pretrained
        )

    @property
    def vector_dimensions(self) -> tuple[int, ...]:
        """The dimensions of all vectors that the model sees: those of rows, then those that are looked up."""
        return (*(own.dimension for own in self.vectors), *(own.dimension for own in self.pretrained))

    @cached_property
    def vector_places(self) -> Mapping[str, slice]:
        """The vectors, and their columns in the matrix of vectors."""
        stops = np.cumsum([vector.dimension for vector in self.vectors]).tolist()
        return {own.name: slice(stop - own.dimension, stop) for own, stop in zip(self.vectors, stops, strict=True)}

    @property
    def vector_columns(self) -> int:
        """The width of the matrix of vectors."""
        return sum(vector.dimension for vector in self.vectors)

    @property
    def has_numbers(self) -> bool:
        """Whether the deep part has numbers: numerical features, those of sequences, or vectors."""
        return bool(self.deep_numerical or self.vector_dimensions)

    @cached_property
    def newest_first(self) -> Mapping[str, bool]:
        """Whether lists begin with their newest step, for each categorical feature of a sequence."""
        return {name: sequence.newest_first for sequence in self.sequences for name in sequence.features}

    @cached_property
    def newest_last(self) -> frozenset[str]:
        """The features of sequences, with ids or numbers, whose lists end with their newest step."""
        steps = [sequence for sequence in self.sequences if not sequence.newest_first]
        return frozenset(name for sequence in steps for name in (*sequence.features, *sequence.numbers))

    @property
    def tables(self) -> tuple[Table, ...]:
        """The embedding tables that are trained, outside of the wide part: those of features, then of vectors."""
        trained = [vector.trained for vector in self.pretrained].count(True)
        return (*tables_of(self.deep), *tables_of(self.looked_up[:trained]))

    @property
    def frozen_tables(self) -> Mapping[Table, str]:
        """The tables of vectors that are not trained, and the type of each: "float16" or "float32"."""
        frozen = [own for own in zip(self.looked_up, self.pretrained, strict=True) if not own[1].trained]
        return {tables_of([feature])[0]: own.dtype for feature, own in frozen}

    def wide_tables(self, outputs: int) -> tuple[Table, ...]:
        """Return the tables of a wide part with so many outputs: one per feature; none for 0 outputs."""
        if not outputs:
            return ()
        return tuple(Table(feature.name, feature.cardinality, outputs, feature.hotness) for feature in self.wide)

    @property
    def id_columns(self) -> int:
        """The width of the id matrix."""
        return self.categorical[-1].stop if self.categorical else 0

    def padded(self, ids: Ids) -> np.ndarray:
        """Return the matrix of ids that a model is called with, [rows, id columns] int32, with lists padded."""
        widths = [feature.hotness for feature in self.categorical if feature.multihot]
        return np.concatenate([ids.onehot, ids.id_lists.padded(widths, PAD)], axis=1)

    def padded_weights(self, ids: Ids) -> np.ndarray:
        """Return the matrix of weights that a model is called with, [rows, weight columns] float32; 0 for padding."""
        widths = [feature.hotness for feature in self.weighted]
        return ids.number_lists.select(range(len(widths))).padded(widths, 0).astype(np.float32)

    def padded_numbers(self, ids: Ids) -> np.ndarray:
        """Return the matrix of numbers that a model is called with, [rows, number columns] float32; 0 for padding."""
        columns = range(len(self.weighted), len(self.weighted) + len(self.sequence_numbers))
        widths = [place.stop - place.start for place in self.sequence_numbers.values()]
        return ids.number_lists.select(columns).padded(widths, 0).astype(np.float32)

    def model_inputs(self, ids: Ids, numerical: np.ndarray, vectors: np.ndarray) -> ModelInputs:
        """Return the matrices that a model is called with for some rows.

        Args:
            ids: ids of the rows.
            numerical: [rows, numerical] float32.
            vectors: [rows, vector columns] float32.
        """
        return ModelInputs(self.padded(ids), numerical, self.padded_weights(ids), self.padded_numbers(ids), vectors)

    def steps(self, ids: Ids) -> tuple[SequenceSteps, ...]:
        """Return the steps of each sequence, which training and evaluation pass to the model."""
        found, column = [], len(self.weighted)
        for sequence in self.sequences:
            lengths = ids.id_lists.lengths[:, self.columns[sequence.features[0]]]
            present = (np.arange(sequence.length) < lengths[:, np.newaxis]).astype(np.float32)
            numbers = np.zeros((*present.shape, len(sequence.numbers)), np.float32)
            if sequence.numbers:
                lists = ids.number_lists.select(range(column, column + len(sequence.numbers)))
                rows, of = np.divmod(lists.cells(), len(sequence.numbers))
                numbers[rows, from_newest(lists, [sequence.newest_first] * len(sequence.numbers)), of] = lists.values
                column += len(sequence.numbers)
            found.append(SequenceSteps(present, numbers))
        return tuple(found)

    def row_values(self, batch: Batch) -> RowValues:
        """Return what training and evaluation pass to the model for a batch, besides what its ids look up."""
        only = training_only_of(batch.training_only)
        return RowValues(batch.numerical, self.steps(batch.ids), batch.vectors, only)

    @property
    def width(self) -> int:
        """The width of the deep input without vectors: all embeddings and numerical features, concatenated."""
        return self.embedding_width + len(self.deep_numerical)

    @property
    def widest(self) -> int:
        """The width of the widest embedding; 0 without embeddings."""
        return max((columns.width for columns in self.deep), default=0)

    @property
    def embedding_width(self) -> int:
        """The width of all embeddings, concatenated."""
        return sum(columns.width for columns in self.deep)


def training_only_of(values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return features known only in training, [batch, features] float32, as a step takes them: empty without any."""
    return (values,) if values.shape[1] else ()


def from_newest(lists: Lists, newest_first: Sequence[bool]) -> np.ndarray:
    """Return the place of each value in its list, [values] int64, counted from the newest one.

    Args:
        lists: [rows, columns] lists.
        newest_first: for each column, whether lists begin with their newest value, not with their oldest.
    """
    starts, is_first = lists.starts(), np.array(newest_first, bool)
    numbers, repeats = np.arange(len(lists.values)), lists.lengths.reshape(-1)
    if is_first.all():
        return numbers - np.repeat(starts.reshape(-1), repeats)
    offsets = np.where(is_first, -starts, starts + lists.lengths - 1)
    if is_first.any():
        numbers *= np.repeat(np.broadcast_to(np.where(is_first, -1, 1), starts.shape).reshape(-1), repeats)
    return np.repeat(offsets.reshape(-1), repeats) - numbers


def input_schema(spec: FeatureSpec, widths: Mapping[str, int]) -> InputSchema:
    """Return the layout of a specification: features with one id, then multi-hot ones, then those of sequences.

    Args:
        spec: a validated specification.
        widths: embedding width of each categorical feature.
    """
    columns: list[CategoricalInput] = []
    start = 0
    for multihot, features in ((False, spec.onehot), (True, spec.id_lists)):
        for feature in features:
            sequence = spec.sequence_of.get(feature.name)
            hotness = sequence.length if sequence else (feature.max_hotness or 1) if multihot else 1
            columns.append(
                CategoricalInput(
                    name=feature.name,
                    start=start,
                    hotness=hotness,
                    multihot=multihot,
                    cardinality=feature.cardinality or 0,
                    width=widths[feature.name],
                    table=feature.table or "",
                    unseen_id=feature.unseen_id,
                    wide=feature.wide,
                    weights=feature.weights or "",
                    combiner=feature.combiner or "",
                    sequence=sequence.name if sequence else "",
                )
            )
            start += hotness
    sequences = tuple(_sequence_input(sequence, spec) for sequence in spec.sequences)
    numerical = tuple(feature.name for feature in spec.numerical)
    vectors = tuple(VectorInput(feature.name, feature.dimension or 1) for feature in spec.vectors)
    pretrained = [
        PretrainedInput(own.name, own.of or "", own.dimension or 1, own.trained, own.table_dtype)
        for own in sorted(spec.pretrained, key=lambda own: not own.trained)
    ]
    candidates = [feature for feature in spec.inputs if feature.side == CANDIDATE]
    of_candidates = {name for feature in candidates for name in (feature.name, feature.weights) if name}
    layout = InputSchema(tuple(columns), numerical, sequences, vectors, tuple(pretrained), _training_only(spec))
    return replace(layout, candidates=frozenset(of_candidates))


def _training_only(spec: FeatureSpec) -> TrainingOnly:
    """Return the layout of the features known only in training."""
    with_ids = [feature for feature in spec.training_only if spec.channel_of[feature.name] == ONEHOT]
    return TrainingOnly(
        names=tuple(feature.name for feature in spec.training_only),
        cardinalities=tuple(feature.cardinality or 0 for feature in with_ids),
        serve=tuple(feature.serve or 0.0 for feature in spec.training_only),
    )


def _sequence_input(sequence: FeatureSequence, spec: FeatureSpec) -> SequenceInput:
    """Return the layout of a sequence, whose features are compared with the targets that share their tables."""
    ids = [name for name in sequence.features if spec.features[name].cardinality is not None]
    target_of = {spec.features[name].table or name: name for name in sequence.target}
    return SequenceInput(
        name=sequence.name,
        length=sequence.length,
        encoder=sequence.encoder,
        features=tuple(ids),
        numbers=tuple(name for name in sequence.features if name not in ids),
        targets=tuple(target_of.get(spec.features[name].table or name, "") for name in ids),
        newest_first=sequence.order == "newest_first",
    )
