"""Turns a CSV dataset into the same dataset in parquet, streaming."""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from data.conversion.columns import Column, Problem, describe_column
from data.conversion.csv_reader import CsvBlock, count_lines, read_csv_blocks
from data.conversion.new_dataset import SPEC_FILE, new_dataset
from data.conversion.parquet_writer import DatasetWriter, parquet_schema
from data.errors import DataError
from data.files import check_stays, open_regular
from data.specification.embedding_sizes import SIZES_FILE
from data.specification.feature_spec import Chunk, FeatureSpec

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Prints how far a long job over rows is, at most one line every few seconds.

    Args:
        tell: takes a line.
        clock: seconds, as `time.monotonic` gives them.
    """

    def __init__(self, tell: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._tell = tell
        self._clock = clock
        self.start("", 0)

    def start(self, name: str, total: int) -> None:
        """Begins a part of `total` rows."""
        self._name, self._total, self._rows = name, total, 0
        self._begin = self._last = self._clock()

    def add(self, rows: int) -> None:
        """Counts rows that are done."""
        self._rows += rows
        now = self._clock()
        if now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            rate = self._rows / (now - self._begin)
            share = 100 * self._rows / self._total
            self._tell(f"{self._name}: {self._rows:,} of {self._total:,} rows ({share:.0f} %), {rate:,.0f} rows/s")


def tell_on_stderr(line: str) -> None:
    """Prints a line for people, out of the way of output for programs."""
    print(f"transcode: {line}", file=sys.stderr, flush=True)


def transcode(
    spec_path: Path,
    output: Path,
    *,
    spec_file: str = SPEC_FILE,
    rows_per_file: int,
    min_files: int,
    allow_outside_paths: bool = False,
    tell: Callable[[str], None] = tell_on_stderr,
) -> FeatureSpec:
    """Writes the dataset of a CSV specification as parquet parts of one chunk per mapping.

    Rows keep their order. The output appears when everything is written, or not at all.

    Args:
        spec_path: specification whose chunks are all of type csv.
        output: folder for the parts and the new specification; must not hold a dataset.
        spec_file: name of the new specification.
        rows_per_file: most rows of a part.
        min_files: parts per mapping at least, as far as there are rows; lowers `rows_per_file`.
        allow_outside_paths: read files outside of the specification's folder; only for one that is trusted.
        tell: takes lines on progress and warnings.

    Returns:
        The new specification.

    Raises:
        DataError: wrong input; the message names file, line, column and cell.
    """
    spec = FeatureSpec.read(spec_path, allow_outside_paths=allow_outside_paths)
    _check_is_csv(spec, spec_path)
    with new_dataset(output, spec_file) as draft:
        sources = {
            mapping: (_transcode_mapping(spec, mapping, draft, rows_per_file, min_files, tell),)
            for mapping in spec.sources
        }
        _copy_sizes(spec.folder, draft, allow_outside_paths)
        spec.with_sources(sources, draft).write(draft / spec_file)
    return FeatureSpec.read(Path(output) / spec_file)


def _copy_sizes(source: Path, draft: Path, allow_outside_paths: bool) -> None:
    """Copies the embedding widths beside a specification, where there are any."""
    if os.path.lexists(source / SIZES_FILE):
        if not allow_outside_paths:
            check_stays(source, SIZES_FILE)
        with open_regular(source / SIZES_FILE) as file:
            (draft / SIZES_FILE).write_bytes(file.read())


def _check_is_csv(spec: FeatureSpec, spec_path: Path) -> None:
    for mapping, chunks in spec.sources.items():
        for index, chunk in enumerate(chunks):
            if chunk.type != "csv":
                raise DataError(
                    f"{spec_path}: source_spec.{mapping}[{index}] is of type {chunk.type}, and only csv is transcoded; "
                    "a parquet dataset can be trained on as it is"
                )


def _transcode_mapping(
    spec: FeatureSpec, mapping: str, draft: Path, rows_per_file: int, min_files: int, tell: Callable[[str], None]
) -> Chunk:
    rows = _count_rows(spec, mapping)
    limit = _rows_per_file(rows, rows_per_file, min_files)
    if limit < rows_per_file and rows > limit:
        tell(f"{mapping}: {limit:,} rows per file instead of {rows_per_file:,}, to have at least {min_files} files")
    columns = [name for chunk in spec.chunks(mapping) for name in chunk.features]
    warnings = _Warnings()
    progress = Progress(tell)
    progress.start(mapping, rows)
    with DatasetWriter(draft, mapping, parquet_schema(spec, columns), limit) as writer:
        for table in _join([_read_chunk(spec, chunk, warnings) for chunk in spec.chunks(mapping)]):
            writer.write(table)
            progress.add(table.num_rows)
    for line in warnings.lines():
        tell(f"{mapping}: warning: {line}")
    tell(f"{mapping}: {writer.rows:,} rows in {len(writer.chunk.files)} files")
    return writer.chunk


def _rows_per_file(rows: int, wanted: int, min_files: int) -> int:
    """Rounded down, so that the last file is an extra one rather than one of the files missing."""
    return max(1, min(wanted, rows // min_files))


def _count_rows(spec: FeatureSpec, mapping: str) -> int:
    """Rows of a mapping, which every column group must have."""
    chunks = spec.chunks(mapping)
    counts = [sum(count_lines(spec.folder / file) for file in chunk.files) for chunk in chunks]
    if len(set(counts)) > 1:
        groups = "; ".join(f"{', '.join(chunk.files)}: {rows:,}" for chunk, rows in zip(chunks, counts, strict=True))
        raise DataError(
            f"{spec.folder}: the column groups of mapping {mapping!r} differ in rows ({groups}); "
            "line N of each must belong to one row"
        )
    return counts[0]


def _read_chunk(spec: FeatureSpec, chunk: Chunk, warnings: "_Warnings") -> Iterator[pa.Table]:
    """Tables of a column group's rows, its files in order."""
    columns = [describe_column(spec, name) for name in chunk.features]
    for file in chunk.files:
        for block in read_csv_blocks(spec.folder / file, columns):
            _check_has_no_error(block, columns)
            warnings.add(block)
            yield block.table


def _check_has_no_error(block: CsvBlock, columns: Sequence[Column]) -> None:
    """Raises DataError for the first wrong cell of a block."""
    positions = {column.name: index for index, column in enumerate(columns, start=1)}

    def place(problem: Problem) -> tuple[int, int]:
        return int(problem.rows[0]), positions.get(problem.column or "", 0)

    errors = [problem for problem in block.problems if not problem.is_warning]
    if not errors:
        return
    first = min(errors, key=place)
    line = block.first_line + int(first.rows[0])
    column = f", column {positions[first.column]} ({first.column})" if first.column else ""
    raise DataError(f"{block.path}, line {line}{column}: {first.what}: {first.values[0]!r}; expected {first.expected}")


class _Warnings:
    """Counts what is stored as it is although training will change it."""

    def __init__(self) -> None:
        self._rows: Counter[tuple[str | None, str]] = Counter()
        self._first: dict[tuple[str | None, str], str] = {}

    def add(self, block: CsvBlock) -> None:
        for problem in block.problems:
            key = (problem.column, problem.what)
            self._rows[key] += len(problem.rows)
            self._first.setdefault(key, f"{block.path}, line {block.first_line + int(problem.rows[0])}")

    def lines(self) -> Iterator[str]:
        for (column, what), rows in self._rows.items():
            first = self._first[column, what]
            yield f"{column}: {what} in {rows:,} rows (first: {first}); the loader cuts them"


def _join(groups: Sequence[Iterator[pa.Table]]) -> Iterator[pa.Table]:
    """Puts column groups side by side, as many rows at a time as all of them have at hand."""
    pending = [next(group, None) for group in groups]
    while all(table is not None for table in pending):
        tables = [table for table in pending if table is not None]
        rows = min(table.num_rows for table in tables)
        names = [name for table in tables for name in table.column_names]
        yield pa.table([column for table in tables for column in table.slice(0, rows).columns], names=names)
        rest = [table.slice(rows) for table in tables]
        pending = [table if table.num_rows else next(group, None) for table, group in zip(rest, groups, strict=True)]
    if any(table is not None for table in pending):
        raise DataError("the CSV files changed while they were read; run again when they are complete")
