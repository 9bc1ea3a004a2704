"""The model folder: a model's weights and the files that describe it, which is all that prediction needs.

<model_dir>/model/
    architecture.json      name, flags and metrics of the model
    feature_spec.yaml
    embedding_sizes.json
    workflow/              encoders fitted by the dataset's `prepare` (vocabularies, scalers), if it has any
    weights/*.npy
    manifest.json
"""

import glob
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.memory import check_fits
from data.storage.arrays import ArraySource
from data.storage.checksummed_dir import (
    ChecksummedDir,
    Content,
    DamagedError,
    check_can_be_renamed,
    check_replaceable,
    current_path,
    remove_leftovers,
    write_checksummed,
)
from trainer.checkpoint import mirror
from trainer.checkpoint.store import NoCheckpointError
from trainer.logging.progress import byte_progress
from trainer.tasks.logit_map import LogitMap

# Name of the model folder in --model_dir.
MODEL_FOLDER = "model"
# Arrays of a recommender besides its weights: the items that each user has interacted with.
SEEN_STARTS, SEEN_ITEMS = "seen/starts", "seen/items"
ARCHITECTURE, SPECIFICATION, SIZES = "architecture.json", "feature_spec.yaml", "embedding_sizes.json"


@dataclass(frozen=True)
class Architecture:
    """The content of `architecture.json`.

    Attributes:
        model: name of the model, also found in `options`.
        tasks: names of the tasks in the order of the logits.
        options: the model's flags.
        step: step of the checkpoint from which the weights are taken.
        metrics: metrics of that checkpoint's evaluation; None where undefined.
        logit_maps: what predictions apply to the network's logits, by label; only labels where it changes something.
    """

    model: str
    tasks: tuple[str, ...]
    options: dict[str, Any]
    step: int
    metrics: dict[str, float | None]
    logit_maps: dict[str, LogitMap]


def check_model_folder(folder: Path) -> None:
    """Check, before training, that a model folder can be written at `folder`, replacing an earlier one.

    Raises:
        DataError: The path is a link, a file or a mount point, or contains something that no save has written; the
            message names it.
    """
    check_replaceable(folder)
    check_can_be_renamed(folder)


def write_model(folder: Path, arrays: Iterable[ArraySource], files: Mapping[str, Content]) -> None:
    """Write a model folder atomically, replacing an earlier one, and upload it if it is the mirror of one.

    Args:
        folder: folder to write, usually `<model_dir>/model`.
        arrays: the weights.
        files: content of the other files by name, such as "architecture.json" or "workflow/encoders.json".

    Raises:
        StorageError: The folder could not be written; an earlier model is untouched.
    """
    remove_leftovers(folder.parent, glob.escape(folder.name))
    arrays = list(arrays)
    with byte_progress(f"writing {folder.name}", sum(source.nbytes for source in arrays)) as advance:
        write_checksummed(folder, arrays=arrays, files=files, array_folder="weights", advance=advance)
    mirror.upload_model(folder)


def open_model(folder: Path) -> ChecksummedDir:
    """Open a model folder and verify every byte of its weights and other files.

    The mirror of one in an object store is refreshed first.

    Raises:
        NoCheckpointError: There is no model, or it is damaged.
        DataError: The weights do not fit into memory, which is checked before any of them is read.
    """
    mirror.refresh_model(folder)
    try:
        opened = ChecksummedDir(current_path(folder))  # the previous model if a save died between its two renames
        size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in opened.arrays.values())
        check_fits(size, f"{opened.path}: a model with so many weights", "use a machine with more memory")
        with byte_progress(f"verifying {opened.path.name}", opened.nbytes) as advance:
            mirror.verify(opened, [opened], advance)
    except DamagedError as error:
        raise NoCheckpointError(
            f"no valid model in {mirror.place(folder)}: {error}. Train first, or give the --model_dir of a run "
            "that has finished."
        ) from error
    return opened
