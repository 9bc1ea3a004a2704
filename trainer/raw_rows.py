"""Raw files to predict (--raw): encoded like the model's training data into a dataset that only this run reads.

Imports no TensorFlow, so that mistakes in the files are reported within seconds.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from data.encoding.workflow_folder import ENCODERS_FOLDER, SETTINGS_FILE
from data.errors import DataError
from data.files.new_dataset import SPEC_FILE
from data.spec.feature_spec import FeatureSpec
from data.storage.checksummed_dir import ChecksummedDir, DamagedError, current_path
from data.storage.files import UNFINISHED, draft_beside, is_draft, lock_folder, remove_draft
from data.storage.remote import url_of
from trainer.checkpoint.mirror import download, place, refresh_model
from trainer.checkpoint.model_folder import MODEL_FOLDER, SIZES, SPECIFICATION
from trainer.checkpoint.store import NoCheckpointError
from trainer.config import Options
from trainer.lifecycle.errors import RejectedByAll
from trainer.outputs import check_file_path

if TYPE_CHECKING:
    from trainer.comm import Comm  # imports TensorFlow

# Temporary folder in --results_dir, and in it the encoded dataset and the model's specification.
SCRATCH, DATASET, OF_MODEL = "raw_rows", "dataset", "model_spec.yaml"
# The only mapping of the encoded dataset.
MAPPING = "test"
# Prefix of a kept raw column whose name a feature has.
RAW_COLUMN = "raw_"


def check_raw(config: Options) -> None:
    """Check, before files are encoded, that they exist, that the model can encode them, and what is written.

    Raises:
        DataError: a file does not exist, the predictions file cannot be written, or the model's dataset came without
            encoders.
        NoCheckpointError: there is no model folder.
    """
    for path in config.run.raw:
        if url_of(path) is None and not path.exists():
            raise DataError(f"--raw {path}: does not exist")
    if config.run.predict is not None:
        check_file_path(config.run.predict, "out.parquet")
    _find_workflow(config)


def _find_workflow(config: Options) -> Path:
    """Return the folder of the model's fitted workflow. Raise as `check_raw` does."""
    folder = config.data.model_dir / MODEL_FOLDER
    refresh_model(folder)
    try:
        opened = ChecksummedDir(current_path(folder))
    except DamagedError as error:
        raise NoCheckpointError(
            f"no valid model in {place(folder)}: {error}. --raw encodes files with the encoders of a finished run."
        ) from error
    if f"{ENCODERS_FOLDER}/{SETTINGS_FILE}" not in opened.files:
        raise DataError(
            f"{folder}: has no encoders, since its dataset had none; write the dataset with preprocess.py and train on "
            "it, or encode the rows yourself and pass them with --dataset_path"
        )
    download(opened, lambda name: name in (SPECIFICATION, SIZES) or name.startswith(f"{ENCODERS_FOLDER}/"))
    return opened.path / ENCODERS_FOLDER


@contextmanager
def encoded_rows(config: Options) -> Iterator[Path]:
    """Encode the files of --raw and yield the folder of the result, which is removed at the end.

    The folder holds the dataset and the model's specification and embedding sizes: all that other workers read.

    Raises:
        DataError: the files cannot be encoded; the message names file, row and column.
    """
    workflow = _find_workflow(config)
    from data.preprocess.engine import encode_new  # takes seconds to import

    results = config.data.results_dir.absolute()
    results.mkdir(parents=True, exist_ok=True)
    with _scratch_folder(results) as draft:
        encode_new(workflow, config.run.raw, draft / DATASET, keep=config.run.keep)
        shutil.copyfile(workflow.parent / SPECIFICATION, draft / OF_MODEL)
        shutil.copyfile(workflow.parent / SIZES, draft / SIZES)
        yield draft


@contextmanager
def _scratch_folder(results: Path) -> Iterator[Path]:
    """Yield a temporary folder in --results_dir, after removing those of killed runs: nobody holds their locks."""
    for old in filter(is_draft, results.glob(f".{SCRATCH}-*{UNFINISHED}")):
        if (lock := lock_folder(old)) is not None:
            remove_draft(old)
            os.close(lock)
    with draft_beside(results / SCRATCH) as draft:
        lock = lock_folder(draft)
        try:
            yield draft
        finally:
            if lock is not None:
                os.close(lock)


def encode_for_all(config: Options, comm: "Comm", resources: ExitStack) -> Options:
    """Encode the files of --raw on rank 0 while the other workers wait. A collective.

    Args:
        config: the resolved configuration.
        comm: collectives over the workers.
        resources: removes the encoded rows when it is closed.

    Returns:
        The configuration of `on_encoded`, on every worker.

    Raises:
        RejectedByAll: the files cannot be encoded.
        DataError: this worker cannot read rank 0's --results_dir.
    """
    if comm.local_rank == 0:
        print(f"worker 0 of {comm.size} encodes the raw rows; the others wait for it", flush=True)
    outcome = {}
    if comm.rank == 0:
        try:
            outcome["folder"] = str(resources.enter_context(encoded_rows(config)))
        except DataError as error:
            outcome["problem"] = str(error)
    outcome = json.loads(comm.broadcast_bytes(json.dumps(outcome).encode()))
    if "problem" in outcome:
        raise RejectedByAll(outcome["problem"])
    folder = Path(outcome["folder"])
    if not folder.is_dir():
        raise DataError(
            f"{folder}: the first worker has written the encoded rows there, and this one cannot read them; choose a "
            "--results_dir that all workers share"
        )
    return on_encoded(config, folder)


def on_encoded(config: Options, folder: Path) -> Options:
    """Return the configuration of a run that predicts the rows of `encoded_rows`."""
    data = replace(
        config.data,
        dataset_path=folder / DATASET,
        fspec_file=SPEC_FILE,
        eval_mapping=MAPPING,
        embedding_sizes_file=config.data.embedding_sizes_file or folder / SIZES,
    )
    return replace(config, data=data)


def read_spec(folder: Path, *, allow_outside_paths: bool) -> FeatureSpec:
    """Return the model's specification with the encoded rows as its only files.

    The workflow may know more features than the model, whose specification can have been edited before training.

    Args:
        folder: the dataset in the folder of `encoded_rows`.
        allow_outside_paths: as for `FeatureSpec.read`.

    Raises:
        DataError: the rows lack a feature of the model.
    """
    encoded = FeatureSpec.read(folder / SPEC_FILE, allow_outside_paths=allow_outside_paths)
    # Outside paths are harmless here: the data files that the model's specification names are never opened.
    of_model = FeatureSpec.read(folder.parent / OF_MODEL, allow_outside_paths=True, has_files=False)
    missing = [feature.name for feature in of_model.inputs if feature.name not in encoded.features]
    if missing:
        raise DataError(
            f"the model reads {', '.join(missing)}, which its encoders do not make; train on the features of the "
            "dataset as preprocess.py has written it"
        )
    # Labels that the raw files do not have are stored as nulls, and marked as what may be missing.
    optional = {name for name, feature in encoded.features.items() if feature.missing == "ignore"}
    absent = {label.name for label in of_model.labels if label.missing == "error" and label.name in optional}
    chunks = tuple(
        replace(chunk, features=tuple(name for name in chunk.features if name not in absent))
        for chunk in encoded.chunks(MAPPING)
    )
    features = encoded.features | of_model.features
    return replace(of_model, folder=encoded.folder, features=features, sources={MAPPING: chunks})


def stored_name(column: str, held: list[str]) -> str:
    """Return the name under which the encoded dataset holds a raw column of --keep.

    Args:
        column: name of the raw column.
        held: columns of the encoded dataset.
    """
    return RAW_COLUMN + column if RAW_COLUMN + column in held else column
