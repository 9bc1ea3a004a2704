"""A 64-bit hash that is the same on every machine, in every process, on CPU and GPU, and at serving time.

The full definition, for implementations elsewhere (arithmetic modulo 2**64):

    mix(x):     z = x + 0x9E3779B97F4A7C15                      the step of SplitMix64
                z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
                z = (z ^ (z >> 27)) * 0x94D049BB133111EB
                return z ^ (z >> 31)
    hash(int):  mix(the value as a two's complement 64-bit word)
    hash(text): h = 0xCBF29CE484222325                          FNV-1a
                for byte in text as UTF-8: h = (h ^ byte) * 0x100000001B3
                return mix(h)
    hash(null): 0, which only rows contain
    hash(row):  h = 0; for key in row: h = mix(h ^ hash(key))
    bucket:     hash mod number of buckets, unsigned

The integer 5 and the text "5" hash differently, and floats cannot be hashed, so the type of a column matters.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:  # takes a second to import, and main.py imports this module
    import pandas as pd

Values: TypeAlias = "pa.Array | np.ndarray | pd.Series | pd.Index | Sequence[int] | Sequence[str]"

STEP = np.uint64(0x9E3779B97F4A7C15)
FIRST_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
SECOND_FACTOR = np.uint64(0x94D049BB133111EB)
FNV_START = np.uint64(0xCBF29CE484222325)
FNV_FACTOR = np.uint64(0x100000001B3)
NULL_HASH = np.uint64(0)
# Up to so many values, plain Python is faster than NumPy.
FEW = 16
WORD_MASK, START, FACTOR = 2**64 - 1, int(FNV_START), int(FNV_FACTOR)
# Strings to hash at a time: their words stay in the processor's cache.
BLOCK = 16_384
WORD_BYTES = 8
BYTE = np.uint64(255)


def mix(words: np.ndarray) -> np.ndarray:
    """Apply the SplitMix64 finalizer, a bijection that spreads each bit over all: [n] uint64 to [n] uint64."""
    words = words + STEP
    words = (words ^ (words >> np.uint64(30))) * FIRST_FACTOR
    words = (words ^ (words >> np.uint64(27))) * SECOND_FACTOR
    return words ^ (words >> np.uint64(31))


def hash_values(values: Values) -> np.ndarray:
    """Hash integers or strings.

    Args:
        values: [n] integers or strings; Arrow strings are hashed in place.

    Returns:
        [n] uint64 hashes.

    Raises:
        TypeError: if the values are neither all integers nor all strings; floats and nulls cannot be hashed.
    """
    if isinstance(values, pa.Array) and not pa.types.is_integer(values.type):
        texts = _without_nulls(values)
        if len(texts) <= FEW:
            return np.array([_hash_text(text) for text in texts.to_pylist()], np.uint64)
        return mix(_fnv1a(texts))
    array: np.ndarray = np.asarray(values)
    if not len(array):
        return np.empty(0, np.uint64)
    if array.dtype.kind in "iu":
        return mix(array.astype(np.int64, copy=False).view(np.uint64))
    if array.dtype.kind == "U":
        # From the original values: NumPy's fixed-width strings drop trailing NUL characters.
        array = np.asarray(values, object)
    return mix(_fnv1a(_as_texts(array)))


def hash_rows(*keys: "int | Values") -> np.ndarray:
    """Hash the rows of several columns.

    Args:
        *keys: columns of [n] integers or strings, whose order matters; a plain integer, such as a seed, is broadcast.

    Returns:
        [n] uint64 hashes.
    """
    columns = [np.asarray([key]) if isinstance(key, int) else key for key in keys]
    hashes = np.zeros(1, np.uint64)
    for column in columns:
        hashes = mix(hashes ^ hash_values(column))
    return hashes


def buckets(hashes: np.ndarray, num_buckets: int) -> np.ndarray:
    """Return the buckets of hashes, [n] int64 in [0, num_buckets)."""
    return (hashes % np.uint64(num_buckets)).astype(np.int64)


def _as_texts(array: np.ndarray) -> pa.LargeStringArray:
    if array.dtype != object:
        raise TypeError(f"only integers and strings have a hash, got values of type {array.dtype}")
    try:
        return _without_nulls(pa.array(array, type=pa.large_string()))
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        raise TypeError(f"only integers and strings have a hash: {error}") from error


def _without_nulls(texts: pa.Array) -> pa.LargeStringArray:
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        raise TypeError(f"only integers and strings have a hash, got values of type {texts.type}")
    if texts.null_count:
        raise TypeError(f"{texts.null_count} of {len(texts)} values are null, and nulls have no hash")
    return texts.cast(pa.large_string())


def _hash_text(text: str) -> int:
    """Return the hash of one string."""
    word = START
    for byte in text.encode():
        word = ((word ^ byte) * FACTOR) & WORD_MASK
    word = (word + int(STEP)) & WORD_MASK
    word = ((word ^ (word >> 30)) * int(FIRST_FACTOR)) & WORD_MASK
    word = ((word ^ (word >> 27)) * int(SECOND_FACTOR)) & WORD_MASK
    return word ^ (word >> 31)


def _fnv1a(texts: pa.LargeStringArray) -> np.ndarray:
    """Return the FNV-1a hashes of UTF-8 strings, [n] uint64, vectorized over strings."""
    hashes = np.full(len(texts), FNV_START)
    _, offset_buffer, byte_buffer = texts.buffers()
    if byte_buffer is None or not len(texts):
        return hashes
    offsets = np.frombuffer(offset_buffer, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    words = _words(np.frombuffer(byte_buffer, np.uint8)[offsets[0] : offsets[-1]])
    starts, lengths = offsets[:-1] - offsets[0], np.diff(offsets)
    for first in range(0, len(texts), BLOCK):
        block = slice(first, first + BLOCK)
        _hash_block(words, starts[block], lengths[block], hashes[block])
    return hashes


def _words(text_bytes: np.ndarray) -> np.ndarray:
    """Return the little-endian words that start at each byte, [bytes] uint64, zero-padded at the end."""
    padded = np.concatenate([text_bytes, np.zeros(WORD_BYTES, np.uint8)])
    return np.ndarray(len(text_bytes) + 1, "<u8", padded.data, strides=(1,))


def _hash_block(words: np.ndarray, starts: np.ndarray, lengths: np.ndarray, hashes: np.ndarray) -> None:
    """Hash the strings at `starts` in place: one NumPy pass per byte position."""
    shortest, longest = int(lengths.min()), int(lengths.max())
    order = None
    if shortest < longest:
        # By descending length, so that the strings with a byte at `position` are a prefix.
        order = np.argsort(-lengths, kind="stable")
        starts, ascending = starts[order], np.sort(lengths)
    found, longer = hashes.copy(), len(hashes)
    for position in range(longest):
        if position >= shortest:
            longer = len(hashes) - int(np.searchsorted(ascending, position, side="right"))
        if position % WORD_BYTES == 0:
            word = words[starts[:longer] + position]
        found[:longer] = (found[:longer] ^ (word[:longer] & BYTE)) * FNV_FACTOR
        word >>= np.uint64(WORD_BYTES)
    hashes[slice(None) if order is None else order] = found
