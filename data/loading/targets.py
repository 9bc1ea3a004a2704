"""Where the values of a dataset's columns go in a `Batch`, in which types they may be stored, and what they may be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from data.conversion.columns import describe_column, is_list
from data.specification.feature_spec import Feature, FeatureSpec

INT64 = np.iinfo(np.int64)
LARGEST = float(np.finfo(np.float32).max)

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
        low, high: smallest and largest value.
        is_whole: only whole numbers.
        may_miss: nulls and NaN are allowed.
        expected: what the values must be, in words.
        oov_policy: what is done with an integer outside [low, high].
    """

    name: str
    field: str
    slot: int = 0
    width: int = 1
    low: float = -LARGEST
    high: float = LARGEST
    is_whole: bool = False
    may_miss: bool = False
    expected: str = "a value"
    oov_policy: OovPolicy = "error"

    @property
    def expected_type(self) -> str:
        """The stored types that fit, in words."""
        return _TYPES[self.field][0]

    def accepts(self, stored: pa.DataType) -> bool:
        """Whether a column stored like this can be decoded."""
        return _TYPES[self.field][1](stored)


def batch_targets(
    spec: FeatureSpec, *, with_group: bool, extra_columns: Sequence[str] = (), oov_policy: OovPolicy = "error"
) -> list[Target]:
    """The columns that make up a batch; `oov_policy` holds for the ids of one-hot and multi-hot features."""
    targets = [_id_target(spec, feature, "onehot", slot, oov_policy) for slot, feature in enumerate(spec.onehot)]
    slot = 0
    for feature in spec.multihot:
        targets.append(_id_target(spec, feature, "multihot", slot, oov_policy))
        slot += targets[-1].width
    for slot, feature in enumerate(spec.numerical):
        targets.append(Target(feature.name, "numerical", slot, expected=_float_in_words(spec, feature)))
    targets += [_label_target(spec, feature, slot) for slot, feature in enumerate(spec.labels)]
    if spec.sample_weight is not None:
        words = _float_in_words(spec, spec.sample_weight)
        targets.append(Target(spec.sample_weight.name, "weights", low=0, expected=words))
    if with_group and spec.map_feature is not None:
        words = describe_column(spec, spec.map_feature.name).expected
        targets.append(Target(spec.map_feature.name, "group", low=INT64.min, high=INT64.max, expected=words))
    return targets + [Target(name, "extra", slot) for slot, name in enumerate(extra_columns)]


def is_text(stored: pa.DataType) -> bool:
    """Whether a column of this type holds texts."""
    return pa.types.is_string(stored) or pa.types.is_large_string(stored)


def _id_target(spec: FeatureSpec, feature: Feature, field: str, slot: int, oov_policy: OovPolicy) -> Target:
    words = describe_column(spec, feature.name).expected
    high = (feature.cardinality or 0) - 1
    width = feature.max_hotness or 1
    return Target(feature.name, field, slot, width, low=0, high=high, expected=words, oov_policy=oov_policy)


def _label_target(spec: FeatureSpec, feature: Feature, slot: int) -> Target:
    may_miss = feature.missing == "ignore"
    if feature.task == "regression":
        words = _float_in_words(spec, feature)
        return Target(feature.name, "labels", slot, may_miss=may_miss, expected=words)
    high = 1 if feature.task == "binary" else (feature.cardinality or 0) - 1
    words = describe_column(spec, feature.name).expected
    return Target(feature.name, "labels", slot, low=0, high=high, is_whole=True, may_miss=may_miss, expected=words)


def _float_in_words(spec: FeatureSpec, feature: Feature) -> str:
    return f"{describe_column(spec, feature.name).expected}, within the range of float32"


def _is_integer_list(stored: pa.DataType) -> bool:
    return is_list(stored) and pa.types.is_integer(stored.value_type)


def _is_number(stored: pa.DataType) -> bool:
    return pa.types.is_integer(stored) or pa.types.is_floating(stored)


def _is_plain(stored: pa.DataType) -> bool:
    return _is_number(stored) or pa.types.is_boolean(stored) or is_text(stored)


_TYPES: dict[str, tuple[str, Callable[[pa.DataType], bool]]] = {
    "onehot": ("integers", pa.types.is_integer),
    "multihot": ("lists of integers", _is_integer_list),
    "numerical": ("numbers", _is_number),
    "labels": ("numbers", _is_number),
    "weights": ("numbers", _is_number),
    "group": ("integers", pa.types.is_integer),
    "extra": ("numbers, booleans or texts", _is_plain),
}
