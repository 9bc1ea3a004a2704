"""What a dataset's `prepare` has fitted, as a folder that is copied with a model: only what its manifest lists.

Model folders are passed on. A file that lies in `workflow/` by chance, or that a link brings there, is no part of it.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from data.errors import DataError
from data.files import check_stays, open_regular
from data.specification.small_file import read_small_text

ENCODERS_FOLDER = "workflow"
# The outermost manifest of a workflow, in either form: of a dataset with side tables, and of encoders alone.
MANIFESTS = ("workflow.json", "manifest.json")
MAX_MEBIBYTES = 16
READ_BYTES = 2**22


def workflow_files(dataset: Path, *, allow_outside_paths: bool = False) -> dict[str, Path]:
    """The manifest of a dataset's workflow and the files that it lists, all as they were written.

    Args:
        dataset: the folder of the feature specification.
        allow_outside_paths: follow links that lead out of it.

    Returns:
        Paths by name, relative to the dataset; none where there is no workflow, or one without a manifest.

    Raises:
        DataError: a file is missing, was changed, is not a regular file, or lies outside of the dataset.
    """
    folder = dataset / ENCODERS_FOLDER
    if not allow_outside_paths:
        check_stays(dataset, ENCODERS_FOLDER)
    manifest = next((name for name in MANIFESTS if os.path.lexists(folder / name)), None)
    if manifest is None:
        return {}
    if not allow_outside_paths:
        check_stays(dataset, f"{ENCODERS_FOLDER}/{manifest}")
    listed = _listed(folder / manifest)
    for name, (size, digest) in listed.items():
        if not allow_outside_paths:
            check_stays(dataset, f"{ENCODERS_FOLDER}/{name}")
        check_content(folder / name, size, digest, "prepare the dataset again")
    return {f"{ENCODERS_FOLDER}/{name}": folder / name for name in (manifest, *listed)}


def check_content(path: Path, size: int, digest: str, fix: str) -> None:
    """Refuses a file that is not as a manifest says.

    Args:
        path: of the file.
        size, digest: its length in bytes and SHA-256 sum.
        fix: what to do, for the message.

    Raises:
        DataError: it is missing, is not a regular file, or was changed.
    """
    try:
        with open_regular(path) as file:
            is_intact = os.fstat(file.fileno()).st_size == size and content_sum(file) == digest
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {fix}") from error
    if not is_intact:
        raise DataError(f"{path}: is not what was written (its checksum differs); {fix}")


def content_sum(file: BinaryIO) -> str:
    """SHA-256 of the rest of a file, in hexadecimal."""
    digest = hashlib.sha256()
    while piece := file.read(READ_BYTES):
        digest.update(piece)
    return digest.hexdigest()


def _listed(path: Path) -> dict[str, tuple[int, str]]:
    """Size and checksum of every file that a manifest lists."""
    try:
        entries = json.loads(read_small_text(path, "the manifest of a workflow", MAX_MEBIBYTES))["files"]
        files = {name: _size_and_sum(entry) for name, entry in entries.items()}
    except DataError:
        raise
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is no manifest of a workflow ({error!r}); prepare the dataset again") from error
    for name in files:
        if os.path.isabs(name) or "\0" in name or ".." in name.split("/"):
            raise DataError(f"{path}: lists {name!r}, which is not a file of this folder")
    return files


def _size_and_sum(entry: dict[str, Any]) -> tuple[int, str]:
    size, digest = entry["bytes"], entry["sha256"]
    if type(size) is not int or not isinstance(digest, str):
        raise ValueError(f"{size!r} bytes with the checksum {digest!r}")
    return size, digest
