"""Fitted encoders as plain data: from raw values to ids and numbers, without NVTabular, at training and serving time.

Ids are laid out as NVTabular's Categorify lays them out: 0 is padding, 1 null, then `oov_buckets`
ids shared by all values unseen in training (by `data.encoding.hashing`), then the vocabulary by falling count.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from data.encoding.hashing import buckets, hash_values
from data.errors import DataError

PAD_ID, NULL_ID, FIRST_OOV_ID = 0, 1, 2
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
class Vocabulary:
    """Ids of a categorical feature.

    Attributes:
        column: the raw column that it reads.
        values: [size] int64 or texts, by falling count; value number i has the id 2 + oov_buckets + i.
        counts: [size] int64, how often each value occurs in training.
        oov_buckets: how many ids the values unseen in training share, at least 1.
        is_list: whether a raw value is a list of values (multi-hot).
    """

    column: str
    values: np.ndarray
    counts: np.ndarray
    oov_buckets: int = 1
    is_list: bool = False

    @classmethod
    def fit(
        cls, column: str, values: Values, counts: Values, *, oov_buckets: int = 1, is_list: bool = False
    ) -> "Vocabulary":
        """Orders counted values; equal counts by value, so that the ids do not depend on the order of rows.

        Args:
            column: the raw column's name.
            values: distinct values; a null among them is dropped.
            counts: occurrences of each value.
            oov_buckets: ids for values unseen in training.
            is_list: whether the column holds lists.
        """
        if oov_buckets < 1:
            raise DataError(f"column {column!r}: {oov_buckets} buckets for unseen values; at least 1 is needed")
        series = pd.Series(values)
        known = series.notna().to_numpy()
        keys = as_keys(column, series[known])
        kept = np.asarray(counts, np.int64)[known]
        order = pd.DataFrame({"count": -kept, "key": keys}).sort_values(["count", "key"]).index.to_numpy()
        return cls(column, keys[order], kept[order], oov_buckets, is_list)

    @property
    def cardinality(self) -> int:
        """Number of ids, all of them: padding, null, unseen and known values."""
        return self.first_known_id + len(self.values)

    @property
    def first_known_id(self) -> int:
        """Id of the most frequent value."""
        return FIRST_OOV_ID + self.oov_buckets

    def encode(self, values: Values) -> np.ndarray:
        """Ids of raw values: [n] int64, or [n] int64 arrays for a list feature (a null list is empty).

        Raises:
            DataError: the values are of another kind than those of the training data.
        """
        if not self.is_list:
            return self.encode_flat(values)
        lists = [[] if entry is None else entry for entry in values]
        flat = self.encode_flat([value for entry in lists for value in entry])
        encoded, start = np.empty(len(lists), object), 0
        for row, entry in enumerate(lists):
            encoded[row] = flat[start : start + len(entry)]
            start += len(entry)
        return encoded

    def encode_flat(self, values: Values) -> np.ndarray:
        """Ids of single values, also for a list feature: [n] int64."""
        codes, distinct, positions = self._keys.find(values)
        ids = positions + self.first_known_id
        unseen = positions < 0
        if unseen.any():
            ids[unseen] = FIRST_OOV_ID + buckets(hash_values(distinct[unseen]), self.oov_buckets)
        return np.concatenate([[NULL_ID], ids]).astype(np.int64)[codes + 1]

    @cached_property
    def _keys(self) -> KeyIndex:
        return KeyIndex(self.column, self.values)


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


@dataclass(frozen=True, eq=False)
class Numerical:
    """A number per row: the raw one, or what a table says of a raw key; filled, put on a log scale, standardised.

    Attributes:
        column: the raw column that it reads.
        table: where the number comes from; None reads it from the column.
        fill: stands for null.
        log: whether to take log(1 + number).
        mean, std: of the training rows; the result is (number - mean) / std, undivided unless std > 0.
    """

    column: str
    table: KeyTable | None = None
    fill: float = 0.0
    log: bool = False
    mean: float = 0.0
    std: float = 1.0

    def encode(self, values: Values) -> np.ndarray:
        """Standardised numbers of raw values, [n] float32."""
        numbers = self.table.look_up(self.column, values) if self.table else self._read(values)
        numbers = np.where(np.isnan(numbers), self.fill, numbers)
        if self.log:
            numbers = np.log(numbers + 1)
        return ((numbers - self.mean) / (self.std if self.std > 0 else 1.0)).astype(np.float32)

    def _read(self, values: Values) -> np.ndarray:
        try:
            return pd.Series(values).to_numpy(np.float64, na_value=np.nan)
        except (TypeError, ValueError) as error:
            raise DataError(f"column {self.column!r}: expected numbers: {error}") from error


Encoder = Vocabulary | Numerical


def encode_columns(encoders: Mapping[str, Encoder], columns: Mapping[str, Values]) -> dict[str, np.ndarray]:
    """Every feature of raw columns (a data frame is such a mapping), by feature name.

    Raises:
        DataError: a column is missing, or its values are of another kind than in training.
    """
    missing = sorted({encoder.column for encoder in encoders.values()} - set(columns))
    if missing:
        raise DataError(f"the columns {missing} are missing; the encoders read them")
    return {feature: encoder.encode(columns[encoder.column]) for feature, encoder in encoders.items()}


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
