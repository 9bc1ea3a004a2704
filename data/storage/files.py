"""Safe reading and atomic writing of files.

Files that a user or a dataset names are opened only if they are regular files, and those of a dataset only inside its
folder. Files and folders are written under a temporary name, synced to disk, and renamed.
"""

import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from data.errors import DataError, LostInputError, shown

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class NotRegularError(DataError):
    """A path refers to something other than a regular file; the message says what it is."""


def open_regular(path: str | os.PathLike[str], expected: str = "a regular file") -> BinaryIO:
    """Open a regular file for reading, without ever blocking on a pipe, socket or device.

    /dev/stdin and the pipes of process substitution are rejected too, because files are read more than once.

    Args:
        path: path of the file; symbolic links are followed.
        expected: what the file should be, in words for the error message.

    Raises:
        NotRegularError: The path refers to something other than a regular file.
        OSError: The file does not exist or cannot be opened.
        ValueError: The path is invalid, such as one with a NUL character.
    """
    # Checked before opening, since opening a device can act on it, and again afterwards, since the file may have been
    # replaced in between.
    _check_regular(os.stat(path), path, expected)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _check_regular(os.fstat(descriptor), path, expected)
        os.set_blocking(descriptor, True)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


@contextmanager
def reading(path: Path, hint: str) -> Iterator[BinaryIO]:
    """Open a regular file for reading, for the duration of the block.

    Args:
        path: path of the file.
        hint: what to do if the file cannot be opened, for the error message.

    Raises:
        DataError: The file is missing, not a regular file, or cannot be opened.
        LostInputError: A system call failed inside the block, after the file was opened.
    """
    try:
        file = open_regular(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; {hint}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; {hint}") from error
    with file:
        try:
            yield file
        except OSError as error:
            if is_of_system(error):
                raise LostInputError(f"{path}: can no longer be read: {error.strerror}") from error
            raise


def read_small_text(path: Path, expected: str, max_mebibytes: int) -> str:
    """Return the content of a UTF-8 file, without its byte order mark.

    Args:
        path: path of the file.
        expected: what the file should be, in words for error messages ("a YAML file").
        max_mebibytes: size limit in MiB; no more than this is read.

    Raises:
        DataError: The file is missing, not a regular file, not readable, too large or not UTF-8.
    """
    try:
        with open_regular(path, expected) as file:
            content = file.read(max_mebibytes * 2**20 + 1)  # one byte more than allowed shows that it is too large
    except DataError:  # a subclass of ValueError, which is caught below
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; expected {expected}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise DataError(f"{path}: cannot be read: {error}") from error
    if len(content) > max_mebibytes * 2**20:
        raise DataError(f"{path}: is larger than {max_mebibytes} MiB; expected {expected}")
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8 (byte {error.start}); save the file as UTF-8") from error


def first_file(paths: Sequence[Path]) -> Path | None:
    """Return the first path that is a regular file, else the first that exists at all, else None.

    Reading a path that is not a regular file raises an error that says what it is.
    """
    there = [path for path in paths if os.path.lexists(path)]
    return next((path for path in there if path.is_file()), next(iter(there), None))


def is_of_system(error: OSError) -> bool:
    """Return whether a system call failed: Arrow and gzip raise OSError without an errno for corrupt content."""
    return bool(error.errno) and not isinstance(error, LostInputError)


def find_escape(path: str, root: str, resolved: dict[str, str]) -> str | None:
    """Return how a path leads out of the dataset's folder, with the fix, or None if it stays inside.

    Args:
        path: path as written in the dataset's specification.
        root: the dataset's folder, with symbolic links resolved.
        resolved: cache of resolved paths, shared between calls; initially empty.
    """
    fix = "write a path relative to the specification's folder that stays under it"
    if "://" in path:
        return f"is a URL; {fix}"
    if os.path.isabs(path):
        return f"is an absolute path; {fix}"
    normal = os.path.normpath(path)
    if normal == ".." or normal.startswith("../"):
        return f"leads out of the folder; {fix}"
    prefix = root
    for part in path.split("/"):
        prefix = f"{prefix}/{part}"
        if prefix not in resolved:
            resolved[prefix] = _resolve(prefix, root)
        real = resolved[prefix]
        if not real:
            return None
        if os.path.commonpath([real, root]) != root:
            return f"is a link that leads out of the folder (to {shown(real)}); copy the file into it"
    return None


def check_inside(folder: Path, name: str) -> None:
    """Check that a file next to a specification really lies inside its folder.

    Raises:
        DataError: The name, or a symbolic link on its path, leads out of the folder.
    """
    if mistake := find_escape(name, os.path.realpath(folder), {}):
        raise DataError(f"{Path(folder) / name}: {mistake}, or pass --allow_outside_paths")


def _resolve(path: str, root: str) -> str:
    """Resolve one prefix of a path whose parent lies in `root`.

    Only links and ".." can leave `root`, so everything else is resolved to `root` without a call of realpath. Resolving
    prefix by prefix stops at the first missing folder, which keeps long lists of paths fast.

    Returns:
        The real path of a link or "..", `root` for anything else, "" if `path` does not exist.
    """
    try:
        is_link = stat.S_ISLNK(os.lstat(path).st_mode)
    except OSError:
        return ""
    return os.path.realpath(path) if is_link or path.endswith("/..") else root


def _check_regular(status: os.stat_result, path: str | os.PathLike[str], expected: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "no regular file")
        raise NotRegularError(f"{os.fspath(path)}: is {kind}; expected {expected}")


# Suffix of the names of temporary files and folders.
UNFINISHED = ".unfinished"
# File in a draft, a folder that is being written. It shows that this program may remove the folder.
DRAFT_MARKER = ".draft-of-this-program"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a temporary file that replaces `path` when the block ends, or is removed on an exception.

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
    sync(path.parent)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write text (as UTF-8) or bytes to `path` atomically."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def create_new(path: Path) -> BinaryIO:
    """Create a file and open it for writing, without following symbolic links.

    Raises:
        OSError: `path` already exists, or the file cannot be created.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return open(os.open(path, flags, 0o666), "wb")


def temporary_beside(path: Path) -> Path:
    """Return an unpredictable hidden file name in the folder of `path`."""
    return path.parent / f".{secrets.token_hex(8)}{UNFINISHED}"


def sync(path: Path) -> None:
    """Flush a file, or the directory entries of a folder, to disk, where the file system supports it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def is_out_of_room(error: OSError) -> bool:
    """Return whether the disk, a quota or a file size limit is exhausted, rather than the location not writable."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def draft_beside(folder: Path) -> Iterator[Path]:
    """Yield a new draft beside `folder`, which is removed when the block ends, unless it was renamed before."""
    draft = temporary_folder(folder)
    try:
        draft.mkdir()
        mark_draft(draft)
        yield draft
    finally:
        remove_draft(draft)


def temporary_folder(folder: Path) -> Path:
    """Return an unpredictable hidden name in the parent of `folder`."""
    return folder.with_name(f".{folder.name}-{secrets.token_hex(6)}{UNFINISHED}")


def mark_draft(folder: Path) -> None:
    """Mark a folder as a draft, which may be removed once the process that writes it has died."""
    (folder / DRAFT_MARKER).touch(exist_ok=True)


def unmark_draft(folder: Path) -> None:
    """Remove the marker, before the folder is renamed to its final name."""
    (folder / DRAFT_MARKER).unlink(missing_ok=True)


def is_draft(folder: Path) -> bool:
    """Return whether a folder may be removed: it has the marker or is empty. False for a symbolic link to one."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    with suppress(OSError):
        return (folder / DRAFT_MARKER).is_file() or not any(folder.iterdir())
    return False


def lock_folder(folder: Path) -> int | None:
    """Lock a folder until the descriptor is closed or the process dies.

    Returns:
        The descriptor that holds the lock, or None if another process holds it or locks are not supported.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def remove_draft(folder: Path) -> None:
    """Remove a draft, ignoring OSError; the marker goes last, so that an interrupted removal can be completed."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != DRAFT_MARKER:
                path.unlink()
        shutil.rmtree(folder)
