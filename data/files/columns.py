"""The columns of a dataset: their types in files, and the rules that their values must satisfy."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.spec.feature_spec import LABEL, MAP, MULTIHOT, NUMERICAL, ONEHOT, Feature, FeatureSpec
from data.spec.parts import FLOAT_DTYPES, SAMPLE_WEIGHT, exact_integers

DEFAULT_DTYPES = {
    ONEHOT: "int64",
    MULTIHOT: "int64",
    NUMERICAL: "float32",
    LABEL: "float32",
    MAP: "int64",
    SAMPLE_WEIGHT: "float32",
}
VALUES_SHOWN = 5
TEXT_SHOWN = 60
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
        """Returns which numbers are in the domain.

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
        """Returns whether all numbers are in the domain; faster than `allows(numbers).all()` if they are."""
        is_float = np.issubdtype(numbers.dtype, np.floating)
        if self.may_miss and is_float:
            numbers = numbers[~np.isnan(numbers)]
        if not len(numbers):
            return True
        # min and max propagate NaN, and comparisons with NaN are false.
        if not (numbers.min().item() >= self.low and numbers.max().item() <= self.high):
            return False
        return not (self.is_whole and is_float) or bool(np.array_equal(numbers, np.floor(numbers)))


@dataclass(frozen=True)
class Column:
    """A feature as stored in files.

    Attributes:
        name: name of the feature.
        kind: channel of the feature, `SAMPLE_WEIGHT`, or None for a column that training does not use.
        type: Arrow type in which the column is written; a list type for multi-hot features.
        feature: entry of the feature in the specification.
    """

    name: str
    kind: str | None
    type: pa.DataType
    feature: Feature

    @property
    def expected(self) -> str:
        """The allowed values of a cell, in words."""
        words = _EXPECTED[self.kind](self.feature) if self.kind else "a value"
        is_finite = words.startswith("a finite number") and dtype_name(self.type) == "float64"
        return f"{words}{' within the range of float32' if is_finite else ''}, {dtype_name(self.type)}"

    @property
    def expected_type(self) -> str:
        """The parquet types that can be read, in words."""
        if self.kind in (ONEHOT, MULTIHOT, MAP):
            return "lists of integers" if self.kind == MULTIHOT else "integers"
        return "numbers"

    def accepts(self, stored: pa.DataType) -> bool:
        """Returns whether the column can be read from a parquet type; any will do if training does not use it."""
        if self.kind is None:
            return True
        if is_list(stored) != (self.kind == MULTIHOT):
            return False
        item = stored.value_type if is_list(stored) else stored
        # Spark and pandas write ids of columns with nulls as floats (3.0), which must represent every id exactly.
        if self.kind in (ONEHOT, MULTIHOT) and pa.types.is_floating(item):
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
        if self.kind in (ONEHOT, MULTIHOT):
            return Domain(0, last, is_whole=True)
        if self.kind == MAP:
            return Domain(INT64.min, INT64.max, is_whole=True)
        if self.kind == SAMPLE_WEIGHT:
            return Domain(low=0)
        if self.kind == LABEL and not feature.is_number:
            return Domain(0, 1 if feature.is_binary else last, is_whole=True, may_miss=may_miss)
        return Domain(may_miss=may_miss)


@dataclass(frozen=True)
class Problem:
    """Values of one column, or whole lines, that break the same rule.

    Attributes:
        what: rule that is broken, such as "id out of range".
        column: name of the column, or None for whole lines.
        rows: [count] int64, ascending row positions in the table checked.
        values: first few offending values as text, shortened.
        expected: allowed values, in words.
        is_warning: whether the data is usable in spite of the problem.
    """

    what: str
    column: str | None
    rows: np.ndarray
    values: tuple[str, ...]
    expected: str
    is_warning: bool = False

    def without(self, rows: np.ndarray) -> "Problem":
        """Returns the same problem without the given rows."""
        keep = ~np.isin(self.rows, rows)
        values = tuple(value for value, kept in zip(self.values, keep, strict=False) if kept)
        return replace(self, rows=self.rows[keep], values=values)


def describe_column(spec: FeatureSpec, name: str) -> Column:
    """Returns the column that stores a feature.

    The type is the declared dtype, by default int64 for ids and float32 for values. A column in no channel that states
    neither dtype nor cardinality is text.
    """
    feature, kind = spec.features[name], _kind(spec, name)
    dtype = feature.dtype or (DEFAULT_DTYPES[kind] if kind else None)
    if dtype is None and feature.cardinality is None:
        return Column(name, kind, pa.string(), feature)
    if kind in (ONEHOT, MULTIHOT) and dtype in FLOAT_DTYPES:  # ids are read from floats, but always written as integers
        dtype = DEFAULT_DTYPES[kind]
    item = pa.from_numpy_dtype(np.dtype(dtype or "int64"))
    is_list = kind == MULTIHOT or (kind is None and feature.max_hotness is not None)
    return Column(name, kind, pa.list_(item) if is_list else item, feature)


def find_problems(column: Column, values: pa.Array) -> Iterator[Problem]:
    """Yields the values of a column that training cannot use, one `Problem` per broken rule.

    Args:
        column: description of the column; columns of kind None are not checked.
        values: [rows], of a list type for multi-hot columns, otherwise booleans, integers or floats.
    """
    if column.kind == MULTIHOT:
        yield from _list_problems(column, values)
    elif column.kind is not None:
        yield from _scalar_problems(column, as_numbers(values))


def as_numbers(values: pa.Array) -> pa.Array:
    """Casts booleans to uint8 and float16 to float32, for which Arrow has few kernels; other types are unchanged."""
    if pa.types.is_boolean(values.type):
        return values.cast(pa.uint8())
    return values.cast(pa.float32()) if values.type == pa.float16() else values


def dtype_name(stored: pa.DataType) -> str:
    """Returns the NumPy name of an Arrow type (of a list: its items), or the Arrow name for anything but numbers."""
    item = stored.value_type if is_list(stored) else stored
    is_number = pa.types.is_integer(item) or pa.types.is_floating(item) or pa.types.is_boolean(item)
    return np.dtype(item.to_pandas_dtype()).name if is_number else str(item)


def shorten(text: str) -> str:
    """Shortens a text to at most `TEXT_SHOWN` characters."""
    return text if len(text) <= TEXT_SHOWN else text[: TEXT_SHOWN - 3] + "..."


def is_list(stored: pa.DataType) -> bool:
    """Returns whether an Arrow type is a list type (plain, large or of fixed size)."""
    return pa.types.is_list(stored) or pa.types.is_large_list(stored) or pa.types.is_fixed_size_list(stored)


def _kind(spec: FeatureSpec, name: str) -> str | None:
    return spec.channel_of.get(name) or (SAMPLE_WEIGHT if spec.features[name].role == SAMPLE_WEIGHT else None)


def _scalar_problems(column: Column, values: pa.Array) -> Iterator[Problem]:
    missing = values.is_null().to_numpy(zero_copy_only=False)
    numbers = values.fill_null(0).to_numpy(zero_copy_only=False)
    if column.kind == LABEL:
        missing = missing | np.isnan(numbers)
    if column.feature.missing != "ignore":
        yield from _problem("missing value", column, values, missing)
    what, wrong = out_of_domain(column, numbers)
    yield from _problem(what, column, values, wrong & ~missing)


def out_of_domain(column: Column, numbers: np.ndarray) -> tuple[str, np.ndarray]:
    """Returns the name of the rule for a column's values, and which values break it ([rows] bool).

    NaN breaks it unless the domain allows missing values.
    """
    what = {ONEHOT: "id out of range", MAP: "not a group", SAMPLE_WEIGHT: "not a weight"}.get(column.kind or "")
    is_class = column.kind == LABEL and not column.feature.is_number
    return what or ("label value" if is_class else "not finite"), ~column.domain.allows(numbers)


def _list_problems(column: Column, values: pa.Array) -> Iterator[Problem]:
    missing = values.is_null().to_numpy(zero_copy_only=False)
    lengths = np.where(missing, 0, values.value_lengths().fill_null(0).to_numpy(zero_copy_only=False))
    ids = as_numbers(values.flatten())  # [sum of lengths]; null lists contribute none
    rows = np.repeat(np.arange(len(values)), lengths)  # [sum of lengths] the row of each id
    without_id = ids.is_null().to_numpy(zero_copy_only=False)
    missing[rows[without_id]] = True
    yield from _problem("missing value", column, values, missing)
    outside = np.zeros(len(values), bool)
    outside[rows[~column.domain.allows(ids.fill_null(0).to_numpy(zero_copy_only=False))]] = True
    yield from _problem("id out of range", column, values, outside)
    hotness = column.feature.max_hotness
    if hotness is not None:
        what = f"list longer than max_hotness {hotness}"
        problems = _problem(what, column, values, lengths > hotness)
        yield from (replace(problem, is_warning=True) for problem in problems)


def _problem(what: str, column: Column, values: pa.Array, wrong: np.ndarray) -> Iterator[Problem]:
    rows = np.flatnonzero(wrong)
    if len(rows):
        first = pc.take(values, pa.array(rows[:VALUES_SHOWN])).to_pylist()
        yield Problem(what, column.name, rows, tuple(shorten(str(value)) for value in first), column.expected)


def _expected_label(feature: Feature) -> str:
    words = f"a class in [0, {feature.cardinality})" if feature.is_class else feature.label_kind.value
    return words + (" (or nothing)" if feature.missing == "ignore" else "")


_EXPECTED = {
    ONEHOT: lambda feature: f"an id in [0, {feature.cardinality})",
    MULTIHOT: lambda feature: f'a list of ids in [0, {feature.cardinality}) such as "[1, 2]"',
    NUMERICAL: lambda feature: "a finite number",
    LABEL: _expected_label,
    MAP: lambda feature: "an integer",
    SAMPLE_WEIGHT: lambda feature: "a finite number of at least 0",
}
