"""Folders that are being written or removed. A marker inside says so, whatever else their name may suggest."""

import shutil
from contextlib import suppress
from pathlib import Path

MARKER = ".draft-of-this-program"


def mark(folder: Path) -> None:
    """Marks a folder as one that may be removed when the process that writes it is dead."""
    (folder / MARKER).touch(exist_ok=True)


def unmark(folder: Path) -> None:
    """Takes the mark off, before the folder gets its own name."""
    (folder / MARKER).unlink(missing_ok=True)


def is_draft(folder: Path) -> bool:
    """Whether a folder may be removed: it bears the mark, or nothing is in it yet. False for a link to one."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    with suppress(OSError):
        return (folder / MARKER).is_file() or not any(folder.iterdir())
    return False


def remove(folder: Path) -> None:
    """Removes a draft as far as the file system allows; the mark goes last, so that an interrupted removal resumes."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != MARKER:
                path.unlink()
        shutil.rmtree(folder)
