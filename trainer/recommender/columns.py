"""Raw columns of data frames, and the encoders that are fitted on them."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from data.encoding.encoders import Encoder, Numerical, Vocabulary
from data.errors import DataError
from data.specification.problems import nearest

CATEGORICAL, NUMERICAL, MULTIHOT = KINDS = ("categorical", "numerical", "multihot")


@dataclass(frozen=True, eq=False)
class RawColumn:
    """A column to be encoded.

    Attributes:
        name: of the column, and of the feature made of it.
        kind: one of KINDS.
        values: [n] objects, None where unknown.
    """

    name: str
    kind: str
    values: np.ndarray


def require_columns(columns: Iterable[Hashable], names: Sequence[str], what: str) -> None:
    """Raises a DataError for the first of the names that `columns` (of `what`) lacks, with those there are."""
    there = [str(column) for column in columns]
    for name in names:
        if name not in there:
            near = nearest(name, there)
            hint = f"; did you mean {near!r}?" if near else ""
            raise DataError(f"{what} has no column {name!r}; it has {', '.join(there)}{hint}")


def read_column(frame: pd.DataFrame, name: str, kinds: Mapping[str, str]) -> RawColumn:
    """A column of a frame; its kind is what `kinds` says of it, else told by its values.

    Numbers and truth values are numerical, lists multi-hot, all others categorical.
    """
    kind = kinds.get(name) or _kind_of(frame[name])
    return RawColumn(name, kind, raw_values(frame[name], is_list=kind == MULTIHOT))


def raw_values(series: pd.Series, *, is_list: bool) -> np.ndarray:
    """The values as objects, None where unknown, [n].

    Raises:
        DataError: a list is expected and something else is there.
    """
    values, known = series.to_numpy(object), series.notna().to_numpy()
    wrong = [value for value in values[known] if not _is_list(value)] if is_list else []
    if wrong:
        raise DataError(f"column {series.name!r} holds {wrong[0]!r} where a list is expected; write [{wrong[0]!r}]")
    return np.where(known, values, np.array(None))


def fit_encoder(column: RawColumn, weights: np.ndarray) -> Encoder:
    """Fits the encoder of a column on training rows.

    Args:
        column: its values.
        weights: [n] int64, how many training rows have each value; those with 0 are not looked at.

    Raises:
        DataError: no training row has a value, or the values are of no kind that can be encoded.
    """
    used = (weights > 0) & np.array([value is not None for value in column.values])
    values, weights = column.values[used], weights[used]
    if not len(values):
        raise DataError(f"column {column.name!r}: no training row has a value; leave the column out")
    if column.kind == NUMERICAL:
        return _fit_numerical(column.name, values, weights)
    if column.kind == MULTIHOT:
        weights = np.repeat(weights, [len(entry) for entry in values])
        values = np.array([value for entry in values for value in entry], object)
    codes, distinct = pd.factorize(pd.Series(values, dtype=object))
    counts = np.bincount(codes[codes >= 0], weights[codes >= 0], minlength=len(distinct))
    return Vocabulary.fit(column.name, distinct, counts, is_list=column.kind == MULTIHOT)


def _fit_numerical(name: str, values: np.ndarray, weights: np.ndarray) -> Numerical:
    try:
        numbers = np.repeat(values.astype(np.float64), weights)
    except (TypeError, ValueError) as error:
        raise DataError(f"column {name!r} is numerical and holds no numbers throughout: {error}") from error
    if not np.isfinite(numbers).all():
        raise DataError(f"column {name!r} holds infinite numbers; make them null, or finite")
    std = numbers.std(ddof=1) if len(numbers) > 1 else 0.0
    return Numerical(name, fill=float(np.median(numbers)), mean=float(numbers.mean()), std=float(std))


def _kind_of(series: pd.Series) -> str:
    first = series.dropna().head(1).tolist()
    if first and _is_list(first[0]):
        return MULTIHOT
    return NUMERICAL if is_numeric_dtype(series.dtype) else CATEGORICAL


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple | np.ndarray)
