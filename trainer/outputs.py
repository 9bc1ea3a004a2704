"""Check, before a run of main.py starts, that its outputs overwrite neither its inputs nor foreign files."""

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data.encoding.workflow_folder import ENCODERS_FOLDER
from data.errors import DataError
from data.spec.embedding_sizes import SIZES_FILE
from data.spec.feature_spec import FeatureSpec
from data.storage.files import open_regular, read_small_text
from data.storage.output_paths import check_apart, check_replaceable_file
from data.storage.remote import exists, stat, url_of
from trainer.checkpoint.mirror import check_writable
from trainer.checkpoint.model_folder import MODEL_FOLDER, check_model_folder
from trainer.checkpoint.store import CHECKPOINTS, CheckpointStore
from trainer.config import Options
from trainer.importance_file import is_importance
from trainer.logging.log import PREFIX, previous
from trainer.predictions import is_predictions, is_predictions_object
from trainer.slice_table import SLICE_COLUMNS

# File names in --results_dir.
ARGUMENTS, METRICS, SLICES = "args.json", "metrics.json", "slices.csv"
MAX_MEBIBYTES = 16


def check_outputs(options: Options, spec: FeatureSpec) -> None:
    """Check every path that the run will write to.

    Raises:
        DataError: a path is also an input or another output of the run, or is something that this program has not
            written; the message names it.
        NoCheckpointError: the run resumes, but there is no checkpoint.
    """
    data, run = options.data, options.run
    check_apart(dict(_outputs(options)), dict(_inputs(options, spec)))
    log = data.results_dir / data.log_filename
    for path in (log, previous(log)):
        check_replaceable_file(path, "the log", _is_log)
    check_replaceable_file(data.results_dir / ARGUMENTS, "the arguments", _is_arguments)
    check_replaceable_file(data.results_dir / METRICS, "the metrics", partial(_is_metrics, log=log))
    if run.slice:
        check_replaceable_file(data.results_dir / SLICES, "the table of slices", _is_slices)
    if run.predictions_path is not None:
        check_replaceable_file(run.predictions_path, "the predictions file", is_predictions)
        _check_replaceable_object(run.predictions_path)
    if run.importance is not None:
        check_replaceable_file(run.importance, "--importance", is_importance)
    if run.horovod_timeline is not None:
        check_replaceable_file(run.horovod_timeline, "--horovod_timeline", _is_timeline)
    if run.trains and not run.benchmark:
        check_model_folder(data.model_dir / MODEL_FOLDER)
        if run.use_checkpoint:
            CheckpointStore(data.model_dir).check_later(run.which_checkpoint)


def check_file_path(path: Path, example: str) -> None:
    """Check that a file can be written, before hours of evaluation instead of after.

    Args:
        path: path of the file.
        example: name of such a file, for the error message.

    Raises:
        DataError: `path` is a folder, or its folder does not exist or cannot be written.
    """
    check_writable(path.parent)
    if path.is_dir():
        raise DataError(f"{path}: is a folder; expected a file, such as {path / example}")
    if not path.parent.is_dir():
        raise DataError(f"{path}: the folder {path.parent} does not exist; create it with `mkdir -p {path.parent}`")
    if not os.access(path.parent, os.W_OK):
        raise DataError(f"{path}: the folder {path.parent} is not writable; choose another one")


def _check_replaceable_object(path: Path) -> None:
    """Check that the object of which a path is the mirror does not exist, or is a predictions file.

    Raises:
        DataError: it is something else, or the store cannot be read.
    """
    url = url_of(path)
    if url is not None and exists(url) and not is_predictions_object(stat(url)):
        raise DataError(f"{url}: exists and was not written by this command; move it, or choose another URL")


def _outputs(options: Options) -> Iterator[tuple[str, Path]]:
    data, run = options.data, options.run
    if run.trains and not run.benchmark:
        yield "the checkpoints of --model_dir", data.model_dir / CHECKPOINTS
        yield "the model of --model_dir", data.model_dir / MODEL_FOLDER
    log = data.results_dir / data.log_filename
    yield "the log of --results_dir", log
    yield "the log before it", previous(log)
    for name in (ARGUMENTS, METRICS, *((SLICES,) if run.slice else ())):
        yield f"{name} of --results_dir", data.results_dir / name
    if run.predictions_path is not None:
        yield "--predict" if run.predict else "--predictions_file", run.predictions_path
    if run.importance is not None:
        yield "--importance", run.importance
    if run.horovod_timeline is not None:
        yield "--horovod_timeline", run.horovod_timeline
    if run.tensorboard_dir is not None:
        yield "--tensorboard_dir", run.tensorboard_dir / "events.out.tfevents"


def _inputs(options: Options, spec: FeatureSpec) -> Iterator[tuple[str, Path | list[Path]]]:
    data, run = options.data, options.run
    yield "the feature specification", data.dataset_path / data.fspec_file
    yield "a file of the dataset", [path for mapping in spec.sources for path in spec.files(mapping)]
    yield "a file of vectors", [spec.folder / str(feature.pretrained) for feature in spec.pretrained]
    yield "the dataset's encoders", spec.folder / ENCODERS_FOLDER
    yield "the dataset's embedding sizes", spec.folder / SIZES_FILE
    if run.raw:
        yield "--raw", list(run.raw)
    if data.embedding_sizes_file is not None:
        yield "--embedding_sizes_file", data.embedding_sizes_file
    if run.warm_start is not None:
        yield "--warm_start", run.warm_start
    if not run.trains or run.benchmark:
        yield "the checkpoints of --model_dir", data.model_dir / CHECKPOINTS
        yield "the model of --model_dir", data.model_dir / MODEL_FOLDER
    checkpoint = None if run.checkpoint in (None, "last", "best") else Path(str(run.checkpoint))
    own = (data.model_dir / CHECKPOINTS).resolve()
    if checkpoint is not None and not {own, own.parent} & {checkpoint.resolve(), *checkpoint.resolve().parents}:
        yield "--checkpoint", checkpoint


def _is_log(path: Path) -> bool:
    """Return whether a file is the log of a run, possibly truncated by a full disk."""
    with open_regular(path) as file:
        # An empty or very short file is a prefix of PREFIX.
        return PREFIX.encode().startswith(file.read(len(PREFIX)))


def _is_slices(path: Path) -> bool:
    """Return whether a file is the slices.csv of a run."""
    with open_regular(path) as file:
        return file.read(1 << 10).startswith(",".join(SLICE_COLUMNS).encode())


def _is_timeline(path: Path) -> bool:
    """Return whether a file is a Horovod timeline, a JSON list that is written incrementally."""
    with open_regular(path) as file:
        return file.read(1 << 10).lstrip().startswith(b"[")


def _is_arguments(path: Path) -> bool:
    """Return whether a file is the args.json of a run."""
    return {"dataset_path", "model_dir", "results_dir"} <= _read_object(path).keys()


def _is_metrics(path: Path, log: Path) -> bool:
    """Return whether a file is the metrics.json of a run: numbers only, next to a run's log or args.json."""
    arguments = path.with_name(ARGUMENTS)
    is_of_run = (log.is_file() and _is_log(log)) or (arguments.is_file() and _is_arguments(arguments))
    return is_of_run and all(type(value) in (int, float, type(None)) for value in _read_object(path).values())


def _read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; return an empty one if the file is anything else."""
    try:
        document = json.loads(read_small_text(path, "JSON", MAX_MEBIBYTES))
    except (DataError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
