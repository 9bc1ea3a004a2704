"""Validation of an application's data frames, reading of their raw columns, and fitting of encoders."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from data.encoding.encoders import Encoder, Numerical, Vocabulary
from data.encoding.keys import as_lists, as_numbers, distinct_values, holds_numbers, is_list, known_keys
from data.errors import DataError, listed, nearest, shown

CATEGORICAL, NUMERICAL, MULTIHOT = KINDS = ("categorical", "numerical", "multihot")


@dataclass(frozen=True, eq=False)
class RawColumn:
    """A raw column to encode.

    Attributes:
        name: name of the column, and of the feature derived from it.
        kind: one of KINDS.
        values: [n] objects, None for missing values.
    """

    name: str
    kind: str
    values: np.ndarray


def require_frame(frame: Any, what: str) -> None:
    """Raises a DataError unless `frame` is a pandas data frame with a single level of columns."""
    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"{what} is a {type(frame).__name__}, expected a pandas DataFrame; {frame_hint(frame)}")
    if frame.columns.nlevels > 1:
        raise DataError(f"{what} has columns of {frame.columns.nlevels} levels; flatten them: one string per column")


def frame_hint(value: Any) -> str:
    """Returns a hint for the user on how to convert a value to a data frame."""
    if isinstance(value, pd.Series):
        return "write series.to_frame()"
    if hasattr(value, "to_pandas"):
        return "write .to_pandas() behind it"
    return "pd.DataFrame(...) makes one of a dict of columns"


def require_columns(columns: pd.DataFrame | Mapping[str, Any], names: Iterable[Any], what: str) -> None:
    """Raises a DataError for the first name that is not a string or does not occur exactly once among the columns.

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
    """Raises a DataError, with an example of a valid value, unless `value` is a mapping with string keys."""
    if not isinstance(value, Mapping):
        raise DataError(f"{what} is {shown(value)}; expected a dict, as in {example}")
    for name in value:
        if not isinstance(name, str):
            raise DataError(f"{what} has the key {shown(name)}; expected the names of columns, as in {example}")


def read_column(frame: pd.DataFrame, name: str, kinds: Mapping[str, str]) -> RawColumn:
    """Reads a column of a frame.

    Args:
        frame: the frame.
        name: name of the column.
        kinds: kinds of columns by name. The kind of any other column is inferred from its values: numbers and booleans
            are numerical, lists multi-hot, all other values categorical.
    """
    kind = kinds.get(name) or _kind_of(frame[name])
    return RawColumn(name, kind, _raw_values(frame[name], kind))


def fit_encoder(column: RawColumn, weights: np.ndarray) -> Encoder:
    """Fits the encoder of a column on its training rows.

    Args:
        column: the raw column.
        weights: [n] int64, number of training rows that use each value; values with weight 0 are ignored.

    Raises:
        DataError: if no training row has a value, or the values cannot be encoded.
    """
    # Only training rows: the vocabulary and the statistics must not depend on validation data.
    used = (weights > 0) & np.array([value is not None for value in column.values])
    values, weights = column.values[used], weights[used]
    if not len(values):
        raise DataError(f"column {column.name!r}: no training row has a value; drop the column")
    if column.kind == NUMERICAL:
        return _fit_numerical(column.name, values, weights)
    if column.kind == MULTIHOT:
        weights = np.repeat(weights, [len(entry) for entry in values])
        values = [value for entry in values for value in entry]
    codes, distinct = distinct_values(column.name, values)
    counts = np.bincount(codes[codes >= 0], weights[codes >= 0], minlength=len(distinct))
    return Vocabulary.fit(column.name, distinct, counts, is_list=column.kind == MULTIHOT)


def _raw_values(series: pd.Series, kind: str) -> np.ndarray:
    """Returns the values of a column as [n] objects, None for missing values."""
    name = str(series.name)
    if kind == MULTIHOT:
        return as_lists(name, series)
    values = np.full(len(series), None, object)
    if kind == NUMERICAL:
        numbers = as_numbers(name, series)
        known = ~np.isnan(numbers)
        values[known] = numbers[known]
    else:
        known, keys = known_keys(name, series)
        values[known] = keys
    return values


def _fit_numerical(name: str, values: np.ndarray, weights: np.ndarray) -> Numerical:
    numbers = np.repeat(values.astype(np.float64), weights)
    with np.errstate(all="ignore"):  # an overflow is reported below
        mean, std = float(numbers.mean()), float(numbers.std(ddof=1)) if len(numbers) > 1 else 0.0
    if not np.isfinite([mean, std]).all():
        raise DataError(f"column {name!r} holds numbers up to {np.abs(numbers).max():g}, too large to standardize")
    return Numerical.standardized(name, fill=float(np.median(numbers)), mean=mean, std=std)


def _kind_of(series: pd.Series) -> str:
    first = series.dropna().head(1).tolist()
    if first and is_list(first[0]):
        return MULTIHOT
    return NUMERICAL if holds_numbers(series) else CATEGORICAL
