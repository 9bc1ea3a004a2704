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
    hash(row):  h = 0; for key in row: h = mix(h ^ hash(key))
    bucket:     hash mod number of buckets, unsigned

The integer 5 and the text "5" hash differently, and floats cannot be hashed, so the type of a column matters.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

Values = np.ndarray | pd.Series | pd.Index | Sequence[int] | Sequence[str]

STEP = np.uint64(0x9E3779B97F4A7C15)
FIRST_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
SECOND_FACTOR = np.uint64(0x94D049BB133111EB)
FNV_START = np.uint64(0xCBF29CE484222325)
FNV_FACTOR = np.uint64(0x100000001B3)


def mix(words: np.ndarray) -> np.ndarray:
    """Apply the SplitMix64 finalizer, a bijection that spreads each bit over all: [n] uint64 to [n] uint64."""
    words = words + STEP
    words = (words ^ (words >> np.uint64(30))) * FIRST_FACTOR
    words = (words ^ (words >> np.uint64(27))) * SECOND_FACTOR
    return words ^ (words >> np.uint64(31))


def hash_values(values: Values) -> np.ndarray:
    """Hash integers or strings.

    Args:
        values: [n] integers or strings.

    Returns:
        [n] uint64 hashes.

    Raises:
        TypeError: if the values are neither all integers nor all strings; floats and nulls cannot be hashed.
    """
    array = np.asarray(values)
    if not len(array):
        return np.empty(0, np.uint64)
    if array.dtype.kind in "iu":
        return mix(array.astype(np.int64, copy=False).view(np.uint64))
    if array.dtype.kind == "U":
        # From the original values: NumPy's fixed-width strings drop trailing NUL characters.
        array = np.asarray(values, object)
    return mix(_fnv1a(_as_texts(array)))


def hash_rows(*keys: int | Values) -> np.ndarray:
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
        texts = pa.array(array, type=pa.large_string())
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        raise TypeError(f"only integers and strings have a hash: {error}") from error
    if texts.null_count:
        raise TypeError(f"{texts.null_count} of {len(texts)} values are null, and nulls have no hash")
    return texts


def _fnv1a(texts: pa.LargeStringArray) -> np.ndarray:
    """Return the FNV-1a hashes of UTF-8 strings, vectorized over strings: one NumPy pass per byte position."""
    _, offset_buffer, byte_buffer = texts.buffers()
    hashes = np.full(len(texts), FNV_START)
    if byte_buffer is None:
        return hashes
    offsets = np.frombuffer(offset_buffer, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    text_bytes = np.frombuffer(byte_buffer, np.uint8)
    starts, lengths = offsets[:-1], np.diff(offsets)
    # By descending length, so that the strings with a byte at `position` are a prefix.
    longest_first = np.argsort(-lengths, kind="stable")
    ascending = np.sort(lengths)
    for position in range(int(ascending[-1])):
        longer = len(texts) - int(np.searchsorted(ascending, position, side="right"))
        rows = longest_first[:longer]
        hashes[rows] = (hashes[rows] ^ text_bytes[starts[rows] + position].astype(np.uint64)) * FNV_FACTOR
    return hashes
