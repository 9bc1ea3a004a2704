"""Raw values as keys: found among known ones, and with a number each."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from data.errors import DataError

# From here on, a float no longer tells neighbouring integers apart.
FLOAT_INTEGERS_END = 2**53

Values = np.ndarray | pd.Series | pd.Index | Sequence[Any]


@dataclass(frozen=True, eq=False)
class KeyIndex:
    """Finds raw values among known keys.

    Attributes:
        column: the raw column's name, for messages.
        keys: [size], distinct and not null: int64, or texts as objects.
    """

    column: str
    keys: np.ndarray

    def find(self, values: Values) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions of values among the keys, by distinct value.

        Returns:
            codes [n], for each value its place among the distinct ones, -1 for null; the distinct
            values [distinct]; their positions among the keys [distinct], -1 where unseen.

        Raises:
            DataError: the values are of another kind than the keys.
        """
        try:
            codes, found = pd.factorize(pd.Series(values, dtype=None if len(values) else object))
        except TypeError as error:
            raise DataError(f"column {self.column!r} holds neither integers nor texts: {error}") from error
        distinct = as_keys(self.column, found)
        if len(self.keys) and len(distinct) and distinct.dtype != self.keys.dtype:
            found_one, known_one = distinct.tolist()[0], self.keys.tolist()[0]
            raise DataError(
                f"column {self.column!r} holds {_kind(distinct)} such as {found_one!r}, but it was fitted on "
                f"{_kind(self.keys)} such as {known_one!r}; convert the column"
            )
        if not len(self.keys):
            return codes, distinct, np.full(len(distinct), -1)
        return codes, distinct, self._index.get_indexer(pd.Index(distinct, dtype=self.keys.dtype))

    @cached_property
    def _index(self) -> pd.Index:
        return pd.Index(self.keys)


@dataclass(frozen=True, eq=False)
class KeyTable:
    """A number per key, fitted on training data: a count, a mean of the label.

    Attributes:
        keys: [size] int64 or texts, ascending.
        numbers: [size] float64.
        default: what null and keys that are not in the table get.
    """

    keys: np.ndarray
    numbers: np.ndarray
    default: float

    def look_up(self, column: str, values: Values) -> np.ndarray:
        """Numbers of raw values, [n] float64; `column` is for messages."""
        codes, _, positions = KeyIndex(column, self.keys).find(values)
        found = np.append(self.numbers, self.default)[positions]
        return np.concatenate([[self.default], found])[codes + 1]


def as_keys(column: str, values: Values) -> np.ndarray:
    """Values without nulls as int64, or as texts in an array of objects; whole floats count as integers.

    Raises:
        DataError: the values are neither, or floats too large to be told from their neighbours.
    """
    array = np.asarray(values)
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    if array.dtype.kind == "f" and np.all(array == np.round(array)) and np.all(np.abs(array) < FLOAT_INTEGERS_END):
        return array.astype(np.int64)
    if array.dtype.kind in "OU" and all(isinstance(value, str) for value in array):
        return array.astype(object)
    if array.dtype.kind == "O" and all(isinstance(value, (int, np.integer)) for value in array):
        return array.astype(np.int64)
    raise DataError(
        f"column {column!r} holds neither integers nor texts throughout, but for example {array.tolist()[0]!r}; "
        "convert it to one of them (null stays null)"
    )


def _kind(keys: np.ndarray) -> str:
    return "texts" if keys.dtype == object else "integers"
