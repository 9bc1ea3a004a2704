"""Fitted encoders as plain data: from raw values to ids and numbers, without NVTabular, at training and serving time.

A `Vocabulary` lays ids out as NVTabular's Categorify does: 0 is padding, 1 null, then `oov_buckets` ids
shared by all values unseen in training (by `data.encoding.hashing`), then the vocabulary by falling count.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data.encoding.hashing import buckets, hash_values
from data.encoding.keys import KeyIndex, KeyTable, Values, as_lists, as_numbers, known_keys
from data.errors import DataError

PAD_ID, NULL_ID, FIRST_OOV_ID = 0, 1, 2
# The fold of rows that nothing was fitted on.
NOT_IN_A_FOLD = -1


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
        """Orders counted values; equal counts by value, so that the ids do not depend on the order of rows.

        Args:
            column: the raw column's name.
            values: distinct values; a null among them is dropped.
            counts: occurrences of each value.
            oov_buckets: ids for values unseen in training.
            is_list: whether the column holds lists.
            max_ids: largest cardinality. Where the vocabulary is larger, its most frequent values get ids of
                their own, and the others share a tenth of the ids, by hash, with the unseen values.
            min_count: values that occur less often share the ids of unseen values.
        """
        if oov_buckets < 1:
            raise DataError(f"column {column!r}: {oov_buckets} buckets for unseen values; at least 1 is needed")
        if max_ids is not None and max_ids < FIRST_OOV_ID + oov_buckets:
            raise DataError(f"column {column!r}: {max_ids} ids at most; {FIRST_OOV_ID + oov_buckets} are needed")
        known, keys = known_keys(column, values)
        kept = np.asarray(counts, np.int64)[known]
        by_value = np.argsort(keys, kind="stable")
        order = by_value[np.argsort(-kept[by_value], kind="stable")]
        order = order[kept[order] >= min_count]
        if max_ids is not None and FIRST_OOV_ID + oov_buckets + len(order) > max_ids:
            oov_buckets = max(oov_buckets, max_ids // 10)
            order = order[: max_ids - FIRST_OOV_ID - oov_buckets]
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
        return _encode_lists(self.column, self.encode_flat, values) if self.is_list else self.encode_flat(values)

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
class HashedIds:
    """Ids by hash alone: bucket of `data.encoding.hashing`; values may collide, and null is in bucket 0.

    Attributes:
        column: the raw column that it reads.
        num_buckets: ids lie in [0, num_buckets).
    """

    column: str
    num_buckets: int

    @property
    def cardinality(self) -> int:
        """Number of ids."""
        return self.num_buckets

    def encode(self, values: Values) -> np.ndarray:
        """Ids of raw values, [n] int64."""
        codes, distinct, _ = KeyIndex(self.column, np.empty(0, object)).find(values)
        return np.concatenate([[0], buckets(hash_values(distinct), self.num_buckets)])[codes + 1]


@dataclass(frozen=True, eq=False)
class HashedRanks:
    """Ids of a list feature by hash of the value's rank: bucket of hash(1) for the most frequent value, and so on.

    Attributes:
        column: the raw column that it reads.
        values: [size] int64 or texts, by falling count.
        num_buckets: ids lie in [0, num_buckets). Unseen values and null have the bucket of hash(0).
    """

    column: str
    values: np.ndarray
    num_buckets: int

    @property
    def cardinality(self) -> int:
        """Number of ids."""
        return self.num_buckets

    def encode(self, values: Values) -> np.ndarray:
        """Ids of lists of raw values: [n] int64 arrays; a null list is empty."""
        return _encode_lists(self.column, self.encode_flat, values)

    def encode_flat(self, values: Values) -> np.ndarray:
        """Ids of single values, [n] int64."""
        codes, _, positions = self._keys.find(values)
        ranks = np.concatenate([[0], positions + 1])[codes + 1]
        return buckets(hash_values(ranks), self.num_buckets)

    @cached_property
    def _keys(self) -> KeyIndex:
        return KeyIndex(self.column, self.values)


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
        """Standardised numbers of raw values, [n] float32.

        Raises:
            DataError: a value is no finite number, or none that float32 can hold.
        """
        raw = self.table.look_up(self.column, values) if self.table else as_numbers(self.column, values)
        raw = np.where(np.isnan(raw), self.fill, raw)
        with np.errstate(all="ignore"):  # refused below
            numbers = np.log(raw + 1) if self.log else raw
            numbers = ((numbers - self.mean) / (self.std if self.std > 0 else 1.0)).astype(np.float32)
        if not np.isfinite(numbers).all():
            wrong, expected = raw[~np.isfinite(numbers)][0], "a number above -1" if self.log else "a smaller number"
            raise DataError(
                f"column {self.column!r} holds {wrong:g}, which float32 cannot hold once it is standardised; expected "
                f"{expected}, or null"
            )
        return numbers


IdEncoder = Vocabulary | HashedIds | HashedRanks
Encoder = IdEncoder | Numerical


def encode_columns(encoders: Mapping[str, Encoder], columns: Mapping[str, Values]) -> dict[str, np.ndarray]:
    """Every feature of raw columns (a data frame is such a mapping), by feature name.

    Raises:
        DataError: a column is missing, or its values are of another kind than in training.
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
