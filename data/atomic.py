"""Atomic file writes: content goes to a temporary file with an unpredictable name, which is then renamed."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

UNFINISHED = ".unfinished"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yields a temporary file that replaces `path` when the block ends, or is removed on an exception.

    Raises:
        OSError: The file cannot be written. Any existing file at `path` is left untouched.
    """
    temporary = temporary_beside(path)
    try:
        with create_new(temporary) as file:
            yield file
            # Flush the content to disk before the rename: after a power loss, the name never refers to an empty file.
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync_names(path.parent)


def write_whole(path: Path, content: str | bytes) -> None:
    """Atomically writes text (as UTF-8) or bytes to `path`."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def create_new(path: Path) -> BinaryIO:
    """Creates a file and opens it for writing, without following symbolic links.

    Raises:
        OSError: `path` already exists, or the file cannot be created.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return open(os.open(path, flags, 0o666), "wb")


def temporary_beside(path: Path) -> Path:
    """Returns an unpredictable hidden file name in the folder of `path`."""
    return path.parent / f".{secrets.token_hex(8)}{UNFINISHED}"


def sync_names(folder: Path) -> None:
    """Flushes the directory entries of a folder to disk, where its file system supports it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def is_out_of_room(error: OSError) -> bool:
    """Returns whether the disk, a quota or a file size limit is exhausted, rather than the location not writable."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
