"""Find the files of a dataset's fitted workflow, which are copied along with a model.

Only files listed in the manifest are included: model folders get shared, so a stray file in `workflow/`, or one that a
link points to, must not end up in them.
"""

import os
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.storage.checksummed_dir import MANIFEST, is_file_name, open_verified
from data.storage.files import check_inside

ENCODERS_FOLDER = "workflow"
# The file in it that describes the encoders.
SETTINGS_FILE = "encoders.json"
# The raw specification that the encoders were fitted with, if there is one.
RAW_SPEC_FILE = "raw_spec.json"
FIX = "prepare the dataset again"


def read_raw_document(workflow: Path) -> dict[str, Any]:
    """Return the document of the raw specification that the encoders of a workflow were fitted with.

    Args:
        workflow: folder `workflow` of a dataset that `preprocess.py` wrote, or of a model trained on it.

    Raises:
        DataError: if the folder is missing, damaged, or holds no raw specification.
    """
    inside = workflow / ENCODERS_FOLDER
    is_dataset = (inside / RAW_SPEC_FILE).is_file()
    fix = f"write {inside}" if is_dataset else "give the folder workflow/ of a dataset that preprocess.py wrote"
    if not (workflow / RAW_SPEC_FILE).is_file():
        raise DataError(f"{workflow}: holds no {RAW_SPEC_FILE}; {fix}")
    document: dict[str, Any] = open_verified(workflow, "run preprocess.py again on the raw files").read_json(
        RAW_SPEC_FILE
    )
    return document


def workflow_files(dataset: Path, *, allow_outside_paths: bool = False) -> dict[str, Path]:
    """Return the files of a dataset's workflow, including its manifest, after verifying their checksums.

    Args:
        dataset: folder of the feature specification.
        allow_outside_paths: whether to follow links that lead out of the dataset folder.

    Returns:
        Paths by name relative to the dataset; empty if there is no workflow, or no manifest in it.

    Raises:
        DataError: if a file is missing, was changed, is not a regular file, or lies outside the dataset.
    """

    def check(name: str) -> None:
        if not allow_outside_paths:
            check_inside(dataset, name)

    check(ENCODERS_FOLDER)
    folder = dataset / ENCODERS_FOLDER
    if not os.path.lexists(folder / MANIFEST):
        return {}
    check(f"{ENCODERS_FOLDER}/{MANIFEST}")
    names = [f"{ENCODERS_FOLDER}/{name}" for name in (MANIFEST, *open_verified(folder, FIX).files)]
    for name in names:
        check(name)
        if not is_file_name(name):
            raise DataError(f"{dataset / name}: has a name that a model folder cannot hold; {FIX}")
    return {name: dataset / name for name in names}
