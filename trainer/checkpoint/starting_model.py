"""The model that a warm start begins with: a checkpoint of an earlier run, or a model folder. Imports no TensorFlow."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.encoding.workflow_folder import ENCODERS_FOLDER, SETTINGS_FILE
from data.errors import DataError
from data.spec.embedding_sizes import embedding_dims
from data.spec.feature_spec import FeatureSpec
from data.storage.checksummed_dir import ChecksummedDir, DamagedError, StorageError, current_path
from data.storage.typed_json import read_typed
from trainer.checkpoint import mirror
from trainer.checkpoint.model_folder import (
    ARCHITECTURE,
    MODEL_FOLDER,
    SIZES,
    SPECIFICATION,
    Architecture,
    open_model,
)
from trainer.checkpoint.run_state import Origin, RunState
from trainer.checkpoint.saved_config import from_json
from trainer.checkpoint.schema import ModelSchema
from trainer.checkpoint.store import CHECKPOINTS, CheckpointStore, NoCheckpointError
from trainer.config import TrainingOptions, section_flags
from trainer.models import model_options
from trainer.recipe import CHOSEN


@dataclass(frozen=True)
class StartingModel:
    """What a warm start reads of an earlier model.

    Attributes:
        weights: the checkpoint, or the model folder, whose arrays have the same names.
        options: the flags of the run; of a model folder those of the model only.
        schema: its features and tasks.
        origin: what it has been trained for, from which the new run counts on: nothing for a model folder, since the
            optimizer starts again.
        workflow: folder of the encoders that made its ids; None if it has none.
    """

    weights: ChecksummedDir
    options: dict[str, Any]
    schema: ModelSchema
    origin: Origin
    workflow: Path | None

    @property
    def is_run(self) -> bool:
        """Whether it has the state of the optimizer, too."""
        return bool(self.origin.steps)

    def flags(self) -> dict[str, Any]:
        """Return the flags that a new run takes over, by name: those of the model, and those chosen by the data."""
        return _flags(self.options)


def open_starting_model(model: Path, which: str, *, verify: bool = False) -> StartingModel:
    """Open the model of a warm start.

    Args:
        model: the --model_dir of an earlier run, or a model folder.
        which: the checkpoint of the run: "last", "best" or a path.
        verify: whether to verify every byte; otherwise only manifests are.

    Raises:
        NoCheckpointError: there is no model, or it is damaged.
    """
    store = CheckpointStore(model)
    store.refresh(which)
    mirror.refresh_model(model / MODEL_FOLDER)
    folder = current_path(model / MODEL_FOLDER)
    if store.is_empty and not folder.is_dir():
        mirror.refresh_model(model)
    if not store.is_empty:
        return _of_run(model, folder if folder.is_dir() else None, which, verify)
    for path in (current_path(model), folder):
        if _is_model(path):
            return _of_model_folder(path, verify)
    raise NoCheckpointError(
        f"--warm_start {mirror.place(model)}: has neither {CHECKPOINTS} of a run nor a model. Give the --model_dir "
        f"of a run that has saved a checkpoint, or the folder {MODEL_FOLDER} in it."
    )


def _of_run(model: Path, folder: Path | None, which: str, verify: bool) -> StartingModel:
    store = CheckpointStore(model) if verify else CheckpointStore(model, warn=lambda text: None)
    checkpoint = store.open(which, verify=verify)
    facts = RunState.of(checkpoint)
    _check_options(facts.options, checkpoint.path)
    # An epoch that was not finished is not trained again.
    epochs = facts.origin.epochs + facts.position.epoch + (facts.position.steps > 0)
    origin = Origin(checkpoint.step, epochs, str(checkpoint.path))
    workflow = None if folder is None else _workflow(_opened(folder))
    return StartingModel(checkpoint, facts.options, facts.schema, origin, workflow)


def _is_model(folder: Path) -> bool:
    """Return whether a folder is a model folder, intact or not. Of one in a store, only the manifest may be here."""
    if folder.joinpath(ARCHITECTURE).is_file():
        return True
    with suppress(DamagedError):
        return ARCHITECTURE in ChecksummedDir(folder).files
    return False


def _of_model_folder(folder: Path, verify: bool) -> StartingModel:
    opened = open_model(folder) if verify else _opened(folder)
    try:
        mirror.download(opened, lambda name: name in (ARCHITECTURE, SPECIFICATION, SIZES))
        architecture: Architecture = read_typed(Architecture, opened.read_json(ARCHITECTURE), ARCHITECTURE)
        # Outside paths are harmless here: the data files that the specification names are never opened.
        spec = FeatureSpec.read(opened.path / SPECIFICATION, allow_outside_paths=True, has_files=False)
        widths = embedding_dims(spec, opened.path / SIZES, allow_outside_paths=True)
    except (ValueError, LookupError, StorageError) as error:  # a DataError is a ValueError
        raise NoCheckpointError(f"{mirror.place(folder)}: is not a model folder of this program: {error}") from error
    _check_options(architecture.options, opened.path)
    schema = ModelSchema.of(spec, widths)
    return StartingModel(opened, architecture.options, schema, Origin(0, 0, str(opened.path)), _workflow(opened))


def _opened(folder: Path) -> ChecksummedDir:
    try:
        return ChecksummedDir(folder)
    except DamagedError as error:
        raise NoCheckpointError(
            f"--warm_start: no valid model in {mirror.place(folder)}: {error}; restore it, or name another"
        ) from error


def _workflow(folder: ChecksummedDir) -> Path | None:
    if f"{ENCODERS_FOLDER}/{SETTINGS_FILE}" not in folder.files:
        return None
    mirror.download(folder, lambda name: name.startswith(f"{ENCODERS_FOLDER}/"))
    return folder.path / ENCODERS_FOLDER


def _check_options(options: Mapping[str, Any], path: Path) -> None:
    try:
        model_options(**from_json(options))
    except DataError as error:
        raise NoCheckpointError(f"{path}: {error}; it is not a model of this program") from error


def flags_of_run(model_dir: Path, which: str) -> dict[str, Any]:
    """Return the flags that a run keeps when it resumes from a checkpoint, whatever chose them.

    Raises:
        NoCheckpointError: there is no such checkpoint, or its flags are invalid.
    """
    checkpoint = CheckpointStore(model_dir, warn=lambda text: None).open(which, verify=False)
    options = RunState.of(checkpoint).options
    try:
        return _flags(options, (*CHOSEN, "recipe"))
    except DataError as error:
        raise NoCheckpointError(f"{checkpoint.path}: {error}; it is not a checkpoint of this program") from error


def _flags(options: Mapping[str, Any], of_training: Sequence[str] = CHOSEN) -> dict[str, Any]:
    known = section_flags(TrainingOptions)
    return from_json(options) | {name: known[name].read(options[name]) for name in of_training if name in options}


def check_starting_model(model: Path, model_dir: Path) -> None:
    """Check that a warm start does not begin with the model that it is about to write.

    Raises:
        DataError: it would.
    """
    if model.resolve() in (model_dir.resolve(), (model_dir / MODEL_FOLDER).resolve()):
        raise DataError(
            f"--warm_start {mirror.place(model)} is in the --model_dir of this run: a warm start is a new run; "
            "give another --model_dir"
        )
