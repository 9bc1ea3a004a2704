"""Fitted encoders that map raw values to ids and numbers without NVTabular, for training and serving.

Ids are laid out as NVTabular's Categorify does: 0 is padding, 1 is null, then come the ids of values unseen in training
(hashed by `data.encoding.hashing`), then those of the known values. `HashedIds` with `first_id=0` and `HashedRanks`
have the layout of published recipes instead, where any id can be a hash.

`encode` takes values as data frames, files and requests hold them (see `data.encoding.keys`): Arrow arrays of any
kind, pandas, NumPy or a list. Arrow dictionaries are encoded entry by entry, and strings in Arrow memory never become
Python objects. A list feature is encoded item by item; a missing list is an empty one.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.encoding.counting import most_frequent_first
from data.encoding.hashing import buckets, hash_values, mix
from data.encoding.keys import (
    KeyTable,
    Values,
    as_arrow,
    as_lists,
    as_numbers,
    coded_keys,
    hash_column,
    kept_index,
    key_array,
)
from data.errors import DataError
from data.spec.columns import is_list

PAD_ID, NULL_ID, FIRST_OOV_ID = 0, 1, 2
# First id of encoders with a single id for unseen values.
FIRST_VALUE_ID = 3
# Fold of rows that the encoders are not fitted on.
NOT_IN_A_FOLD = -1

FILL, LOG1P, CLIP, SCALE, MINMAX = "fill", "log1p", "clip", "scale", "minmax"
Step = tuple[str] | tuple[str, float] | tuple[str, float | None, float | None]
TimestampPart = Literal["hour", "weekday", "day"]
MICROSECONDS_PER_HOUR = 3_600_000_000
# Number of values of each part of a timestamp.
PARTS: dict[TimestampPart, int] = {"hour": 24, "weekday": 7, "day": 31}


class ValueEncoder(ABC):
    """Encoder of single values, and of lists of them item by item.

    Attributes:
        column: name of the raw column.
        is_list: whether a raw value is a list of values (multi-hot).
        unseen_id: the smallest id of unseen values, or None if they have no id of their own.
    """

    column: str
    is_list: bool
    unseen_id: ClassVar[int | None] = None

    def encode(self, values: Values) -> "Encoded":
        """Encode raw values.

        Args:
            values: [n] raw values, or lists of them for a list feature.

        Returns:
            [n] int64 ids or float32 numbers; for a list feature [n] arrays of these, or an Arrow array of lists if
            `values` is in Arrow memory.

        Raises:
            DataError: as `encode_flat`, or if a value of a list feature is not a list.
        """
        return encode_lists(self.column, self.encode_flat, values) if self.is_list else self.encode_flat(values)

    @abstractmethod
    def encode_flat(self, values: Values) -> np.ndarray:
        """Encode [n] single values, such as the flattened items of a list feature.

        Raises:
            DataError: if a value is not what the encoder expects.
        """


@dataclass(frozen=True, eq=False)
class Vocabulary(ValueEncoder):
    """Encoder of a categorical feature with one id per frequent value.

    Attributes:
        column: name of the raw column.
        values: [size] values, converted to an Arrow array of int64 or large_string; values[i] has the id
            2 + oov_buckets + i. They are in the order of descending counts, followed by those that later datasets
            added. A null is the place of a free id, whose value was retired: no raw value has this id.
        counts: [size] int64 occurrences of each value in the training data, summed over the datasets that the
            vocabulary was extended with; 0 for a free id.
        oov_buckets: number of ids shared by values unseen in training, at least 1.
        is_list: whether a raw value is a list of values (multi-hot).
        unseen_for: [size] int64 number of datasets, up to the latest, whose training rows do not have the value; 0 for
            a free id. None is converted to zeros.
    """

    column: str
    values: pa.Array
    counts: np.ndarray
    oov_buckets: int = 1
    is_list: bool = False
    unseen_for: np.ndarray = None  # type: ignore[assignment]
    unseen_id = FIRST_OOV_ID

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", key_array(self.column, self.values, with_nulls=True))
        if self.unseen_for is None:
            object.__setattr__(self, "unseen_for", np.zeros(len(self.values), np.int64))

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
        max_size: int | None = None,
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
            max_size: maximum number of values with an id of their own; the others share the ids of unseen values.
            min_count: values with fewer occurrences share the ids of unseen values.

        Raises:
            DataError: if `oov_buckets` or `max_ids` is too small, or a value is not a valid key.
        """
        if oov_buckets < 1:
            raise DataError(f"column {column!r}: {oov_buckets} buckets for unseen values; at least 1 is needed")
        if max_ids is not None and max_ids < FIRST_OOV_ID + oov_buckets:
            raise DataError(f"column {column!r}: {max_ids} ids at most; {FIRST_OOV_ID + oov_buckets} are needed")
        codes, keys = coded_keys(column, values)
        kept = np.asarray(counts, np.int64)
        if len(keys) < len(codes):
            kept = kept[codes >= 0]
        frequent = np.flatnonzero(kept >= min_count)
        kept, keys = kept[frequent], keys.take(pa.array(frequent))
        order = most_frequent_first(keys, kept)
        if max_ids is not None and FIRST_OOV_ID + oov_buckets + len(order) > max_ids:
            oov_buckets = max(oov_buckets, max_ids // 10)
            order = order[: max_ids - FIRST_OOV_ID - oov_buckets]
        order = order[:max_size]
        return cls(column, keys.take(pa.array(order)), kept[order], oov_buckets, is_list)

    @property
    def cardinality(self) -> int:
        """Number of ids, including those of padding, null and unseen values, and free ones."""
        return self.first_known_id + len(self.values)

    @property
    def first_known_id(self) -> int:
        """The smallest id that a known value can have."""
        return FIRST_OOV_ID + self.oov_buckets

    @property
    def known_values(self) -> pa.Array:
        """The values that have an id, [known]."""
        return self.values.drop_null()

    @property
    def known_ids(self) -> np.ndarray:
        """The ids of `known_values`, [known] int64, ascending."""
        return np.flatnonzero(self.values.is_valid()) + self.first_known_id

    def encode_flat(self, values: Values) -> np.ndarray:
        """Return the ids of single values, [n] int64.

        Raises:
            DataError: if the values are strings where the training data had integers, or vice versa.
        """
        codes, found, positions = kept_index(self, self.column, self.values).find(values)
        ids = positions + self.first_known_id
        unseen = np.flatnonzero(positions < 0)
        if len(unseen):
            others = found if len(unseen) == len(found) else found.take(pa.array(unseen))
            ids[unseen] = FIRST_OOV_ID + buckets(hash_values(others), self.oov_buckets)
        return np.append(ids, NULL_ID)[codes]


@dataclass(frozen=True, eq=False)
class HashedIds(ValueEncoder):
    """Encoder that hashes values into buckets (see `data.encoding.hashing`).

    Attributes:
        column: name of the raw column.
        num_buckets: number of buckets; values can collide.
        first_id: id of the first bucket: 0, as published, where null has the id 0 too; or 2, after the ids of padding
            and null.
        is_list: whether a raw value is a list of values (multi-hot).
    """

    column: str
    num_buckets: int
    first_id: int = 0
    is_list: bool = False

    @property
    def cardinality(self) -> int:
        """Number of ids."""
        return self.first_id + self.num_buckets

    def encode_flat(self, values: Values) -> np.ndarray:
        """Return the ids of single values, [n] int64."""
        codes, found = coded_keys(self.column, values)
        ids = self.first_id + buckets(hash_values(found), self.num_buckets)
        return np.append(ids, min(self.first_id, NULL_ID))[codes]


@dataclass(frozen=True, eq=False)
class HashedRanks(ValueEncoder):
    """Encoder of a list feature that hashes the frequency rank of a value: bucket of hash(1) for the most frequent.

    Attributes:
        column: name of the raw column.
        values: [size] values by descending count, converted to an Arrow array of int64 or large_string.
        num_buckets: number of ids, all in [0, num_buckets). Unseen values and null have the bucket of hash(0).
    """

    column: str
    values: pa.Array
    num_buckets: int
    is_list = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", key_array(self.column, self.values))

    @property
    def cardinality(self) -> int:
        """Number of ids."""
        return self.num_buckets

    def encode_flat(self, values: Values) -> np.ndarray:
        """Return the ids of single values, [n] int64."""
        codes, _, positions = kept_index(self, self.column, self.values).find(values)
        ids = buckets(hash_values(np.append(positions, -1) + 1), self.num_buckets)
        return ids[codes]


@dataclass(frozen=True, eq=False)
class IdentityIds(ValueEncoder):
    """Encoder of values that are ids already; null has the id 1.

    Attributes:
        column: name of the raw column.
        cardinality: number of ids; values must lie in [0, cardinality).
        is_list: whether a raw value is a list of values (multi-hot).
    """

    column: str
    cardinality: int
    is_list: bool = False

    def encode_flat(self, values: Values) -> np.ndarray:
        """Return the ids of single values, [n] int64."""
        codes, ids = _integers(self.column, values, "integer ids")
        outside = (ids < 0) | (ids >= self.cardinality)
        if outside.any():
            raise DataError(
                f"column {self.column!r} holds {ids[outside][0]}, outside of [0, {self.cardinality}); raise the "
                "cardinality of the feature, or encode it with a vocabulary"
            )
        return np.append(ids, NULL_ID)[codes]


@dataclass(frozen=True, eq=False)
class BucketizedIds(ValueEncoder):
    """Encoder of numbers as ids of intervals: 1 for null, 3 + the number of boundaries at or below x for a number x.

    Attributes:
        column: name of the raw column.
        boundaries: ascending finite numbers.
        is_list: whether a raw value is a list of numbers (multi-hot).
    """

    column: str
    boundaries: tuple[float, ...]
    is_list: bool = False
    unseen_id = FIRST_OOV_ID  # reserved: every number has an interval

    @property
    def cardinality(self) -> int:
        """Number of ids."""
        return FIRST_VALUE_ID + len(self.boundaries) + 1

    def encode_flat(self, values: Values) -> np.ndarray:
        """Return the ids of single numbers, [n] int64."""
        numbers = as_numbers(self.column, values)
        ids = FIRST_VALUE_ID + np.searchsorted(np.asarray(self.boundaries, np.float64), numbers, side="right")
        return np.where(np.isnan(numbers), NULL_ID, ids)


@dataclass(frozen=True, eq=False)
class TimestampIds(ValueEncoder):
    """Encoder of a part of a time in UTC: 1 for null, 3 + hour, 3 + weekday (Monday is 0) or 2 + day of the month.

    Attributes:
        column: name of the raw column.
        part: "hour", "weekday" or "day" of int64 microseconds since the epoch.
        is_list: whether a raw value is a list of times (multi-hot).
    """

    column: str
    part: TimestampPart
    is_list: bool = False
    unseen_id = FIRST_OOV_ID  # reserved: every time has a part

    @property
    def cardinality(self) -> int:
        """Number of ids."""
        return FIRST_VALUE_ID + PARTS[self.part]

    def encode_flat(self, values: Values) -> np.ndarray:
        """Return the ids of single times, [n] int64."""
        codes, times = _integers(self.column, values, "a time")
        return np.append(FIRST_VALUE_ID + self._parts(times // MICROSECONDS_PER_HOUR), NULL_ID)[codes]

    def _parts(self, hours: np.ndarray) -> np.ndarray:
        if self.part == "hour":
            return hours % 24
        days = hours // 24
        if self.part == "weekday":
            return (days + 3) % 7  # the epoch was a Thursday
        dates = days.astype("datetime64[D]")
        return (dates - dates.astype("datetime64[M]").astype("datetime64[D]")).astype(np.int64)


@dataclass(frozen=True, eq=False)
class CrossInput:
    """An input of a cross.

    Attributes:
        name: name of a feature, whose ids are crossed, or of a raw column, whose values are.
        is_feature: whether it names a feature.
    """

    name: str
    is_feature: bool


@dataclass(frozen=True, eq=False)
class CrossedIds:
    """Encoder of combinations of columns.

    A combination has an int64 key: the hash of the row of its inputs (`data.encoding.hashing`), taken as a signed
    number. The key of a feature is its id; that of a raw column is its value, null included. One of the inputs can be a
    list: the cross is then a list of the combinations of each item with the row's other inputs.

    Attributes:
        inputs: what is crossed, in the order of the hash.
        encoder: encoder of the keys.
        list_input: name of the input that is a list, or None.
    """

    inputs: tuple[CrossInput, ...]
    encoder: Vocabulary | HashedIds
    list_input: str | None = None

    @property
    def column(self) -> str:
        """The inputs' names, for messages."""
        return " x ".join(entry.name for entry in self.inputs)

    @property
    def is_list(self) -> bool:
        """Whether a row has a list of combinations (multi-hot)."""
        return self.list_input is not None

    @property
    def cardinality(self) -> int:
        """Number of ids."""
        return self.encoder.cardinality

    @property
    def unseen_id(self) -> int | None:
        """The smallest id of unseen combinations, or None if they have no id of their own."""
        return self.encoder.unseen_id

    def encode(self, columns: Mapping[str, Values] | Values) -> "Encoded":
        """Return the ids of combinations.

        Args:
            columns: [n] values of every input by name: int64 ids of a feature, raw values of a raw column, or lists of
                these for `list_input`.

        Returns:
            [n] int64 ids; with a list, lists of these (see `ValueEncoder.encode`).

        Raises:
            TypeError: if `columns` is a single column.
            DataError: if a value cannot be hashed, or a value of `list_input` is not a list.
        """
        if not isinstance(columns, Mapping):
            raise TypeError(f"a cross of {self.column} needs its inputs by name, not a single column")
        lists = self._lists(columns)
        ids = self.encoder.encode_flat(self._keys(columns, lists))
        return ids if lists is None else lists.encoded(ids)

    def keys(self, columns: Mapping[str, Values]) -> np.ndarray:
        """Return the keys of combinations, [n] int64; with a list, those of all items, row after row."""
        return self._keys(columns, self._lists(columns))

    def _lists(self, columns: Mapping[str, Values]) -> "FlatLists | None":
        return None if self.list_input is None else FlatLists.of(self.list_input, columns[self.list_input])

    def _keys(self, columns: Mapping[str, Values], lists: "FlatLists | None") -> np.ndarray:
        hashes = np.zeros(1, np.uint64)
        for entry in self.inputs:
            if lists is None:
                key = hash_column(entry.name, columns[entry.name])
            elif entry.name == self.list_input:
                key = hash_column(entry.name, lists.items)
            else:
                key = np.repeat(hash_column(entry.name, columns[entry.name]), lists.lengths)
            hashes = mix(hashes ^ key)
        return hashes.view(np.int64)


@dataclass(frozen=True, eq=False)
class Numerical(ValueEncoder):
    """Encoder of a numerical feature: a raw number or a table entry, transformed step by step in float64.

    Attributes:
        column: name of the raw column.
        table: table that maps raw keys to numbers; None if the column holds the numbers themselves.
        steps: steps in order: ("fill", x) replaces null; ("log1p",) takes log(1 + number); ("clip", low, high) limits
            numbers, where None is no limit; ("scale", mean, std) gives (number - mean) / std, and ("minmax", low, high)
            gives (number - low) / (high - low); both only subtract if the divisor is 0.
        is_list: whether a raw value is a list of numbers.
    """

    column: str
    table: KeyTable | None = None
    steps: tuple[Step, ...] = ()
    is_list: bool = False

    @classmethod
    def standardized(
        cls,
        column: str,
        table: KeyTable | None = None,
        fill: float = 0.0,
        log: bool = False,
        mean: float = 0.0,
        std: float = 1.0,
    ) -> "Numerical":
        """Return an encoder that fills nulls with `fill`, takes log(1 + number) if `log`, and standardizes."""
        logs: tuple[Step, ...] = ((LOG1P,),) if log else ()
        return cls(column, table, ((FILL, fill), *logs, (SCALE, mean, std)))

    def encode_flat(self, values: Values) -> np.ndarray:
        """Return the transformed numbers of single values, [n] float32.

        Raises:
            DataError: if a value is not a finite number, null remains null, or a result does not fit float32.
        """
        raw = self.table.look_up(self.column, values) if self.table else as_numbers(self.column, values)
        with np.errstate(all="ignore"):  # non-finite results raise below
            numbers = apply_steps(self.steps, raw).astype(np.float32)
        if not np.isfinite(numbers).all():
            raise DataError(f"column {self.column!r} {self._mistake(raw[~np.isfinite(numbers)][0])}")
        return numbers

    def _mistake(self, wrong: float) -> str:
        kinds = [step[0] for step in self.steps]
        if np.isnan(wrong) and FILL not in kinds:
            return "is null in a row; say what replaces null, as with {fill: median}"
        expected = "a number above -1" if LOG1P in kinds else "a smaller number"
        return f"holds {wrong:g}, which does not fit float32 after standardization; expected {expected}, or null"


@dataclass(frozen=True, eq=False)
class MissingIndicator:
    """Encoder of whether a number is missing: 1 for null, 0 for a number.

    Attributes:
        column: name of the raw column.
    """

    column: str

    def encode(self, values: Values) -> np.ndarray:
        """Return the indicators of raw values, [n] float32."""
        return np.isnan(as_numbers(self.column, values)).astype(np.float32)


IdEncoder = Vocabulary | HashedIds | HashedRanks | IdentityIds | BucketizedIds | TimestampIds | CrossedIds
NumberEncoder = Numerical | MissingIndicator
ColumnEncoder = Vocabulary | HashedIds | HashedRanks | IdentityIds | BucketizedIds | TimestampIds | NumberEncoder
Encoder = ColumnEncoder | CrossedIds
Encoded: TypeAlias = np.ndarray | pa.LargeListArray


def encode_columns(encoders: Mapping[str, Encoder], columns: Mapping[str, Values]) -> dict[str, Encoded]:
    """Encode raw columns.

    Args:
        encoders: encoder of each feature, by feature name.
        columns: [n] raw values by column name, such as a data frame.

    Returns:
        Encoded values by feature name: [n] int64, [n] float32, or lists of these (see `Vocabulary.encode`).

    Raises:
        DataError: if a column is missing, or its values are not of the same kind as in training.
    """
    missing = sorted(raw_columns(encoders) - set(columns))
    if missing:
        raise DataError(f"the columns {missing} are missing; the encoders read them")
    encoded: dict[str, Encoded] = {}
    for feature in encoders:
        encode_feature(feature, encoders, columns, encoded)
    return {feature: encoded[feature] for feature in encoders}


def encode_feature(
    feature: str, encoders: Mapping[str, Encoder], columns: Mapping[str, Values], encoded: dict[str, Encoded]
) -> None:
    """Encode a feature that is not in `encoded`, after the features that it crosses, and add them."""
    if feature in encoded:
        return
    encoder = encoders[feature]
    if isinstance(encoder, CrossedIds):
        encoded[feature] = encoder.encode(cross_inputs(encoder, encoders, columns, encoded))
    else:
        encoded[feature] = encoder.encode(columns[encoder.column])


def cross_inputs(
    cross: CrossedIds, encoders: Mapping[str, Encoder], columns: Mapping[str, Values], encoded: dict[str, Encoded]
) -> dict[str, Values]:
    """Return the values of a cross's inputs by name; features that are not in `encoded` are encoded and added."""
    for entry in cross.inputs:
        if entry.is_feature:
            encode_feature(entry.name, encoders, columns, encoded)
    return {entry.name: (encoded if entry.is_feature else columns)[entry.name] for entry in cross.inputs}


def raw_columns(encoders: Mapping[str, Encoder]) -> set[str]:
    """Return the names of the raw columns that encoders read."""
    names = set()
    for encoder in encoders.values():
        if isinstance(encoder, CrossedIds):
            names |= {entry.name for entry in encoder.inputs if not entry.is_feature}
        else:
            names.add(encoder.column)
    return names


def apply_steps(steps: Sequence[Step], numbers: np.ndarray) -> np.ndarray:
    """Transform [n] float64 numbers by steps of `Numerical`; NaN is null."""
    settings: list[Any]
    for kind, *settings in steps:
        if kind == FILL:
            numbers = np.where(np.isnan(numbers), settings[0], numbers)
        elif kind == LOG1P:
            numbers = np.log(numbers + 1)
        elif kind == CLIP:
            numbers = np.clip(numbers, *settings)
        elif kind == SCALE:
            mean, std = settings
            numbers = (numbers - mean) / (std if std > 0 else 1.0)
        else:
            low, high = settings
            numbers = (numbers - low) / (high - low if high > low else 1.0)
    return numbers


@dataclass(frozen=True, eq=False)
class FlatLists:
    """The items of lists, one list after the other.

    Attributes:
        lengths: [n] int64 length of each list, 0 for a missing one.
        items: the items of all lists, an Arrow array if the lists are in Arrow memory.
    """

    lengths: np.ndarray
    items: Values

    @classmethod
    def of(cls, column: str, values: Values) -> "FlatLists":
        """Return the items of [n] lists; `column` names them in messages.

        Raises:
            DataError: if a value is not a list.
        """
        arrow = as_arrow(values)
        if arrow is not None and is_list(arrow.type):
            lists = arrow.cast(pa.large_list(arrow.type.value_field))
            # Not the buffer of offsets, which may start anywhere and leave room for lists that are null.
            return cls(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(), lists.flatten())
        entries = [[] if entry is None else entry for entry in as_lists(column, values)]
        lengths = np.fromiter(map(len, entries), np.int64, len(entries))
        return cls(lengths, [value for entry in entries for value in entry])

    def encoded(self, flat: np.ndarray) -> Encoded:
        """Return the lists with each item replaced by what it is encoded to, given in the order of `items`."""
        offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        if isinstance(self.items, pa.Array):
            return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat))
        lists = np.empty(len(self.lengths), object)
        for row in range(len(lists)):
            lists[row] = flat[offsets[row] : offsets[row + 1]]
        return lists


def encode_lists(column: str, encode_flat: Callable[[Values], np.ndarray], values: Values) -> Encoded:
    """Encode lists of values item by item; a missing list becomes an empty one.

    Args:
        column: name of the raw column.
        encode_flat: encodes single values.
        values: [n] lists.

    Returns:
        An Arrow array of lists if `values` is one, else an [n] object array of arrays.
    """
    lists = FlatLists.of(column, values)
    return lists.encoded(encode_flat(lists.items))


def _integers(column: str, values: Values, expected: str) -> tuple[np.ndarray, np.ndarray]:
    """Return `coded_keys` of integers: [n] codes, and the int64 keys.

    Raises:
        DataError: if there are strings.
    """
    codes, found = coded_keys(column, values)
    if len(found) and not pa.types.is_integer(found.type):
        raise DataError(f"column {column!r} holds strings such as {found[0].as_py()!r}; expected {expected}")
    return codes, found.cast(pa.int64()).to_numpy()
