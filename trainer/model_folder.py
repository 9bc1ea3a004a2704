"""The model folder: weights and the documents that say what they are weights of; all that prediction needs.

<model_dir>/model/architecture.json, feature_spec.yaml, embedding_sizes.json, workflow/, weights/*.npy, manifest.json

`workflow/` holds what the dataset's `prepare` has fitted (vocabularies, scalers), where the dataset has it.
"""

import glob
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.encoding.workflow_folder import workflow_files
from data.errors import DataError
from data.memory import check_fits
from trainer.checkpoints import NoCheckpointError
from trainer.sealed.arrays import ArraySource
from trainer.sealed.errors import DamagedError
from trainer.sealed.manifest import is_document_name
from trainer.sealed.reader import SealedFolder
from trainer.sealed.writer import check_can_be_renamed, check_replaceable, remove_leftovers, standing, write_sealed

# In --model_dir.
MODEL_FOLDER = "model"
# Arrays of a recommender that are no weights: the items of each user's interactions.
SEEN_STARTS, SEEN_ITEMS = "seen/starts", "seen/items"
ARCHITECTURE, SPECIFICATION, SIZES = "architecture.json", "feature_spec.yaml", "embedding_sizes.json"

# Text, bytes, a dict for JSON, or a file that is copied.
Document = str | bytes | dict[str, Any] | Path


@dataclass(frozen=True)
class Architecture:
    """What `architecture.json` says.

    Attributes:
        model: its name, which is among its flags as well.
        tasks: in the order of the logits.
        options: the model's flags.
        step: of the checkpoint that the weights are from.
        metrics: of the evaluation that made these weights the best; None where undefined.
    """

    model: str
    tasks: tuple[str, ...]
    options: dict[str, Any]
    step: int
    metrics: dict[str, float | None]


def check_model_place(folder: Path) -> None:
    """Checks, before training, that a model folder can take the place of what stands at `folder`.

    Raises:
        DataError: a link, a file, a mount point or something that no save has written is there. Names it.
    """
    check_replaceable(folder)
    check_can_be_renamed(folder)


def write_model(folder: Path, arrays: Iterable[ArraySource], documents: Mapping[str, Document]) -> None:
    """Writes a model folder, in the place of one that stands there, all at once.

    Args:
        folder: usually `<model_dir>/model`.
        arrays: the weights.
        documents: by file name ("architecture.json", "workflow/encoders.json").

    Raises:
        CheckpointError: it could not be written; the model that stood there still does.
    """
    remove_leftovers(folder.parent, glob.escape(folder.name))
    contents = {name: _content(document) for name, document in documents.items()}
    write_sealed(folder, arrays, contents, {}, array_folder="weights")


def open_model(folder: Path) -> SealedFolder:
    """The weights and documents of a model folder; every byte has been verified.

    Raises:
        NoCheckpointError: there is no model, or it is damaged.
        DataError: its weights do not fit into memory; none has been read yet.
    """
    try:
        sealed = SealedFolder(standing(folder))
        _check_size(sealed)
        sealed.verify()
    except DamagedError as error:
        raise NoCheckpointError(
            f"no valid model in {folder}: {error}. Train first, or give the --model_dir of a run that has finished."
        ) from error
    return sealed


def _check_size(sealed: SealedFolder) -> None:
    size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in sealed.arrays.values())
    check_fits(size, f"{sealed.path}: a model with so many weights", "use a machine with more memory")


def encoder_documents(dataset: Path, *, allow_outside_paths: bool = False) -> dict[str, Document]:
    """The files of a dataset's encoders, by their name in the model folder; none where the dataset has no encoders.

    Args:
        dataset: the folder of the feature specification.
        allow_outside_paths: follow links that lead out of it.

    Raises:
        DataError: they are not as `prepare` wrote them, or lie outside of the dataset (see `workflow_files`).
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
