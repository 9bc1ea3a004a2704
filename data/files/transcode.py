"""Converts a CSV dataset to parquet, in a stream of blocks."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from data.errors import DataError
from data.files.csv import CsvBlock, count_lines, read_csv_blocks
from data.files.new_dataset import SPEC_FILE, new_dataset
from data.files.parquet import DatasetWriter, parquet_schema
from data.files.pretrained import vectors_file
from data.files.values import Violation, find_unequal_lengths
from data.progress import progress_bar
from data.spec.columns import Column, describe_column
from data.spec.embedding_sizes import SIZES_FILE
from data.spec.feature_spec import FeatureSpec
from data.spec.features import Chunk
from data.storage.files import check_inside, create_new, open_regular, reading
from data.storage.remote import named
from data.storage.working_copy import working_copy


def report_on_stderr(line: str) -> None:
    """Print a line to stderr, which leaves stdout to machine-readable output."""
    print(f"transcode: {line}", file=sys.stderr, flush=True)


def transcode(
    spec_path: Path,
    output: Path,
    *,
    spec_file: str = SPEC_FILE,
    rows_per_file: int,
    min_files: int,
    allow_outside_paths: bool = False,
    report: Callable[[str], None] = report_on_stderr,
) -> FeatureSpec:
    """Convert the dataset of a CSV specification to parquet files, with one chunk per mapping.

    Rows keep their order. The output is written atomically.

    Args:
        spec_path: path of the specification, whose chunks are all of type csv.
        output: folder for the parquet files and the new specification; must not hold a dataset.
        spec_file: file name of the new specification.
        rows_per_file: maximum number of rows per file.
        min_files: minimum number of files per mapping, if it has that many rows; takes precedence over `rows_per_file`.
        allow_outside_paths: read files outside of the specification's folder; only for a trusted specification.
        report: called with each warning and each line of the summary.

    Returns:
        The new specification.

    Raises:
        DataError: The input is invalid; for a wrong value, the message names file, line, column and cell.
    """
    spec = FeatureSpec.read(spec_path, allow_outside_paths=allow_outside_paths)
    _check_is_csv(spec, spec_path)
    with new_dataset(output, spec_file) as draft:
        sources = {
            mapping: (_transcode_mapping(spec, mapping, draft, rows_per_file, min_files, report),)
            for mapping in spec.sources
        }
        _copy_sizes(spec.folder, draft, allow_outside_paths)
        written = _copy_vectors(spec, draft)
        result = written.with_sources(sources, draft)
        result.write(draft / spec_file)
    return replace(result, folder=Path(output).absolute())


def _copy_sizes(source: Path, draft: Path, allow_outside_paths: bool) -> None:
    """Copy the file of embedding widths next to a specification, if there is one."""
    if os.path.lexists(source / SIZES_FILE):
        if not allow_outside_paths:
            check_inside(source, SIZES_FILE)
        with open_regular(source / SIZES_FILE) as file:
            (draft / SIZES_FILE).write_bytes(file.read())


def _copy_vectors(spec: FeatureSpec, draft: Path) -> FeatureSpec:
    """Copy the files of pretrained vectors; return the specification with their new names."""
    features = dict(spec.features)
    for feature in spec.pretrained:
        name = vectors_file(feature.name)
        with (
            reading(spec.folder / str(feature.pretrained), "write it, or correct `pretrained`") as source,
            create_new(draft / name) as target,
        ):
            shutil.copyfileobj(source, target)
        features[feature.name] = replace(feature, pretrained=name)
    return replace(spec, features=features)


def _check_is_csv(spec: FeatureSpec, spec_path: Path) -> None:
    for mapping, chunks in spec.sources.items():
        for index, chunk in enumerate(chunks):
            if chunk.type != "csv":
                raise DataError(
                    f"{spec_path}: source_spec.{mapping}[{index}] has type {chunk.type}; only csv is transcoded, "
                    "and parquet can be trained on as it is"
                )


def _transcode_mapping(
    spec: FeatureSpec, mapping: str, draft: Path, rows_per_file: int, min_files: int, report: Callable[[str], None]
) -> Chunk:
    rows = _count_rows(spec, mapping)
    limit = _rows_per_file(rows, rows_per_file, min_files)
    if limit < rows_per_file and rows > limit:
        report(f"{mapping}: {limit:,} rows per file instead of {rows_per_file:,}, to have at least {min_files} files")
    columns = [name for chunk in spec.chunks(mapping) for name in chunk.features]
    described = [describe_column(spec, name) for name in columns]
    warnings = _Warnings()
    progress = progress_bar(mapping, rows, " rows", report)
    with progress, DatasetWriter(draft, mapping, parquet_schema(spec, columns), limit) as writer:
        for table in _join([_read_chunk(spec, chunk, warnings) for chunk in spec.chunks(mapping)]):
            _check_lengths(described, table, f"{spec.folder}: mapping {mapping!r}", writer.rows)
            writer.write(table)
            progress.update(table.num_rows)
    for line in warnings.lines():
        report(f"{mapping}: warning: {line}")
    report(f"{mapping}: {writer.rows:,} rows in {len(writer.chunk.files)} files")
    return writer.chunk


def _rows_per_file(rows: int, wanted: int, min_files: int) -> int:
    """Return the rows per file, rounded down so that there is rather one file too many than one too few."""
    return max(1, min(wanted, rows // min_files))


def _count_rows(spec: FeatureSpec, mapping: str) -> int:
    """Return the number of rows of a mapping; raise DataError if its column groups differ."""
    chunks = spec.chunks(mapping)
    counts = [sum(_count_lines(spec.path(file)) for file in chunk.files) for chunk in chunks]
    if len(set(counts)) > 1:
        groups = "; ".join(f"{', '.join(chunk.files)}: {rows:,}" for chunk, rows in zip(chunks, counts, strict=True))
        raise DataError(
            f"{spec.folder}: the column groups of mapping {mapping!r} differ in rows ({groups}); "
            "line N of each must belong to one row"
        )
    return counts[0]


def _count_lines(path: Path) -> int:
    with working_copy(path) as copy:
        return count_lines(copy)


def _read_chunk(spec: FeatureSpec, chunk: Chunk, warnings: "_Warnings") -> Iterator[pa.Table]:
    """Yield the rows of a column group as tables, file by file."""
    columns = [describe_column(spec, name) for name in chunk.features]
    for file in chunk.files:
        path = spec.path(file)
        with working_copy(path) as copy:
            for block in read_csv_blocks(copy, columns):
                _check_has_no_error(block, columns)
                warnings.add(block, named(path))
                yield block.table


def _check_has_no_error(block: CsvBlock, columns: Sequence[Column]) -> None:
    """Raise DataError for the first invalid cell of a block."""
    positions = {column.name: index for index, column in enumerate(columns, start=1)}

    def position(problem: Violation) -> tuple[int, int]:
        return int(problem.rows[0]), positions.get(problem.column or "", 0)

    errors = [problem for problem in block.problems if not problem.is_warning]
    if not errors:
        return
    first = min(errors, key=position)
    line = block.first_line + int(first.rows[0])
    column = f", column {positions[first.column]} ({first.column})" if first.column else ""
    raise DataError(f"{block.path}, line {line}{column}: {first.what}: {first.values[0]!r}; expected {first.expected}")


def _check_lengths(columns: Sequence[Column], table: pa.Table, where: str, first_row: int) -> None:
    """Raise DataError for the first row whose lists differ in length but belong together, in one chunk or several."""
    for problem in find_unequal_lengths(columns, table):
        line = first_row + int(problem.rows[0]) + 1
        raise DataError(
            f"{where}, line {line} of all its files, column {problem.column}: {problem.what}: {problem.values[0]!r}; "
            f"expected {problem.expected}"
        )


class _Warnings:
    """Counts values that are stored as they are, but that the loader will change: lists longer than max_hotness."""

    def __init__(self) -> None:
        self._rows: Counter[tuple[str | None, str]] = Counter()
        self._first: dict[tuple[str | None, str], str] = {}

    def add(self, block: CsvBlock, place: str) -> None:
        for problem in block.problems:
            key = (problem.column, problem.what)
            self._rows[key] += len(problem.rows)
            self._first.setdefault(key, f"{place}, line {block.first_line + int(problem.rows[0])}")

    def lines(self) -> Iterator[str]:
        for (column, what), rows in self._rows.items():
            first = self._first[column, what]
            yield f"{column}: {what} in {rows:,} rows (first: {first}); the loader cuts them"


def _join(groups: Sequence[Iterator[pa.Table]]) -> Iterator[pa.Table]:
    """Join column groups side by side, yielding as many rows at a time as all groups have available."""
    pending = [next(group, None) for group in groups]
    while all(table is not None for table in pending):
        tables = [table for table in pending if table is not None]
        rows = min(table.num_rows for table in tables)
        names = [name for table in tables for name in table.column_names]
        yield pa.table([column for table in tables for column in table.slice(0, rows).columns], names=names)
        rest = [table.slice(rows) for table in tables]
        pending = [table if table.num_rows else next(group, None) for table, group in zip(rest, groups, strict=True)]
    # One group ended before another, although the counts of lines agreed.
    if any(table is not None for table in pending):
        raise DataError("the CSV files changed while they were read; run again when they are complete")
