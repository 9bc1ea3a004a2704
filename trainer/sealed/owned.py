"""Whether a folder holds what saves have written, and nothing else."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from trainer.sealed.errors import DamagedError
from trainer.sealed.manifest import ARRAY_FILE, MANIFEST, read_manifest


def is_owned(folder: Path) -> bool:
    """Whether `folder` is a folder, no link, and nothing is in it but what a save has written."""
    return folder.is_dir() and not folder.is_symlink() and foreign_entry(folder) is None


def foreign_entry(folder: Path) -> Path | None:
    """The first entry of a folder that no save has written; None where there is none.

    Ours are the files that its manifest lists, and their folders. Where the manifest cannot be read, ours are files
    named as arrays are, if there are any.
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
    """Path in the folder and kind of all that lies in it; links are not followed."""
    for place, folders, files in os.walk(folder):
        inside = Path(place)
        for names, kind in ((folders, "folder"), (files, "file")):
            for name in sorted(names):
                path = inside / name
                yield path.relative_to(folder).as_posix(), "link" if path.is_symlink() else kind
