"""Save encoders to a checksummed folder, and load them.

encoders.json                 version, name of the hash, and the settings of every feature's encoder
vocabulary.FEATURE.parquet    value (null for a free id), count, id, unseen_for
table.FEATURE.parquet         value, number
manifest.json                 see `data.storage.checksummed_dir`
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.encoding.encoders import (
    CLIP,
    FILL,
    LOG1P,
    MINMAX,
    NULL_ID,
    PAD_ID,
    SCALE,
    BucketizedIds,
    CrossedIds,
    CrossInput,
    Encoder,
    HashedIds,
    HashedRanks,
    IdentityIds,
    MissingIndicator,
    Numerical,
    Step,
    TimestampIds,
    Vocabulary,
)
from data.encoding.keys import KeyTable
from data.encoding.workflow_folder import SETTINGS_FILE
from data.errors import DataError, shown
from data.spec.features import MAX_CARDINALITY, name_mistake
from data.storage.checksummed_dir import Content, StorageError, open_verified, write_checksummed
from data.storage.tables import from_parquet, to_parquet
from data.storage.typed_json import read_typed

VERSION = 2
HASH = "fnv1a64-splitmix64"
FIX = "prepare the dataset again"
# Reads a file of the folder by name, after verifying its checksum.
ReadFile = Callable[[str], bytes]
# Types of the settings of each step of a `Numerical`.
STEP_SETTINGS: dict[str, tuple[Any, ...]] = {
    FILL: (float,),
    LOG1P: (),
    CLIP: (float | None, float | None),
    SCALE: (float, float),
    MINMAX: (float, float),
}


def save_encoders(encoders: Mapping[str, Encoder], folder: Path, others: Mapping[str, Content] | None = None) -> None:
    """Write encoders, by feature name, to a new folder, along with other files of the workflow.

    Raises:
        DataError: if the folder exists, or a feature name cannot be part of a file name.
        StorageError: if the folder cannot be written.
    """
    if os.path.lexists(folder):
        raise DataError(f"{folder}: already exists; choose a new folder for the encoders")
    files: dict[str, Content] = dict(others or {})
    settings = {feature: _settings(feature, encoder, files) for feature, encoder in encoders.items()}
    files[SETTINGS_FILE] = {"version": VERSION, "hash": HASH, "features": settings}
    write_checksummed(Path(folder), files=files)


def load_encoders(folder: Path) -> dict[str, Encoder]:
    """Load what `save_encoders` wrote, in the original order of the features.

    Raises:
        DataError: if a file is missing, damaged, or has another version.
    """
    stored = open_verified(Path(folder), FIX)
    try:
        settings = stored.read_json(SETTINGS_FILE)
        if (settings["version"], settings["hash"]) != (VERSION, HASH):
            raise ValueError(
                f"version {settings['version']!r} with hash {settings['hash']!r}, this program reads version {VERSION} "
                f"with {HASH!r}"
            )
        return {feature: _encoder(entry, stored.read_file) for feature, entry in settings["features"].items()}
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        raise DataError(f"{folder}: does not contain valid encoders of this program: {error!r}; {FIX}") from error
    except (pa.ArrowException, StorageError) as error:
        raise DataError(f"{folder}: does not contain valid encoders of this program: {error}; {FIX}") from error


def _settings(feature: str, encoder: Encoder, files: dict[str, Content]) -> dict[str, Any]:
    """Return the JSON entry of an encoder, and add the files that it refers to to `files`."""
    if mistake := name_mistake(feature):  # it becomes part of a file name
        raise DataError(f"feature {shown(feature)}: {mistake}; rename the feature")
    writers: dict[type, Callable[..., dict[str, Any]]] = {
        Vocabulary: _vocabulary_settings,
        HashedRanks: _ranks_settings,
        CrossedIds: _crossed_settings,
        Numerical: _numerical_settings,
    }
    write = writers.get(type(encoder))
    entry = write(feature, encoder, files) if write else asdict(encoder)  # type: ignore[call-overload]
    return {"kind": KINDS[type(encoder)], **entry}


def _vocabulary_settings(feature: str, encoder: Vocabulary, files: dict[str, Content]) -> dict[str, Any]:
    file = f"vocabulary.{feature}.parquet"
    ids = np.arange(len(encoder.values), dtype=np.int64) + encoder.first_known_id
    columns = {"value": encoder.values, "count": encoder.counts, "id": ids, "unseen_for": encoder.unseen_for}
    files[file] = to_parquet(pa.table(columns))
    entry = {"column": encoder.column, "oov_buckets": encoder.oov_buckets, "is_list": encoder.is_list}
    return {**entry, "cardinality": encoder.cardinality, "file": file}


def _ranks_settings(feature: str, encoder: HashedRanks, files: dict[str, Content]) -> dict[str, Any]:
    file = f"vocabulary.{feature}.parquet"
    files[file] = to_parquet(pa.table({"value": encoder.values}))
    return {"column": encoder.column, "num_buckets": encoder.num_buckets, "file": file}


def _crossed_settings(feature: str, encoder: CrossedIds, files: dict[str, Content]) -> dict[str, Any]:
    entry = {
        "inputs": [asdict(entry) for entry in encoder.inputs],
        "encoder": _settings(feature, encoder.encoder, files),
    }
    return entry if encoder.list_input is None else {**entry, "list_input": encoder.list_input}


def _numerical_settings(feature: str, encoder: Numerical, files: dict[str, Content]) -> dict[str, Any]:
    entry = {
        "column": encoder.column,
        "steps": [list(step) for step in encoder.steps],
        "is_list": encoder.is_list,
    }
    if encoder.table is None:
        return entry
    file = f"table.{feature}.parquet"
    files[file] = to_parquet(pa.table({"value": encoder.table.keys, "number": encoder.table.numbers}))
    return {**entry, "table": {"file": file, "default": encoder.table.default}}


def _encoder(entry: dict[str, Any], read: ReadFile) -> Encoder:
    kinds = {name: kind for kind, name in KINDS.items()}
    if entry["kind"] not in kinds:
        raise ValueError(f"encoders of kind {entry['kind']!r}")
    kind = kinds[entry["kind"]]
    if kind in READERS:
        return READERS[kind](entry, read)
    encoder: Encoder = read_typed(kind, {name: value for name, value in entry.items() if name != "kind"}, "encoder")
    _check(encoder)
    return encoder


def _check(encoder: Encoder) -> None:
    """Raise a ValueError for settings with the right types that no encoder can have."""
    if isinstance(encoder, HashedIds) and encoder.first_id not in (PAD_ID, NULL_ID + 1):
        raise ValueError(f"first_id is {encoder.first_id}")
    if isinstance(encoder, HashedIds | IdentityIds):
        ids = encoder.num_buckets if isinstance(encoder, HashedIds) else encoder.cardinality
        if not 1 <= ids <= MAX_CARDINALITY:
            raise ValueError(f"{ids} ids")
    if isinstance(encoder, BucketizedIds) and (np.diff(encoder.boundaries) <= 0).any():
        raise ValueError("boundaries that do not ascend")


def _vocabulary(entry: dict[str, Any], read: ReadFile) -> Vocabulary:
    columns = from_parquet(read(entry["file"]))
    counts = _integers(columns, "count")
    unseen_for = np.zeros(len(columns), np.int64)
    if "unseen_for" in columns.column_names:  # earlier versions did not store it
        unseen_for = _integers(columns, "unseen_for")
    if counts[columns["value"].is_null().to_numpy()].any():
        raise ValueError(f"{entry['file']}: a free id, whose value is null, has a count")
    buckets, is_list = _count(entry, "oov_buckets"), _flag(entry, "is_list")
    return Vocabulary(_column(entry), columns["value"], counts, buckets, is_list, unseen_for)


def _integers(columns: pa.Table, name: str) -> np.ndarray:
    column = columns[name].cast(pa.int64())
    if column.null_count:
        raise ValueError(f"column {name!r} with nulls")
    return column.to_numpy()


def _hashed_ranks(entry: dict[str, Any], read: ReadFile) -> HashedRanks:
    return HashedRanks(_column(entry), from_parquet(read(entry["file"]))["value"], _count(entry, "num_buckets"))


def _crossed(entry: dict[str, Any], read: ReadFile) -> CrossedIds:
    encoder = _encoder(entry["encoder"], read)
    if not isinstance(encoder, Vocabulary | HashedIds):
        raise ValueError(f"a cross with an encoder of kind {entry['encoder']['kind']!r}")
    inputs = read_typed(tuple[CrossInput, ...], entry["inputs"], "inputs")
    list_input = read_typed(str, entry["list_input"], "list_input") if "list_input" in entry else None
    if list_input is not None and list_input not in [one.name for one in inputs]:
        raise ValueError(f"list_input {list_input!r}, which is not an input of the cross")
    return CrossedIds(inputs, encoder, list_input)


def _numerical(entry: dict[str, Any], read: ReadFile) -> Numerical:
    table = None
    if "table" in entry:
        columns = from_parquet(read(entry["table"]["file"]))
        numbers = columns["number"].cast(pa.float64()).to_numpy()
        table = KeyTable(columns["value"], numbers, read_typed(float, entry["table"]["default"], "default"))
    steps = tuple(_step(step, f"steps[{index}]") for index, step in enumerate(entry["steps"]))
    return Numerical(_column(entry), table, steps, _flag(entry, "is_list"))


def _step(step: list[Any], location: str) -> Step:
    kind, *settings = step
    pairs = zip(STEP_SETTINGS[kind], settings, strict=True)
    return kind, *(read_typed(hint, value, location) for hint, value in pairs)


def _column(entry: dict[str, Any]) -> str:
    column: str = read_typed(str, entry["column"], "column")
    return column


def _flag(entry: dict[str, Any], name: str) -> bool:
    flag: bool = read_typed(bool, entry[name], name)
    return flag


def _count(entry: dict[str, Any], name: str) -> int:
    count: int = read_typed(int, entry[name], name)
    if not 1 <= count <= MAX_CARDINALITY:
        raise ValueError(f"{name} is {count}")
    return count


KINDS: dict[type, str] = {
    Vocabulary: "vocabulary",
    HashedIds: "hashed",
    HashedRanks: "hashed_ranks",
    IdentityIds: "identity",
    BucketizedIds: "bucketized",
    TimestampIds: "timestamp",
    CrossedIds: "crossed",
    Numerical: "numerical",
    MissingIndicator: "missing",
}
# Encoders with settings that are not all in their entry; of the others, it holds the fields.
READERS: dict[type, Callable[[dict[str, Any], ReadFile], Encoder]] = {
    Vocabulary: _vocabulary,
    HashedRanks: _hashed_ranks,
    CrossedIds: _crossed,
    Numerical: _numerical,
}
