"""Atomic writing of checksummed folders: written under a temporary name, synced to disk, then renamed."""

import errno
import hashlib
import json
import math
import os
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.lib import format as npy_format

from data.errors import DataError, shown
from data.storage import files as draft_folder
from data.storage.arrays import BLOCK_BYTES, DTYPES, ArraySource, is_array_name, rows_per_block
from data.storage.files import UNFINISHED, is_out_of_room, open_regular, sync_names
from data.storage.typed_json import read_typed


class StorageError(RuntimeError):
    """Data could not be saved, or saved data could not be loaded. The message names the path."""


class DamagedError(StorageError):
    """A folder differs from what was written. The message names the file and the difference."""


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


def is_owned(folder: Path) -> bool:
    """Returns whether `folder` is a folder, not a link, and contains only files written by a save."""
    return folder.is_dir() and not folder.is_symlink() and foreign_entry(folder) is None


def foreign_entry(folder: Path) -> Path | None:
    """Returns the first entry of a folder that was not written by a save, or None if there is none.

    Files listed in the manifest and their parent folders count as written by a save. If the manifest cannot be read,
    files with names of arrays do, and the manifest itself if there are any such files.
    """
    entries = dict(_entries(folder))
    written = _listed(folder)
    if written is None:
        written = {name for name in entries if ARRAY_FILE.fullmatch(name)}
        written |= {MANIFEST} if written else set()
    folders = {str(parent) for name in written for parent in PurePosixPath(name).parents}
    for name, kind in entries.items():
        if not (kind == "file" and name in written or kind == "folder" and name in folders):
            return folder / name
    return None


def _listed(folder: Path) -> set[str] | None:
    try:
        manifest = read_manifest(folder)
    except DamagedError:
        return None
    return {MANIFEST, *manifest.documents, *(entry.file for entry in manifest.arrays.values())}


def _entries(folder: Path) -> Iterator[tuple[str, str]]:
    """Yields the relative path and the kind ("file", "folder" or "link") of every entry; links are not followed."""
    for place, folders, files in os.walk(folder):
        inside = Path(place)
        for names, kind in ((folders, "folder"), (files, "file")):
            for name in sorted(names):
                path = inside / name
                yield path.relative_to(folder).as_posix(), "link" if path.is_symlink() else kind


class ChecksummedDir:
    """Named arrays and documents on disk. Opening reads the manifest only; `verify` reads every byte.

    Attributes:
        path: path of the folder.
        facts: metadata given by the writer, as JSON values.
        arrays: shape and dtype by array name, in the order of writing.

    Raises:
        DamagedError: if the manifest is missing, damaged or invalid.
    """

    def __init__(self, path: Path) -> None:
        manifest = read_manifest(path)
        self.path = path
        self.facts: dict[str, Any] = manifest.facts
        self.arrays = {name: (entry.shape, np.dtype(entry.dtype)) for name, entry in manifest.arrays.items()}
        self._arrays = manifest.arrays
        self._documents = manifest.documents

    def verify(self) -> None:
        """Verifies the size and SHA-256 checksum of every file and the header of every array.

        Raises:
            DamagedError: if a file differs; the message names the first one.
        """
        # All checksums first: headers are parsed only in files known to be as written.
        for entry in (*self._documents.values(), *self._arrays.values()):
            self._check_file(entry)
        for array in self._arrays.values():
            self._check_header(array)

    def read(self, name: str) -> np.ndarray:
        """Reads the whole array `name`."""
        shape, _ = self._shape_and_dtype(name)
        return next(self._blocks(name, shape[0] if shape else 1))

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        """Yields the rows of array `name` in blocks of about 16 MiB; empty and scalar arrays are one block."""
        return self._blocks(name, rows_per_block(*self._shape_and_dtype(name)))

    def source(self, name: str) -> ArraySource:
        """Returns array `name` as a source for saving it elsewhere."""
        return ArraySource(name, *self._shape_and_dtype(name), lambda: self.blocks(name))

    @property
    def documents(self) -> dict[str, Path]:
        """Path of every document, by name."""
        return {name: self.path / name for name in self._documents}

    def _shape_and_dtype(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        if name not in self.arrays:
            raise StorageError(f"{self.path} has no array {name!r}; it has {', '.join(sorted(self.arrays))}")
        return self.arrays[name]

    def _blocks(self, name: str, rows: int) -> Iterator[np.ndarray]:
        shape, dtype = self._shape_and_dtype(name)
        entry = self._arrays[name]
        with self._open(entry) as file:
            file.seek(entry.bytes - math.prod(shape) * dtype.itemsize)  # skip the header
            if not shape or not shape[0]:
                yield self._filled(file, entry, np.empty(shape, dtype))
                return
            for start in range(0, shape[0], rows):
                yield self._filled(file, entry, np.empty((min(rows, shape[0] - start), *shape[1:]), dtype))

    def _filled(self, file: BinaryIO, entry: ArrayEntry, block: np.ndarray) -> np.ndarray:
        if file.readinto(block.reshape(-1).view(np.uint8)) != block.nbytes:  # type: ignore[attr-defined]
            raise DamagedError(f"{self.path / entry.file}: ends too early; it was changed after it was verified")
        return block

    @contextmanager
    def _open(self, entry: FileEntry) -> Iterator[BinaryIO]:
        """Opens a file of the folder; errors are raised as DamagedError."""
        path = self.path / entry.file
        try:
            with open_regular(path) as file:
                yield file
        except DataError as error:
            raise DamagedError(str(error)) from error
        except OSError as error:
            raise DamagedError(f"{path}: {error.strerror}") from error

    def _check_file(self, entry: FileEntry) -> None:
        path = self.path / entry.file
        digest = hashlib.sha256()
        with self._open(entry) as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry.bytes:
                raise DamagedError(f"{path}: {size:,} bytes, expected a file of {entry.bytes:,}")
            while data := file.read(BLOCK_BYTES):
                digest.update(data)
        if digest.hexdigest() != entry.sha256:
            raise DamagedError(f"{path}: its checksum is not the one in the manifest")

    def _check_header(self, entry: ArrayEntry) -> None:
        path = self.path / entry.file
        dtype = np.dtype(entry.dtype).newbyteorder("<")
        with self._open(entry) as file:
            try:
                version = npy_format.read_magic(file)
                found = npy_format.read_array_header_1_0(file) if version == (1, 0) else None
            except ValueError as error:
                raise DamagedError(f"{path}: {error}") from error
            body = entry.bytes - file.tell()
        if found != (entry.shape, False, dtype) or body != math.prod(entry.shape) * dtype.itemsize:
            raise DamagedError(f"{path}: holds {found}, the manifest says {entry.shape} of {dtype}")


REPLACED = ".replaced"
# Estimated size of a file's entry in the manifest, for the check of free space.
_ENTRY_BYTES = 512


def write_checksummed(
    folder: Path,
    arrays: Iterable[ArraySource],
    documents: Mapping[str, bytes | Path],
    facts: dict[str, Any],
    array_folder: str = "arrays",
) -> None:
    """Writes a folder atomically, replacing an earlier one.

    Args:
        folder: path of the folder; its parents are created.
        arrays: the arrays, with distinct names.
        documents: content, or a file to copy, by file name; names may include folders, as in "workflow/encoders.json".
        facts: metadata for the manifest, as JSON values.
        array_folder: name of the subfolder for arrays, in lower-case letters.

    Raises:
        StorageError: if there is no space or permission, the disk fails, or `folder` has content not written by a
            save. An earlier folder is left intact.
        ValueError: if names, blocks or facts are invalid.
    """
    sources = tuple(arrays)
    _check_names(sources, documents)
    facts = plain_json(facts, "facts")
    temporary = temporary_name(folder)
    try:
        check_replaceable(folder)  # fail early, and check again before the rename: writing may take long
        folder.parent.mkdir(parents=True, exist_ok=True)
        _check_room(folder.parent, sources, documents, facts)
        _fill(temporary, sources, documents, facts, array_folder)
        check_replaceable(folder)
        _put_in_place(temporary, folder)
    except DataError as error:
        raise StorageError(f"cannot save: {error}") from error
    except OSError as error:
        raise StorageError(
            f"cannot save {folder}: {error.strerror or error}. {_fix(error)}What was saved before is untouched."
        ) from error
    finally:
        draft_folder.remove(temporary)


def check_replaceable(folder: Path) -> None:
    """Checks that a save may replace `folder`: it does not exist, or holds only files written by an earlier save.

    Raises:
        DataError: if the path is a link, a file or a mount point, or a folder with content not written by a save. The
            message names the offending path.
    """
    for path in (folder, _aside(folder)):
        if path.is_symlink():
            raise DataError(f"{path}: is a link, and a link is never replaced; remove it, or choose another folder")
        if path.exists() and not path.is_dir():
            raise DataError(f"{path}: is a file, and a model or checkpoint folder goes there; move it")
        if os.path.ismount(path):
            raise DataError(
                f"{path}: is a mount point, and a save replaces the folder as a whole, which a mount point does not "
                "allow; mount the folder above it"
            )
        if path.exists() and (foreign := foreign_entry(path)) is not None:
            raise DataError(
                f"{foreign}: was not written by this program, and a save replaces {path} as a whole; move it, or "
                "choose another folder"
            )


def check_can_be_renamed(folder: Path) -> None:
    """Tries out the renames of a save on an existing folder.

    Some folders cannot be renamed, such as bind mounts or folders in the lower layers of a container image.

    Raises:
        DataError: if the folder cannot be renamed.
    """
    aside = _aside(folder)
    if not folder.exists() or aside.exists():
        return
    try:
        os.rename(folder, aside)
        os.rename(aside, folder)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be replaced by a rename ({error.strerror}): a mount point, or a folder of a read-only "
            "layer; give another --model_dir, or mount the folder above it"
        ) from error


def replace_metadata(folder: Path, facts: dict[str, Any]) -> None:
    """Replaces the facts of a checksummed folder atomically; its arrays and documents are unchanged.

    Args:
        folder: the existing folder.
        facts: new metadata, as JSON values.

    Raises:
        StorageError: if there is no space or permission, the disk fails, or the manifest is damaged. The folder is
            left unchanged.
        ValueError: if the facts are invalid.
    """
    manifest = replace(read_manifest(folder), facts=plain_json(facts, "facts"))
    temporary = temporary_name(folder)
    try:
        temporary.mkdir()
        draft_folder.mark(temporary)
        _write_file(temporary / MANIFEST, [memoryview(manifest.to_text().encode())])
        _sync_file(temporary / MANIFEST)
        os.replace(temporary / MANIFEST, folder / MANIFEST)
        sync_names(folder)
    except OSError as error:
        raise StorageError(f"cannot update {folder / MANIFEST}: {error.strerror or error}. {_fix(error)}") from error
    finally:
        draft_folder.remove(temporary)


def remove_leftovers(parent: Path, pattern: str) -> None:
    """Removes leftovers of interrupted saves.

    A folder that an interrupted save had moved aside is kept if nothing has taken its place, since it is then the only
    copy (see `standing`).

    Args:
        parent: parent of the saved folders.
        pattern: glob pattern of their names, as in "step-*".
    """
    for path in parent.glob(f".{pattern}-{'[0-9a-f]' * 12}{UNFINISHED}"):
        if draft_folder.is_draft(path) or is_owned(path):
            draft_folder.remove(path)
    for aside in parent.glob(f"{pattern}{REPLACED}"):
        if aside.with_name(aside.name.removesuffix(REPLACED)).exists():
            discard(aside)


def discard(folder: Path) -> bool:
    """Removes a folder written by a save, as far as the file system allows.

    The folder is renamed first, so that a partially removed folder never remains under its own name.

    Returns:
        False if the folder has other content, in which case it is left unchanged.
    """
    if not is_owned(folder):
        return False
    doomed = temporary_name(folder)
    with suppress(OSError):
        os.rename(folder, doomed)
        with suppress(OSError):  # a full disk
            draft_folder.mark(doomed)
        draft_folder.remove(doomed)
    return True


def standing(folder: Path) -> Path:
    """Returns the path that holds the content of `folder`: set aside if a save was interrupted between its renames."""
    aside = _aside(folder)
    return aside if aside.exists() and not folder.exists() else folder


def temporary_name(folder: Path) -> Path:
    """Returns a hidden name in the same parent folder that readers ignore and `remove_leftovers` recognizes."""
    return folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:12]}{UNFINISHED}")


def _check_names(sources: tuple[ArraySource, ...], documents: Mapping[str, bytes | Path]) -> None:
    twice = [name for name, count in Counter(source.name for source in sources).items() if count > 1]
    if twice:
        raise ValueError(f"arrays given twice: {', '.join(twice)}")
    for name in documents:
        if not is_document_name(name):
            raise ValueError(f"{name!r} cannot name a document: printable, three folders deep at most, no part hidden")


def _fix(error: OSError) -> str:
    if is_out_of_room(error):
        return "Free some room. "
    is_refused = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    return "Make the folder writable. " if is_refused else ""


def _aside(folder: Path) -> Path:
    return folder.with_name(folder.name + REPLACED)


def _check_room(
    parent: Path, sources: tuple[ArraySource, ...], documents: Mapping[str, bytes | Path], facts: dict[str, Any]
) -> None:
    """Raises an OSError unless the disk has space for the save's files, rounded up to whole blocks, and folders."""
    disk = os.statvfs(parent)
    sizes = [len(source.npy_header()) + source.nbytes for source in sources]
    sizes += [_size(content) for content in documents.values()]
    sizes.append(len(json.dumps(facts)) + _ENTRY_BYTES * (len(sizes) + 1))  # the manifest
    folders = 2 + len({parent for name in documents for parent in PurePath(name).parents})
    needed = sum(-(-size // disk.f_frsize) for size in sizes) + folders
    free, files = disk.f_bavail * disk.f_frsize, len(sizes) + folders + 1
    # Some network file systems report zeros; there the write itself fails if the disk is full.
    if disk.f_blocks and disk.f_bavail < needed:
        raise _no_room(f"{needed * disk.f_frsize:,} bytes are needed, {free:,} are free")
    if disk.f_files and disk.f_favail < files:
        raise _no_room(f"{files:,} files and folders are needed, room for {disk.f_favail:,} is left")


def _no_room(figures: str) -> OSError:
    return OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({figures})")


def _fill(
    temporary: Path,
    sources: tuple[ArraySource, ...],
    documents: Mapping[str, bytes | Path],
    facts: dict[str, Any],
    array_folder: str,
) -> None:
    temporary.mkdir()
    draft_folder.mark(temporary)
    (temporary / array_folder).mkdir()
    manifest = Manifest(facts, {}, {})
    for index, source in enumerate(sources):
        file = f"{array_folder}/{index:04d}-{re.sub('[^A-Za-z0-9_.]+', '-', source.name)[:80]}.npy"
        size, digest = _write_file(temporary / file, source.npy_chunks())
        shape = tuple(int(length) for length in source.shape)
        manifest.arrays[source.name] = ArrayEntry(file, size, digest, shape, np.dtype(source.dtype).name)
    for name, content in documents.items():
        (temporary / name).parent.mkdir(parents=True, exist_ok=True)
        manifest.documents[name] = FileEntry(name, *_write_file(temporary / name, _chunks(content)))
    # Synced only after all files are written, so that a thread handing over blocks does not wait for the disk.
    for entry in (*manifest.arrays.values(), *manifest.documents.values()):
        _sync_file(temporary / entry.file)
    for inner in (path for path in temporary.rglob("*") if path.is_dir()):
        sync_names(inner)
    # Written last: a folder that has a manifest has all files listed in it.
    _write_file(temporary / MANIFEST, [memoryview(manifest.to_text().encode())])
    _sync_file(temporary / MANIFEST)
    draft_folder.unmark(temporary)
    sync_names(temporary)


def _write_file(path: Path, chunks: Iterable[memoryview]) -> tuple[int, str]:
    """Writes a file and returns its size in bytes and its SHA-256 checksum."""
    digest, size = hashlib.sha256(), 0
    with open(path, "xb") as file:
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def _sync_file(path: Path) -> None:
    """Syncs a file's content to disk, regardless of the descriptor it was written through."""
    with open_regular(path) as file:
        os.fsync(file.fileno())


def _size(content: bytes | Path) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def _chunks(content: bytes | Path) -> Iterator[memoryview]:
    if isinstance(content, bytes):
        yield memoryview(content)
        return
    with open_regular(content) as file:
        while data := file.read(BLOCK_BYTES):
            yield memoryview(data)


def _put_in_place(temporary: Path, folder: Path) -> None:
    aside = _aside(folder)
    # rename(2) cannot replace a non-empty folder, so an existing one is moved aside first. If the process dies between
    # the two renames, `standing` finds the old folder.
    if folder.exists():
        os.rename(folder, aside)
    os.rename(temporary, folder)
    sync_names(folder.parent)
    if aside.exists():
        discard(aside)
