"""The layout of a model's input: which columns belong to which feature, and which table a feature looks up."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from data.loading.batch import PAD, Ids
from data.spec.feature_spec import FeatureSpec
from data.spec.features import Wide


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

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", self.table or self.name)

    @property
    def stop(self) -> int:
        """The index one past its last column."""
        return self.start + self.hotness


class ModelInputs(NamedTuple):
    """The matrices that a model is called with: NumPy arrays or tensors.

    Attributes:
        ids: ids of the categorical features, [batch, id columns] int32; lists are padded with negative numbers.
        numerical: [batch, numerical features] float32.
        weights: weights of the ids in lists, [batch, weight columns] float32; those of padding have no effect.
    """

    ids: Any
    numerical: Any
    weights: Any


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
        categorical: columns of each categorical feature, one-hot features first.
        numerical: names of the numerical features.
    """

    categorical: tuple[CategoricalInput, ...]
    numerical: tuple[str, ...]

    @cached_property
    def columns(self) -> Mapping[str, int]:
        """The column of each categorical feature in `Ids.onehot` or, if it is multi-hot, in `Ids.id_lists`."""
        ordered = sorted(self.categorical, key=lambda feature: feature.multihot)
        return {
            feature.name: column
            for _, features in groupby(ordered, key=lambda feature: feature.multihot)
            for column, feature in enumerate(features)
        }

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

    @property
    def tables(self) -> tuple[Table, ...]:
        """The embedding tables of the deep part."""
        return tables_of(self.deep)

    def wide_tables(self, outputs: int) -> tuple[Table, ...]:
        """Returns the tables of a wide part with so many outputs: one per feature; none for 0 outputs."""
        if not outputs:
            return ()
        return tuple(Table(feature.name, feature.cardinality, outputs, feature.hotness) for feature in self.wide)

    @property
    def id_columns(self) -> int:
        """The width of the id matrix."""
        return self.categorical[-1].stop if self.categorical else 0

    def padded(self, ids: Ids) -> np.ndarray:
        """Returns the matrix of ids that a model is called with, [rows, id columns] int32, with lists padded."""
        widths = [feature.hotness for feature in self.categorical if feature.multihot]
        return np.concatenate([ids.onehot, ids.id_lists.padded(widths, PAD)], axis=1)

    def padded_weights(self, ids: Ids) -> np.ndarray:
        """Returns the matrix of weights that a model is called with, [rows, weight columns] float32; 0 for padding."""
        return ids.number_lists.padded([feature.hotness for feature in self.weighted], 0).astype(np.float32)

    @property
    def width(self) -> int:
        """The width of the deep input: all embeddings and numerical features, concatenated."""
        return self.embedding_width + len(self.numerical)

    @property
    def widest(self) -> int:
        """The width of the widest embedding; 0 without embeddings."""
        return max((columns.width for columns in self.deep), default=0)

    @property
    def embedding_width(self) -> int:
        """The width of all embeddings, concatenated."""
        return sum(columns.width for columns in self.deep)


def input_schema(spec: FeatureSpec, widths: Mapping[str, int]) -> InputSchema:
    """Return the layout of a specification: one-hot features, then multi-hot ones, each in channel order.

    Args:
        spec: a validated specification.
        widths: embedding width of each categorical feature.
    """
    columns: list[CategoricalInput] = []
    start = 0
    for multihot, features in ((False, spec.onehot), (True, spec.multihot)):
        for feature in features:
            hotness, width = (feature.max_hotness or 1) if multihot else 1, widths[feature.name]
            cardinality = feature.cardinality or 0
            columns.append(
                CategoricalInput(
                    name=feature.name,
                    start=start,
                    hotness=hotness,
                    multihot=multihot,
                    cardinality=cardinality,
                    width=width,
                    table=feature.table or "",
                    unseen_id=feature.unseen_id,
                    wide=feature.wide,
                    weights=feature.weights or "",
                )
            )
            start += hotness
    return InputSchema(tuple(columns), tuple(feature.name for feature in spec.numerical))
