"""The model folder: a model's weights and the files that describe it, which is all that prediction needs.

<model_dir>/model/architecture.json, feature_spec.yaml, embedding_sizes.json, workflow/, weights/*.npy, manifest.json

`workflow/` contains the encoders fitted by the dataset's `prepare` (vocabularies, scalers), if the dataset has any.
"""

import glob
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.memory import check_fits
from data.preprocess.workflow_folder import workflow_files
from data.storage.arrays import ArraySource
from data.storage.checksummed_dir import (
    ChecksummedDir,
    DamagedError,
    check_can_be_renamed,
    check_replaceable,
    is_document_name,
    remove_leftovers,
    standing,
    write_checksummed,
)
from trainer.checkpoint.store import NoCheckpointError

# Name of the model folder in --model_dir.
MODEL_FOLDER = "model"
# Arrays of a recommender besides its weights: the items that each user has interacted with.
SEEN_STARTS, SEEN_ITEMS = "seen/starts", "seen/items"
ARCHITECTURE, SPECIFICATION, SIZES = "architecture.json", "feature_spec.yaml", "embedding_sizes.json"

# The content of a file in the folder: text, bytes, a dict to write as JSON, or the path of a file to copy.
Document = str | bytes | dict[str, Any] | Path


@dataclass(frozen=True)
class Architecture:
    """The content of `architecture.json`.

    Attributes:
        model: name of the model, also found in `options`.
        tasks: names of the tasks in the order of the logits.
        options: the model's flags.
        step: step of the checkpoint from which the weights are taken.
        metrics: metrics of that checkpoint's evaluation; None where undefined.
    """

    model: str
    tasks: tuple[str, ...]
    options: dict[str, Any]
    step: int
    metrics: dict[str, float | None]


def check_model_place(folder: Path) -> None:
    """Check, before training, that a model folder can be written at `folder`, replacing an earlier one.

    Raises:
        DataError: the path is a link, a file or a mount point, or contains something that no save has written; the
            message names it.
    """
    check_replaceable(folder)
    check_can_be_renamed(folder)


def write_model(folder: Path, arrays: Iterable[ArraySource], documents: Mapping[str, Document]) -> None:
    """Write a model folder atomically, replacing an earlier one.

    Args:
        folder: folder to write, usually `<model_dir>/model`.
        arrays: the weights.
        documents: content of the other files by name, such as "architecture.json" or "workflow/encoders.json".

    Raises:
        StorageError: the folder could not be written; an earlier model is untouched.
    """
    remove_leftovers(folder.parent, glob.escape(folder.name))
    contents = {name: _content(document) for name, document in documents.items()}
    write_checksummed(folder, arrays, contents, {}, array_folder="weights")


def open_model(folder: Path) -> ChecksummedDir:
    """Open a model folder and verify every byte of its weights and other files.

    Raises:
        NoCheckpointError: there is no model, or it is damaged.
        DataError: the weights do not fit into memory, which is checked before any of them is read.
    """
    try:
        sealed = ChecksummedDir(standing(folder))  # the previous model if a save died between its two renames
        _check_size(sealed)
        sealed.verify()
    except DamagedError as error:
        raise NoCheckpointError(
            f"no valid model in {folder}: {error}. Train first, or give the --model_dir of a run that has finished."
        ) from error
    return sealed


def _check_size(sealed: ChecksummedDir) -> None:
    size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in sealed.arrays.values())
    check_fits(size, f"{sealed.path}: a model with so many weights", "use a machine with more memory")


def encoder_documents(dataset: Path, *, allow_outside_paths: bool = False) -> dict[str, Document]:
    """Return the files of a dataset's encoders by their names in the model folder; empty without encoders.

    Args:
        dataset: folder of the feature specification.
        allow_outside_paths: whether to follow links that lead out of that folder.

    Raises:
        DataError: the files are not as `prepare` wrote them, or lie outside of the dataset (see `workflow_files`).
    """
    files = workflow_files(dataset, allow_outside_paths=allow_outside_paths)
    for name in files:
        if not is_document_name(name):
            raise DataError(f"{dataset / name}: has a name that a model folder cannot hold; prepare the dataset again")
    return dict(files)


def _content(document: Document) -> bytes | Path:
    if isinstance(document, Path | bytes):
        return document
    return (document if isinstance(document, str) else json.dumps(document, indent=2) + "\n").encode()
