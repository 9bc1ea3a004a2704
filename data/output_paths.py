"""Where a command may write: never over its inputs, and never over what this project did not write."""

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from data.errors import DataError


def check_apart(outputs: Mapping[str, Path | Iterable[Path]], inputs: Mapping[str, Path | Iterable[Path]]) -> None:
    """Checks that no output is, contains or lies in an input or another output, links resolved.

    Args:
        outputs: files that are written and folders that are replaced as a whole, by what people know them as.
        inputs: files that are read, and folders whose whole content is read.

    Raises:
        DataError: naming both.
    """
    read = [_Place(name, path) for name, path in _pairs(inputs)]
    written: list[_Place] = []
    for name, path in _pairs(outputs):
        place = _Place(name, path)
        for other in (*read, *written):
            if how := place.meets(other):
                kind = "read" if other in read else "written"
                raise DataError(
                    f"{name} {path}: {how} {other.path}, which this run has {kind} as {other.name}; choose another path"
                )
        written.append(place)


def check_replaceable_file(path: Path, what: str, is_ours: Callable[[Path], bool]) -> None:
    """Checks that a file may be written at `path`: nothing is there, an empty file, or an earlier one of the same kind.

    Args:
        path: the file.
        what: as people know it, for the message.
        is_ours: whether a regular file is of that kind.

    Raises:
        DataError: a link, a folder, a device or a file of another kind is there.
    """
    if not os.path.lexists(path):
        return
    if path.is_symlink():
        raise DataError(f"{what} {path}: is a link, and a link is never replaced; remove it, or choose another path")
    if path.is_dir():
        raise DataError(f"{what} {path}: is a folder, expected a file; choose another path")
    if not path.is_file():
        raise DataError(f"{what} {path}: is not a regular file; choose another path")
    try:
        is_kept = path.stat().st_size > 0 and not is_ours(path)
    except OSError as error:
        raise DataError(f"{what} {path}: exists and cannot be read ({error.strerror}); choose another path") from error
    if is_kept:
        raise DataError(f"{what} {path}: exists, and this command has not written it; move it, or choose another path")


class _Place:
    """A path with its links resolved."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self._real = os.path.realpath(path)
        self._identity: tuple[int, int] | None = None
        with suppress(OSError, ValueError):  # it does not exist yet, or no file can have this name
            status = os.stat(path)
            self._identity = (status.st_dev, status.st_ino)

    def meets(self, other: "_Place") -> str:
        """How this path and another one meet, in words; empty if they do not."""
        if self._real == other._real or (self._identity is not None and self._identity == other._identity):
            return "is the same file as"
        if other._real.startswith(self._real.rstrip(os.sep) + os.sep):
            return "contains"
        return "lies in" if self._real.startswith(other._real.rstrip(os.sep) + os.sep) else ""


def _pairs(places: Mapping[str, Path | Iterable[Path]]) -> list[tuple[str, Path]]:
    return [
        (name, path)
        for name, paths in places.items()
        for path in ([paths] if isinstance(paths, Path) else dict.fromkeys(paths))
    ]
