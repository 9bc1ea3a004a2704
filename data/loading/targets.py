"""Where the values of a dataset's columns go in a `Batch`, in which types they may be stored, and what they may be."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from data.conversion.columns import Column, Domain, describe_column
from data.specification.feature_spec import Feature, FeatureSpec

# What is done with an id outside [0, cardinality): an error; the nearest valid id; or that, and the row weighs 0.
OovPolicy = Literal["error", "clip", "drop"]


@dataclass(frozen=True)
class Target:
    """Where the values of a column go, and what they may be.

    Attributes:
        name: the column's.
        field: of `Batch`.
        slot: the column's first place in the field.
        width: places in the field; max_hotness for lists.
        column: as the specification describes it; None for a column that is handed on as it is.
        domain: the values that are allowed, of `column`.
        oov_policy: what is done with whole numbers outside of the domain.
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
        """What the values must be, in words."""
        return self.column.expected if self.column else "a value"

    @property
    def expected_type(self) -> str:
        """The stored types that fit, in words."""
        return self.column.expected_type if self.column else "numbers, booleans or texts"

    def accepts(self, stored: pa.DataType) -> bool:
        """Whether a column stored like this can be decoded."""
        return self.column.accepts(stored) if self.column else _is_plain(stored)


def batch_targets(
    spec: FeatureSpec, *, with_group: bool, extra_columns: Sequence[str] = (), oov_policy: OovPolicy = "error"
) -> list[Target]:
    """The columns that make up a batch; `oov_policy` holds for the ids of one-hot and multi-hot features."""

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
    """Whether a column of this type holds texts."""
    return pa.types.is_string(stored) or pa.types.is_large_string(stored)


def _is_plain(stored: pa.DataType) -> bool:
    is_number = pa.types.is_integer(stored) or pa.types.is_floating(stored)
    return is_number or pa.types.is_boolean(stored) or is_text(stored)
