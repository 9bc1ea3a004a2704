"""Where each feature stands in the tensors of a batch."""

from collections.abc import Mapping
from dataclasses import dataclass

from data.specification.feature_spec import FeatureSpec


@dataclass(frozen=True)
class IdColumns:
    """The columns of the id matrix that hold one categorical feature.

    Attributes:
        name: the feature.
        start: its first column.
        hotness: how many columns it has.
        multihot: whether rows may have fewer ids than columns; the rest is PAD.
        cardinality: ids lie in [0, cardinality).
        width: of its embedding in the deep part.
    """

    name: str
    start: int
    hotness: int
    multihot: bool
    cardinality: int
    width: int

    @property
    def stop(self) -> int:
        """One past its last column."""
        return self.start + self.hotness


@dataclass(frozen=True)
class InputLayout:
    """What a model is fed: ids [batch, id_columns] int32 and numerical [batch, numerical] float32."""

    categorical: tuple[IdColumns, ...]
    numerical: tuple[str, ...]

    @property
    def id_columns(self) -> int:
        """Width of the id matrix."""
        return self.categorical[-1].stop if self.categorical else 0

    @property
    def width(self) -> int:
        """Width of the deep input: all embeddings and numbers side by side."""
        return self.embedding_width + len(self.numerical)

    @property
    def embedding_width(self) -> int:
        """Width of all embeddings side by side."""
        return sum(columns.width for columns in self.categorical)


def input_layout(spec: FeatureSpec, widths: Mapping[str, int]) -> InputLayout:
    """The layout of a specification: one-hot features, then multi-hot, each in channel order.

    Args:
        spec: a validated specification.
        widths: embedding width of each categorical feature.
    """
    columns: list[IdColumns] = []
    start = 0
    for multihot, features in ((False, spec.onehot), (True, spec.multihot)):
        for feature in features:
            hotness = (feature.max_hotness or 1) if multihot else 1
            columns.append(
                IdColumns(feature.name, start, hotness, multihot, feature.cardinality or 0, widths[feature.name])
            )
            start += hotness
    return InputLayout(tuple(columns), tuple(feature.name for feature in spec.numerical))
