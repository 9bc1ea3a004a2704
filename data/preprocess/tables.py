"""Prepare a dataset from text files and declared columns: stage the raw rows on disk, fit, encode and write.

Rows are staged as parquet files of raw values, split by mapping, so that memory holds one block or range at a time.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from data.command_line import Parser, run_tool, whole_number
from data.errors import DataError
from data.files.new_dataset import new_dataset
from data.preprocess.columns import Columns
from data.preprocess.encoders import Encoder, NumberEncoder
from data.preprocess.prepared import SECONDS_BETWEEN_LINES, StageLog, write_prepared
from data.preprocess.splits import MAPPINGS, TRAIN, draw_order, ranges
from data.preprocess.text_tables import BLOCK_BYTES, TextForm, find_file, read_text_blocks
from data.spec.embedding_sizes import default_dim
from data.spec.feature_spec import FeatureSpec

if TYPE_CHECKING:
    from data.preprocess.workflow import TableWorkflow

ROW = "row of the file"
ROWS_PER_RANGE = 1_000_000
ROWS_PER_BLOCK = 262_144
LARGEST_EMBEDDING = 32


@dataclass(frozen=True)
class Source:
    """A raw file and the mappings that its rows belong to.

    Attributes:
        path: path of the file.
        form: format of the file.
        mapping_of: maps [rows] int64 row numbers in the file, from 0, to [rows] mapping names.
    """

    path: Path
    form: TextForm
    mapping_of: Callable[[np.ndarray], np.ndarray]


def whole_file(mapping: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return a `mapping_of` that assigns every row to one mapping."""
    return lambda rows: np.full(len(rows), mapping, object)


@dataclass
class Staged:
    """The rows of each mapping as parquet files of raw values, in the order of the raw files.

    Attributes:
        folder: folder of the parquet files.
        rows: number of rows, by mapping.
        files: paths of the parquet files, by mapping.
    """

    folder: Path
    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MAPPINGS, 0))
    files: dict[str, list[Path]] = field(default_factory=lambda: {mapping: [] for mapping in MAPPINGS})

    def add(self, mapping: str, rows: pa.Table) -> None:
        """Append rows to a mapping."""
        path = self.folder / f"{mapping}-{len(self.files[mapping]):06}.parquet"
        pq.write_table(rows, path, write_page_checksum=True)
        self.files[mapping].append(path)
        self.rows[mapping] += rows.num_rows

    def shuffled(self, mapping: str, seed: int, rows_per_range: int = ROWS_PER_RANGE) -> Iterator[pd.DataFrame]:
        """Yield the rows of a mapping in ascending order of hash(seed, ORDER, row number), as frames of raw values.

        This is an external bucket sort: rows are first distributed over files by ranges of their sort keys, then each
        file is sorted in memory.

        Args:
            mapping: name of a mapping with at least one row.
            seed: seed of the order, any integer.
            rows_per_range: approximate number of rows to hold in memory and sort at a time.
        """
        number = -(-self.rows[mapping] // rows_per_range)
        paths = [self.folder / f"range-{index:06}.parquet" for index in range(number)]
        schema = pq.read_schema(self.files[mapping][0])
        with ExitStack() as stack:
            writers = [stack.enter_context(pq.ParquetWriter(path, schema, write_page_checksum=True)) for path in paths]
            for file in self.files[mapping]:
                rows = pq.read_table(file, page_checksum_verification=True)
                range_of_row = ranges(_order(rows, seed), number)
                for index in np.unique(range_of_row):
                    writers[index].write_table(rows.filter(pa.array(range_of_row == index)))
        for path in paths:
            rows = pq.read_table(path, page_checksum_verification=True)
            yield rows.take(np.argsort(_order(rows, seed), kind="stable")).drop_columns([ROW]).to_pandas()
            path.unlink()


def stage(
    sources: Sequence[Source], columns: Columns, folder: Path, log: StageLog, block_bytes: int = BLOCK_BYTES
) -> Staged:
    """Parse raw files and stage their rows in an empty folder.

    Args:
        sources: raw files, read in order.
        columns: declaration of their columns.
        folder: empty folder for the staged files.
        log: log of the progress.
        block_bytes: bytes of a raw file to read at a time.

    Raises:
        DataError: if a file cannot be read, or a line does not match the declaration, naming file and line.
    """
    staged = Staged(folder)
    for source in sources:
        first, logged = 0, time.monotonic()
        for block in read_text_blocks(source.path, source.form, block_bytes):
            rows = np.arange(first, first + block.texts.num_rows)
            first += len(rows)
            values = columns.read(block).append_column(ROW, pa.array(rows))
            mappings = source.mapping_of(rows)
            for mapping in sorted(set(mappings)):
                staged.add(mapping, values.filter(pa.array(mappings == mapping)))
            if time.monotonic() - logged >= SECONDS_BETWEEN_LINES:
                logged = time.monotonic()
                log.write(f"{source.path.name}: {first:,} rows so far")
        log.write(f"{source.path.name}: read {first:,} rows")
    return staged


def read_raw_values(path: Path) -> pd.DataFrame:
    """Read the raw values of one of the files of `Staged`."""
    return pq.read_table(path, page_checksum_verification=True).drop_columns([ROW]).to_pandas()


def _order(rows: pa.Table, seed: int) -> np.ndarray:
    return draw_order(rows.column(ROW).to_numpy(), seed=seed)


@dataclass(frozen=True)
class TableJob:
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


def prepare_table(job: TableJob, output: Path) -> None:
    """Write parquet files, specification, embedding sizes and encoders, atomically.

    Encoders are fitted on the training rows only. Training rows are stored in a random order, determined by the seed
    and their row numbers in the raw file; other rows keep the order of the files.

    Args:
        job: table to prepare.
        output: folder for the dataset.

    Raises:
        DataError: if the input is invalid, or a mapping gets no rows.
    """
    log = StageLog(job.name)
    with new_dataset(output) as draft, tempfile.TemporaryDirectory(dir=draft) as scratch:
        rows = Path(scratch) / "rows"
        rows.mkdir()
        staged = stage(job.sources, job.columns, rows, log, job.block_bytes)
        for mapping in job.mappings:
            if not staged.rows[mapping]:
                raise DataError(f"{mapping}: has no rows; provide files with more rows, or choose other fractions")
        workflow = _fit(job, staged, Path(scratch) / "nvtabular")
        log.write(f"fitted the NVTabular workflow on {staged.rows[TRAIN]:,} training rows")
        encoders = workflow.encoders()
        features, channels = job.columns.specified(encoders)
        spec = FeatureSpec(draft, features, {}, channels, {"dataset": job.name, **job.metadata})
        mappings = {
            mapping: _transformed(workflow, job, staged, mapping, log)
            for mapping in MAPPINGS
            if mapping in job.mappings
        }
        write_prepared(draft, spec, mappings, encoders, embedding_sizes(encoders))
    log.write(f"done: {output}")


def embedding_sizes(encoders: Mapping[str, Encoder]) -> dict[str, int]:
    """Return the embedding width of each categorical feature: `default_dim` of its cardinality, at most 32."""
    ids = {name: encoder for name, encoder in encoders.items() if not isinstance(encoder, NumberEncoder)}
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
        raise DataError(f"{folder}: is not a folder; pass the one that holds {what}")
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
        raise DataError(f"{folder}: is not a folder; pass the one that holds {known[0][0]}")
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
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the dataset, created if missing")
    add("--seed", type=whole_number(0), default=0, help="seed of the split and of the order of training rows")
    add("--oov_buckets", type=whole_number(1), default=1, help="ids for values unseen in training, per feature")
    return parser


def run_prepare(name: str, prepare: Callable[..., None], args: argparse.Namespace) -> int:
    """Run a `prepare` with parsed arguments; return the exit code: 0 success, 1 failure, 2 invalid input."""

    def job() -> int:
        prepare(**vars(args))
        return 0

    return run_tool(name, job)


def _fit(job: TableJob, staged: Staged, folder: Path) -> "TableWorkflow":
    # Imported late, since it takes seconds: mistakes in arguments and raw files are reported first.
    from data.preprocess.workflow import TableWorkflow

    folder.mkdir()
    return TableWorkflow(job.columns, staged.files[TRAIN], job.oov_buckets, folder).fit()


def _transformed(
    workflow: "TableWorkflow", job: TableJob, staged: Staged, mapping: str, log: StageLog
) -> Iterator[pd.DataFrame]:
    in_file_order = map(read_raw_values, staged.files[mapping])
    frames = staged.shuffled(mapping, job.seed) if mapping == TRAIN else in_file_order
    report, rows = log.stage(mapping, staged.rows[mapping]), 0
    for frame in frames:
        for start in range(0, len(frame), ROWS_PER_BLOCK):
            part = frame.iloc[start : start + ROWS_PER_BLOCK].reset_index(drop=True)
            yield workflow.transform(part)
            rows += len(part)
            report(rows)
