"""Opens files named by a user or a dataset: regular files only, and for a dataset only inside its folder."""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from data.errors import DataError, LostInputError
from data.specification.problems import shown

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
    """Opens a regular file for reading, without ever blocking on a pipe, socket or device.

    /dev/stdin and the pipes of process substitution are refused too, because files are read more than once.

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
    """Opens a regular file for reading, for the duration of the block.

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


def first_file(paths: Sequence[Path]) -> Path | None:
    """Returns the first path that is a regular file, else the first that exists at all, else None.

    Reading a path that is not a regular file raises an error that says what it is.
    """
    there = [path for path in paths if os.path.lexists(path)]
    return next((path for path in there if path.is_file()), next(iter(there), None))


def is_of_system(error: OSError) -> bool:
    """Returns whether a system call failed: Arrow and gzip raise OSError without an errno for corrupt content."""
    return bool(error.errno) and not isinstance(error, LostInputError)


def way_out(path: str, root: str, resolved: dict[str, str]) -> str | None:
    """Returns how a path leads out of the dataset's folder, with the fix, or None if it stays inside.

    Args:
        path: path as written in the dataset's specification.
        root: the dataset's folder, with symbolic links resolved.
        resolved: cache of resolved paths, shared between calls; initially empty.
    """
    fix = "write a path relative to the specification's folder that stays under it"
    if os.path.isabs(path):
        return f"is an absolute path; {fix}"
    normal = os.path.normpath(path)
    if normal == ".." or normal.startswith("../"):
        return f"leads out of the folder; {fix}"
    place = root
    for part in path.split("/"):
        place = f"{place}/{part}"
        if place not in resolved:
            resolved[place] = _resolve(place, root)
        real = resolved[place]
        if not real:
            return None
        if os.path.commonpath([real, root]) != root:
            return f"is a link that leads out of the folder (to {shown(real)}); copy the file into it"
    return None


def check_stays(folder: Path, name: str) -> None:
    """Checks that a file next to a specification really lies inside its folder.

    Raises:
        DataError: The name, or a symbolic link on its path, leads out of the folder.
    """
    if mistake := way_out(name, os.path.realpath(folder), {}):
        raise DataError(f"{Path(folder) / name}: {mistake}, or pass --allow_outside_paths")


def _resolve(place: str, root: str) -> str:
    """Resolves one prefix of a path whose parent lies in `root`.

    Only links and ".." can leave `root`, so everything else is resolved to `root` without a call of realpath. Resolving
    prefix by prefix stops at the first missing folder, which keeps long lists of paths fast.

    Returns:
        The real path of a link or "..", `root` for anything else, "" if `place` does not exist.
    """
    try:
        is_link = stat.S_ISLNK(os.lstat(place).st_mode)
    except OSError:
        return ""
    return os.path.realpath(place) if is_link or place.endswith("/..") else root


def _check_regular(status: os.stat_result, path: str | os.PathLike[str], expected: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "no regular file")
        raise NotRegularError(f"{os.fspath(path)}: is {kind}; expected {expected}")
