"""The columns of a dataset: their types in files, and the values that training accepts in them."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from data.spec.feature_spec import FeatureSpec
from data.spec.features import (
    FLOAT_DTYPES,
    LABEL,
    LIST_WEIGHTS,
    MAP,
    MULTIHOT,
    NUMERICAL,
    ONEHOT,
    SAMPLE_WEIGHT,
    SEQUENCE,
    VECTOR,
    Feature,
    exact_integers,
)

LIST_KINDS = (MULTIHOT, SEQUENCE, VECTOR, LIST_WEIGHTS)
INT64 = np.iinfo(np.int64)
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Domain:
    """The values of a column that training can use; the single rule for everything that reads or checks values.

    Attributes:
        low: smallest allowed value.
        high: largest allowed value; a batch holds ids as int32, groups as int64 and everything else as float32.
        is_whole: whether values must be integers.
        may_miss: whether nulls and NaN are allowed.
    """

    low: float = -LARGEST
    high: float = LARGEST
    is_whole: bool = False
    may_miss: bool = False

    def allows(self, numbers: np.ndarray) -> np.ndarray:
        """Return which numbers are in the domain.

        Args:
            numbers: [count] of any integer or float dtype.

        Returns:
            [count] bool.
        """
        is_float = np.issubdtype(numbers.dtype, np.floating)
        # float64 represents every bound that applies to floats, so no comparison rounds. Integers stay as they are:
        # int64 does not fit in float64.
        numbers = numbers.astype(np.float64) if is_float else numbers
        good = (numbers >= self.low) & (numbers <= self.high)
        if self.is_whole and is_float:
            good &= numbers == np.floor(numbers)
        if self.may_miss and is_float:
            good |= np.isnan(numbers)
        return good

    def allows_all(self, numbers: np.ndarray) -> bool:
        """Return whether all numbers are in the domain; faster than `allows(numbers).all()` if they are."""
        is_float = np.issubdtype(numbers.dtype, np.floating)
        if self.may_miss and is_float:
            numbers = numbers[~np.isnan(numbers)]
        if not len(numbers):
            return True
        # min and max propagate NaN, and comparisons with NaN are false.
        if not (numbers.min().item() >= self.low and numbers.max().item() <= self.high):
            return False
        return not (self.is_whole and is_float) or bool(np.array_equal(numbers, np.floor(numbers)))


GROUPS = Domain(INT64.min, INT64.max, is_whole=True)  # the values of a map feature


class Alignment(NamedTuple):
    """How to say that lists have more or fewer items than those that they belong to.

    Attributes:
        what: what is wrong.
        others: items of the lists that they belong to.
        items: items of the lists themselves.
        expected: what was expected instead.
    """

    what: str
    others: str
    items: str
    expected: str


ALIGNMENTS = {
    LIST_WEIGHTS: Alignment("more or fewer weights than ids", "ids", "weights", "a weight for each id"),
    SEQUENCE: Alignment("more or fewer values than steps", "steps", "values", "a value for each step"),
}


@dataclass(frozen=True)
class Column:
    """A feature as stored in files.

    Attributes:
        name: name of the feature.
        kind: channel of the feature, `SAMPLE_WEIGHT`, `LIST_WEIGHTS`, or None for a column that training does not use.
        type: Arrow type in which the column is written; a list type for multi-hot features, their weights, features of
            sequences and vectors.
        feature: entry of the feature in the specification.
        aligned_with: the feature whose lists have as many items in every row: for weights of ids, used or not, the
            feature that has these ids; for a feature of a sequence, the first one of the sequence, except for itself.
        longest: number of items to which lists are cut, or which a vector has; None if there is no limit, or no list.
    """

    name: str
    kind: str | None
    type: pa.DataType
    feature: Feature
    aligned_with: Feature | None = None
    longest: int | None = None

    @property
    def has_ids(self) -> bool:
        """Whether values, or the items of lists, are ids of a categorical feature."""
        return has_ids(self.kind, self.feature)

    @property
    def expected(self) -> str:
        """The allowed values of a cell, in words."""
        words = _EXPECTED[self.kind](self.feature) if self.kind else "a value"
        is_finite = "finite number" in words and dtype_name(self.type) == "float64"
        return f"{words}{' within the range of float32' if is_finite else ''}, {dtype_name(self.type)}"

    @property
    def expected_type(self) -> str:
        """The parquet types that can be read, in words."""
        values = "integers" if self.has_ids or self.kind == MAP else "numbers"
        count = f"{self.feature.dimension} " if self.kind == VECTOR else ""
        return f"lists of {count}{values}" if self.kind in LIST_KINDS else values

    def accepts(self, stored: pa.DataType) -> bool:
        """Return whether the column can be read from a parquet type; any will do if training does not use it."""
        if self.kind is None:
            return True
        if is_list(stored) != (self.kind in LIST_KINDS):
            return False
        if self.kind == VECTOR and pa.types.is_fixed_size_list(stored) and stored.list_size != self.feature.dimension:
            return False
        item = stored.value_type if is_list(stored) else stored
        # Spark and pandas write ids of columns with nulls as floats (3.0), which must represent every id exactly.
        if self.has_ids and pa.types.is_floating(item):
            return (self.feature.cardinality or 0) <= exact_integers(dtype_name(item))
        if self.kind == LABEL and self.feature.is_binary and pa.types.is_boolean(item):
            return True
        return pa.types.is_integer(item) or (self.kind != MAP and pa.types.is_floating(item))

    @property
    def domain(self) -> Domain:
        """The values that training can use; for a list, those of its items."""
        feature = self.feature
        last = (feature.cardinality or 0) - 1
        may_miss = feature.missing == "ignore"
        if self.has_ids:
            return Domain(0, last, is_whole=True)
        if self.kind == MAP:
            return GROUPS
        if self.kind in (SAMPLE_WEIGHT, LIST_WEIGHTS):
            return Domain(low=0)
        if self.kind == LABEL and not feature.is_number:
            return Domain(0, 1 if feature.is_binary else last, is_whole=True, may_miss=may_miss)
        if self.kind == LABEL and feature.is_amount:
            return Domain(low=0, may_miss=may_miss)
        return Domain(may_miss=may_miss)


def describe_column(spec: FeatureSpec, name: str) -> Column:
    """Return the column that stores a feature.

    The type is the declared dtype, by default int64 for ids and float32 for values. A column in no channel that states
    neither dtype nor cardinality is text.
    """
    feature, kind = spec.features[name], _kind(spec, name)
    default = "int64" if has_ids(kind, feature) or kind == MAP else "float32"
    dtype = feature.dtype or (default if kind else None)
    if dtype is None and feature.cardinality is None:
        return Column(name, kind, pa.string(), feature)
    if has_ids(kind, feature) and dtype in FLOAT_DTYPES:  # ids are read from floats, but always written as integers
        dtype = default
    item = pa.from_numpy_dtype(np.dtype(dtype or "int64"))
    has_list_keys = any(key is not None for key in (feature.max_hotness, feature.weights, feature.dimension))
    is_list = kind in LIST_KINDS or (kind is None and has_list_keys)
    column = pa.list_(item) if is_list else item
    if (sequence := spec.sequence_of.get(name)) is not None:
        other = None if name == sequence.features[0] else spec.features[sequence.features[0]]
        return Column(name, kind, column, feature, other, sequence.length)
    ids = spec.ids_of_weights.get(name)
    if ids is not None and ids not in spec.multihot:
        kind = None
    longest = feature.dimension if kind == VECTOR else (ids or feature).max_hotness
    return Column(name, kind, column, feature, ids, longest)


def has_ids(kind: str | None, feature: Feature) -> bool:
    """Return whether a column of this kind has ids, or lists of ids."""
    return kind in (ONEHOT, MULTIHOT) or (kind == SEQUENCE and feature.cardinality is not None)


def as_numbers(values: pa.Array) -> pa.Array:
    """Cast booleans to uint8 and float16 to float32, for which Arrow has few kernels; other types are unchanged."""
    if pa.types.is_boolean(values.type):
        return values.cast(pa.uint8())
    return values.cast(pa.float32()) if values.type == pa.float16() else values


def dtype_name(stored: pa.DataType) -> str:
    """Return the NumPy name of an Arrow type (of a list: its items), or the Arrow name for anything but numbers."""
    item = stored.value_type if is_list(stored) else stored
    is_number = pa.types.is_integer(item) or pa.types.is_floating(item) or pa.types.is_boolean(item)
    return np.dtype(item.to_pandas_dtype()).name if is_number else str(item)


def is_list(stored: pa.DataType) -> bool:
    """Return whether an Arrow type is a list type (plain, large or of fixed size)."""
    return pa.types.is_list(stored) or pa.types.is_large_list(stored) or pa.types.is_fixed_size_list(stored)


def _kind(spec: FeatureSpec, name: str) -> str | None:
    if name in spec.ids_of_weights:
        return LIST_WEIGHTS
    return spec.channel_of.get(name) or (SAMPLE_WEIGHT if spec.features[name].role == SAMPLE_WEIGHT else None)


def _expected_label(feature: Feature) -> str:
    words = f"a class in [0, {feature.cardinality})" if feature.is_class else feature.label_kind.value
    return words + (" (or nothing)" if feature.missing == "ignore" else "")


def _expected_ids(feature: Feature) -> str:
    return f'a list of ids in [0, {feature.cardinality}) such as "[1, 2]"'


_EXPECTED = {
    ONEHOT: lambda feature: f"an id in [0, {feature.cardinality})",
    MULTIHOT: _expected_ids,
    NUMERICAL: lambda feature: "a finite number",
    LABEL: _expected_label,
    MAP: lambda feature: "an integer",
    SEQUENCE: lambda feature: (
        _expected_ids(feature) if feature.cardinality else 'a list of finite numbers such as "[0.5, -1]"'
    ),
    VECTOR: lambda feature: f'a list of {feature.dimension} finite numbers such as "[0.5, -1, ...]"',
    SAMPLE_WEIGHT: lambda feature: "a finite number of at least 0",
    LIST_WEIGHTS: lambda feature: 'a list of finite numbers of at least 0 such as "[0.5, 1]"',
}
