"""Files that appear whole under their name or not at all, written under a name that nobody can guess."""

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
    """Yields a new file that takes the place of `path` when the block ends; on an exception it is removed.

    Raises:
        OSError: it cannot be written. What stood at `path` is untouched.
    """
    temporary = temporary_beside(path)
    try:
        with create_new(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync_names(path.parent)


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file of text (UTF-8) or bytes; see `replacing`."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def create_new(path: Path) -> BinaryIO:
    """Opens a file for writing that does not exist yet; follows no link.

    Raises:
        OSError: something of that name exists, or the file cannot be made.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return open(os.open(path, flags, 0o666), "wb")


def temporary_beside(path: Path) -> Path:
    """An unpredictable hidden name in the folder of `path`."""
    return path.parent / f".{secrets.token_hex(8)}{UNFINISHED}"


def sync_names(folder: Path) -> None:
    """Forces the names in a folder to disk, where its file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def is_out_of_room(error: OSError) -> bool:
    """Whether a disk, a quota or a limit on file sizes is exhausted, as opposed to a place that cannot be written."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
