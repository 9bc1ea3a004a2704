"""Encodes raw columns to the inputs of a model, with NumPy alone.

The folder that is read holds `layout.json`, which describes columns and groups of features with encoders of one kind,
and the arrays of known values. Known texts of a group are found by a hash of feature and text, and then compared.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]

PAD, NULL_ID, FIRST_UNSEEN_ID, FIRST_VALUE_ID = -1, 1, 2, 3
NULL_INTEGER = -(2**63)
TICKS_PER_SECOND = 1_000_000
TICKS_PER_HOUR = 3600 * TICKS_PER_SECOND
TEXT = "string"
UNKNOWN = -1

FNV_START, FNV_FACTOR = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
STEP = np.uint64(0x9E3779B97F4A7C15)
FIRST_FACTOR, SECOND_FACTOR = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
NULL_HASH = np.uint64(0)


def mix(words: np.ndarray) -> np.ndarray:
    """Mix the bits of [n] uint64 (SplitMix64)."""
    words = words + STEP
    words = (words ^ (words >> np.uint64(30))) * FIRST_FACTOR
    words = (words ^ (words >> np.uint64(27))) * SECOND_FACTOR
    return words ^ (words >> np.uint64(31))


class Texts:
    """Byte strings in one buffer, and their hashes.

    Args:
        texts: [n] byte strings or strings.
    """

    def __init__(self, texts: Sequence[Any]):
        encoded = [text if isinstance(text, bytes) else str(text).encode() for text in texts]
        self.bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self.lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.hashes = mix(self._fnv1a())

    def _fnv1a(self) -> np.ndarray:
        """Return the FNV-1a hashes, vectorized over texts: one pass per byte position."""
        hashes = np.full(len(self.lengths), FNV_START)
        # By descending length, so that the texts with a byte at a position are a prefix.
        order = np.argsort(-self.lengths, kind="stable")
        starts, ascending = self.starts[order], self.lengths[order][::-1]
        longest = int(ascending[-1]) if len(ascending) else 0
        ends = len(order) - np.searchsorted(ascending, np.arange(longest), side="right")
        for position, end in enumerate(ends.tolist()):
            byte = self.bytes[starts[:end] + position].astype(np.uint64)
            hashes[:end] = (hashes[:end] ^ byte) * FNV_FACTOR
        found = np.empty_like(hashes)
        found[order] = hashes
        return found


class Values:
    """Values of raw columns of one type, [rows, columns], or [rows, length] of a column of lists.

    Args:
        values: byte strings, int64 or float64; times in microseconds.
        null: whether each value is null.
        texts: the values in row order, if they are strings.
    """

    def __init__(self, values: np.ndarray, null: np.ndarray, texts: Texts | None = None):
        self.values, self.null, self.texts = values, null, texts

    @property
    def numbers(self) -> np.ndarray:
        """The values as float64, NaN where null."""
        return self.values if self.values.dtype == np.float64 else np.where(self.null, np.nan, self.values)

    @property
    def hashes(self) -> np.ndarray:
        """The hashes of the values, uint64; unspecified where null."""
        flat = mix(self.values.view(np.uint64)) if self.texts is None else self.texts.hashes
        return flat.reshape(self.values.shape)


class TextIndex:
    """Finds texts among the known ones of several features.

    Args:
        arrays: `keys` [known] uint64, ascending mixtures of the hash of a text and the salt of its feature; `ids`
            [known] int64; `starts` [known + 1] int64 and `bytes`, the texts in the order of the keys.
        salts: salt of each feature.
    """

    def __init__(self, arrays: Arrays, salts: Sequence[int]):
        self._keys, self._ids, self._starts, self._bytes = (arrays[name] for name in ("keys", "ids", "starts", "bytes"))
        self._salts = np.array(salts, np.uint64)
        self._repeats = int(arrays["repeats"].max())  # how often a key occurs at most; nearly always once

    def find(self, raw: Values) -> np.ndarray:
        """Return the ids of values, UNKNOWN for others: int64 of their shape."""
        if raw.texts is None:
            raise TypeError("the values are no texts")
        found = np.full(raw.values.size, UNKNOWN)
        if len(self._keys):
            wanted = mix(raw.hashes ^ self._salts).reshape(-1)
            at = np.searchsorted(self._keys, wanted)
            for repeat in range(self._repeats):
                places = np.minimum(at + repeat, len(self._keys) - 1)
                rows = np.flatnonzero(self._keys[places] == wanted)
                rows = rows[self._equal(places[rows], raw.texts, rows)]
                found[rows] = self._ids[places[rows]]
        return found.reshape(raw.values.shape)

    def _equal(self, places: np.ndarray, texts: Texts, rows: np.ndarray) -> np.ndarray:
        """Return whether known texts equal texts: [n] bool."""
        known, lengths = self._starts[places], texts.lengths[rows]
        equal = self._starts[places + 1] - known == lengths
        known, starts, lengths = known[equal], texts.starts[rows[equal]], lengths[equal]
        number = np.repeat(np.arange(len(lengths)), lengths)
        inside = np.arange(len(number)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        differs = self._bytes[known[number] + inside] != texts.bytes[starts[number] + inside]
        equal[np.flatnonzero(equal)[number[differs]]] = False
        return equal


class IntegerIndex:
    """Finds integers among the known ones of one or several features.

    Args:
        known: ascending keys and the id of each, by feature.
    """

    def __init__(self, known: Sequence[tuple[np.ndarray, np.ndarray]]):
        self._known = known

    def find(self, raw: Values) -> np.ndarray:
        """Return the ids of values, UNKNOWN for others: int64 of their shape."""
        parts = [
            _find_integers(keys, ids, part)
            for (keys, ids), part in zip(self._known, _split(raw.values, len(self._known)), strict=True)
        ]
        return np.concatenate(parts, axis=1)


class RawEncoder:
    """The encoders of a model.

    Args:
        folder: folder of `layout.json`.

    Attributes:
        inputs: type of each raw column by name: string, int64 or float64; float32 for a vector.
        lists: names of the columns of lists.
    """

    def __init__(self, folder: Path):
        layout = json.loads((folder / "layout.json").read_text())
        self.inputs = {name: column["dtype"] for name, column in layout["columns"].items()}
        self.lists = {name for name, column in layout["columns"].items() if column["is_list"]}
        self._columns, self._outputs = layout["columns"], layout["outputs"]
        self._steps = {feature: tuple(columns) for feature, columns in layout["steps"].items()}
        self._vectors = layout["vectors"]
        self._groups = [(group, _encode_function(group, folder)) for group in layout["groups"]]

    def encode(self, raw: Mapping[str, np.ndarray]) -> Arrays:
        """Encode raw columns.

        Args:
            raw: [rows, 1], [rows, length] for columns of lists, or [rows, dimension] for vectors, by column name.

        Returns:
            [rows, width] int32 ids or float32 numbers by feature name.

        Raises:
            ValueError: if a value is not an id of its feature, or the columns of a sequence differ in length; the
                message names them.
        """
        self.check_lengths(raw)
        singles = self._singles(raw)
        lists = {name: read_column([self._columns[name]], [raw[name]]) for name in self.lists}
        made, nulls = {feature: raw[column] for feature, column in self._vectors.items()}, Arrays()
        ends = {columns: _end([lists[name].null for name in columns]) for columns in set(self._steps.values())}
        for group, encode in self._groups:
            features = group["features"]
            if group["kind"] == "cross":
                read = of_ids = self._crossed(group, lists, singles, made, nulls)
            elif group["is_list"]:
                (name,) = group["columns"]
                # The column of the ids whose weights these are, or the column itself.
                read, of_ids = lists[name], lists[self._columns[name]["ids"]]
            else:
                read = of_ids = self._selected(singles, group["columns"])
            if group["is_list"]:
                steps = self._steps.get(features[0])
                nulls[features[0]] = of_ids.null if steps is None else ends[steps]
            for feature, part in zip(features, _split(encode(read), len(features)), strict=True):
                made[feature] = part  # of lists, all items, which crosses take
        return {feature: self._output(feature, made[feature], nulls.get(feature)) for feature in self._outputs}

    def _output(self, feature: str, values: np.ndarray, null: np.ndarray | None) -> np.ndarray:
        """Return a feature as the model takes it; `null` tells which items of lists are padding."""
        made = values if null is None else self._padded(feature, values, null)
        return made.astype(self._outputs[feature]["dtype"])

    def check_lengths(self, raw: Mapping[str, np.ndarray]) -> None:
        """Raise a ValueError if the columns of a sequence differ in length."""
        for columns in set(self._steps.values()):
            lengths = [raw[name].shape[1] for name in columns]
            if len(set(lengths)) > 1:
                raise ValueError(
                    f"the columns {', '.join(columns)} of a sequence need matrices of the same length, not of {lengths}"
                )

    def _singles(self, raw: Mapping[str, np.ndarray]) -> "Singles":
        """Join the columns without lists by type: {type: (place of each column, values)}."""
        singles = {}
        for dtype in (TEXT, "int64", "float64"):
            names = [name for name, kind in self.inputs.items() if kind == dtype and name not in self.lists]
            if names:
                values = read_column([self._columns[name] for name in names], [raw[name] for name in names])
                singles[dtype] = {name: place for place, name in enumerate(names)}, values
        return singles

    def _selected(self, singles: "Singles", names: Sequence[str]) -> Values:
        """Return columns of one type."""
        places, whole = singles[self.inputs[names[0]]]
        chosen = [places[name] for name in names]
        if len(chosen) == len(places) and chosen == sorted(chosen):
            return whole
        values, texts = whole.values[:, chosen], whole.texts
        if texts is not None:
            texts = _selected_texts(texts, np.arange(whole.values.size).reshape(whole.values.shape)[:, chosen])
        return Values(values, whole.null[:, chosen], texts)

    def _crossed(
        self, group: dict[str, Any], lists: Mapping[str, Values], singles: "Singles", made: Arrays, nulls: Arrays
    ) -> Values:
        """Return the keys of a cross, [rows, 1] int64, not null; with a list [rows, length], null where that is."""
        hashes, null = np.zeros(1, np.uint64), np.zeros(1, bool)
        for name, is_feature, is_list in group["inputs"]:
            if is_feature:
                key, missing = mix(made[name].astype(np.int64).view(np.uint64)), nulls.get(name, null)
            else:
                read = lists[name] if is_list else self._selected(singles, [name])
                key, missing = np.where(read.null, NULL_HASH, read.hashes), read.null
            hashes, null = mix(hashes ^ key), missing if is_list else null
        return Values(hashes.view(np.int64), np.broadcast_to(null, hashes.shape))

    def _padded(self, feature: str, values: np.ndarray, null: np.ndarray) -> np.ndarray:
        """Return the ids of a list feature, or their weights, [rows, width], padded where the raw ids are null."""
        output = self._outputs[feature]
        width, padding = output["width"], PAD if output["dtype"] == "int32" else 0
        # Clients pad ids and weights by themselves. Appending `width` makes any row long enough for a slice.
        length = max(values.shape[1], null.shape[1]) + width
        null = np.pad(null, ((0, 0), (0, length - null.shape[1])), constant_values=True)
        values = np.pad(values, ((0, 0), (0, length - values.shape[1])))
        values = np.where(null, values.dtype.type(padding), values)
        first = np.maximum((~null).sum(axis=1) - width, 0) if output["keeps_last"] else np.zeros(len(null), np.int64)
        return np.take_along_axis(values, first[:, None] + np.arange(width), axis=1)


class RequestEncoder:
    """The encoders of a model of ranking requests.

    Args:
        folder: folder of `request` and `candidates`, with the encoders of what a request has once, and of what it has
            for each candidate.
    """

    def __init__(self, folder: Path):
        self._request, self._candidates = (RawEncoder(folder / side) for side in ("request", "candidates"))

    def encode(self, raw: Mapping[str, np.ndarray]) -> Arrays:
        """Encode raw columns like `RawEncoder.encode`: one row of the request's, a row of the others by candidate."""
        once = self._request.inputs
        rows = next(len(raw[name]) for name in self._candidates.inputs if name not in once)
        # Crosses of candidates read columns of the request, too.
        columns = {
            name: np.repeat(raw[name], rows, axis=0) if name in once else raw[name] for name in self._candidates.inputs
        }
        return self._request.encode({name: raw[name] for name in once}) | self._candidates.encode(columns)


# By type: the place of each column, and the values of all.
Singles = dict[str, tuple[dict[str, int], Values]]


def read_column(columns: Sequence[Mapping[str, Any]], arrays: Sequence[np.ndarray]) -> Values:
    """Join columns of one type, [rows, 1] each, or take one of lists; times become microseconds."""
    values = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=1)
    if columns[0]["dtype"] == TEXT:
        texts = Texts(values.reshape(-1).tolist())
        has_empty = np.array([column["has_empty"] for column in columns])
        return Values(values, (texts.lengths == 0).reshape(values.shape) & ~has_empty, texts)
    if columns[0]["dtype"] == "float64":
        values = values.astype(np.float64, copy=False)
        return Values(values, np.isnan(values))
    values = np.ascontiguousarray(values, np.int64)
    null = values == NULL_INTEGER
    if any(column["is_time"] for column in columns):
        values = values * np.array([TICKS_PER_SECOND if column["is_time"] else 1 for column in columns])
    return Values(values, null)


def _end(nulls: Sequence[np.ndarray]) -> np.ndarray:
    """Return which steps of a sequence come after the last one that has a value in a column, [rows, length] bool.

    Args:
        nulls: which values of each column are null, [rows, length] bool.
    """
    null = np.logical_and.reduce(nulls)
    return np.logical_and.accumulate(null[:, ::-1], axis=1)[:, ::-1]


# Encoders: functions of the settings of a group and of values, one column for each of its features.


def _vocabulary(index: TextIndex | IntegerIndex, unseen: np.ndarray, raw: Values) -> np.ndarray:
    ids = index.find(raw)
    is_unseen = ids == UNKNOWN
    if is_unseen.any():
        shared = FIRST_UNSEEN_ID + (raw.hashes % unseen).astype(np.int64)
        ids = np.where(is_unseen, shared, ids)
    return np.where(raw.null, NULL_ID, ids)


def _ranks(index: TextIndex | IntegerIndex, unseen: np.ndarray, raw: Values) -> np.ndarray:
    ids = index.find(raw)
    return np.where((ids == UNKNOWN) | raw.null, unseen, ids)


def _hashed(first: np.ndarray, null: np.ndarray, number: np.ndarray, raw: Values) -> np.ndarray:
    return np.where(raw.null, null, first + (raw.hashes % number).astype(np.int64))


def _identity(features: Sequence[str], limits: np.ndarray, raw: Values) -> np.ndarray:
    wrong = ((raw.values < 0) | (raw.values >= limits)) & ~raw.null
    if wrong.any():
        row, place = np.argwhere(wrong)[0]
        feature = features[place if len(features) > 1 else 0]
        limit = limits[place if len(limits) > 1 else 0]
        raise ValueError(f"feature {feature!r} has the id {raw.values[row, place]}, out of range [0, {limit})")
    return np.where(raw.null, NULL_ID, raw.values)


def _intervals(boundaries: Sequence[np.ndarray], raw: Values) -> np.ndarray:
    parts = zip(boundaries, _split(raw.numbers, len(boundaries)), strict=True)
    ids = np.concatenate([np.searchsorted(bounds, part, side="right") for bounds, part in parts], axis=1)
    return np.where(np.isnan(raw.numbers), NULL_ID, FIRST_VALUE_ID + ids)


def _part_of_time(part: str, raw: Values) -> np.ndarray:
    hours = raw.values // TICKS_PER_HOUR
    days = hours // 24
    if part == "hour":
        number = hours % 24
    elif part == "weekday":
        number = (days + 3) % 7  # the epoch was a Thursday
    else:
        dates = days.astype("datetime64[D]")
        number = (dates - dates.astype("datetime64[M]").astype("datetime64[D]")).astype(np.int64)
    return np.where(raw.null, NULL_ID, FIRST_VALUE_ID + number)


def _numbers(
    steps: Sequence[tuple[str, list[np.ndarray]]],
    index: TextIndex | IntegerIndex | None,
    tables: Sequence[np.ndarray],
    raw: Values,
) -> np.ndarray:
    if index is None:
        numbers = raw.numbers
    else:
        found = np.where(raw.null, UNKNOWN, index.find(raw))  # UNKNOWN is -1: the default is last in a table
        parts = zip(tables, _split(found, len(tables)), strict=True)
        numbers = np.concatenate([table[part] for table, part in parts], axis=1)
    with np.errstate(all="ignore"):
        for kind, settings in steps:
            numbers = _step(kind, settings, numbers)
    return numbers.astype(np.float32)


def _step(kind: str, settings: list[np.ndarray], numbers: np.ndarray) -> np.ndarray:
    if kind == "fill":
        return np.where(np.isnan(numbers), settings[0], numbers)
    if kind == "log1p":
        return np.log(numbers + 1)
    if kind == "clip":
        return np.clip(numbers, *settings)
    start, width = settings  # of "scale"
    return (numbers - start) / width


def _missing(raw: Values) -> np.ndarray:
    return raw.null.astype(np.float32)


def _encode_function(group: dict[str, Any], folder: Path) -> Callable[[Values], np.ndarray]:
    kind = group["encoder"]
    if kind in ("vocabulary", "ranks"):
        encode = _vocabulary if kind == "vocabulary" else _ranks
        unseen = np.array(group["unseen"], np.uint64 if kind == "vocabulary" else np.int64)
        return partial(encode, _index(group, folder), unseen)
    if kind == "hashed":
        return partial(_hashed, np.array(group["first"]), np.array(group["null"]), np.array(group["number"], np.uint64))
    if kind == "identity":
        return partial(_identity, group["features"], np.array(group["cardinality"]))
    if kind == "intervals":
        return partial(_intervals, [np.array(bounds, np.float64) for bounds in group["boundaries"]])
    if kind == "timestamp":
        return partial(_part_of_time, group["part"])
    if kind == "numbers":
        steps = [(name, [np.array(values, np.float64) for values in settings]) for name, settings in group["steps"]]
        tables = [_load(folder, f"{name}.numbers") for name in group["tables"]]
        return partial(_numbers, steps, _index(group, folder) if tables else None, tables)
    if kind == "missing":
        return _missing
    raise ValueError(f"{folder}: has encoders of the unknown kind {kind!r}")


def _index(group: dict[str, Any], folder: Path) -> TextIndex | IntegerIndex:
    names = group["index"]
    if group["dtype"] == TEXT:
        arrays = {part: _load(folder, f"{names[0]}.{part}") for part in ("keys", "ids", "starts", "bytes", "repeats")}
        return TextIndex(arrays, group["salts"])
    return IntegerIndex([(_load(folder, f"{name}.keys"), _load(folder, f"{name}.ids")) for name in names])


def _load(folder: Path, name: str) -> np.ndarray:
    return np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)


def _find_integers(keys: np.ndarray, ids: np.ndarray, values: np.ndarray) -> np.ndarray:
    if not len(keys):
        return np.full(values.shape, UNKNOWN)
    places = np.minimum(np.searchsorted(keys, values), len(keys) - 1)
    return np.where(keys[places] == values, ids[places], UNKNOWN)


def _selected_texts(texts: Texts, places: np.ndarray) -> Texts:
    """Return some of the texts, in the same buffer."""
    chosen, flat = object.__new__(Texts), places.reshape(-1)
    chosen.bytes, chosen.lengths, chosen.starts = texts.bytes, texts.lengths[flat], texts.starts[flat]
    chosen.hashes = texts.hashes[flat]
    return chosen


def _split(values: np.ndarray, number: int) -> list[np.ndarray]:
    """Split values into their columns; those of a single feature stay whole."""
    return [values] if number == 1 else [values[:, place : place + 1] for place in range(number)]
