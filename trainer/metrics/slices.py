"""Slices of the evaluated rows: the rows that share a value of a column, for the most frequent values."""

import json
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.encoding.hashing import NULL_HASH, hash_values, mix
from trainer.metrics.metric import Collectives
from trainer.metrics.sorting import exchange_columns, run_starts, sum_runs

REST, NULL = "(others)", "(null)"


class Division(NamedTuple):
    """The slices of a column.

    Attributes:
        column: name of the column.
        values: values of the slices as text, the most frequent one first; REST, for all other values, comes last.
        slices: [rows] int64 positions in `values` of this worker's rows.
    """

    column: str
    values: tuple[str, ...]
    slices: np.ndarray


class SliceColumn:
    """The values of a column in the evaluated rows, appended batch by batch.

    Memory: 4 bytes per row of this worker, and each batch's distinct values.
    """

    def __init__(self, name: str) -> None:
        """Create a column without rows."""
        self.name = name
        self._parts: list[pa.DictionaryArray] = []

    def append(self, values: np.ndarray) -> None:
        """Add values, [batch] of numbers, booleans or (dtype object) texts and None; all calls with the same dtype."""
        if np.issubdtype(values.dtype, np.floating):  # Arrow has no dictionaries of float16; 0.0 instead of -0.0
            values = values.astype(np.promote_types(values.dtype, np.float32)) + 0
        array = pa.array(values, type=pa.string() if values.dtype == object else None)
        self._parts.append(array.dictionary_encode())

    def divide(self, most: int, comm: Collectives) -> Division:
        """Divide the rows of all workers into slices. A collective.

        Args:
            most: the largest number of values with a slice of their own: those with the most rows. Among values with
                equally many rows at that limit, the lower numbers are chosen; of texts, those with the lower hash.
            comm: collectives of the group of workers.

        Returns:
            The slices, with the same values on every worker. Texts are compared by 64-bit hashes.
        """
        codes, distinct = self._unified()
        keys = _keys(distinct)
        counts = np.bincount(codes, minlength=len(keys))
        chosen, has_rest = _most_frequent(keys[counts > 0], counts[counts > 0], most, comm)
        texts = _texts_of(chosen, keys, distinct, comm)
        if not texts:  # no worker has a row
            return Division(self.name, (), codes)
        by_key = np.argsort(chosen)
        # A key that is not chosen is found at the place of another one.
        places = np.searchsorted(chosen, keys, sorter=by_key)
        found = by_key[np.minimum(places, len(chosen) - 1)]
        slices = np.where(chosen[found] == keys, found, len(chosen))
        return Division(self.name, (*texts, REST) if has_rest else tuple(texts), slices[codes])

    def _unified(self) -> tuple[np.ndarray, pa.Array]:
        """Return a code per row, [rows] int64, and the value of each code; nulls have a code past the last value."""
        if not self._parts:
            return np.zeros(0, np.int64), pa.array([], pa.int64())
        column = pa.chunked_array(self._parts).unify_dictionaries().combine_chunks()
        array = column if isinstance(column, pa.DictionaryArray) else column.chunk(0)
        codes = pc.fill_null(array.indices, len(array.dictionary)).to_numpy(zero_copy_only=False)
        return codes.astype(np.int64), array.dictionary


def _keys(distinct: pa.Array) -> np.ndarray:
    """Return an integer per value that is the same on every worker, [values] int64; of texts one more for null.

    Those of signed integers and floats are in the order of the values, with NaN last.
    """
    if pa.types.is_string(distinct.type):
        return np.append(hash_values(distinct), NULL_HASH).view(np.int64)
    numbers = distinct.to_numpy(zero_copy_only=False)
    if pa.types.is_floating(distinct.type):
        numbers = numbers.astype(np.float64)
        bits = np.where(np.isnan(numbers), np.nan, numbers).view(np.int64)  # NaN has many bit patterns
        return bits ^ ((bits >> 63) & np.iinfo(np.int64).max)  # those of negative numbers fall with their value
    return numbers.astype(np.int64)


def _most_frequent(keys: np.ndarray, counts: np.ndarray, most: int, comm: Collectives) -> tuple[np.ndarray, bool]:
    """Return the keys with the most rows over all workers, by falling number, and whether there are others.

    Each worker sums the counts of the keys that it is chosen for by their hash. A collective.
    """
    worker = (mix(keys.view(np.uint64)) % np.uint64(comm.size)).astype(np.int64)
    order = np.argsort(worker, kind="stable")
    sent = np.bincount(worker, minlength=comm.size)
    keys, counts = exchange_columns((keys[order], counts[order]), sent.tolist(), comm)
    order = np.argsort(keys, kind="stable")
    starts = run_starts(keys[order])
    keys, counts = keys[order][starts], sum_runs(counts[order], starts, np.int64)
    first = _by_count(keys, counts)[: most + 1]
    keys, counts = (comm.gather_rows(column[first]) for column in (keys, counts))
    order = _by_count(keys, counts)
    return keys[order[:most]], len(order) > most


def _by_count(keys: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the positions that sort by falling count, then by key."""
    return np.lexsort((keys, -counts))


def _texts_of(chosen: np.ndarray, keys: np.ndarray, distinct: pa.Array, comm: Collectives) -> list[str]:
    """Return the values of the chosen keys as texts, which at least one worker knows. A collective."""
    own = np.flatnonzero(np.isin(keys, chosen))
    values = distinct.take(own[own < len(distinct)]).cast(pa.string()).to_pylist()
    pairs = zip(keys[own].tolist(), [*values, NULL], strict=False)
    lines = "".join(f"{json.dumps(pair)}\n" for pair in pairs).encode()
    # Collectives have no bytes of several workers: as integers.
    gathered = comm.gather_rows(np.frombuffer(lines, np.uint8).astype(np.int32))
    texts = dict(json.loads(line) for line in gathered.astype(np.uint8).tobytes().splitlines())
    return [texts[key] for key in chosen.tolist()]
