"""The manifest of a checksummed folder: written last, protected by a checksum of its own, and verified when read."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.errors import DataError
from data.files import open_regular
from data.specification.problems import shown
from data.typed_json import read_typed
from trainer.sealed.arrays import DTYPES, is_array_name
from trainer.sealed.errors import DamagedError

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
LARGEST_MANIFEST = 1 << 24

ARRAY_FILE = re.compile(r"[a-z]{1,20}/[0-9]{4,9}-[A-Za-z0-9_.-]{1,80}\.npy")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileEntry:
    """A file of the folder.

    Attributes:
        file: path relative to the folder.
        bytes: size of the file.
        sha256: SHA-256 checksum in hexadecimal.
    """

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ArrayEntry(FileEntry):
    """The file of an array.

    Attributes:
        shape: expected shape.
        dtype: expected dtype, one of DTYPES.
    """

    shape: tuple[int, ...]
    dtype: Literal[DTYPES]  # type: ignore[valid-type]


@dataclass(frozen=True)
class _Content:
    """The checksummed content of a manifest, in the structure of its JSON."""

    version: int
    facts: dict[str, Any]
    documents: dict[str, FileEntry]
    arrays: dict[str, ArrayEntry]


@dataclass(frozen=True)
class Manifest:
    """The content of a folder.

    Attributes:
        facts: metadata as JSON values.
        arrays: entries of the arrays, by array name.
        documents: entries of the documents, by file name.
    """

    facts: dict[str, Any]
    arrays: dict[str, ArrayEntry]
    documents: dict[str, FileEntry]

    def to_text(self) -> str:
        """Returns the manifest as JSON with a checksum over its content, so that changed facts are detected as well."""
        content = {
            "version": FORMAT_VERSION,
            "facts": self.facts,
            "documents": {name: entry.__dict__ for name, entry in self.documents.items()},
            "arrays": {name: entry.__dict__ | {"shape": list(entry.shape)} for name, entry in self.arrays.items()},
        }
        return _sealed_text(content)


def is_document_name(name: object) -> bool:
    """Returns whether `name` is a valid document name: printable, at most three folders deep, without hidden parts."""
    if not isinstance(name, str) or name == MANIFEST or not name.isprintable():
        return False
    parts = name.split("/")
    return len(parts) <= 4 and all(part and part[0] != "." and len(part.encode()) <= 255 for part in parts)


def plain_json(value: Any, place: str) -> Any:
    """Converts a value to what a JSON round trip yields: tuples become lists, NumPy scalars Python numbers.

    Args:
        value: the value.
        place: path of the value, for messages.

    Raises:
        ValueError: if the value contains something that JSON cannot represent; the message names its path.
    """
    if isinstance(value, dict):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise ValueError(f"{place} has the key {wrong[0]!r}, which is not text: JSON would turn it into text")
        return {key: plain_json(item, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item, f"{place}[{position}]") for position, item in enumerate(value)]
    if isinstance(value, np.generic):
        return plain_json(value.item(), place)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"{place} is a {type(value).__name__}, which JSON cannot hold; save it as an array")


def read_manifest(folder: Path) -> Manifest:
    """Reads and validates the manifest of a folder, without checking the files that it lists.

    Raises:
        DamagedError: if the manifest is missing, truncated, modified, of another version, or has invalid entries.
    """
    path = folder / MANIFEST
    try:
        with open_regular(path) as file:
            text = file.read(LARGEST_MANIFEST + 1)  # bounds the memory used for a file that is not a manifest
        if len(text) > LARGEST_MANIFEST:
            raise DamagedError(f"{path}: larger than {LARGEST_MANIFEST:,} bytes")
        content = _unsealed(text.decode())
    except DataError as error:
        raise DamagedError(str(error)) from error
    except OSError as error:
        raise DamagedError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # RecursionError: deeply nested JSON
        raise DamagedError(f"{path}: not JSON ({error})") from error
    if content is None:
        raise DamagedError(f"{path}: its checksum does not fit its content")
    if content.get("version") != FORMAT_VERSION:
        raise DamagedError(f"{path}: format version {content.get('version')!r}, this program reads {FORMAT_VERSION}")
    try:
        return _parsed(content)
    except ValueError as error:
        raise DamagedError(f"{path}: {error}") from error


def _sealed_text(content: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({"sha256": digest, "manifest": content}, indent=1) + "\n"


def _unsealed(text: str) -> dict[str, Any] | None:
    """Returns the content, or None if the text differs in any character from what `_sealed_text` writes."""
    document = json.loads(text)
    content = document.get("manifest") if isinstance(document, dict) else None
    # Serializing the content again compares its checksum, and also detects changes that JSON parsing would ignore.
    return content if isinstance(content, dict) and _sealed_text(content) == text else None


def _parsed(content: dict[str, Any]) -> Manifest:
    read: _Content = read_typed(_Content, content, "manifest")
    # The checksum protects against damage, not against forgery: names are checked so that no path leaves the folder.
    for name, document in read.documents.items():
        if document.file != name or not is_document_name(name):
            raise ValueError(f"document {shown(name)} in file {shown(document.file)}: a name that no save gives")
        _check_file(document)
    for name, array in read.arrays.items():
        if not is_array_name(name) or not ARRAY_FILE.fullmatch(array.file):
            raise ValueError(f"array {shown(name)} in file {shown(array.file)}: a name that no save gives")
        _check_file(array)
        if any(size < 0 for size in array.shape):
            raise ValueError(f"array {name!r} has shape {array.shape!r}")
    return Manifest(read.facts, read.arrays, read.documents)


def _check_file(entry: FileEntry) -> None:
    if entry.bytes < 0:
        raise ValueError(f"{entry.file} has {entry.bytes!r} bytes")
    if not _SHA256.fullmatch(entry.sha256):
        raise ValueError(f"{entry.file} has the checksum {shown(entry.sha256)}")
