"""Normalize raw values to keys, look keys up among known ones, and map them to numbers.

The same rules apply to raw values from data frames, files and requests:

- null: None, NaN, pandas' NA and NaT.
- integer: an integral number of any type that fits int64. 1, 1.0, True, Decimal("1.00") and np.uint8(1) are equal, and
  -0.0 is 0. A float must be below the first number whose neighbor its type cannot represent (2**53 for float64,
  2**24 for float32), since above it the intended integer is ambiguous.
- string: any str that UTF-8 can encode, compared by code point without normalization: "1" is not an integer.

A column holds integers or strings, not both; everything else is rejected. Categorical and Arrow-backed columns are
treated by their values. Strings in Arrow memory never become Python objects.
"""

import datetime
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pandas.api.types import infer_dtype

from data.encoding.hashing import FEW, NULL_HASH, hash_values
from data.errors import DataError, shown

INT64 = np.iinfo(np.int64)
INT32_MAX, UINT64_MAX = np.iinfo(np.int32).max, np.uint64(np.iinfo(np.uint64).max)
FLOAT64_DIGITS = 53
TO_STRINGS = "convert the column to strings, as with .astype(str)"
SET_FIX = "a set has no order; make a list of it, as with .map(sorted)"
# How to fix values that are neither integers nor strings, by type; shown in error messages.
FIXES: list[tuple[tuple[type, ...], str]] = [
    ((float, np.floating, Decimal), "round it, or convert the column to strings"),
    ((bytes,), "decode it, as with .str.decode('utf-8')"),
    (
        (datetime.date, datetime.time, datetime.timedelta, np.datetime64, np.timedelta64, pd.Period),
        "convert it to a number or a string, as with .dt.year or .astype(str)",
    ),
    ((set, frozenset), SET_FIX),
    ((list, tuple, np.ndarray), "expected one value per row; a multi-hot column has a flat list in every row"),
]
# Names returned by pandas' infer_dtype.
NUMBER_KINDS = ("integer", "boolean", "floating", "mixed-integer-float", "decimal")
NUMBERS = (bool, int, float, Decimal, np.bool_, np.integer, np.floating)

Values: TypeAlias = pa.Array | pa.ChunkedArray | np.ndarray | pd.Series | pd.Index | Sequence[Any]


class KeyIndex:
    """An index to look up raw values among known keys, by their hashes.

    Args:
        column: name of the raw column, for messages.
        keys: [size] distinct keys (see `key_array`), and nulls, which no value is equal to.

    Attributes:
        keys: [size] keys, Arrow int64 or large_string.
    """

    def __init__(self, column: str, keys: Values) -> None:
        self.column, self.keys = column, key_array(column, keys, with_nulls=True)
        known = self.keys.drop_null()
        hashes = hash_values(known)
        # Sorted by hash, with a sentinel at the end.
        order = np.argsort(hashes, kind="stable")
        self._size = len(order)
        positions = order if self._size == len(self.keys) else np.flatnonzero(self.keys.is_valid())[order]
        self._positions = np.append(positions, -1).astype(np.int32 if len(self.keys) < INT32_MAX else np.int64)
        self._hashes = np.append(hashes[order], UINT64_MAX)
        # The first bits of a hash, about as many as there are keys, lead to a start close to its place in the order.
        bits = max(1, len(order).bit_length())
        self._shift = np.uint64(64 - bits)
        counts = np.bincount((self._hashes[:-1] >> self._shift).astype(np.int64), minlength=1 << bits)
        self._starts = (np.cumsum(counts) - counts).astype(self._positions.dtype)

    def find(self, values: Values) -> tuple[np.ndarray, pa.Array, np.ndarray]:
        """Look up values among the keys.

        Returns:
            codes: [n] index of each value into `found`, -1 for null.
            found: [found] keys of the values, which may repeat: one per value, or the dictionary of an Arrow array.
            positions: [found] int64 index of each of them into `keys`, -1 if it is unknown.

        Raises:
            DataError: if the values are not valid keys, or are strings where the keys are integers or vice versa.
        """
        codes, found = coded_keys(self.column, values)
        if self._size and len(found) and found.type != self.keys.type:
            found_one, known_one = found[0].as_py(), self.keys.drop_null()[0].as_py()
            raise DataError(
                f"column {self.column!r} holds {_kind(found)} such as {found_one!r}, but it was fitted on "
                f"{_kind(self.keys)} such as {known_one!r}; convert the column"
            )
        if not self._size:
            return codes, found, np.full(len(found), -1)
        return codes, found, self._find_keys(found)

    def _find_keys(self, wanted: pa.Array) -> np.ndarray:
        hashes = hash_values(wanted)
        if len(wanted) <= FEW:
            pairs = zip(wanted.to_pylist(), hashes.tolist(), strict=True)
            return np.array([self._find_key(*pair) for pair in pairs], np.int64)
        positions = np.full(len(wanted), -1)
        at = self._starts[(hashes >> self._shift).astype(np.int64)]
        pending = np.flatnonzero(self._hashes[at] < hashes)
        while len(pending):
            at[pending] += 1
            pending = pending[self._hashes[at[pending]] < hashes[pending]]
        # Different keys can have the same hash, so those are compared until one is equal.
        rows = np.flatnonzero((self._hashes[at] == hashes) & (at < self._size))
        while len(rows):
            candidates = self._positions[at[rows]]
            equal = self._equal(candidates, wanted, rows)
            positions[rows[equal]] = candidates[equal]
            rows = rows[~equal]
            at[rows] += 1
            rows = rows[(self._hashes[at[rows]] == hashes[rows]) & (at[rows] < self._size)]
        return positions

    def _find_key(self, wanted: int | str, hashed: int) -> int:
        """Return the position of one key, -1 if it is unknown."""
        at = int(self._starts[hashed >> int(self._shift)])
        while self._hashes[at] < hashed:
            at += 1
        while at < self._size and self._hashes[at] == hashed:
            position = int(self._positions[at])
            if self.keys[position].as_py() == wanted:
                return position
            at += 1
        return -1

    def _equal(self, candidates: np.ndarray, wanted: pa.Array, rows: np.ndarray) -> np.ndarray:
        """Return whether keys equal wanted keys with the same hash."""
        if pa.types.is_integer(wanted.type):
            return np.ones(len(rows), bool)  # the hash of integers is a bijection
        if len(rows) < len(wanted):
            wanted = wanted.take(pa.array(rows))
        return pc.equal(self.keys.take(pa.array(candidates)), wanted).to_numpy(zero_copy_only=False)


@dataclass(frozen=True, eq=False)
class KeyTable:
    """A number per key, fitted on training data, such as a count or the mean of a label.

    Attributes:
        keys: [size] keys, converted to an Arrow array of int64 or large_string.
        numbers: [size] float64 number of each key.
        default: number for null and for keys that are not in the table.
    """

    keys: pa.Array
    numbers: np.ndarray
    default: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", key_array("key", self.keys))

    def look_up(self, column: str, values: Values) -> np.ndarray:
        """Return the [n] float64 numbers of raw values; `column` names them in messages."""
        codes, _, positions = kept_index(self, column, self.keys).find(values)
        found = np.append(self.numbers, self.default)[positions]
        return np.append(found, self.default)[codes]


def kept_index(owner: Any, column: str, keys: pa.Array) -> KeyIndex:
    """Return an index of the keys of an object, which keeps it for the next call; `column` names them in messages."""
    # Not a cached_property, whose lock would let only one thread at a time build an index.
    index: KeyIndex | None = owner.__dict__.get("_index")
    if index is None or index.column != column:
        index = owner.__dict__["_index"] = KeyIndex(column, keys)
    return index


def key_array(column: str, values: Values, *, with_nulls: bool = False) -> pa.Array:
    """Return keys as an Arrow array of int64 or large_string.

    Args:
        column: name of the raw column, for messages.
        values: the keys.
        with_nulls: whether nulls are allowed; they stay null.

    Raises:
        DataError: if a value is neither an integer nor a string, or if there are both, or null where it is not allowed.
    """
    codes, found = coded_keys(column, values)
    if (codes < 0).any():
        if with_nulls:
            return found.take(pa.array(codes, mask=codes < 0))
        raise DataError(f"column {column!r} is null in row {int((codes < 0).argmax())}; remove such rows")
    return found if len(codes) == len(found) else found.take(pa.array(codes))


def coded_keys(column: str, values: Values) -> tuple[np.ndarray, pa.Array]:
    """Return values as keys without comparing them, so that equal keys may repeat.

    Returns:
        codes: [n] index of each value into `keys`, -1 for null.
        keys: the keys, Arrow int64 or large_string: one per value, or the dictionary of an Arrow dictionary array.

    Raises:
        DataError: if a value is neither an integer nor a string, or if there are both.
    """
    array = as_arrow(values)
    if array is None:
        known, found = known_keys(column, values)
        keys = pa.array(found, pa.large_string() if found.dtype == object else pa.int64())
        return _number_known(known), keys
    if isinstance(array, pa.DictionaryArray):
        codes, keys = coded_keys(column, array.dictionary)
        indices = array.indices.fill_null(-1) if array.indices.null_count else array.indices
        if len(codes) == len(keys):
            return indices.to_numpy(), keys
        return np.append(codes, -1)[indices.to_numpy()], keys
    keys = _arrow_keys(column, array)
    if not keys.null_count:
        return np.arange(len(keys)), keys
    return _number_known(keys.is_valid().to_numpy(zero_copy_only=False)), keys.drop_null()


def hash_column(column: str, values: Values) -> np.ndarray:
    """Return the hash of each value as part of a row (see `data.encoding.hashing`), [n] uint64.

    Raises:
        DataError: if a value is neither an integer nor a string, or if there are both.
    """
    codes, keys = coded_keys(column, values)
    return np.append(hash_values(keys), NULL_HASH)[codes]


def distinct_values(column: str, values: Values) -> tuple[np.ndarray, pa.Array]:
    """Factorize values: [n] int64 codes (-1 for null) into the distinct keys, an Arrow array in order of appearance.

    Raises:
        DataError: if a value is neither an integer nor a string, or if there are both.
    """
    codes, keys = coded_keys(column, values)
    encoded = keys.dictionary_encode()
    return np.append(encoded.indices.to_numpy(), -1)[codes], encoded.dictionary


def as_arrow(values: Values) -> pa.Array | None:
    """Return values that are in Arrow memory as one array without a copy where possible; None for other values."""
    if isinstance(values, pd.Series | pd.Index) and isinstance(values.dtype, pd.ArrowDtype):
        values = pa.Array.from_pandas(values)
    if isinstance(values, pa.ChunkedArray):
        return values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()
    return values if isinstance(values, pa.Array) else None


def known_keys(column: str, values: Values) -> tuple[np.ndarray, np.ndarray]:
    """Split values into nulls and keys.

    Returns:
        known: [n] bool, whether each value is not null.
        keys: [known] keys of these values, int64 or object (strings).

    Raises:
        DataError: if a value is neither an integer nor a string, or if there are both.
    """
    array = _one_column(column, values)
    known = ~pd.isna(array)
    return known, _keys(column, array[known])


def as_keys(column: str, values: Values) -> np.ndarray:
    """Return values as [n] keys, int64 or object (strings).

    Raises:
        DataError: if a value is null or neither an integer nor a string, or if there are both.
    """
    return key_array(column, values).to_numpy(zero_copy_only=False)


def as_numbers(column: str, values: Values) -> np.ndarray:
    """Return values as [n] float64 numbers, NaN for null. Texts are not parsed.

    Raises:
        DataError: if a value is not a finite number.
    """
    arrow = as_arrow(values)
    if arrow is not None and (pa.types.is_primitive(arrow.type) and not pa.types.is_temporal(arrow.type)):
        return _finite(column, arrow.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
    array = _one_column(column, values)
    known = ~pd.isna(array)
    numbers = np.full(len(array), np.nan)
    present = array[known]
    if not _are_numbers(present):
        wrong = next(value for value in present if not _is_number(value))
        fix = "pd.to_numeric reads numbers from strings" if isinstance(wrong, str) else "make a number of it"
        raise DataError(f"column {column!r} is numerical and holds {_shown(wrong)}; {fix}")
    try:
        numbers[known] = present.astype(np.float64)
    except OverflowError as error:
        raise DataError(f"column {column!r} holds a number beyond float64: {error}") from error
    return _finite(column, numbers)


def as_lists(column: str, values: Values) -> np.ndarray:
    """Return values as an [n] object array of lists, None for null. The items of the lists are not checked.

    Raises:
        DataError: if a value is not a list.
    """
    array = _one_column(column, values)
    known = ~pd.isna(array)
    for value in array[known]:
        if not is_list(value):
            fix = SET_FIX if isinstance(value, set | frozenset) else f"write [{_shown(value)}]"
            raise DataError(f"column {column!r} holds {_shown(value)} where a list is expected; {fix}")
    return np.where(known, array, np.array(None))


def is_list(value: object) -> bool:
    """Return whether a raw value is a list of values: a list, tuple or array."""
    return isinstance(value, list | tuple | np.ndarray)


def holds_numbers(values: pd.Series) -> bool:
    """Return whether a column holds numbers or booleans; False if an object column has only nulls."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return False
    if values.dtype != object:
        return pd.api.types.is_numeric_dtype(values.dtype)
    present = values[values.notna()].to_numpy()
    return len(present) > 0 and _are_numbers(present)


def _arrow_keys(column: str, array: pa.Array) -> pa.Array:
    """Convert an Arrow array to int64 or large_string, with its nulls."""
    kind = array.type
    if pa.types.is_large_string(kind) or kind == pa.int64():
        return array
    if pa.types.is_string(kind) or pa.types.is_string_view(kind):
        return array.cast(pa.large_string())
    if (pa.types.is_integer(kind) and kind != pa.uint64()) or pa.types.is_boolean(kind):
        return array.cast(pa.int64())
    if pa.types.is_floating(kind):
        plain = array.to_numpy(zero_copy_only=False)  # null becomes NaN, which is null too
    else:
        plain = np.array([*array.to_pylist(), None], object)[:-1]
    known, keys = known_keys(column, plain)
    return pa.array(keys, pa.large_string() if keys.dtype == object else pa.int64()).take(
        pa.array(_number_known(known), mask=~known)
    )


def _number_known(known: np.ndarray) -> np.ndarray:
    """Assign numbers from 0 to the known values, -1 to the others: [n] bool to [n] int64."""
    return np.where(known, np.cumsum(known) - 1, -1)


def _finite(column: str, numbers: np.ndarray) -> np.ndarray:
    if np.isinf(numbers).any():
        raise DataError(f"column {column!r} holds {numbers[np.isinf(numbers)][0]}; make it null, or finite")
    return numbers


def _one_column(column: str, values: Values) -> np.ndarray:
    """Return a one-dimensional array, of objects if a NumPy dtype would alter values (integers next to nulls)."""
    arrow = as_arrow(values)
    if arrow is not None:
        return np.array([*arrow.to_pylist(), None], object)[:-1]
    if isinstance(values, pd.Series | pd.Index):
        array = values.to_numpy() if isinstance(values.dtype, np.dtype) else values.to_numpy(object)
    elif isinstance(values, np.ndarray):
        array = values
    else:
        array = pd.Series(list(values), dtype=object).to_numpy()
    if array.dtype.kind in "mM":
        array = pd.Series(array).to_numpy(object)  # pandas objects; NumPy would turn datetimes into integers
    if array.ndim != 1:
        raise DataError(f"column {column!r} has {'two' if array.ndim == 2 else array.ndim} dimensions; expected one")
    return array


def _keys(column: str, values: np.ndarray) -> np.ndarray:
    """Convert values without nulls to int64 or object (strings) keys."""
    if not len(values):
        return np.empty(0, np.int64 if values.dtype.kind in "biuf" else object)
    kind = values.dtype.kind
    if kind in "bi" or (kind in "uf" and _are_integers(values)):
        return values.astype(np.int64)
    inferred = infer_dtype(values, skipna=False)
    if inferred == "string":
        return _texts(column, values)
    if inferred in ("integer", "boolean") and kind == "O":
        with suppress(OverflowError):  # reported by `_integer` below
            return values.astype(np.int64)
    text = next((value for value in values if isinstance(value, str)), None)
    if text is not None:
        other = next(value for value in values if not isinstance(value, str))
        raise DataError(
            f"column {column!r} holds strings such as {_shown(text)} and also {_shown(other)}; {TO_STRINGS}"
        )
    return np.array([_integer(column, value) for value in values], np.int64)


def _are_integers(numbers: np.ndarray) -> bool:
    """Return whether all unsigned or floating numbers are unambiguous int64 integers."""
    if numbers.dtype.kind == "u":
        return bool(numbers.max() <= INT64.max)
    return bool((np.abs(numbers) < 2.0 ** _digits(numbers.dtype)).all() and (numbers == np.floor(numbers)).all())


def _integer(column: str, value: Any) -> int:
    """Convert a value to an integer; raise a DataError if it is not an unambiguous int64 integer."""
    if not _is_whole(value):
        fix = next((fix for types, fix in FIXES if isinstance(value, types)), TO_STRINGS)
        raise DataError(f"column {column!r} holds {_shown(value)}; expected integers or strings; {fix}")
    if isinstance(value, float | np.floating) and abs(float(value)) >= 2.0 ** _digits(np.dtype(type(value))):
        name, digits = np.dtype(type(value)).name, _digits(np.dtype(type(value)))
        raise DataError(
            f"column {column!r} holds {value}; {name} cannot represent every integer from 2**{digits} on, so "
            "read the column as integers or strings"
        )
    if not INT64.min <= int(value) <= INT64.max:
        raise DataError(f"column {column!r} holds {_shown(int(value))}, which is outside of int64; {TO_STRINGS}")
    return int(value)


def _is_whole(value: Any) -> bool:
    if isinstance(value, float | np.floating | Decimal):
        return math.isfinite(value) and int(value) == value
    return _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, NUMBERS) and not isinstance(value, np.timedelta64)  # a subclass of np.signedinteger


def _digits(dtype: np.dtype) -> int:
    """Return the digits such that this float type represents every integer below 2**digits."""
    return min(np.finfo(dtype).nmant + 1, FLOAT64_DIGITS)


def _texts(column: str, values: np.ndarray) -> np.ndarray:
    try:
        return pa.array(values, pa.large_string()).to_numpy(zero_copy_only=False)
    except UnicodeEncodeError as error:
        raise DataError(
            f"column {column!r} holds {error.object!r}, which is not valid Unicode (a lone surrogate); "
            "read the strings again with their encoding"
        ) from error


def _are_numbers(values: np.ndarray) -> bool:
    if values.dtype != object:
        return values.dtype.kind in "biuf"
    return infer_dtype(values, skipna=False) in NUMBER_KINDS or all(map(_is_number, values))


def _shown(value: Any) -> str:
    return shown(value.item() if isinstance(value, np.generic) else value)


def _kind(keys: pa.Array) -> str:
    return "integers" if pa.types.is_integer(keys.type) else "strings"
