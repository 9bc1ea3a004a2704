"""Checksummed folders: the storage format of checkpoints, model folders, encoders and workflows.

    manifest.json    metadata, and the size and SHA-256 checksum of every file
    arrays/*.npy     named arrays (the name of this subfolder is up to the writer)
    ...              other files

A folder is written under a temporary name, synced to disk and renamed, so it is complete or does not exist. It holds
plain data only: nothing in it is executed or unpickled. A folder is replaced or removed only if its manifest lists
everything in it.
"""

import errno
import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.lib import format as npy_format

from data.errors import DataError, shown
from data.parallel import in_parallel
from data.progress import Advance, unseen
from data.storage.arrays import BLOCK_BYTES, DTYPES, ArraySource, is_array_name, row_ranges
from data.storage.files import (
    UNFINISHED,
    draft_beside,
    is_draft,
    is_out_of_room,
    mark_draft,
    open_regular,
    read_small_text,
    remove_draft,
    sync,
    temporary_folder,
    unmark_draft,
)
from data.storage.typed_json import plain_json, read_typed

MANIFEST = "manifest.json"
FORMAT_VERSION = 2
# Suffix of a folder that a save moves aside before it renames the new one into place.
REPLACED = ".replaced"

_ARRAY_FILE = re.compile(r"[a-z]{1,20}/[0-9]{4,9}-[A-Za-z0-9_.-]{1,80}\.npy")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_JSON_MEBIBYTES = 16

# The content of a file to write: bytes, text, an object to store as JSON, or the path of a file to copy.
Content = bytes | str | dict[str, Any] | Path


class StorageError(RuntimeError):
    """Data could not be saved, or saved data could not be loaded. The message names the path."""


class DamagedError(StorageError):
    """A folder differs from what was written. The message names the file and the difference."""


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 checksum (hexadecimal) of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class ArrayEntry:
    """Path of an array's file, shape and dtype of the array."""

    file: str
    shape: tuple[int, ...]
    dtype: Literal[DTYPES]  # type: ignore[valid-type]


@dataclass(frozen=True)
class Manifest:
    """The content of a folder, in the structure of its JSON.

    Attributes:
        version: FORMAT_VERSION.
        metadata: metadata given by the writer, as JSON values.
        files: entries of all files, including those of arrays, by path relative to the folder.
        arrays: entries of the arrays, by array name.
    """

    version: int
    metadata: dict[str, Any]
    files: dict[str, FileEntry]
    arrays: dict[str, ArrayEntry]

    def to_text(self) -> str:
        """Return the manifest as JSON with a checksum of its own, so that changed metadata is detected as well."""
        return _checksummed_text(asdict(self))


def read_manifest(folder: Path) -> Manifest:
    """Read and validate the manifest of a folder, without checking the files that it lists.

    Raises:
        DamagedError: The manifest is missing, truncated, modified, of another version, or has invalid entries.
    """
    path = folder / MANIFEST
    try:
        return _parse(read_small_text(path, "a manifest", _MAX_JSON_MEBIBYTES))
    except DataError as error:
        raise DamagedError(str(error)) from error
    except (ValueError, RecursionError) as error:  # RecursionError: deeply nested JSON
        raise DamagedError(f"{path}: {error}") from error


def _checksummed_text(content: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({"sha256": digest, "manifest": content}, indent=1) + "\n"


def _parse(text: str) -> Manifest:
    loaded = json.loads(text)
    content = loaded.get("manifest") if isinstance(loaded, dict) else None
    # Writing the content again compares its checksum, and also detects changes that a JSON parser ignores.
    if not isinstance(content, dict) or _checksummed_text(content) != text:
        raise ValueError("its checksum does not match its content")
    if content.get("version") != FORMAT_VERSION:
        raise ValueError(f"format version {content.get('version')!r}, this program reads version {FORMAT_VERSION}")
    manifest: Manifest = read_typed(Manifest, content, "manifest")
    # The checksum protects against damage, not against forgery: paths must not leave the folder.
    for name, entry in manifest.files.items():
        if not is_file_name(name):
            raise ValueError(f"{shown(name)} is not a file of this folder")
        if entry.bytes < 0 or not _SHA256.fullmatch(entry.sha256):
            raise ValueError(f"{name} has {entry.bytes!r} bytes and the checksum {shown(entry.sha256)}")
    for name, array in manifest.arrays.items():
        if not is_array_name(name) or not _ARRAY_FILE.fullmatch(array.file) or array.file not in manifest.files:
            raise ValueError(f"array {shown(name)} in {shown(array.file)} is not an array of this folder")
        if any(size < 0 for size in array.shape):
            raise ValueError(f"array {name!r} has shape {array.shape!r}")
    return manifest


def is_file_name(name: str) -> bool:
    """Return whether `name` is a valid path of a file: printable, relative, without hidden parts, not MANIFEST."""
    if not is_array_name(name) or name == MANIFEST:
        return False
    return all(part[0] != "." and len(part.encode()) <= 255 for part in name.split("/"))


class ChecksummedDir:
    """Named arrays and files on disk. Opening reads only the manifest; `verify` reads every byte.

    Attributes:
        path: path of the folder.
        metadata: metadata given by the writer, as JSON values.
        arrays: shape and dtype by array name, in the order of writing.
        files: path of every file that is not an array's, by name.

    Raises:
        DamagedError: The manifest is missing, damaged or invalid.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._manifest = manifest = read_manifest(path)
        self.metadata = manifest.metadata
        self.arrays = {name: (entry.shape, np.dtype(entry.dtype)) for name, entry in manifest.arrays.items()}
        of_arrays = {entry.file for entry in manifest.arrays.values()}
        self.files = {name: path / name for name in manifest.files if name not in of_arrays}

    @property
    def content_sha256(self) -> str:
        """Checksum of the content of all files and of the arrays' names and layout; metadata do not count."""
        content = asdict(replace(self._manifest, metadata={}))
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def entries(self) -> Mapping[str, FileEntry]:
        """Size and checksum of every file, including those of arrays, by path relative to the folder."""
        return self._manifest.files

    @property
    def nbytes(self) -> int:
        """Size of all files in bytes, without the manifest."""
        return sum(entry.bytes for entry in self._manifest.files.values())

    def verify(self, advance: Advance = unseen) -> None:
        """Verify the size and SHA-256 checksum of every file and the header of every array, on all cores.

        Args:
            advance: called, by any thread, with each number of bytes that has been read.

        Raises:
            DamagedError: A file differs; the message names the first one.
        """
        # All checksums first: headers are parsed only in files known to be as written.
        in_parallel(lambda file: self._check_file(*file, advance), self._manifest.files.items())
        for array in self._manifest.arrays.values():
            self._check_header(array)

    def read_file(self, name: str) -> bytes:
        """Return the content of a file. Raise DamagedError if the manifest does not list it."""
        self._require_file(name)
        with self._open(name) as file:
            return file.read()

    def read_json(self, name: str) -> Any:
        """Return the content of a JSON file of at most 16 MiB.

        Raises:
            DamagedError: The manifest does not list the file.
            ValueError, RecursionError: It is not JSON, or too large.
        """
        self._require_file(name)
        return json.loads(read_small_text(self.files[name], "a JSON file", _MAX_JSON_MEBIBYTES))

    def read(self, name: str) -> np.ndarray:
        """Read the whole array `name`."""
        shape, _ = self._shape_and_dtype(name)
        return self.read_rows(name, 0, shape[0] if shape else 1)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read rows start to stop of array `name`, or all of it if it is a scalar."""
        entry = self._entry(name)
        shape, dtype, file_name = entry.shape, np.dtype(entry.dtype), entry.file
        rows = np.empty((stop - start, *shape[1:]) if shape else (), dtype)
        with self._open(file_name) as file:
            header = self._manifest.files[file_name].bytes - math.prod(shape) * dtype.itemsize
            file.seek(header + start * math.prod(shape[1:]) * dtype.itemsize)
            if file.readinto(rows.reshape(-1).view(np.uint8)) != rows.nbytes:  # type: ignore[attr-defined]
                raise DamagedError(f"{self.path / file_name}: ends too early; it was changed after it was verified")
        return rows

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        """Yield the rows of array `name` in blocks of about 4 MiB; empty and scalar arrays are one block."""
        for start, stop in row_ranges(*self._shape_and_dtype(name)):
            yield self.read_rows(name, start, stop)

    def source(self, name: str) -> ArraySource:
        """Return array `name` as a source for saving it elsewhere."""
        return ArraySource(name, *self._shape_and_dtype(name), lambda: self.blocks(name))

    def _require_file(self, name: str) -> None:
        if name not in self.files:
            raise DamagedError(f"{self.path / MANIFEST}: does not list {name}")

    def _shape_and_dtype(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        self._entry(name)
        return self.arrays[name]

    def _entry(self, name: str) -> ArrayEntry:
        if name not in self._manifest.arrays:
            raise StorageError(f"{self.path} has no array {name!r}; it has {', '.join(sorted(self.arrays))}")
        return self._manifest.arrays[name]

    @contextmanager
    def _open(self, name: str) -> Iterator[BinaryIO]:
        """Open a file of the folder; errors are raised as DamagedError."""
        try:
            with open_regular(self.path / name) as file:
                yield file
        except DataError as error:
            raise DamagedError(str(error)) from error
        except OSError as error:
            raise DamagedError(f"{self.path / name}: {error.strerror}") from error

    def _check_file(self, name: str, entry: FileEntry, advance: Advance) -> None:
        digest = hashlib.sha256()
        with self._open(name) as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry.bytes:
                raise DamagedError(f"{self.path / name}: has {size:,} bytes, expected {entry.bytes:,}")
            buffer = memoryview(bytearray(min(BLOCK_BYTES, size)))
            while count := file.readinto(buffer):  # type: ignore[attr-defined]
                digest.update(buffer[:count])
                advance(count)
        if digest.hexdigest() != entry.sha256:
            raise DamagedError(f"{self.path / name}: its checksum differs from the one in the manifest")

    def _check_header(self, entry: ArrayEntry) -> None:
        path, dtype = self.path / entry.file, np.dtype(entry.dtype).newbyteorder("<")
        with self._open(entry.file) as file:
            try:
                version = npy_format.read_magic(file)
                found = npy_format.read_array_header_1_0(file) if version == (1, 0) else None
            except ValueError as error:
                raise DamagedError(f"{path}: {error}") from error
            body = self._manifest.files[entry.file].bytes - file.tell()
        if found != (entry.shape, False, dtype) or body != math.prod(entry.shape) * dtype.itemsize:
            raise DamagedError(f"{path}: holds {found}, the manifest says {entry.shape} of {dtype}")


def open_verified(folder: Path, fix: str) -> ChecksummedDir:
    """Open a folder that is part of the user's input, and verify every byte.

    Args:
        folder: the folder.
        fix: what to do if it is damaged, for the error message.

    Raises:
        DataError: The folder is missing or damaged.
    """
    try:
        opened = ChecksummedDir(folder)
        opened.verify()
    except DamagedError as error:
        raise DataError(f"{error}; {fix}") from error
    return opened


def write_checksummed(
    folder: Path,
    *,
    arrays: Iterable[ArraySource] = (),
    files: Mapping[str, Content] | None = None,
    metadata: dict[str, Any] | None = None,
    array_folder: str = "arrays",
    advance: Advance = unseen,
) -> None:
    """Write a folder atomically, replacing an earlier one. All cores write, each an array.

    Args:
        folder: path of the folder; its parents are created.
        arrays: the arrays, with distinct names. Each is read in another thread, those that come first at first.
        files: content of the other files by name; names may include folders, as in "workflow/encoders.json".
        metadata: metadata for the manifest, as JSON values.
        array_folder: name of the subfolder for arrays, in lower-case letters.
        advance: called, by any thread, with each number of bytes of the arrays that has been written.

    Raises:
        StorageError: There is no space or permission, the disk fails, or `folder` has content not written by a save.
            An earlier folder is left intact.
        ValueError: Names, blocks or metadata are invalid.
    """
    sources = {
        f"{array_folder}/{index:04d}-{re.sub('[^A-Za-z0-9_.]+', '-', source.name)[:80]}.npy": source
        for index, source in enumerate(arrays)
    }
    contents = {name: _encoded(content) for name, content in (files or {}).items()}
    _check_names([source.name for source in sources.values()], contents)
    metadata = plain_json(metadata or {}, "metadata")
    try:
        check_replaceable(folder)  # fail early, and check again before the rename: writing may take long
        folder.parent.mkdir(parents=True, exist_ok=True)
        manifest = _planned(sources, contents, metadata)
        _check_room(folder.parent, manifest)
        with draft_beside(folder) as draft:
            _fill(draft, sources, contents, manifest, advance)
            check_replaceable(folder)
            _move_into_place(draft, folder)
    except DataError as error:
        raise StorageError(f"cannot save: {error}") from error
    except OSError as error:
        raise StorageError(
            f"cannot save {folder}: {error.strerror or error}. {_fix(error)}What was saved before is untouched."
        ) from error


def write_manifest(folder: Path, metadata: dict[str, Any]) -> None:
    """Turn an existing folder of complete files into a checksummed one, by adding the manifest.

    Not atomic: it is meant for a folder that is published as part of a draft.
    """
    manifest = Manifest(FORMAT_VERSION, plain_json(metadata, "metadata"), {}, {})
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        manifest.files[path.relative_to(folder).as_posix()] = _checksum(_chunks(path))
    (folder / MANIFEST).write_text(manifest.to_text())


def replace_metadata(folder: Path, metadata: dict[str, Any]) -> None:
    """Replace the metadata of a checksummed folder atomically; its arrays and files are unchanged.

    Raises:
        StorageError: There is no space or permission, the disk fails, or the manifest is damaged. The folder is left
            unchanged.
        ValueError: The metadata is invalid.
    """
    manifest = replace(read_manifest(folder), metadata=plain_json(metadata, "metadata"))
    try:
        with draft_beside(folder) as draft:
            _write_file(draft / MANIFEST, [memoryview(manifest.to_text().encode())])
            sync(draft / MANIFEST)
            os.replace(draft / MANIFEST, folder / MANIFEST)
            sync(folder)
    except OSError as error:
        raise StorageError(f"cannot update {folder / MANIFEST}: {error.strerror or error}. {_fix(error)}") from error


def check_replaceable(folder: Path) -> None:
    """Check that a save may replace `folder`: it does not exist, or holds only files written by an earlier save.

    Raises:
        DataError: The path is a link, a file or a mount point, or a folder with content not written by a save. The
            message names the path.
    """
    for path in (folder, _aside(folder)):
        if path.is_symlink():
            raise DataError(f"{path}: is a link, and links are never replaced; remove it, or choose another folder")
        if path.exists() and not path.is_dir():
            raise DataError(f"{path}: is a file, but a model or checkpoint folder is written there; move it")
        if os.path.ismount(path):
            raise DataError(
                f"{path}: is a mount point, and a save replaces the folder as a whole, which a mount point does not "
                "allow; mount the folder above it"
            )
        if path.exists() and (foreign := _foreign_entry(path)) is not None:
            raise DataError(
                f"{foreign}: was not written by this program, and a save replaces {path} as a whole; move it, or "
                "choose another folder"
            )


def check_can_be_renamed(folder: Path) -> None:
    """Try out the renames of a save on an existing folder.

    Raises:
        DataError: The folder cannot be renamed, like a bind mount or a folder in a lower layer of a container image.
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


def current_path(folder: Path) -> Path:
    """Return the path of the content of `folder`: moved aside if a save was interrupted between its two renames."""
    aside = _aside(folder)
    return aside if aside.exists() and not folder.exists() else folder


def discard(folder: Path) -> bool:
    """Remove a folder written by a save, as far as the file system allows.

    The folder is renamed first, so that a partially removed folder never remains under its own name.

    Returns:
        False if the folder has other content, in which case it is left unchanged.
    """
    if not _is_owned(folder):
        return False
    removed = temporary_folder(folder)
    with suppress(OSError):
        os.rename(folder, removed)
        with suppress(OSError):  # a full disk
            mark_draft(removed)
        remove_draft(removed)
    return True


def remove_leftovers(parent: Path, pattern: str) -> None:
    """Remove what interrupted saves have left.

    A folder that an interrupted save had moved aside is kept if no new one exists, since it is then the only copy (see
    `current_path`).

    Args:
        parent: parent of the saved folders.
        pattern: glob pattern of their names, as in "step-*".
    """
    for path in parent.glob(f".{pattern}-{'[0-9a-f]' * 12}{UNFINISHED}"):
        if is_draft(path) or _is_owned(path):
            remove_draft(path)
    for aside in parent.glob(f"{pattern}{REPLACED}"):
        if aside.with_name(aside.name.removesuffix(REPLACED)).exists():
            discard(aside)


def _is_owned(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and _foreign_entry(folder) is None


def _foreign_entry(folder: Path) -> Path | None:
    """Return the first entry of a folder that was not written by a save, or None if there is none.

    Files listed in the manifest and their parent folders count as written by a save. If the manifest cannot be read,
    files with names of arrays do, and the manifest itself if there are any such files.
    """
    names = {path: path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*"))}  # follows no links
    try:
        written = {MANIFEST, *read_manifest(folder).files}
    except DamagedError:
        written = {name for name in names.values() if _ARRAY_FILE.fullmatch(name)}
        written |= {MANIFEST} if written else set()
    folders = {str(parent) for name in written for parent in PurePosixPath(name).parents}
    for path, name in names.items():
        if path.is_symlink() or name not in (folders if path.is_dir() else written):
            return path
    return None


def _aside(folder: Path) -> Path:
    return folder.with_name(folder.name + REPLACED)


def _encoded(content: Content) -> bytes | Path:
    if isinstance(content, Path | bytes):
        return content
    text = content if isinstance(content, str) else json.dumps(content, indent=2, allow_nan=False) + "\n"
    return text.encode()


def _check_names(arrays: list[str], files: Iterable[str]) -> None:
    if repeated := [name for name, count in Counter(arrays).items() if count > 1]:
        raise ValueError(f"arrays given twice: {', '.join(repeated)}")
    for name in files:
        if not is_file_name(name):
            raise ValueError(f"{name!r} cannot name a file: expected a printable relative path without hidden parts")


def _fix(error: OSError) -> str:
    if is_out_of_room(error):
        return "Free some room. "
    is_denied = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    return "Make the folder writable. " if is_denied else ""


def _planned(
    sources: Mapping[str, ArraySource], contents: Mapping[str, bytes | Path], metadata: dict[str, Any]
) -> Manifest:
    """Return the manifest of a save as it will be, except for the checksums, which are still zeros."""
    sizes = {name: len(source.npy_header()) + source.nbytes for name, source in sources.items()}
    for name, content in contents.items():
        sizes[name] = content.stat().st_size if isinstance(content, Path) else len(content)
    arrays = {
        source.name: ArrayEntry(name, tuple(map(int, source.shape)), np.dtype(source.dtype).name)
        for name, source in sources.items()
    }
    files = {name: FileEntry(size, "0" * 64) for name, size in sizes.items()}
    return Manifest(FORMAT_VERSION, metadata, files, arrays)


def _check_room(parent: Path, manifest: Manifest) -> None:
    """Raise an OSError unless the disk has space for the save's files, rounded up to whole blocks, and folders."""
    disk = os.statvfs(parent)
    sizes = [entry.bytes for entry in manifest.files.values()] + [len(manifest.to_text())]
    folders = 1 + len({folder for name in manifest.files for folder in PurePosixPath(name).parents})
    needed = sum(-(-size // disk.f_frsize) for size in sizes) + folders
    free, files = disk.f_bavail * disk.f_frsize, len(sizes) + folders + 1
    shortage = None
    # Some network file systems report zeros; there the write itself fails if the disk is full.
    if disk.f_blocks and disk.f_bavail < needed:
        shortage = f"{needed * disk.f_frsize:,} bytes are needed, {free:,} are free"
    elif disk.f_files and disk.f_favail < files:
        shortage = f"{files:,} files and folders are needed, space for {disk.f_favail:,} is left"
    if shortage is not None:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({shortage})")


def _fill(
    draft: Path,
    sources: Mapping[str, ArraySource],
    contents: Mapping[str, bytes | Path],
    manifest: Manifest,
    advance: Advance,
) -> None:
    """Write all files and the manifest, and sync them to disk."""

    def write_array(name: str) -> FileEntry:
        # Closed on an error too, so that whoever provides the blocks learns that no more are wanted.
        with closing(sources[name].npy_chunks()) as chunks:
            return _write_file(draft / name, chunks, advance)

    manifest.files.update(zip(sources, in_parallel(write_array, sources), strict=True))
    for name, content in contents.items():
        manifest.files[name] = _write_file(draft / name, _chunks(content))
    # Synced only after all files are written, so that a thread handing over blocks does not wait for the disk, and
    # together, so that they share what the file system has to write for each.
    in_parallel(lambda name: sync(draft / name), manifest.files)
    for inner in (path for path in draft.rglob("*") if path.is_dir()):
        sync(inner)
    # Written last: a folder that has a manifest has all files listed in it.
    _write_file(draft / MANIFEST, [memoryview(manifest.to_text().encode())])
    sync(draft / MANIFEST)
    unmark_draft(draft)
    sync(draft)


def _write_file(path: Path, chunks: Iterable[memoryview], advance: Advance = unseen) -> FileEntry:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "xb") as file:

        def write(chunk: memoryview) -> None:
            file.write(chunk)
            advance(len(chunk))

        return _checksum(chunks, write)


def _checksum(chunks: Iterable[memoryview], handle: Callable[[memoryview], object] = lambda chunk: None) -> FileEntry:
    """Return size and checksum of chunks of bytes, each of which is passed to `handle` as well."""
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        handle(chunk)
        size += len(chunk)
    return FileEntry(size, digest.hexdigest())


def _chunks(content: bytes | Path) -> Iterator[memoryview]:
    if isinstance(content, bytes):
        yield memoryview(content)
        return
    with open_regular(content) as file:
        while data := file.read(BLOCK_BYTES):
            yield memoryview(data)


def _move_into_place(draft: Path, folder: Path) -> None:
    aside = _aside(folder)
    # rename(2) cannot replace a non-empty folder, so an existing one is moved aside first. If the process dies between
    # the two renames, `current_path` finds the old folder.
    if folder.exists():
        os.rename(folder, aside)
    os.rename(draft, folder)
    sync(folder.parent)
    if aside.exists():
        discard(aside)
