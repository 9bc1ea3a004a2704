"""What the columns of a dataset hold: their types in files, and the rules that their values must keep."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.specification.feature_spec import LABEL, MAP, MULTIHOT, NUMERICAL, ONEHOT, Feature, FeatureSpec
from data.specification.parts import SAMPLE_WEIGHT

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


@dataclass(frozen=True)
class Column:
    """A feature as files hold it.

    Attributes:
        name: the feature's name.
        kind: its channel, `SAMPLE_WEIGHT`, or None for a column that training leaves alone.
        type: the stored type; a list for multi-hot features.
        feature: the feature's entry in the specification.
    """

    name: str
    kind: str | None
    type: pa.DataType
    feature: Feature

    @property
    def expected(self) -> str:
        """What a cell must hold, in words."""
        words = _EXPECTED[self.kind](self.feature) if self.kind else "a value"
        return f"{words}, {dtype_name(self.type)}"


@dataclass(frozen=True)
class Problem:
    """Values of one column, or whole lines (column None), that break one rule.

    Attributes:
        what: the rule that is broken, such as "id out of range".
        column: the column's name.
        rows: [count] int64, ascending positions in the table looked at.
        values: the first few offending values as text, shortened.
        expected: what should be there.
        is_warning: the data can be used as it is.
    """

    what: str
    column: str | None
    rows: np.ndarray
    values: tuple[str, ...]
    expected: str
    is_warning: bool = False

    def without(self, rows: np.ndarray) -> "Problem":
        """The same problem over fewer rows."""
        keep = ~np.isin(self.rows, rows)
        values = tuple(value for value, kept in zip(self.values, keep, strict=False) if kept)
        return replace(self, rows=self.rows[keep], values=values)


def describe_column(spec: FeatureSpec, name: str) -> Column:
    """The column that holds a feature.

    Types are as declared; without a dtype int64 for ids and float32 for values. A column in no
    channel that states neither dtype nor cardinality is text.
    """
    feature, kind = spec.features[name], _kind(spec, name)
    dtype = feature.dtype or (DEFAULT_DTYPES[kind] if kind else None)
    if dtype is None and feature.cardinality is None:
        return Column(name, kind, pa.string(), feature)
    item = pa.from_numpy_dtype(np.dtype(dtype or "int64"))
    is_list = kind == MULTIHOT or (kind is None and feature.max_hotness is not None)
    return Column(name, kind, pa.list_(item) if is_list else item, feature)


def find_problems(column: Column, values: pa.Array) -> Iterator[Problem]:
    """Values of a column that training cannot use, one `Problem` per broken rule.

    Args:
        column: what the values should be.
        values: [rows], a list type for multi-hot columns, else integers or floats; columns of kind
            None are not looked at.
    """
    if column.kind == MULTIHOT:
        yield from _list_problems(column, values)
    elif column.kind is not None:
        # Arrow computes little with half floats.
        yield from _scalar_problems(column, values.cast(pa.float32()) if values.type == pa.float16() else values)


def dtype_name(stored: pa.DataType) -> str:
    """The NumPy name of a stored type, of the items for a list; the type as Arrow writes it where NumPy has none."""
    item = stored.value_type if is_list(stored) else stored
    is_number = pa.types.is_integer(item) or pa.types.is_floating(item)
    return np.dtype(item.to_pandas_dtype()).name if is_number else str(item)


def shorten(text: str) -> str:
    """At most `TEXT_SHOWN` characters of a text."""
    return text if len(text) <= TEXT_SHOWN else text[: TEXT_SHOWN - 3] + "..."


def is_list(stored: pa.DataType) -> bool:
    """Whether a column of this type holds a list per row."""
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
    """The name of the rule that a column's values must keep, and which of them ([rows] bool) break it, NaN included."""
    feature = column.feature
    if column.kind == ONEHOT:
        return "id out of range", _outside(numbers, feature.cardinality)
    if column.kind == MAP:
        return "not a group", np.zeros(len(numbers), bool)
    if column.kind == SAMPLE_WEIGHT:
        return "not a weight", ~(np.isfinite(numbers) & (numbers >= 0))
    if column.kind == LABEL and feature.task == "binary":
        return "label value", ~((numbers == 0) | (numbers == 1))
    if column.kind == LABEL and feature.task == "multiclass":
        return "label value", _outside(numbers, feature.cardinality) | (numbers != np.floor(numbers))
    return "not finite", ~np.isfinite(numbers)


def _list_problems(column: Column, values: pa.Array) -> Iterator[Problem]:
    missing = values.is_null().to_numpy(zero_copy_only=False)
    lengths = np.where(missing, 0, values.value_lengths().fill_null(0).to_numpy(zero_copy_only=False))
    ids = values.flatten()
    rows = np.repeat(np.arange(len(values)), lengths)
    without_id = ids.is_null().to_numpy(zero_copy_only=False)
    missing[rows[without_id]] = True
    yield from _problem("missing value", column, values, missing)
    outside = np.zeros(len(values), bool)
    outside[rows[_outside(ids.fill_null(0).to_numpy(zero_copy_only=False), column.feature.cardinality)]] = True
    yield from _problem("id out of range", column, values, outside)
    hotness = column.feature.max_hotness
    if hotness is not None:
        what = f"list longer than max_hotness {hotness}"
        problems = _problem(what, column, values, lengths > hotness)
        yield from (replace(problem, is_warning=True) for problem in problems)


def _outside(numbers: np.ndarray, limit: int | None) -> np.ndarray:
    wrong = ~(numbers >= 0)
    return wrong if limit is None else wrong | (numbers >= limit)


def _problem(what: str, column: Column, values: pa.Array, wrong: np.ndarray) -> Iterator[Problem]:
    rows = np.flatnonzero(wrong)
    if len(rows):
        first = pc.take(values, pa.array(rows[:VALUES_SHOWN])).to_pylist()
        yield Problem(what, column.name, rows, tuple(shorten(str(value)) for value in first), column.expected)


def _expected_label(feature: Feature) -> str:
    words = {
        "binary": "0 or 1",
        "multiclass": f"a class in [0, {feature.cardinality})",
        "regression": "a finite number",
    }
    return words[feature.task] + (" (or nothing)" if feature.missing == "ignore" else "")


_EXPECTED = {
    ONEHOT: lambda feature: f"an id in [0, {feature.cardinality})",
    MULTIHOT: lambda feature: f'a list of ids in [0, {feature.cardinality}) such as "[1, 2]"',
    NUMERICAL: lambda feature: "a finite number",
    LABEL: _expected_label,
    MAP: lambda feature: "an integer",
    SAMPLE_WEIGHT: lambda feature: "a finite number of at least 0",
}
