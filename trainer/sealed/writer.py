"""Writing a sealed folder: beside its place, forced to disk, renamed."""

import errno
import hashlib
import os
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

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

UNFINISHED = ".unfinished"
REPLACED = ".replaced"


def write_sealed(
    folder: Path,
    arrays: Iterable[ArraySource],
    documents: Mapping[str, bytes | Path],
    facts: dict[str, Any],
    array_folder: str = "arrays",
) -> None:
    """Writes `folder`, in the place of one that stands there, all at once.

    Args:
        folder: where it shall stand; the folders above it are made.
        arrays: no name twice.
        documents: content, or a file to copy, per file name; folders are allowed, as in "workflow/encoders.json".
        facts: JSON for the manifest.
        array_folder: the folder of the arrays, in lower-case letters.

    Raises:
        CheckpointError: no room, no permission, a disk that fails. What stood in `folder` still does.
        ValueError: names, blocks or facts that cannot be written.
    """
    sources = tuple(arrays)
    _check_names(sources, documents)
    facts = plain_json(facts, "facts")
    temporary = temporary_name(folder)
    needed = sum(source.nbytes for source in sources)
    try:
        needed += sum(_size(content) for content in documents.values())
        folder.parent.mkdir(parents=True, exist_ok=True)
        _check_room(folder.parent, needed)
        _fill(temporary, sources, documents, facts, array_folder)
        _put_in_place(temporary, folder)
    except OSError as error:
        raise CheckpointError(
            f"cannot save {folder}: {error.strerror or error}. {needed:,} bytes are needed: "
            "free some room, or make the folder writable. What was saved before is untouched."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Gives a sealed folder other facts, all at once; its arrays and documents stay as they are.

    Raises:
        CheckpointError: no room, no permission, a disk that fails, or a manifest that is damaged. It stays as it was.
        ValueError: facts that cannot be written.
    """
    manifest = replace(read_manifest(folder), facts=plain_json(facts, "facts"))
    temporary = temporary_name(folder)
    try:
        temporary.mkdir()
        _write_file(temporary / MANIFEST, [memoryview(manifest.to_text().encode())])
        _sync_file(temporary / MANIFEST)
        os.replace(temporary / MANIFEST, folder / MANIFEST)
        sync_folder(folder)
    except OSError as error:
        raise CheckpointError(f"cannot update {folder / MANIFEST}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(parent: Path, pattern: str) -> None:
    """Clears away what saves that died have left in `parent`.

    What one had moved aside before it died stays, as it is all that there is of its kind (see `standing`).

    Args:
        parent: where the saved folders stand.
        pattern: of their names, as in "step-*".
    """
    for path in parent.glob(f".{pattern}-{'[0-9a-f]' * 12}{UNFINISHED}"):
        shutil.rmtree(path, ignore_errors=True)
    for aside in parent.glob(f"{pattern}{REPLACED}"):
        if aside.with_name(aside.name.removesuffix(REPLACED)).exists():
            discard(aside)


def discard(folder: Path) -> None:
    """Removes a folder, as far as the file system lets us; no half of it is left under its own name."""
    doomed = temporary_name(folder)
    with suppress(OSError):
        os.rename(folder, doomed)
        shutil.rmtree(doomed)


def standing(folder: Path) -> Path:
    """Where the content of `folder` is: aside, if a save died between its two renames."""
    aside = folder.with_name(folder.name + REPLACED)
    return aside if aside.exists() and not folder.exists() else folder


def temporary_name(folder: Path) -> Path:
    """A name beside `folder` that no reader takes for it and `remove_leftovers` knows."""
    return folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:12]}{UNFINISHED}")


def sync_folder(folder: Path) -> None:
    """Forces the names in a folder to disk, where its file system knows how to."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _check_names(sources: tuple[ArraySource, ...], documents: Mapping[str, bytes | Path]) -> None:
    twice = [name for name, count in Counter(source.name for source in sources).items() if count > 1]
    if twice:
        raise ValueError(f"arrays given twice: {', '.join(twice)}")
    for name in documents:
        if not is_document_name(name):
            raise ValueError(f"{name!r} cannot name a document: printable, three folders deep at most, no part hidden")


def _check_room(parent: Path, needed: int) -> None:
    usage = shutil.disk_usage(parent)
    # Some network file systems report nothing at all; there the write itself will tell.
    if usage.total and usage.free < needed:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({usage.free:,} bytes are free)")


def _fill(
    temporary: Path,
    sources: tuple[ArraySource, ...],
    documents: Mapping[str, bytes | Path],
    facts: dict[str, Any],
    array_folder: str,
) -> None:
    (temporary / array_folder).mkdir(parents=True)
    manifest = Manifest(facts, {}, {})
    for index, source in enumerate(sources):
        file = f"{array_folder}/{index:04d}-{re.sub('[^A-Za-z0-9_.]+', '-', source.name)[:80]}.npy"
        size, digest = _write_file(temporary / file, source.npy_chunks())
        shape = tuple(int(length) for length in source.shape)
        manifest.arrays[source.name] = ArrayEntry(file, size, digest, shape, np.dtype(source.dtype).name)
    for name, content in documents.items():
        (temporary / name).parent.mkdir(parents=True, exist_ok=True)
        manifest.documents[name] = FileEntry(name, *_write_file(temporary / name, _chunks(content)))
    # All at once, so that a thread that hands over blocks does not wait for the disk.
    for path in temporary.rglob("*"):
        if path.is_file():
            _sync_file(path)
    for inner in (path for path in temporary.rglob("*") if path.is_dir()):
        sync_folder(inner)
    # Last of all: a folder with a manifest has everything that it lists.
    _write_file(temporary / MANIFEST, [memoryview(manifest.to_text().encode())])
    _sync_file(temporary / MANIFEST)
    sync_folder(temporary)


def _write_file(path: Path, chunks: Iterable[memoryview]) -> tuple[int, str]:
    """Writes a file; returns the length and the SHA-256 sum."""
    digest, size = hashlib.sha256(), 0
    with open(path, "xb") as file:
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def _sync_file(path: Path) -> None:
    """Forces a file's content to disk, whichever descriptor it was written through."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _size(content: bytes | Path) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def _chunks(content: bytes | Path) -> Iterator[memoryview]:
    if isinstance(content, bytes):
        yield memoryview(content)
        return
    with open(content, "rb") as file:
        while data := file.read(BLOCK_BYTES):
            yield memoryview(data)


def _put_in_place(temporary: Path, folder: Path) -> None:
    aside = folder.with_name(folder.name + REPLACED)
    if folder.exists():
        os.rename(folder, aside)
    os.rename(temporary, folder)
    sync_folder(folder.parent)
    if aside.exists():
        discard(aside)
