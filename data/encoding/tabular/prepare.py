"""From raw files and declared columns to a whole dataset: what the `prepare` of every table does."""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from data.command_line import Parser, run_tool, whole_number
from data.conversion.new_dataset import new_dataset
from data.encoding.encoders import Encoder, Numerical
from data.encoding.prepared import Progress, write_prepared
from data.encoding.splits import MAPPINGS, TRAIN
from data.encoding.tabular.columns import Columns
from data.encoding.tabular.staging import Source, Staged, stage, whole_file
from data.encoding.text_tables import BLOCK_BYTES, TextForm, find_file
from data.errors import DataError
from data.specification.embedding_sizes import default_dim
from data.specification.feature_spec import FeatureSpec

if TYPE_CHECKING:
    from data.encoding.tabular.workflow import TabularWorkflow

ROWS_PER_BLOCK = 262_144
LARGEST_EMBEDDING = 32


@dataclass(frozen=True)
class Job:
    """A table to prepare.

    Attributes:
        name: of the dataset; in front of every line told, and in the specification.
        sources: the raw files.
        columns: what becomes of their columns.
        mappings: those the dataset has.
        seed: of the order of the training rows.
        oov_buckets: ids for values unseen in training, per categorical feature.
        metadata: what the specification says of the dataset besides its name.
        block_bytes: how much of a raw file is read at once.
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
    """Writes parquet, specification, embedding sizes and encoders; all of it, or nothing.

    Encoders are fitted on the training rows alone. Training rows are stored in a random order, which depends on
    the seed and on the rows' places in their file; the others in the order of the files.

    Raises:
        DataError: wrong input.
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
    """Widths of categorical features: the rule of thumb of `default_dim`, at most 32."""
    ids = {name: encoder for name, encoder in encoders.items() if not isinstance(encoder, Numerical)}
    return {name: min(LARGEST_EMBEDDING, default_dim(encoder.cardinality)) for name, encoder in ids.items()}


def require_file(folder: Path, names: Sequence[str], what: str, where: str) -> Path:
    """The first of the files that a folder has, as named or with `.gz`.

    Raises:
        DataError: it is no folder, or has none of them; saying what was looked for and where it can be had.
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
    """The first group of files, one per mapping, that a folder has as a whole, each as named or with `.gz`.

    Raises:
        DataError: it is no folder, or has no such group.
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
    """The arguments that every table's command has."""
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
    """Runs a `prepare` with parsed arguments; returns the exit code: 0 done, 1 failure, 2 wrong input."""

    def job() -> int:
        prepare(**vars(args))
        return 0

    return run_tool(name, job)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _fit(job: Job, staged: Staged, folder: Path) -> "TabularWorkflow":
    # NVTabular takes seconds to import: mistakes in arguments and raw files are told before.
    from data.encoding.tabular.workflow import TabularWorkflow

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
