"""Checks output paths: a command overwrites neither its inputs nor files that this project did not write."""

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from data.errors import DataError


def check_apart(outputs: Mapping[str, Path | Iterable[Path]], inputs: Mapping[str, Path | Iterable[Path]]) -> None:
    """Check that no output is, contains or lies in an input or another output, with symbolic links resolved.

    Args:
        outputs: files to write and folders to replace as a whole, by their names in error messages (such as flags).
        inputs: files to read and folders to read as a whole, by their names in error messages.

    Raises:
        DataError: Two paths overlap; the message names both.
    """
    read = [_ResolvedPath(name, path) for name, path in _pairs(inputs)]
    written: list[_ResolvedPath] = []
    for name, path in _pairs(outputs):
        output = _ResolvedPath(name, path)
        for other in (*read, *written):
            if how := output.overlap(other):
                kind = "read" if other in read else "written"
                raise DataError(
                    f"{name} {path}: {how} {other.path}, which this run has {kind} as {other.name}; choose another path"
                )
        written.append(output)


def check_replaceable_file(path: Path, what: str, is_ours: Callable[[Path], bool]) -> None:
    """Check that `path` may be written: it does not exist, is empty, or was written by the same command.

    Args:
        path: path of the output file.
        what: name of the path in error messages, such as a flag.
        is_ours: returns whether a regular file was written by this command.

    Raises:
        DataError: `path` is a link, a folder, a device or a file of another kind, or cannot be read.
    """
    if not os.path.lexists(path):
        return
    if path.is_symlink():
        raise DataError(f"{what} {path}: is a link, and links are never replaced; remove it, or choose another path")
    if path.is_dir():
        raise DataError(f"{what} {path}: is a folder, expected a file; choose another path")
    if not path.is_file():
        raise DataError(f"{what} {path}: is not a regular file; choose another path")
    try:
        is_kept = path.stat().st_size > 0 and not is_ours(path)
    except OSError as error:
        raise DataError(f"{what} {path}: exists and cannot be read ({error.strerror}); choose another path") from error
    if is_kept:
        raise DataError(f"{what} {path}: exists and was not written by this command; move it, or choose another path")


class _ResolvedPath:
    """A named path with its symbolic links resolved, and its device and inode numbers if it exists."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self._real = os.path.realpath(path)
        self._identity: tuple[int, int] | None = None
        with suppress(OSError, ValueError):  # it does not exist yet, or no file can have this name
            status = os.stat(path)
            # Also detects hard links and file systems that ignore case.
            self._identity = (status.st_dev, status.st_ino)

    def overlap(self, other: "_ResolvedPath") -> str:
        """Return in words how this path overlaps another one, or an empty string if it does not."""
        if self._real == other._real or (self._identity is not None and self._identity == other._identity):
            return "is the same file as"
        if other._real.startswith(self._real.rstrip(os.sep) + os.sep):
            return "contains"
        return "lies in" if self._real.startswith(other._real.rstrip(os.sep) + os.sep) else ""


def _pairs(paths_by_name: Mapping[str, Path | Iterable[Path]]) -> list[tuple[str, Path]]:
    return [
        (name, path)
        for name, paths in paths_by_name.items()
        for path in ([paths] if isinstance(paths, Path) else dict.fromkeys(paths))
    ]
