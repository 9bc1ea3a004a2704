"""Map a dataset's columns to the fields of a `Batch`, with their accepted types and domains."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from data.conversion.columns import Column, Domain, describe_column
from data.specification.feature_spec import Feature, FeatureSpec

# How to handle an id outside [0, cardinality): raise; use the nearest valid id; or do that and give the row weight 0.
OovPolicy = Literal["error", "clip", "drop"]


@dataclass(frozen=True)
class Target:
    """The destination of a column in a `Batch`, and its valid values.

    Attributes:
        name: name of the column.
        field: name of the `Batch` field that receives the values.
        slot: index of the column in that field; for a list, of its first column.
        width: number of columns in the field; max_hotness for lists, else 1.
        column: description of the column from the specification; None for an extra column, passed on unchanged.
        domain: valid values of the column.
        oov_policy: how to handle integral ids outside the domain.
    """

    name: str
    field: str
    slot: int = 0
    width: int = 1
    column: Column | None = None
    domain: Domain = Domain()
    oov_policy: OovPolicy = "error"

    @property
    def expected(self) -> str:
        """Description of the valid values, for messages."""
        return self.column.expected if self.column else "a value"

    @property
    def expected_type(self) -> str:
        """Description of the accepted stored types, for messages."""
        return self.column.expected_type if self.column else "numbers, booleans or texts"

    def accepts(self, stored: pa.DataType) -> bool:
        """Return whether a column of this stored type can be decoded."""
        return self.column.accepts(stored) if self.column else _is_plain(stored)


def batch_targets(
    spec: FeatureSpec, *, with_group: bool, extra_columns: Sequence[str] = (), oov_policy: OovPolicy = "error"
) -> list[Target]:
    """Return the targets of all columns of a batch; `oov_policy` applies to one-hot and multi-hot features."""

    def target(feature: Feature, field: str, slot: int = 0, *, width: int = 1, policy: OovPolicy = "error") -> Target:
        column = describe_column(spec, feature.name)
        return Target(feature.name, field, slot, width, column, column.domain, policy)

    targets = [target(feature, "onehot", slot, policy=oov_policy) for slot, feature in enumerate(spec.onehot)]
    slot = 0
    for feature in spec.multihot:
        targets.append(target(feature, "multihot", slot, width=feature.max_hotness or 1, policy=oov_policy))
        slot += targets[-1].width
    targets += [target(feature, "numerical", slot) for slot, feature in enumerate(spec.numerical)]
    targets += [target(feature, "labels", slot) for slot, feature in enumerate(spec.labels)]
    if spec.sample_weight is not None:
        targets.append(target(spec.sample_weight, "weights"))
    if with_group and spec.map_feature is not None:
        targets.append(target(spec.map_feature, "group"))
    return targets + [Target(name, "extra", slot) for slot, name in enumerate(extra_columns)]


def is_text(stored: pa.DataType) -> bool:
    """Return whether a stored type is text."""
    return pa.types.is_string(stored) or pa.types.is_large_string(stored)


def _is_plain(stored: pa.DataType) -> bool:
    is_number = pa.types.is_integer(stored) or pa.types.is_floating(stored)
    return is_number or pa.types.is_boolean(stored) or is_text(stored)
