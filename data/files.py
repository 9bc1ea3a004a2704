"""Opening the files that are named by a user or by a dataset: regular files only, and a dataset's in its folder."""

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
    """What has the name of a file is something else; the message says what."""


def open_regular(path: str | os.PathLike[str], expected: str = "a regular file") -> BinaryIO:
    """Opens a regular file for reading. Pipes, sockets and devices are neither read nor waited for.

    That also holds for /dev/stdin and the pipes of process substitution: files are read more than once.

    Args:
        path: symbolic links are followed.
        expected: what it should be, in words for the message.

    Raises:
        NotRegularError: it is something else.
        OSError: there is none, or it cannot be read.
        ValueError: a path that no file can have.
    """
    # Asked before it is opened, since opening a device can act on it, and again afterwards, since it may be exchanged
    # in between.
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
    """A regular file, open for reading.

    Args:
        path: of the file.
        hint: what to do where it cannot be opened.

    Raises:
        DataError: there is none, it is something else, or it cannot be read.
        LostInputError: the system failed to read it after it was opened.
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
    """The first of the paths that is a regular file, else the first that is anything: reading it says what it is."""
    there = [path for path in paths if os.path.lexists(path)]
    return next((path for path in there if path.is_file()), next(iter(there), None))


def is_of_system(error: OSError) -> bool:
    """Whether the system has failed: Arrow and gzip raise an OSError for damaged content too, without a number."""
    return bool(error.errno) and not isinstance(error, LostInputError)


def way_out(path: str, root: str, resolved: dict[str, str]) -> str | None:
    """How a path of a dataset leaves the dataset's folder, and the fix; None if it stays.

    Args:
        path: as the dataset names it.
        root: the folder, resolved.
        resolved: saves asking twice; empty at first.
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
    """Refuses a file beside a specification that lies elsewhere.

    Raises:
        DataError: the name, or a symbolic link on its way, leads out of the folder.
    """
    if mistake := way_out(name, os.path.realpath(folder), {}):
        raise DataError(f"{Path(folder) / name}: {mistake}, or pass --allow_outside_paths")


def _resolve(place: str, root: str) -> str:
    """Where a place leads that is reached from within `root`: `root` unless it may be elsewhere, "" if not there.

    Asked of every folder on the way, for what is not there ends the way: a list of long paths is then soon done.
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
