"""Prepare a dataset from raw files and declared columns; shared by the `prepare` of every text table."""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from data.command_line import Parser, run_tool, whole_number
from data.errors import DataError
from data.files.new_dataset import new_dataset
from data.preprocess.encoders import Encoder, Numerical
from data.preprocess.prepared import Progress, write_prepared
from data.preprocess.splits import MAPPINGS, TRAIN
from data.preprocess.tabular.columns import Columns
from data.preprocess.tabular.staging import Source, Staged, stage, whole_file
from data.preprocess.text_tables import BLOCK_BYTES, TextForm, find_file
from data.spec.embedding_sizes import default_dim
from data.spec.feature_spec import FeatureSpec

if TYPE_CHECKING:
    from data.preprocess.tabular.workflow import TabularWorkflow

ROWS_PER_BLOCK = 262_144
LARGEST_EMBEDDING = 32


@dataclass(frozen=True)
class Job:
    """A table to prepare.

    Attributes:
        name: name of the dataset, recorded in the specification and printed before every progress line.
        sources: raw files to read.
        columns: declaration of their columns.
        mappings: names of the mappings to write; all must get rows.
        seed: seed of the order of the training rows.
        oov_buckets: number of ids shared by values unseen in training, per categorical feature.
        metadata: further metadata for the specification.
        block_bytes: bytes of a raw file to read at a time.
    """

    name: str
    sources: Sequence[Source]
    columns: Columns
    mappings: Sequence[str]
    seed: int
    oov_buckets: int
    metadata: Mapping[str, Any]
    block_bytes: int = BLOCK_BYTES


def prepare_table(job: Job, output: Path) -> None:
    """Write parquet files, specification, embedding sizes and encoders, atomically.

    Encoders are fitted on the training rows only. Training rows are stored in a random order, determined by the seed
    and their row numbers in the raw file; other rows keep the order of the files.

    Args:
        job: table to prepare.
        output: folder for the dataset.

    Raises:
        DataError: if the input is invalid, or a mapping gets no rows.
    """
    progress = Progress(job.name)
    with new_dataset(output) as draft, tempfile.TemporaryDirectory(dir=draft) as scratch:
        staged = stage(job.sources, job.columns, _made(Path(scratch) / "rows"), progress, job.block_bytes)
        for mapping in job.mappings:
            if not staged.rows[mapping]:
                raise DataError(f"{mapping}: no row falls to it; give files with more rows, or other fractions")
        workflow = _fit(job, staged, _made(Path(scratch) / "nvtabular"))
        progress.tell(f"fitted the NVTabular workflow on {staged.rows[TRAIN]:,} training rows")
        encoders = workflow.encoders()
        features, channels = job.columns.specified(encoders)
        spec = FeatureSpec(draft, features, {}, channels, {"dataset": job.name, **job.metadata})
        mappings = {
            mapping: _transformed(workflow, job, staged, mapping, progress)
            for mapping in MAPPINGS
            if mapping in job.mappings
        }
        write_prepared(draft, spec, mappings, encoders, embedding_sizes(encoders))
    progress.tell(f"done: {output}")


def embedding_sizes(encoders: Mapping[str, Encoder]) -> dict[str, int]:
    """Return the embedding width of each categorical feature: `default_dim` of its cardinality, at most 32."""
    ids = {name: encoder for name, encoder in encoders.items() if not isinstance(encoder, Numerical)}
    return {name: min(LARGEST_EMBEDDING, default_dim(encoder.cardinality)) for name, encoder in ids.items()}


def require_file(folder: Path, names: Sequence[str], what: str, where: str) -> Path:
    """Return the first of the named files that exists in a folder, plain or with `.gz`.

    Args:
        folder: folder to search.
        names: file names, in order of preference.
        what: description of the file, for messages.
        where: where to get the file, for messages.

    Raises:
        DataError: if the folder does not exist or has none of the files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder; give the one that holds {what}")
    path = find_file(folder, list(names))
    if path is None:
        looked_for = ", ".join(names)
        raise DataError(f"{folder}: {what} is missing; looked for {looked_for}, each also with .gz. {where}")
    return path


def published_files(
    folder: Path, known: Sequence[Sequence[str]], mappings: Sequence[str], form: TextForm, where: str
) -> list[Source]:
    """Return the first complete group of files in a folder, each plain or with `.gz`, as sources.

    Args:
        folder: folder to search.
        known: groups of file names, in order of preference; each has one name per mapping.
        mappings: mapping that each file of a group belongs to.
        form: format of the files.
        where: where to get the files, for messages.

    Raises:
        DataError: if the folder does not exist or has no complete group.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder; give the one that holds {known[0][0]}")
    for names in known:
        paths = [find_file(folder, [name]) for name in names]
        if None not in paths:
            pairs = zip(paths, mappings, strict=True)
            return [Source(path, form, whole_file(mapping)) for path, mapping in pairs if path]
    groups = "; or ".join(", ".join(names) for names in known)
    raise DataError(f"{folder}: files are missing; looked for {groups}, each also with .gz. {where}")


def table_parser(name: str, description: str) -> Parser:
    """Return a parser with the arguments that all text tables share."""
    parser = Parser(
        prog=f"python -m data.{name}.prepare",
        description=description,
    )
    add = parser.add_argument
    add("--raw", type=Path, required=True, metavar="DIR", help="folder of the raw files, plain or gzip-compressed")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the dataset, made if missing")
    add("--seed", type=whole_number(0), default=0, help="of every random draw: the split, the order of training rows")
    add("--oov_buckets", type=whole_number(1), default=1, help="ids for values unseen in training, per feature")
    return parser


def run_prepare(name: str, prepare: Callable[..., None], args: argparse.Namespace) -> int:
    """Run a `prepare` with parsed arguments; return the exit code: 0 success, 1 failure, 2 invalid input."""

    def job() -> int:
        prepare(**vars(args))
        return 0

    return run_tool(name, job)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _fit(job: Job, staged: Staged, folder: Path) -> "TabularWorkflow":
    # Imported late, since it takes seconds: mistakes in arguments and raw files are reported first.
    from data.preprocess.tabular.workflow import TabularWorkflow

    return TabularWorkflow(job.columns, staged.files[TRAIN], job.oov_buckets, folder).fit()


def _transformed(
    workflow: "TabularWorkflow", job: Job, staged: Staged, mapping: str, progress: Progress
) -> Iterator[pd.DataFrame]:
    frames = staged.shuffled(mapping, job.seed) if mapping == TRAIN else staged.in_file_order(mapping)
    told, rows = progress.stage(mapping, staged.rows[mapping]), 0
    for frame in frames:
        for start in range(0, len(frame), ROWS_PER_BLOCK):
            part = frame.iloc[start : start + ROWS_PER_BLOCK].reset_index(drop=True)
            yield workflow.transform(part)
            rows += len(part)
            told(rows)
