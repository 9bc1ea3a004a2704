"""Find the fitted workflow files of a dataset that are copied along with a model.

Only files listed in the manifest are included: model folders get shared, so a stray file in `workflow/`, or one that a
link points to, must not end up in them.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from data.errors import DataError
from data.storage.files import check_stays, open_regular, read_small_text

ENCODERS_FOLDER = "workflow"
# Possible names of the outermost manifest: of a workflow with side tables, and of encoders alone.
MANIFESTS = ("workflow.json", "manifest.json")
MAX_MEBIBYTES = 16
READ_BYTES = 2**22


def workflow_files(dataset: Path, *, allow_outside_paths: bool = False) -> dict[str, Path]:
    """Return the manifest of a dataset's workflow and the files that it lists, after verifying their checksums.

    Args:
        dataset: folder of the feature specification.
        allow_outside_paths: whether to follow links that lead out of the dataset folder.

    Returns:
        Paths by name relative to the dataset; empty if there is no workflow, or no manifest in it.

    Raises:
        DataError: if a file is missing, was changed, is not a regular file, or lies outside the dataset.
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
    """Check a file against its manifest entry.

    Args:
        path: path of the file.
        size: expected size in bytes.
        digest: expected SHA-256 checksum, in hexadecimal.
        fix: suggested fix, for the error message.

    Raises:
        DataError: if the file is missing, is not a regular file, or was changed.
    """
    try:
        with open_regular(path) as file:
            is_intact = os.fstat(file.fileno()).st_size == size and content_sum(file) == digest
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {fix}") from error
    if not is_intact:
        raise DataError(f"{path}: is not what was written (its checksum differs); {fix}")


def content_sum(file: BinaryIO) -> str:
    """Return the SHA-256 checksum of the rest of a file, in hexadecimal."""
    digest = hashlib.sha256()
    while piece := file.read(READ_BYTES):
        digest.update(piece)
    return digest.hexdigest()


def _listed(path: Path) -> dict[str, tuple[int, str]]:
    """Return the size and checksum of every file that a manifest lists, by name."""
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
