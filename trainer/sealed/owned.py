"""Checks whether a folder holds only files written by saves, so that it may be replaced or removed."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from trainer.sealed.errors import DamagedError
from trainer.sealed.manifest import ARRAY_FILE, MANIFEST, read_manifest


def is_owned(folder: Path) -> bool:
    """Returns whether `folder` is a folder, not a link, and contains only files written by a save."""
    return folder.is_dir() and not folder.is_symlink() and foreign_entry(folder) is None


def foreign_entry(folder: Path) -> Path | None:
    """Returns the first entry of a folder that was not written by a save, or None if there is none.

    Files listed in the manifest and their parent folders count as written by a save. If the manifest cannot be read,
    files with names of arrays do, and the manifest itself if there are any such files.
    """
    entries = dict(_entries(folder))
    written = _listed(folder)
    if written is None:
        written = {name for name in entries if ARRAY_FILE.fullmatch(name)}
        written |= {MANIFEST} if written else set()
    folders = {str(parent) for name in written for parent in PurePosixPath(name).parents}
    for name, kind in entries.items():
        if not (kind == "file" and name in written or kind == "folder" and name in folders):
            return folder / name
    return None


def _listed(folder: Path) -> set[str] | None:
    try:
        manifest = read_manifest(folder)
    except DamagedError:
        return None
    return {MANIFEST, *manifest.documents, *(entry.file for entry in manifest.arrays.values())}


def _entries(folder: Path) -> Iterator[tuple[str, str]]:
    """Yields the relative path and the kind ("file", "folder" or "link") of every entry; links are not followed."""
    for place, folders, files in os.walk(folder):
        inside = Path(place)
        for names, kind in ((folders, "folder"), (files, "file")):
            for name in sorted(names):
                path = inside / name
                yield path.relative_to(folder).as_posix(), "link" if path.is_symlink() else kind
