"""Fitted encoders that map raw values to ids and numbers without NVTabular, for training and serving.

A `Vocabulary` has the id layout of NVTabular's Categorify: 0 is padding, 1 is null, then come `oov_buckets` ids shared
by values unseen in training (hashed by `data.preprocess.hashing`), then the vocabulary by descending count.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data.errors import DataError
from data.preprocess.hashing import buckets, hash_values
from data.preprocess.keys import KeyIndex, KeyTable, Values, as_lists, as_numbers, known_keys

PAD_ID, NULL_ID, FIRST_OOV_ID = 0, 1, 2
# Fold of rows that the encoders are not fitted on.
NOT_IN_A_FOLD = -1


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Encoder of a categorical feature with one id per frequent value.

    Attributes:
        column: name of the raw column.
        values: [size] int64 values or strings by descending count; values[i] has the id 2 + oov_buckets + i.
        counts: [size] int64 occurrences of each value in the training data.
        oov_buckets: number of ids shared by values unseen in training, at least 1.
        is_list: whether a raw value is a list of values (multi-hot).
    """

    column: str
    values: np.ndarray
    counts: np.ndarray
    oov_buckets: int = 1
    is_list: bool = False

    @classmethod
    def fit(
        cls,
        column: str,
        values: Values,
        counts: Values,
        *,
        oov_buckets: int = 1,
        is_list: bool = False,
        max_ids: int | None = None,
        min_count: int = 1,
    ) -> "Vocabulary":
        """Build a vocabulary from counted values. Ties are broken by value, so ids do not depend on the row order.

        Args:
            column: name of the raw column.
            values: distinct values; a null among them is dropped.
            counts: number of occurrences of each value.
            oov_buckets: number of ids shared by values unseen in training.
            is_list: whether the column holds lists.
            max_ids: maximum cardinality. If the vocabulary exceeds it, only its most frequent values get their own
                ids; the others share a tenth of the ids (at least `oov_buckets`) with the unseen values, by hash.
            min_count: values with fewer occurrences share the ids of unseen values.

        Raises:
            DataError: if `oov_buckets` or `max_ids` is too small, or a value is not a valid key.
        """
        if oov_buckets < 1:
            raise DataError(f"column {column!r}: {oov_buckets} buckets for unseen values; at least 1 is needed")
        if max_ids is not None and max_ids < FIRST_OOV_ID + oov_buckets:
            raise DataError(f"column {column!r}: {max_ids} ids at most; {FIRST_OOV_ID + oov_buckets} are needed")
        known, keys = known_keys(column, values)
        kept = np.asarray(counts, np.int64)[known]
        # Two stable sorts: by value, then by descending count.
        by_value = np.argsort(keys, kind="stable")
        order = by_value[np.argsort(-kept[by_value], kind="stable")]
        order = order[kept[order] >= min_count]
        if max_ids is not None and FIRST_OOV_ID + oov_buckets + len(order) > max_ids:
            oov_buckets = max(oov_buckets, max_ids // 10)
            order = order[: max_ids - FIRST_OOV_ID - oov_buckets]
        return cls(column, keys[order], kept[order], oov_buckets, is_list)

    @property
    def cardinality(self) -> int:
        """Number of ids, including those of padding, null and unseen values."""
        return self.first_known_id + len(self.values)

    @property
    def first_known_id(self) -> int:
        """Id of the most frequent value; the smallest id of a known value."""
        return FIRST_OOV_ID + self.oov_buckets

    def encode(self, values: Values) -> np.ndarray:
        """Return the ids of raw values: [n] int64, or [n] int64 arrays for a list feature (empty for null).

        Raises:
            DataError: if the values are strings where the training data had integers, or vice versa.
        """
        return _encode_lists(self.column, self.encode_flat, values) if self.is_list else self.encode_flat(values)

    def encode_flat(self, values: Values) -> np.ndarray:
        """Return the ids of single values, such as the flattened items of a list feature: [n] int64."""
        codes, distinct, positions = self._keys.find(values)
        ids = positions + self.first_known_id
        unseen = positions < 0
        if unseen.any():
            ids[unseen] = FIRST_OOV_ID + buckets(hash_values(distinct[unseen]), self.oov_buckets)
        # codes + 1: null has the code -1.
        return np.concatenate([[NULL_ID], ids]).astype(np.int64)[codes + 1]

    @cached_property
    def _keys(self) -> KeyIndex:
        return KeyIndex(self.column, self.values)


@dataclass(frozen=True, eq=False)
class HashedIds:
    """Encoder that hashes values into buckets (see `data.preprocess.hashing`); null has the id 0.

    Attributes:
        column: name of the raw column.
        num_buckets: number of ids, all in [0, num_buckets); values can collide.
    """

    column: str
    num_buckets: int

    @property
    def cardinality(self) -> int:
        """Number of ids."""
        return self.num_buckets

    def encode(self, values: Values) -> np.ndarray:
        """Return the ids of raw values, [n] int64."""
        codes, distinct, _ = KeyIndex(self.column, np.empty(0, object)).find(values)
        return np.concatenate([[0], buckets(hash_values(distinct), self.num_buckets)])[codes + 1]


@dataclass(frozen=True, eq=False)
class HashedRanks:
    """Encoder of a list feature that hashes the frequency rank of a value: bucket of hash(1) for the most frequent.

    Attributes:
        column: name of the raw column.
        values: [size] int64 values or strings by descending count.
        num_buckets: number of ids, all in [0, num_buckets). Unseen values and null have the bucket of hash(0).
    """

    column: str
    values: np.ndarray
    num_buckets: int

    @property
    def cardinality(self) -> int:
        """Number of ids."""
        return self.num_buckets

    def encode(self, values: Values) -> np.ndarray:
        """Return the ids of lists of raw values: [n] int64 arrays, empty for null."""
        return _encode_lists(self.column, self.encode_flat, values)

    def encode_flat(self, values: Values) -> np.ndarray:
        """Return the ids of single values, [n] int64."""
        codes, _, positions = self._keys.find(values)
        ranks = np.concatenate([[0], positions + 1])[codes + 1]
        return buckets(hash_values(ranks), self.num_buckets)

    @cached_property
    def _keys(self) -> KeyIndex:
        return KeyIndex(self.column, self.values)


@dataclass(frozen=True, eq=False)
class Numerical:
    """Encoder of a numerical feature: a raw number or a table entry, with nulls filled, log-scaled and standardized.

    Attributes:
        column: name of the raw column.
        table: table that maps raw keys to numbers; None if the column holds the numbers themselves.
        fill: number that replaces null.
        log: whether to apply log(1 + number).
        mean, std: moments of the training rows; the result is (number - mean) / std, or number - mean if std is 0.
    """

    column: str
    table: KeyTable | None = None
    fill: float = 0.0
    log: bool = False
    mean: float = 0.0
    std: float = 1.0

    def encode(self, values: Values) -> np.ndarray:
        """Return the standardized numbers of raw values, [n] float32.

        Raises:
            DataError: if a value is not a finite number, or does not fit float32 once standardized.
        """
        raw = self.table.look_up(self.column, values) if self.table else as_numbers(self.column, values)
        raw = np.where(np.isnan(raw), self.fill, raw)
        with np.errstate(all="ignore"):  # non-finite results raise below
            numbers = np.log(raw + 1) if self.log else raw
            numbers = ((numbers - self.mean) / (self.std if self.std > 0 else 1.0)).astype(np.float32)
        if not np.isfinite(numbers).all():
            wrong, expected = raw[~np.isfinite(numbers)][0], "a number above -1" if self.log else "a smaller number"
            raise DataError(
                f"column {self.column!r} holds {wrong:g}, which does not fit float32 after standardization; "
                f"expected {expected}, or null"
            )
        return numbers


IdEncoder = Vocabulary | HashedIds | HashedRanks
Encoder = IdEncoder | Numerical


def encode_columns(encoders: Mapping[str, Encoder], columns: Mapping[str, Values]) -> dict[str, np.ndarray]:
    """Encode raw columns.

    Args:
        encoders: encoder of each feature, by feature name.
        columns: [n] raw values by column name, such as a data frame.

    Returns:
        Encoded values by feature name: [n] int64, [n] int64 arrays (lists) or [n] float32.

    Raises:
        DataError: if a column is missing, or its values are not of the same kind as in training.
    """
    missing = sorted({encoder.column for encoder in encoders.values()} - set(columns))
    if missing:
        raise DataError(f"the columns {missing} are missing; the encoders read them")
    return {feature: encoder.encode(columns[encoder.column]) for feature, encoder in encoders.items()}


def _encode_lists(column: str, encode_flat: Callable[[Values], np.ndarray], values: Values) -> np.ndarray:
    lists = [[] if entry is None else entry for entry in as_lists(column, values)]
    flat = encode_flat([value for entry in lists for value in entry])
    encoded, start = np.empty(len(lists), object), 0
    for row, entry in enumerate(lists):
        encoded[row] = flat[start : start + len(entry)]
        start += len(entry)
    return encoded
