"""The files of a raw specification, and how their rows become mappings."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from data.errors import listed, nearest, shown
from data.spec.document import Problem, path_of
from data.spec.features import REQUIRED_MAPPINGS
from data.spec.raw.columns import KEY_TYPES, ORDER_TYPES, RawColumns
from data.spec.raw.document import RawChunkKeys, RawParts
from data.spec.raw.spec import LastSplit, RandomSplit, RawChunk, Reading, Split, TimeSplit
from data.spec.raw.values import microseconds
from data.storage.files import find_escape
from data.storage.remote import named

# Attributes of a chunk that are not called like their keys.
_NAMES_OF_KEYS = {"features": "columns", "header": "has_header"}
_CSV_KEYS = ("features", "header", "separator", "quote", "null", "trim")
# The ways to split a source, each with the keys that only it has.
_KEYS_OF_KIND = {"time": ("valid_from", "test_from", "format", "unit"), "random": ("by",), "last": ()}
_UNIT_MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 1e-3}
_SUM_TOLERANCE = 1e-9


def chunk_of(keys: RawChunkKeys) -> RawChunk:
    """Return a chunk, given its keys."""
    stated: Any = {
        _NAMES_OF_KEYS.get(key, key): tuple(value) if isinstance(value, list) else value for key, value in keys.items()
    }
    return RawChunk(**stated)


def listed_columns(parts: RawParts) -> tuple[str, ...] | None:
    """Return all columns of the files if the specification lists them, else None.

    A header, a parquet file, and a folder whose name is a key (`day=2014-10-21`) have other columns.
    """
    chunks = [chunk for source in parts.sources.values() for chunk in source]
    if not chunks or any(location[0] == "source_spec" for location in parts.incomplete):
        return None
    paths = [path for chunk in chunks for path in chunk["files"]]
    is_plain = all(re.fullmatch(r"[^*?\[=]*/?[^/=]*\.[^/=]*", path) and not path.endswith("/") for path in paths)
    if not is_plain or any("features" not in chunk for chunk in chunks):
        return None
    return tuple(dict.fromkeys(column for chunk in chunks for column in chunk.get("features", ())))


def check_chunks(parts: RawParts) -> Iterator[Problem]:
    """Check that the keys of each chunk fit together."""
    for source, chunks in parts.sources.items():
        for index, chunk in enumerate(chunks):
            yield from _check_chunk(chunk, path_of("source_spec", source, index))


def _check_chunk(chunk: RawChunkKeys, path: str) -> Iterator[Problem]:
    if chunk["type"] == "parquet":
        for key in _CSV_KEYS:
            if key in chunk:
                yield Problem(f"{path}.{key}", "is only for csv; a parquet file states it itself: remove it")
        return
    has_header, columns = chunk.get("header", False), chunk.get("features", [])
    if has_header and columns:
        message = "is only for files without a header, which names the columns; remove it, or write header: false"
        yield Problem(f"{path}.features", message)
    elif not has_header and not columns:
        message = "is missing; write header: true if the first line names the columns, or list them in features"
        yield Problem(f"{path}.header", message)
    for index, column in enumerate(columns):
        if column in columns[:index]:
            first = f"{path}.features[{columns.index(column)}]"
            yield Problem(f"{path}.features[{index}]", f"{shown(column)} is already {first}; rename one")
    if chunk.get("quote", '"') == chunk.get("separator", ","):
        yield Problem(f"{path}.quote", "is also the separator; write another character, or null for no quotes")


def check_files(parts: RawParts, folder: Path) -> Iterator[Problem]:
    """Check that paths, globs and folders stay under the specification's folder, and that each occurs once."""
    root, resolved = os.path.realpath(folder), dict[str, str]()
    for source, chunks in parts.sources.items():
        first: dict[str, str] = {}
        for index, chunk in enumerate(chunks):
            for number, file in enumerate(chunk["files"]):
                path = path_of("source_spec", source, index, "files", number)
                if mistake := find_escape(file, root, resolved):
                    yield Problem(path, f"{shown(named(file))} {mistake}, or pass --allow_outside_paths")
                elif os.path.normpath(file) in first:
                    yield Problem(path, f"{shown(file)} is already {first[os.path.normpath(file)]}; keep one")
                first.setdefault(os.path.normpath(file), path)
    for name, keys in parts.features.items():
        if "pretrained" in keys and (mistake := find_escape(keys["pretrained"], root, resolved)):
            path = path_of("feature_spec", name, "pretrained")
            yield Problem(path, f"{shown(named(keys['pretrained']))} {mistake}, or pass --allow_outside_paths")


@dataclass
class RawSplit:
    """How sources are split, while it is checked.

    Attributes:
        parts: well-formed parts of the document.
        columns: raw columns, to which the split adds those that it needs.
        time: reading of the time of a split by time.
        by: reading whose rows of equal value a random split keeps together.
        key: readings that identify a row.
        problems: problems found.
    """

    parts: RawParts
    columns: RawColumns
    time: Reading | None = None
    by: Reading | None = None
    key: list[Reading] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def keys(self) -> dict[str, Any] | None:
        """The keys of `split`, or None without it."""
        return self.parts.others.get("split")

    def check(self) -> None:
        """Check the split, the columns that it names, and that all mappings exist once."""
        if any(location[:1] == ("split",) for location in self.parts.incomplete):
            return
        if self.keys is not None:
            self._check_sources(self.keys)
            self._check_kind(self.keys)
        self._check_mappings()

    def made(self) -> list[str]:
        """Return the names of the mappings that the split makes, in order."""
        keys = self.keys or {}
        if "time" in keys:
            return ["train", *(name for name in ("valid", "test") if f"{name}_from" in keys)]
        fractions = keys.get("random", keys.get("last", {}))
        rest = 1 - sum(fractions.values())
        return [*(["train"] if fractions and rest > _SUM_TOLERANCE else []), *fractions]

    def build(self, names: dict[Reading, Reading]) -> Split | None:
        """Return the split, given the names of all readings; there must be no problems."""
        keys = self.keys or {}
        sources = tuple(keys.get("from", ()))
        if self.time is not None:
            valid, test = (self._bound(keys.get(name)) for name in ("valid_from", "test_from"))
            return TimeSplit(sources, names[self.time].name, valid, float("inf") if test is None else test)
        if "random" in keys:
            return RandomSplit(sources, dict(keys["random"]), None if self.by is None else names[self.by].name)
        return LastSplit(sources, dict(keys["last"])) if "last" in keys else None

    def _check_sources(self, keys: dict[str, Any]) -> None:
        sources = keys.get("from", [])
        for index, source in enumerate(sources):
            path = path_of("split", "from", index) if len(sources) > 1 else "split.from"
            if source not in self.parts.sources and ("source_spec",) not in self.parts.incomplete:
                known = tuple(self.parts.sources)
                self.problems.append(Problem(path, f"{shown(source)} is not in source_spec", source, known))
            elif source in sources[:index]:
                self.problems.append(Problem(path, f"{shown(source)} is named twice; keep one"))

    def _check_kind(self, keys: dict[str, Any]) -> None:
        found = [
            self.columns.refer(name, path_of("split", "key", i), KEY_TYPES)
            for i, name in enumerate(keys.get("key", ()))
        ]
        self.key = [reading for reading in found if reading is not None]
        kinds = [kind for kind in _KEYS_OF_KIND if kind in keys]
        if len(kinds) > 1 or (not kinds and ("key" not in keys or "from" in keys)):
            says = f"states {' and '.join(kinds)}; keep one" if kinds else "lacks the way; write time, random or last"
            self.problems.append(Problem("split", says))
            return
        if kinds and "from" not in keys:
            message = "is missing; write the name of the source in source_spec to split"
            self.problems.append(Problem("split.from", message))
        for kind, others in _KEYS_OF_KIND.items():
            for key in others:
                if key in keys and kind not in kinds:
                    self.problems.append(Problem(f"split.{key}", f"is only for a split by {kind}; remove it"))
        if "time" in keys:
            self._check_time(keys)
        elif kinds:
            self._check_fractions(keys, kinds[0])

    def _check_time(self, keys: dict[str, Any]) -> None:
        bounds = {name: keys[name] for name in ("valid_from", "test_from") if name in keys}
        if "format" in keys and "unit" in keys:
            message = "is for numbers, and format for text; keep the one that says how the column is written"
            self.problems.append(Problem("split.unit", message))
        if not bounds or ("test_from" not in bounds and "test" not in self.parts.sources):
            message = "is missing; write the first time of mapping test, such as 2014-10-30"
            self.problems.append(Problem("split.test_from", message))
        is_time = any(isinstance(value, datetime) for value in bounds.values()) or "format" in keys or "unit" in keys
        if is_time:
            self.time = self.columns.refer(keys["time"], "split.time", ("timestamp",), "timestamp")
        elif bounds:
            self.time = self.columns.refer(keys["time"], "split.time", ORDER_TYPES, "float64")
        for name, value in bounds.items():
            if self.time is not None and self.time.dtype == "timestamp" and not self._is_bound(value):
                message = f"is a number, and {shown(keys['time'])} is a timestamp; write a date, or state its `unit`"
                self.problems.append(Problem(f"split.{name}", message))
                return
        if len(bounds) == 2 and self.time is not None:
            valid, test = (self._bound(bounds[name]) for name in ("valid_from", "test_from"))
            if valid is not None and test is not None and valid >= test:
                self.problems.append(Problem("split.test_from", "is not later than valid_from; write a later time"))

    def _is_bound(self, value: datetime | float) -> bool:
        return isinstance(value, datetime) or (self.time is not None and self.time.unit is not None)

    def _bound(self, value: datetime | float | None) -> float | None:
        """Return a bound in the unit of the values that are compared with it."""
        if isinstance(value, datetime):
            return microseconds(value)
        if value is None or self.time is None or self.time.dtype != "timestamp":
            return value
        return value * _UNIT_MICROSECONDS[self.time.unit or "us"]

    def _check_fractions(self, keys: dict[str, Any], kind: str) -> None:
        total = sum(keys[kind].values())
        if "train" in keys[kind]:
            self.problems.append(Problem(f"split.{kind}.train", "is what the other mappings leave; remove it"))
        elif total > 1 + _SUM_TOLERANCE:
            message = f"the fractions add up to {total:g}; write fractions with a sum of at most 1"
            self.problems.append(Problem(f"split.{kind}", message))
        if "by" in keys:
            self.by = self.columns.refer(keys["by"], "split.by", KEY_TYPES)

    def _check_mappings(self) -> None:
        """Check that train and test exist, and that no mapping is both split off and given as files."""
        if ("source_spec",) in self.parts.incomplete:
            return
        sources = (self.keys or {}).get("from", [])
        given = [name for name in self.parts.sources if name not in sources]
        made = self.made()
        for name in made:
            if name in given:
                message = f"the split makes {shown(name)} too; rename this source, or name it in split.from"
                self.problems.append(Problem(path_of("source_spec", name), message))
        for name in REQUIRED_MAPPINGS:
            if name in given or name in made:
                continue
            if self.keys is None:
                others = [other for other in given if other not in REQUIRED_MAPPINGS]
                near = nearest(name, others)
                hint = f"; is it the one called {near!r}?" if near else ""
                split = f"split: {{from: {others[0]}, random: {{test: 0.2}}}}" if others else "a list of chunks"
                message = f"this mapping is missing{hint or f'; write {split}'}"
                self.problems.append(Problem(path_of("source_spec", name), message))
            elif not self.problems:
                found = listed(made, len(made)) or "none"
                message = f"mapping {name!r} is missing: the split makes {found}; add it to the split or to source_spec"
                self.problems.append(Problem("split", message))
