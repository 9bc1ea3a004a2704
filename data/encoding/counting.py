"""Count the occurrences of keys, also of more distinct keys than fit into memory."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.encoding.hashing import hash_values
from data.encoding.keys import KeyIndex, Values, coded_keys

# Counts on disk are divided by the first bits of the keys' hashes, so that one range at a time is merged.
RANGE_BITS = 6
RANGES = 1 << RANGE_BITS


@dataclass(frozen=True, eq=False)
class KeyCounts:
    """Occurrences by key.

    Attributes:
        keys: [size] keys, Arrow int64 or large_string.
        counts: [size] int64 occurrences of each key.
        files: files of further counts, written by `merged`; their keys can also be among `keys`.
    """

    keys: pa.Array
    counts: np.ndarray
    files: tuple[Path, ...] = ()

    @classmethod
    def of(cls, column: str, values: Values) -> "KeyCounts":
        """Count the values of a column without nulls; a key of an Arrow dictionary that occurs twice stays so.

        Raises:
            DataError: if a value is neither an integer nor a string, or if there are both.
        """
        codes, keys = coded_keys(column, values)
        if isinstance(values, pa.DictionaryArray):
            counts = np.bincount(codes + 1, minlength=len(keys) + 1)[1:]
            used = np.flatnonzero(counts)
            return cls(keys, counts) if len(used) == len(keys) else cls(keys.take(pa.array(used)), counts[used])
        groups = group_keys(keys)
        return cls(groups.keys, np.bincount(groups.codes, minlength=len(groups.keys)))

    @classmethod
    def merged(cls, parts: Sequence["KeyCounts"], budget: int, folder: Path) -> "KeyCounts":
        """Return the sum of counts; if it takes more than `budget` bytes, it is written to a folder."""
        files = tuple(file for part in parts for file in part.files)
        keys, counts, hashes = _summed([(part.keys, part.counts) for part in parts])
        if keys.nbytes + counts.nbytes <= budget:
            return cls(keys, counts, files)
        return cls(keys[:0], counts[:0], (*files, _write(keys, counts, hashes, folder)))

    def frequent(self, min_count: int, max_size: int | None) -> tuple[pa.Array, np.ndarray]:
        """Return the keys that occur often enough, by descending count, and ties by value.

        Args:
            min_count: number of occurrences that a key needs.
            max_size: number of keys to return at most, or None.

        Returns:
            Keys, and their [size] int64 counts.
        """
        return self.split(KeyIndex("", pa.array([], pa.int64())), min_count, max_size)[1:]

    def split(self, known: KeyIndex, min_count: int, max_size: int | None) -> tuple[np.ndarray, pa.Array, np.ndarray]:
        """Return the counts of known keys, and the other keys that occur often enough, as `frequent` does.

        Args:
            known: index of the known keys.
            min_count: number of occurrences that another key needs.
            max_size: number of other keys to return at most, or None.

        Returns:
            [known] int64 count of each known key, other keys, and their [size] int64 counts.

        Raises:
            DataError: if the keys are strings where the known ones are integers, or vice versa.
        """
        known_counts = np.zeros(len(known.keys), np.int64)
        found: list[tuple[pa.Array, np.ndarray]] = []
        for keys, counts in self._ranges():
            positions = known.find(keys)[2]
            is_known = positions >= 0
            known_counts[positions[is_known]] = counts[is_known]
            kept = np.flatnonzero(~is_known & (counts >= min_count))
            found.append((keys, counts) if len(kept) == len(keys) else (keys.take(pa.array(kept)), counts[kept]))
            if max_size is not None and sum(len(keys) for keys, _ in found) > 2 * max_size:
                found = [_most_frequent(found, max_size)]
        return known_counts, *_most_frequent(found, max_size)

    def _ranges(self) -> Iterator[tuple[pa.Array, np.ndarray]]:
        """Yield distinct keys and their counts, range of hashes by range."""
        keys, counts, hashes = _summed([(self.keys, self.counts)])
        if not self.files:
            yield keys, counts
            return
        starts = _range_starts(hashes)
        readers = [pa.ipc.open_file(pa.memory_map(str(file))) for file in self.files]
        for number in range(RANGES):
            inside = slice(starts[number], starts[number + 1])
            batches = [reader.get_batch(number) for reader in readers]
            stored = [(batch.column("key"), batch.column("count").to_numpy()) for batch in batches]
            yield _summed([(keys[inside], counts[inside]), *stored])[:2]


@dataclass(frozen=True, eq=False)
class KeyGroups:
    """Equal keys as groups, in the order of their hashes.

    Attributes:
        codes: [n] int64 group of each key.
        keys: [groups] the key of each group.
        hashes: [groups] uint64 hash of each group's key, ascending.
    """

    codes: np.ndarray
    keys: pa.Array
    hashes: np.ndarray


def group_keys(keys: pa.Array) -> KeyGroups:
    """Find equal keys: [n] int64 or large_string, without nulls."""
    hashes = hash_values(keys)
    order = np.argsort(hashes, kind="stable")
    ascending = hashes[order]
    is_first = np.ones(len(keys), bool)
    is_first[1:] = ascending[1:] != ascending[:-1]
    if is_first.all():
        codes = np.empty(len(keys), np.int64)
        codes[order] = np.arange(len(keys))
        return KeyGroups(codes, keys.take(pa.array(order)), ascending)
    codes = np.empty(len(keys), np.int64)
    codes[order] = np.cumsum(is_first) - 1
    distinct = keys.take(pa.array(order[is_first]))
    others = np.sort(order[~is_first])
    same = pc.equal(keys.take(pa.array(others)), distinct.take(pa.array(codes[others])))
    if pc.all(same).as_py():
        return KeyGroups(codes, distinct, ascending[is_first])
    return _group_colliding(keys)


def most_frequent_first(keys: pa.Array, counts: np.ndarray) -> np.ndarray:
    """Return the order of distinct keys by descending count, ties by value: [n] int64 indices."""
    if pa.types.is_integer(keys.type):
        return np.lexsort((keys.to_numpy(), -counts))
    order = pc.sort_indices(keys).to_numpy()
    return order[np.argsort(-counts[order], kind="stable")]


def _group_colliding(keys: pa.Array) -> KeyGroups:
    """Find equal keys where different ones have the same hash."""
    encoded = keys.dictionary_encode()
    hashes = hash_values(encoded.dictionary)
    order = np.lexsort((pc.rank(encoded.dictionary).to_numpy(), hashes))
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return KeyGroups(places[encoded.indices.to_numpy()], encoded.dictionary.take(pa.array(order)), hashes[order])


def _summed(parts: Sequence[tuple[pa.Array, np.ndarray]]) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """Return the distinct keys of all parts in the order of their hashes, their counts, and these hashes."""
    used = [part for part in parts if len(part[0])] or list(parts[:1])
    groups = group_keys(pa.concat_arrays([keys for keys, _ in used]))
    # Sums in float64 are exact up to 2**53.
    sums = np.bincount(groups.codes, np.concatenate([counts for _, counts in used]), minlength=len(groups.keys))
    return groups.keys, sums.astype(np.int64), groups.hashes


def _most_frequent(parts: Sequence[tuple[pa.Array, np.ndarray]], size: int | None) -> tuple[pa.Array, np.ndarray]:
    keys = pa.concat_arrays([keys for keys, _ in parts if len(keys)] or [parts[0][0]])
    counts = np.concatenate([counts for _, counts in parts])
    order = most_frequent_first(keys, counts)[:size]
    return keys.take(pa.array(order)), counts[order]


def _write(keys: pa.Array, counts: np.ndarray, hashes: np.ndarray, folder: Path) -> Path:
    """Write counts in the order of the keys' hashes as a file with a record batch per range."""
    table = pa.record_batch({"key": keys, "count": counts})
    starts = _range_starts(hashes)
    handle, path = tempfile.mkstemp(suffix=".arrow", dir=folder)
    os.close(handle)
    with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        for first, last in zip(starts[:-1], starts[1:], strict=True):
            writer.write_batch(table.slice(first, last - first))
    return Path(path)


def _range_starts(hashes: np.ndarray) -> list[int]:
    """Return where each range of ascending hashes starts, and where the last one ends."""
    firsts = np.arange(RANGES, dtype=np.uint64) << np.uint64(64 - RANGE_BITS)
    return [*np.searchsorted(hashes, firsts).tolist(), len(hashes)]
