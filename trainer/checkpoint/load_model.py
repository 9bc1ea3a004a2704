"""Loads a trained model from its folder alone, without flags or a dataset."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import tensorflow as tf

from data.encoding.encoder_files import load_encoders
from data.encoding.encoders import Encoder
from data.encoding.workflow_folder import ENCODERS_FOLDER, RAW_SPEC_FILE, SETTINGS_FILE
from data.errors import DataError
from data.spec.embedding_sizes import embedding_dims
from data.spec.feature_spec import FeatureSpec
from data.spec.raw.reader import raw_spec_from_dict
from data.spec.raw.spec import RawSpec
from data.storage.checksummed_dir import ChecksummedDir, StorageError
from data.storage.typed_json import read_typed
from trainer.checkpoint.model_folder import ARCHITECTURE, SIZES, SPECIFICATION, Architecture, open_model
from trainer.checkpoint.saved_config import from_json
from trainer.checkpoint.state import TrainState
from trainer.checkpoint.store import NoCheckpointError
from trainer.config import ModelOptions
from trainer.layout import InputSchema, input_schema
from trainer.models import build_model, model_options
from trainer.models.ranking import RankingModel
from trainer.tasks.binary import with_logit_maps
from trainer.tasks.score import Score
from trainer.tasks.task import Task, tasks_of


@dataclass(frozen=True)
class LoadedModel:
    """The content of a model folder.

    Attributes:
        spec: features and channels; the data files that it names need not exist.
        layout: layout of the model's input tensors.
        tasks: the tasks, one per label, with their corrections and calibrators.
        model: the model with its trained weights.
        encoders: encoders from raw values to ids and numbers, by feature; empty if the dataset had none.
        metrics: metrics of the evaluation of these weights; NaN where undefined.
        files: content of the folder's files besides the weights, by name.
        raw_spec: raw specification of the dataset; None if it was not written by preprocess.py.
        score: the score; None for none.
    """

    spec: FeatureSpec
    layout: InputSchema
    tasks: tuple[Task, ...]
    model: RankingModel
    encoders: dict[str, Encoder]
    metrics: dict[str, float]
    files: dict[str, bytes]
    raw_spec: RawSpec | None = None
    score: Score | None = None


def load_model(folder: Path, *, compute_dtype: str = "float32") -> LoadedModel:
    """Load the model that a run has written to `<model_dir>/model`.

    Args:
        folder: the model folder.
        compute_dtype: type of the forward pass: float32, float16 or bfloat16.

    Raises:
        NoCheckpointError: There is no model, one of its files is damaged, or its content is unknown to this program.
    """
    return read_model(open_model(Path(folder)), compute_dtype=compute_dtype)


def read_model(folder: ChecksummedDir, *, compute_dtype: str = "float32") -> LoadedModel:
    """Load the model of a folder that has been opened and verified, like `load_model`."""
    with reject_foreign(folder.path):
        return _read_model(folder, compute_dtype)


@contextmanager
def reject_foreign(folder: Path) -> Iterator[None]:
    """Convert errors in reading a folder into NoCheckpointError: an intact folder may still be another program's."""
    try:
        yield
    except NoCheckpointError:
        raise
    except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, MemoryError) as error:
        raise NoCheckpointError(f"{folder}: is not a model folder of this program: {error!r}") from error
    except (ValueError, pa.ArrowException, tf.errors.OpError, StorageError) as error:  # a DataError is a ValueError
        raise NoCheckpointError(f"{folder}: is not a model folder of this program: {error}") from error


def _read_model(folder: ChecksummedDir, compute_dtype: str) -> LoadedModel:
    architecture: Architecture = read_typed(Architecture, folder.read_json(ARCHITECTURE), ARCHITECTURE)
    options = _options(architecture.options, folder.path / ARCHITECTURE)
    # Outside paths are harmless here: the data files that the specification names are never opened.
    spec = FeatureSpec.read(folder.path / SPECIFICATION, allow_outside_paths=True, has_files=False)
    layout = input_schema(spec, embedding_dims(spec, folder.path / SIZES, allow_outside_paths=True))
    tasks = with_logit_maps(tasks_of(spec), architecture.logit_maps)
    if architecture.tasks != tuple(task.name for task in tasks):
        raise DataError(
            f"{ARCHITECTURE} has the tasks {', '.join(architecture.tasks)}, {SPECIFICATION} the labels "
            f"{', '.join(task.name for task in tasks)}"
        )
    _check_size(options, layout, tasks, folder)
    model = build_model(options, layout, tasks, compute_dtype=compute_dtype, seed=0, restored=True)
    TrainState(model.weights_by_name).restore(folder)
    settings = [path for path in folder.files.values() if path.name == SETTINGS_FILE]
    encoders = load_encoders(settings[0].parent) if settings else {}
    files = {name: folder.read_file(name) for name in folder.files}
    metrics = {key: math.nan if value is None else value for key, value in architecture.metrics.items()}
    return LoadedModel(spec, layout, tasks, model, encoders, metrics, files, _raw_spec(folder), Score.of(spec))


def _raw_spec(folder: ChecksummedDir) -> RawSpec | None:
    """Return the raw specification in the workflow of the model's dataset, if it has one."""
    name = f"{ENCODERS_FOLDER}/{RAW_SPEC_FILE}"
    if name not in folder.files:
        return None
    # Outside paths are harmless here, too: raw files are never opened.
    return raw_spec_from_dict(folder.read_json(name), folder.path, source=name, allow_outside_paths=True)


def _check_size(options: ModelOptions, layout: InputSchema, tasks: tuple[Task, ...], folder: ChecksummedDir) -> None:
    """Reject a description of a model larger than the stored weights, before memory is allocated for it."""
    stored = sum(math.prod(shape) for shape, _ in folder.arrays.values())
    tables = (*layout.tables, *layout.frozen_tables)
    needed = sum(table.rows * table.width for table in tables) + options.vector_weights(layout)
    needed += options.dense_weights(options.network_width(layout), {task.name: task.width for task in tasks})
    if needed > stored:
        raise DataError(f"{folder.path}: describes a model that is larger than its {stored:,} weights")


def _options(values: dict[str, Any], path: Path) -> ModelOptions:
    try:
        flags = from_json(values)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    unknown = sorted(set(values) - set(flags))
    if unknown:
        raise DataError(f"{path}: has the options {', '.join(unknown)}, which this program does not know; update it")
    return model_options(**flags)
