"""Command line of the export, validated as far as possible without importing TensorFlow."""

import argparse
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from data.command_line import Parser
from data.errors import DataError
from data.files.new_dataset import SPEC_FILE
from data.loading.loader import ParquetLoader
from data.spec.feature_spec import FeatureSpec
from data.spec.features import LABEL
from data.storage.checksummed_dir import MANIFEST, ChecksummedDir, current_path
from data.storage.output_paths import check_apart
from data.storage.remote import join, list_files, url_of
from trainer.checkpoint.mirror import check_writable
from trainer.checkpoint.model_folder import MODEL_FOLDER, SEEN_ITEMS, SEEN_STARTS, SPECIFICATION, open_model
from trainer.checkpoint.schema import MAX_HOTNESS, WIDTH, ModelSchema
from trainer.checkpoint.store import CHECKPOINTS
from trainer.default_paths import default_path, local_path
from trainer.export import FORMATS
from trainer.tasks.score import Score, with_score

# What a server does with an id outside [0, cardinality): take the feature's `unseen_id`, or fail.
ExportPolicy = Literal["unseen", "error"]
# Types of the rows of embedding tables in an export.
ExportDtype = Literal["float32", "float16", "int8"]
# Beginning of the names of embedding tables in a model folder.
TABLES = "embeddings/"
# Number of rows on which an export is compared with the model.
ROWS = 4096
# Largest change of a prediction by --export_dtype: absolute, but relative for predictions beyond 1.
MAX_CHANGE = 0.01
# What an export is, and how its predictions were changed. It is written last: a folder without it is part of an export.
REPORT_FILE = "export.json"

DESCRIPTION = """Writes the trained model of a run, or of a Recommender, for a server. Before the output appears, its
predictions are compared with those of the model.
Formats: savedmodel (TensorFlow), onnx, triton (a model repository)."""


@dataclass(frozen=True)
class Request:
    """A validated export request.

    Attributes:
        model: verified model folder of a run or of a recommender.
        output: output folder, which does not exist yet or is empty; the mirror of one that is a URL.
        format: key of FORMATS.
        rows: loader of the rows on which the export is compared with the model; None for random rows.
        oov_policy: what is done with ids outside [0, cardinality).
        dtype: type of the rows of embedding tables in the export.
        max_change: largest change of a prediction by `dtype`.
        score: the score that the export has; None for none.
    """

    model: ChecksummedDir
    output: Path
    format: str
    rows: ParquetLoader | None
    oov_policy: ExportPolicy = "unseen"
    dtype: ExportDtype = "float32"
    max_change: float = MAX_CHANGE
    score: Score | None = None


def read_request(argv: Sequence[str] | None) -> Request:
    """Parse and validate the command line.

    Args:
        argv: arguments without the program name; None for those of this process.

    Raises:
        SystemExit: if the arguments are invalid.
        DataError: if the output exists or overlaps with an input, a required package is missing, the model does not fit
            into the format, the formula of the score is wrong, or the features of the dataset differ from the model's.
        NoCheckpointError: if there is no model, or it is damaged.
    """
    arguments = _parser().parse(argv)
    _check_packages(arguments.format)
    output = local_path(arguments.output)
    _check_output(output)
    model_dir = default_path("model_dir") if arguments.model_dir is None else local_path(arguments.model_dir)
    folder = _model_folder(model_dir.absolute())
    check_apart({"--output": output}, {"the model folder": folder, "the checkpoints": model_dir / CHECKPOINTS})
    model = open_model(folder)
    spec = FeatureSpec.read(model.path / SPECIFICATION, allow_outside_paths=True, has_files=False)
    _check_size(model, arguments.format)
    loader = None if arguments.dataset_path is None else _open_rows(arguments, spec)
    return Request(
        model,
        output,
        arguments.format,
        loader,
        arguments.oov_policy,
        arguments.export_dtype,
        arguments.max_change,
        Score.of(with_score(spec, arguments.score)),
    )


def _parser() -> Parser:
    parser = Parser("export.py", DESCRIPTION, argparse.HelpFormatter)
    add = parser.add_argument
    add(
        "--model_dir",
        metavar="M",
        help="--model_dir of the run (default: as of main.py), or its URL, or a folder of Recommender.save",
    )
    add("--output", required=True, metavar="DIR", help="folder or URL for the export, created")
    add("--format", choices=FORMATS, required=True, help="what is written")
    add(
        "--dataset_path",
        type=Path,
        metavar="DATA",
        help=f"compare on the first {ROWS:,} rows of this dataset's mapping `test` (default: on random rows)",
    )
    add(
        "--oov_policy",
        choices=get_args(ExportPolicy),
        default="unseen",
        help="what is done with ids outside [0, cardinality): unseen takes the feature's unseen_id (default); error "
        "fails the request, as it does for features without one",
    )
    add(
        "--export_dtype",
        choices=get_args(ExportDtype),
        default="float32",
        help="type of the rows of embedding tables, which become float32 once they are looked up; int8 rows have a "
        "float16 scale each (default: float32)",
    )
    add(
        "--max_change",
        type=_positive,
        default=MAX_CHANGE,
        metavar="X",
        help="refuse the export if --export_dtype changes a prediction by more, on all rows of the mapping `test` of "
        "--dataset_path or on random rows (default: %(default)s)",
    )
    add(
        "--score",
        metavar="FORMULA",
        help="formula of labels and numerical features, such as 'click * buy ** 0.5 * price', that adds the output "
        "`score` (default: that of the model)",
    )
    parser.add_outside_paths()
    return parser


def _positive(text: str) -> float:
    """Convert a flag's text to a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def _check_packages(wanted: str) -> None:
    missing = [name for name in FORMATS[wanted].packages if find_spec(name) is None]
    if missing:
        raise DataError(
            f"--format {wanted} needs {', '.join(missing)}, not installed here: "
            "uv pip install --no-deps -r requirements/export.txt"
        )


def _check_output(output: Path) -> None:
    if (url := url_of(output)) is not None:
        if found := list_files(url):
            whole = any(file.url == join(url, REPORT_FILE) for file in found)
            what = "already exists" if whole else f"has files but no {REPORT_FILE}, as an interrupted upload leaves it"
            raise DataError(f"--output {url}: {what}; remove it, or choose another URL")
        shutil.rmtree(output, ignore_errors=True)  # the copy of an export that was not uploaded
        check_writable(output.parent)
    if os.path.lexists(output) and (output.is_symlink() or not output.is_dir() or any(output.iterdir())):
        raise DataError(f"--output {output}: already exists; choose another folder")
    if os.path.ismount(output):
        raise DataError(f"--output {output}: is a mount point, which cannot be replaced; choose a folder in it")


def _model_folder(model_dir: Path) -> Path:
    """Return `model_dir`/model, or `model_dir` itself if it is a model folder as written by Recommender.save."""
    run = model_dir / MODEL_FOLDER
    return model_dir if (current_path(model_dir) / MANIFEST).is_file() and not run.exists() else run


def _check_size(model: ChecksummedDir, wanted: str) -> None:
    weights = [
        entry
        for name, entry in model.arrays.items()
        if name not in (SEEN_STARTS, SEEN_ITEMS) and not name.startswith(TABLES)
    ]
    size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in weights)
    limit = FORMATS[wanted].max_bytes
    if limit is not None and size > limit:
        unlimited = " or ".join(name for name, entry in FORMATS.items() if entry.max_bytes is None)
        raise DataError(
            f"{model.path}: has {size:,} bytes of weights besides its embedding tables, and --format {wanted} holds at "
            f"most {limit:,}; "
            f"use --format {unlimited}"
        )


def _open_rows(arguments: argparse.Namespace, of_model: FeatureSpec) -> ParquetLoader:
    """Open the rows to compare on, with features in the model's order and lists truncated like the model's."""
    path = arguments.dataset_path / SPEC_FILE
    spec = FeatureSpec.read(path, allow_outside_paths=arguments.allow_outside_paths)
    features = ModelSchema.of(of_model, {})
    spec = features.arrange(spec, {}, "the model", str(path), ignoring=(WIDTH, MAX_HOTNESS, LABEL))
    cut = {
        feature.name: replace(spec.features[feature.name], max_hotness=feature.max_hotness)
        for feature in of_model.multihot
    }
    spec = replace(spec, features=spec.features | cut)
    return ParquetLoader(spec, "test", global_batch_size=ROWS, shuffle=False, needs_labels=False, oov_policy="clip")
