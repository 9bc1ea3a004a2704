"""Makes a dataset in an object store usable by its local path: everything but its rows is downloaded."""

import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from data.encoding.workflow_folder import ENCODERS_FOLDER
from data.errors import DataError
from data.spec.embedding_sizes import SIZES_FILE
from data.spec.feature_spec import FeatureSpec
from data.storage.remote import join, pull_folder, url_of


def pull_dataset(folder: Path, spec_file: str, *, allow_outside_paths: bool = False) -> None:
    """Download the specification of a dataset, its embedding sizes, encoders and pretrained vectors.

    The files of its mappings are not downloaded: `data.loading.parquet` reads row groups of the objects. A folder that
    stands for none in a store is left as it is.

    Args:
        folder: folder of the dataset; if that is in a store, its mirror.
        spec_file: the specification, relative to the folder.
        allow_outside_paths: as in `FeatureSpec.read`.

    Raises:
        DataError: The store cannot be read, there is no such specification, or it is invalid.
        RemoteChangedError: The dataset was replaced in the meantime.
    """
    if (url := url_of(folder)) is None:
        return
    name = PurePosixPath(spec_file)
    if name.is_absolute() or ".." in name.parts:
        raise DataError(f"the specification {spec_file} leads out of {url}; write a path relative to that folder")
    place = url if len(name.parts) == 1 else join(url, str(name.parent))

    def pull(wanted: Callable[[str], bool]) -> Path:
        return pull_folder(place, name.name, wanted)

    # What the rows of all runs need is small, and little of it changes from run to run.
    local = pull(lambda file: file in (name.name, SIZES_FILE) or file.startswith(f"{ENCODERS_FOLDER}/"))
    spec = FeatureSpec.read(local / name.name, allow_outside_paths=allow_outside_paths)
    if vectors := {os.path.normpath(str(feature.pretrained)) for feature in spec.pretrained}:
        pull(vectors.__contains__)
