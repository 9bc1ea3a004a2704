"""The layout of a model's input: which columns belong to which feature."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np

from data.loading.batch import PAD, Ids
from data.spec.feature_spec import FeatureSpec


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
        unseen_id: id that exports take for ids out of range; None to fail on these.
    """

    name: str
    start: int
    hotness: int
    multihot: bool
    cardinality: int
    width: int
    unseen_id: int | None = None

    @property
    def stop(self) -> int:
        """The index one past its last column."""
        return self.start + self.hotness


@dataclass(frozen=True)
class InputSchema:
    """The inputs of a model: ids of each categorical feature, and numerical [batch, numerical] float32.

    Training and evaluation look up the `Ids` of a batch. Models that are called or exported take a matrix of them, in
    which lists are padded: [batch, id columns] int32.

    Attributes:
        categorical: columns of each categorical feature, one-hot features first.
        numerical: names of the numerical features.
    """

    categorical: tuple[CategoricalInput, ...]
    numerical: tuple[str, ...]

    @cached_property
    def columns(self) -> Mapping[str, int]:
        """The column of each categorical feature in `Ids.onehot` or, if it is multi-hot, in `Ids.multihot`."""
        ordered = sorted(self.categorical, key=lambda feature: feature.multihot)
        return {
            feature.name: column
            for _, features in groupby(ordered, key=lambda feature: feature.multihot)
            for column, feature in enumerate(features)
        }

    @property
    def id_columns(self) -> int:
        """The width of the id matrix."""
        return self.categorical[-1].stop if self.categorical else 0

    def padded(self, ids: Ids) -> np.ndarray:
        """Returns the matrix of ids that a model is called with, [rows, id columns] int32, with lists padded."""
        widths = [feature.hotness for feature in self.categorical if feature.multihot]
        return np.concatenate([ids.onehot, ids.multihot.padded(widths, PAD)], axis=1)

    @property
    def width(self) -> int:
        """The width of the deep input: all embeddings and numerical features, concatenated."""
        return self.embedding_width + len(self.numerical)

    @property
    def embedding_width(self) -> int:
        """The width of all embeddings, concatenated."""
        return sum(columns.width for columns in self.categorical)


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
                CategoricalInput(feature.name, start, hotness, multihot, cardinality, width, feature.unseen_id)
            )
            start += hotness
    return InputSchema(tuple(columns), tuple(feature.name for feature in spec.numerical))
