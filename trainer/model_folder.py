"""The model folder: weights and the documents that say what they are weights of; all that prediction needs.

<model_dir>/model/architecture.json, feature_spec.yaml, embedding_sizes.json, weights/*.npy, manifest.json
"""

import glob
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trainer.checkpoints import NoCheckpointError
from trainer.sealed.arrays import ArraySource
from trainer.sealed.errors import DamagedError
from trainer.sealed.reader import SealedFolder
from trainer.sealed.writer import remove_leftovers, standing, write_sealed


def write_model(folder: Path, arrays: Iterable[ArraySource], documents: Mapping[str, str | dict[str, Any]]) -> None:
    """Writes a model folder, in the place of one that stands there, all at once.

    Args:
        folder: usually `<model_dir>/model`.
        arrays: the weights.
        documents: text, or a dict for JSON, by file name ("architecture.json", "vocabularies/ad_id.json").

    Raises:
        CheckpointError: it could not be written; the model that stood there still does.
    """
    remove_leftovers(folder.parent, glob.escape(folder.name))
    contents = {name: _to_text(content).encode() for name, content in documents.items()}
    write_sealed(folder, arrays, contents, {}, array_folder="weights")


def read_model(folder: Path) -> tuple[dict[str, Any], SealedFolder]:
    """The documents (those named .json parsed) and the weights; every byte has been verified.

    Raises:
        NoCheckpointError: there is no model, or it is damaged.
    """
    try:
        weights = SealedFolder(standing(folder))
        weights.verify()
    except DamagedError as error:
        raise NoCheckpointError(
            f"no valid model in {folder}: {error}. Train first, or give the --model_dir of a run that has finished."
        ) from error
    parsed = {name: json.loads(text) if name.endswith(".json") else text for name, text in weights.documents().items()}
    return parsed, weights


def _to_text(content: str | dict[str, Any]) -> str:
    return content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
