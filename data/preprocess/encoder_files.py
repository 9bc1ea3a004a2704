"""Save encoders to a folder and load them: JSON settings, parquet vocabularies and tables, all with checksums.

encoders.json             version, name of the hash, and the settings of every feature's encoder
vocabulary.FEATURE.parquet    value, count, id
table.FEATURE.parquet         value, number
manifest.json             size and SHA-256 of the files above
"""

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import DataError, shown
from data.preprocess.encoders import Encoder, HashedIds, HashedRanks, Numerical, Vocabulary
from data.preprocess.keys import KeyTable, as_keys
from data.spec.parts import MAX_CARDINALITY
from data.spec.values import name_mistake
from data.storage.files import open_regular
from data.storage.typed_json import read_typed

VERSION = 1
HASH = "fnv1a64-splitmix64"
SETTINGS_FILE = "encoders.json"
MANIFEST_FILE = "manifest.json"
MAX_JSON_BYTES = 2**24


@dataclass(frozen=True)
class _File:
    """An entry of the manifest: size and checksum of a file."""

    bytes: int
    sha256: str


def save_encoders(encoders: Mapping[str, Encoder], folder: Path) -> None:
    """Write encoders, by feature name, to a new folder.

    Raises:
        DataError: if the folder exists, or a feature name cannot be part of a file name.
    """
    folder = Path(folder)
    contents: dict[str, bytes] = {}
    settings = {feature: _settings(feature, encoder, contents) for feature, encoder in encoders.items()}
    contents[SETTINGS_FILE] = _to_json({"version": VERSION, "hash": HASH, "features": settings})
    sums = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()}
    contents[MANIFEST_FILE] = _to_json({"version": VERSION, "files": sums})
    try:
        folder.mkdir()
    except FileExistsError as error:
        raise DataError(f"{folder}: exists already; encoders are saved into a new folder") from error
    for name, data in contents.items():
        (folder / name).write_bytes(data)


def load_encoders(folder: Path) -> dict[str, Encoder]:
    """Load what `save_encoders` wrote, in the original order of the features.

    Raises:
        DataError: if a file is missing, damaged, or has another version.
    """
    folder = Path(folder)
    try:
        return _load(folder)
    except DataError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, pa.ArrowException) as error:
        raise DataError(f"{folder}: does not hold encoders as this program writes them: {error!r}") from error


def _load(folder: Path) -> dict[str, Encoder]:
    manifest = _parse(folder / MANIFEST_FILE, _read(folder / MANIFEST_FILE, MAX_JSON_BYTES))
    files: dict[str, _File] = read_typed(dict[str, _File], manifest["files"], f"{MANIFEST_FILE}: files")
    contents = {name: _read_checked(folder, name, entry) for name, entry in files.items()}
    if SETTINGS_FILE not in contents:
        raise DataError(f"{folder / MANIFEST_FILE}: does not list {SETTINGS_FILE}; prepare the dataset again")
    settings = _parse(folder / SETTINGS_FILE, contents[SETTINGS_FILE])
    if settings["hash"] != HASH:
        raise DataError(f"{folder / SETTINGS_FILE}: hash {settings['hash']!r}, this program has {HASH!r}")
    try:
        return {feature: _encoder(entry, contents) for feature, entry in settings["features"].items()}
    except DataError as error:
        raise DataError(f"{folder}: does not hold encoders as this program writes them: {error}") from error


def _settings(feature: str, encoder: Encoder, contents: dict[str, bytes]) -> dict[str, Any]:
    """Return the JSON entry of an encoder, and add the files that it refers to to `contents`."""
    if mistake := name_mistake(feature):  # it becomes part of a file name
        raise DataError(f"feature {shown(feature)}: {mistake}; rename the feature")
    if isinstance(encoder, HashedIds):
        return {"kind": "hashed", "column": encoder.column, "num_buckets": encoder.num_buckets}
    if isinstance(encoder, HashedRanks):
        file = f"vocabulary.{feature}.parquet"
        contents[file] = _to_parquet({"value": encoder.values})
        return {
            "kind": "hashed_ranks",
            "column": encoder.column,
            "num_buckets": encoder.num_buckets,
            "file": file,
        }
    if isinstance(encoder, Vocabulary):
        file = f"vocabulary.{feature}.parquet"
        ids = np.arange(len(encoder.values), dtype=np.int64) + encoder.first_known_id
        contents[file] = _to_parquet({"value": encoder.values, "count": encoder.counts, "id": ids})
        entry = {"column": encoder.column, "oov_buckets": encoder.oov_buckets, "is_list": encoder.is_list}
        return {"kind": "vocabulary", **entry, "cardinality": encoder.cardinality, "file": file}
    scale = {name: value for name, value in asdict(encoder).items() if name != "table"}
    if encoder.table is None:
        return {"kind": "numerical", **scale}
    file = f"table.{feature}.parquet"
    contents[file] = _to_parquet({"value": encoder.table.keys, "number": encoder.table.numbers})
    return {"kind": "numerical", **scale, "table": {"file": file, "default": encoder.table.default}}


def _encoder(entry: dict[str, Any], contents: dict[str, bytes]) -> Encoder:
    column = read_typed(str, entry["column"], "column")
    if entry["kind"] == "hashed":
        return HashedIds(column, _count(entry, "num_buckets"))
    if entry["kind"] == "hashed_ranks":
        values = _from_parquet(contents[entry["file"]])["value"]
        return HashedRanks(column, as_keys(column, values), _count(entry, "num_buckets"))
    if entry["kind"] == "vocabulary":
        columns = _from_parquet(contents[entry["file"]])
        values, counts = as_keys(column, columns["value"]), columns["count"].astype(np.int64)
        return Vocabulary(
            column, values, counts, _count(entry, "oov_buckets"), read_typed(bool, entry["is_list"], "is_list")
        )
    if entry["kind"] != "numerical":
        raise ValueError(f"encoders of kind {entry['kind']!r}")
    table = None
    if "table" in entry:
        columns = _from_parquet(contents[entry["table"]["file"]])
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


def _to_json(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()


def _to_parquet(columns: dict[str, np.ndarray]) -> bytes:
    arrays = {
        name: pa.array(column, pa.string() if column.dtype == object else None) for name, column in columns.items()
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(arrays), buffer, compression="snappy", write_page_checksum=True)
    return buffer.getvalue()


def _from_parquet(data: bytes) -> dict[str, np.ndarray]:
    file = pq.ParquetFile(io.BytesIO(data))
    # Rows are distinct, so each takes at least a byte. A small file with more rows is a decompression bomb.
    if file.metadata.num_rows > len(data):
        raise ValueError(f"{file.metadata.num_rows:,} rows in {len(data):,} bytes")
    table = file.read()
    return {name: table.column(name).to_numpy() for name in table.column_names}


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # `_read` reports it


def _read(path: Path, most: int) -> bytes:
    """Read a file, up to one byte more than `most`, so that the caller notices an oversized file."""
    try:
        with open_regular(path) as file:
            return file.read(min(most, os.fstat(file.fileno()).st_size) + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); prepare the dataset again") from error


def _read_checked(folder: Path, name: str, entry: _File) -> bytes:
    if Path(name).name != name or entry.bytes < 0:
        raise DataError(f"{folder / MANIFEST_FILE}: lists {name!r}, which is not a file of this folder")
    # Limited by the actual size: an untrusted manifest must not decide how much memory to allocate.
    data = _read(folder / name, min(entry.bytes, _size_of(folder / name)))
    if len(data) != entry.bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
        raise DataError(f"{folder / name}: is not what was written (its checksum differs); prepare the dataset again")
    return data


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data) if len(data) <= MAX_JSON_BYTES else None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error
    version = document.get("version") if isinstance(document, dict) else None
    if document is None or version != VERSION:
        raise DataError(f"{path}: version {version!r}, this program reads version {VERSION}; prepare the dataset again")
    return document
