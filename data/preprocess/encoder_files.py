"""Save encoders to a checksummed folder, and load them.

encoders.json                 version, name of the hash, and the settings of every feature's encoder
vocabulary.FEATURE.parquet    value, count, id
table.FEATURE.parquet         value, number
manifest.json                 see `data.storage.checksummed_dir`
"""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.errors import DataError, shown
from data.preprocess.encoders import Encoder, HashedIds, HashedRanks, Numerical, Vocabulary
from data.preprocess.keys import KeyTable, as_keys
from data.spec.features import MAX_CARDINALITY, name_mistake
from data.storage.checksummed_dir import Content, StorageError, open_verified, write_checksummed
from data.storage.tables import from_parquet, to_parquet
from data.storage.typed_json import read_typed

VERSION = 1
HASH = "fnv1a64-splitmix64"
SETTINGS_FILE = "encoders.json"
FIX = "prepare the dataset again"


def save_encoders(encoders: Mapping[str, Encoder], folder: Path) -> None:
    """Write encoders, by feature name, to a new folder.

    Raises:
        DataError: if the folder exists, or a feature name cannot be part of a file name.
        StorageError: if the folder cannot be written.
    """
    if os.path.lexists(folder):
        raise DataError(f"{folder}: already exists; choose a new folder for the encoders")
    files: dict[str, Content] = {}
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
        files = {name: stored.read_file(name) for name in stored.files}
        return {feature: _encoder(entry, files) for feature, entry in settings["features"].items()}
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        raise DataError(f"{folder}: does not contain valid encoders of this program: {error!r}; {FIX}") from error
    except (pa.ArrowException, StorageError) as error:
        raise DataError(f"{folder}: does not contain valid encoders of this program: {error}; {FIX}") from error


def _settings(feature: str, encoder: Encoder, files: dict[str, Content]) -> dict[str, Any]:
    """Return the JSON entry of an encoder, and add the files that it refers to to `files`."""
    if mistake := name_mistake(feature):  # it becomes part of a file name
        raise DataError(f"feature {shown(feature)}: {mistake}; rename the feature")
    if isinstance(encoder, HashedIds):
        return {"kind": "hashed", "column": encoder.column, "num_buckets": encoder.num_buckets}
    if isinstance(encoder, HashedRanks):
        file = f"vocabulary.{feature}.parquet"
        files[file] = _to_parquet({"value": encoder.values})
        return {"kind": "hashed_ranks", "column": encoder.column, "num_buckets": encoder.num_buckets, "file": file}
    if isinstance(encoder, Vocabulary):
        file = f"vocabulary.{feature}.parquet"
        ids = np.arange(len(encoder.values), dtype=np.int64) + encoder.first_known_id
        files[file] = _to_parquet({"value": encoder.values, "count": encoder.counts, "id": ids})
        entry = {"column": encoder.column, "oov_buckets": encoder.oov_buckets, "is_list": encoder.is_list}
        return {"kind": "vocabulary", **entry, "cardinality": encoder.cardinality, "file": file}
    scale = {name: value for name, value in asdict(encoder).items() if name != "table"}
    if encoder.table is None:
        return {"kind": "numerical", **scale}
    file = f"table.{feature}.parquet"
    files[file] = _to_parquet({"value": encoder.table.keys, "number": encoder.table.numbers})
    return {"kind": "numerical", **scale, "table": {"file": file, "default": encoder.table.default}}


def _encoder(entry: dict[str, Any], files: dict[str, bytes]) -> Encoder:
    column = read_typed(str, entry["column"], "column")
    if entry["kind"] == "hashed":
        return HashedIds(column, _count(entry, "num_buckets"))
    if entry["kind"] == "hashed_ranks":
        values = _from_parquet(files[entry["file"]])["value"]
        return HashedRanks(column, as_keys(column, values), _count(entry, "num_buckets"))
    if entry["kind"] == "vocabulary":
        columns = _from_parquet(files[entry["file"]])
        values, counts = as_keys(column, columns["value"]), columns["count"].astype(np.int64)
        return Vocabulary(
            column, values, counts, _count(entry, "oov_buckets"), read_typed(bool, entry["is_list"], "is_list")
        )
    if entry["kind"] != "numerical":
        raise ValueError(f"encoders of kind {entry['kind']!r}")
    table = None
    if "table" in entry:
        columns = _from_parquet(files[entry["table"]["file"]])
        keys, numbers = as_keys(column, columns["value"]), columns["number"].astype(np.float64)
        table = KeyTable(keys, numbers, _number(entry["table"], "default"))
    fill, mean, std = (_number(entry, name) for name in ("fill", "mean", "std"))
    return Numerical(column, table, fill, read_typed(bool, entry["log"], "log"), mean, std)


def _count(entry: dict[str, Any], name: str) -> int:
    count: int = read_typed(int, entry[name], name)
    if not 1 <= count <= MAX_CARDINALITY:
        raise ValueError(f"{name} is {count}")
    return count


def _number(entry: dict[str, Any], name: str) -> float:
    return read_typed(float, entry[name], name)


def _to_parquet(columns: dict[str, np.ndarray]) -> bytes:
    arrays = {
        name: pa.array(column, pa.string() if column.dtype == object else None) for name, column in columns.items()
    }
    return to_parquet(pa.table(arrays))


def _from_parquet(data: bytes) -> dict[str, np.ndarray]:
    table = from_parquet(data)
    return {name: table.column(name).to_numpy() for name in table.column_names}
