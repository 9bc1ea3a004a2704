"""Atomic writing of checksummed folders: written under a temporary name, synced to disk, then renamed."""

import errno
import hashlib
import json
import os
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from data import draft_folder
from data.atomic import UNFINISHED, is_out_of_room, sync_names
from data.errors import DataError
from data.files import open_regular
from trainer.sealed.arrays import BLOCK_BYTES, ArraySource
from trainer.sealed.errors import CheckpointError
from trainer.sealed.manifest import (
    MANIFEST,
    ArrayEntry,
    FileEntry,
    Manifest,
    is_document_name,
    plain_json,
    read_manifest,
)
from trainer.sealed.owned import foreign_entry, is_owned

REPLACED = ".replaced"
# Estimated size of a file's entry in the manifest, for the check of free space.
_ENTRY_BYTES = 512


def write_sealed(
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
        CheckpointError: if there is no space or permission, the disk fails, or `folder` has content not written by a
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
        raise CheckpointError(f"cannot save: {error}") from error
    except OSError as error:
        raise CheckpointError(
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


def replace_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Replaces the facts of a checksummed folder atomically; its arrays and documents are unchanged.

    Args:
        folder: the existing folder.
        facts: new metadata, as JSON values.

    Raises:
        CheckpointError: if there is no space or permission, the disk fails, or the manifest is damaged. The folder is
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
        raise CheckpointError(f"cannot update {folder / MANIFEST}: {error.strerror or error}. {_fix(error)}") from error
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
