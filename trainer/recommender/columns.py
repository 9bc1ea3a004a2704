"""Validation of an application's data frames, reading of their raw columns, and fitting of encoders."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from data.encoding.encoders import Encoded, Encoder, Numerical, Vocabulary
from data.encoding.keys import Values, as_lists, as_numbers, distinct_values, holds_numbers, is_list, known_keys
from data.errors import DataError, listed, nearest, shown

CATEGORICAL, NUMERICAL, MULTIHOT, VECTOR = KINDS = ("categorical", "numerical", "multihot", "vector")
# Kinds of the columns of a sequence, whose lists have a category or a number per step.
STEP_KINDS = (CATEGORICAL, NUMERICAL)


@dataclass(frozen=True, eq=False)
class RawColumn:
    """A raw column to encode.

    Attributes:
        name: name of the column, and of the feature derived from it.
        kind: one of KINDS.
        values: [n] objects, None for missing values.
        is_step: whether the column belongs to a sequence, so that values are lists with an item per step.
    """

    name: str
    kind: str
    values: np.ndarray
    is_step: bool = False

    @property
    def is_list(self) -> bool:
        """Whether values are lists."""
        return self.is_step or self.kind in (MULTIHOT, VECTOR)

    @property
    def longest(self) -> int:
        """The length of the longest list, at least 1."""
        return max(1, *(len(entry) for entry in self.values if entry is not None))


def require_frame(frame: Any, what: str) -> None:
    """Raise a DataError unless `frame` is a pandas data frame with a single level of columns."""
    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"{what} is a {type(frame).__name__}, expected a pandas DataFrame; {frame_hint(frame)}")
    if frame.columns.nlevels > 1:
        raise DataError(f"{what} has columns of {frame.columns.nlevels} levels; flatten them: one string per column")


def frame_hint(value: Any) -> str:
    """Return a hint for the user on how to convert a value to a data frame."""
    if isinstance(value, pd.Series):
        return "write series.to_frame()"
    if hasattr(value, "to_pandas"):
        return "write .to_pandas() behind it"
    return "pd.DataFrame(...) makes one of a dict of columns"


def require_columns(columns: pd.DataFrame | Mapping[str, Any], names: Iterable[Any], what: str) -> None:
    """Raise a DataError for the first name that is not a string or does not occur exactly once among the columns.

    Args:
        columns: a frame, or a mapping by column name.
        names: names of the required columns.
        what: description of `columns`, for messages.
    """
    there = [str(column) for column in columns]
    texts = [column for column in columns if isinstance(column, str)]
    for name in names:
        if not isinstance(name, str):
            raise DataError(
                f"{what}: the column name {shown(name)} is not a string; rename the columns, as with "
                "frame.columns = frame.columns.map(str), and use the string as its name"
            )
        if texts.count(name) > 1:
            raise DataError(f"{what} has the column {name!r} {texts.count(name)} times; rename or drop all but one")
        if name not in texts:
            near = nearest(name, there)
            hint = f"; did you mean {near!r}?" if near else ""
            raise DataError(f"{what} has no column {name!r}; it has {listed(there, len(there)) or 'none'}{hint}")


def require_mapping(value: Any, what: str, example: str) -> None:
    """Raise a DataError, with an example of a valid value, unless `value` is a mapping with string keys."""
    if not isinstance(value, Mapping):
        raise DataError(f"{what} is {shown(value)}; expected a dict, as in {example}")
    for name in value:
        if not isinstance(name, str):
            raise DataError(f"{what} has the key {shown(name)}; expected the names of columns, as in {example}")


def kind_of(series: pd.Series, *, is_step: bool) -> str:
    """Return the kind of a column by its values.

    Numbers and booleans are numerical, lists multi-hot, and others categorical. In a sequence, lists of floating-point
    numbers are numerical, and others categorical.

    Args:
        series: the column.
        is_step: whether it belongs to a sequence.
    """
    if is_step:
        items = next((entry for entry in series if is_list(entry) and len(entry)), ())
        known = [item for item in items if not pd.isna(item)]
        return NUMERICAL if known and all(isinstance(item, float | np.floating) for item in known) else CATEGORICAL
    first = series.dropna().head(1).tolist()
    if first and is_list(first[0]):
        return MULTIHOT
    return NUMERICAL if holds_numbers(series) else CATEGORICAL


def read_column(series: pd.Series, kind: str, *, is_step: bool) -> RawColumn:
    """Read a column of a frame.

    Args:
        series: the column, with its name.
        kind: one of KINDS.
        is_step: whether it belongs to a sequence.

    Raises:
        DataError: if a value is not of this kind.
    """
    name = str(series.name)
    if is_step or kind in (MULTIHOT, VECTOR):
        return RawColumn(name, kind, as_lists(name, series), is_step)
    values = np.full(len(series), None, object)
    if kind == NUMERICAL:
        numbers = as_numbers(name, series)
        known = ~np.isnan(numbers)
        values[known] = numbers[known]
    else:
        known, keys = known_keys(name, series)
        values[known] = keys
    return RawColumn(name, kind, values)


def encode_column(encoder: Encoder, values: Values, dimension: int | None = None) -> Encoded:
    """Encode a column.

    Args:
        encoder: its encoder.
        values: [n] raw values.
        dimension: for vectors, how many numbers each has; a missing one is encoded as zeros.

    Raises:
        DataError: if a value cannot be encoded, or a vector has another dimension.
    """
    if dimension is None:
        return encoder.encode(values)
    vectors = [[0.0] * dimension if entry is None else entry for entry in as_lists(encoder.column, values)]
    for row, vector in enumerate(vectors):
        if len(vector) != dimension:
            raise DataError(
                f"column {encoder.column!r} has {len(vector)} numbers in row {row}; expected a vector of {dimension}"
            )
    return encoder.encode(vectors)


def fit_encoders(columns: Sequence[tuple[RawColumn, np.ndarray]], tables: Mapping[str, str]) -> dict[str, Encoder]:
    """Fit the encoders of columns on their training rows.

    Args:
        columns: raw columns, each with [n] int64, the number of training rows that use each value; values with weight 0
            are ignored.
        tables: the table of categorical columns that share one, and so an encoder fitted on the values of all of them.

    Returns:
        Encoders by column name, in the order of the columns.

    Raises:
        DataError: if no training row has a value, or the values cannot be encoded.
    """
    encoders: dict[str, Encoder] = {}
    members: dict[str, list[RawColumn]] = {}
    used: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for column, weights in columns:
        values, counts = used[column.name] = _used(column, weights)
        if column.kind == VECTOR:
            encoders[column.name] = Numerical(column.name, is_list=True)
        elif column.kind == NUMERICAL:
            encoders[column.name] = _fit_numerical(column, values, counts)
        else:
            members.setdefault(tables.get(column.name, column.name), []).append(column)
    for sharing in members.values():
        values, counts = (np.concatenate(own) for own in zip(*(used[one.name] for one in sharing), strict=True))
        vocabulary = _fit_vocabulary(sharing[0].name, values, counts)
        for column in sharing:
            encoders[column.name] = replace(vocabulary, column=column.name, is_list=column.is_list)
    return {column.name: encoders[column.name] for column, _ in columns}


def _used(column: RawColumn, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of training rows, of lists the items, as objects, and how many rows use each of them."""
    # Only training rows: the vocabulary and the statistics must not depend on validation data.
    used = (weights > 0) & np.array([value is not None for value in column.values])
    values, weights = column.values[used], weights[used]
    if not len(values):
        raise DataError(f"column {column.name!r}: no training row has a value; drop the column")
    if column.is_list and column.kind != VECTOR:
        weights = np.repeat(weights, [len(entry) for entry in values])
        values = np.array([*(value for entry in values for value in entry), None], object)[:-1]
    return values, weights


def _fit_vocabulary(name: str, values: np.ndarray, weights: np.ndarray) -> Vocabulary:
    codes, distinct = distinct_values(name, values)
    counts = np.bincount(codes[codes >= 0], weights[codes >= 0], minlength=len(distinct))
    return Vocabulary.fit(name, distinct, counts)


def _fit_numerical(column: RawColumn, values: np.ndarray, weights: np.ndarray) -> Numerical:
    numbers = as_numbers(column.name, values)
    known = ~np.isnan(numbers)
    numbers = np.repeat(numbers[known], weights[known])
    if not len(numbers):
        raise DataError(f"column {column.name!r}: no training row has a value; drop the column")
    with np.errstate(all="ignore"):  # an overflow is reported below
        mean, std = float(numbers.mean()), float(numbers.std(ddof=1)) if len(numbers) > 1 else 0.0
    if not np.isfinite([mean, std]).all():
        raise DataError(
            f"column {column.name!r} holds numbers up to {np.abs(numbers).max():g}, too large to standardize"
        )
    encoder = Numerical.standardized(column.name, fill=float(np.median(numbers)), mean=mean, std=std)
    return replace(encoder, is_list=column.is_list)
