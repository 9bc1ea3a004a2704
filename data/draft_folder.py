"""Draft folders: folders being written or removed, identified by a marker file inside rather than by their name."""

import shutil
from contextlib import suppress
from pathlib import Path

MARKER = ".draft-of-this-program"


def mark(folder: Path) -> None:
    """Marks a folder as a draft, which may be removed once the process that writes it has died."""
    (folder / MARKER).touch(exist_ok=True)


def unmark(folder: Path) -> None:
    """Removes the marker, before the folder is renamed to its final name."""
    (folder / MARKER).unlink(missing_ok=True)


def is_draft(folder: Path) -> bool:
    """Returns whether a folder may be removed: it has the marker or is empty. False for a symbolic link to one."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    with suppress(OSError):
        return (folder / MARKER).is_file() or not any(folder.iterdir())
    return False


def remove(folder: Path) -> None:
    """Removes a draft, ignoring OSError; the marker goes last, so that an interrupted removal can be completed."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != MARKER:
                path.unlink()
        shutil.rmtree(folder)
