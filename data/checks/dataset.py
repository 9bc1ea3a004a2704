"""Scans the files of a dataset for everything that training cannot use, as a stream of row batches."""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.checks.labels import LabelStatistics
from data.encoding.encoder_files import load_encoders
from data.encoding.encoders import Encoder
from data.encoding.workflow_folder import ENCODERS_FOLDER, workflow_files
from data.errors import DataError, LostInputError, listed
from data.files.csv import read_csv_blocks
from data.files.parquet import ROWS_PER_ROW_GROUP, Footer, arrow_file, ranges_of, read_footer
from data.files.pretrained import blocks_by_id
from data.files.values import (
    VALUES_SHOWN,
    Violation,
    find_unequal_lengths,
    find_violations,
    list_lengths,
    unequal_lengths,
)
from data.loading.parquet import row_group_rows
from data.preprocess.findings import MappingCounts
from data.spec.columns import ALIGNMENTS, Column, as_numbers, describe_column, dtype_name, is_list
from data.spec.embedding_sizes import embedding_dims
from data.spec.feature_spec import FeatureSpec
from data.spec.features import LABEL, NUMERICAL, SEQUENCE, Chunk
from data.storage.files import NotRegularError, open_regular
from data.storage.range_cache import forget_ranges, open_ranges
from data.storage.remote import RemoteError, RemoteFile, RemoteNotFoundError, named, stat, url_of
from data.storage.working_copy import working_copy

FLOAT16_MAX = 65_504
WIDER_THAN_FLOAT16 = (pa.int32(), pa.int64(), pa.uint32(), pa.uint64(), pa.float32(), pa.float64(), pa.uint16())
UNREADABLE = (OSError, ValueError, pa.ArrowException)


@dataclass(frozen=True)
class Finding:
    """One rule that is broken in one location.

    Attributes:
        what: rule that is broken, such as "id out of range".
        location: location in words: mapping or file, row group and column.
        expected: what should be there, or how to fix it.
        count: number of affected rows; None if the finding is not about rows.
        rows: first few affected rows, in the numbering of `unit`.
        unit: "rows" of a parquet file (from 0) or "lines" of a CSV file (from 1).
        values: first few offending values as text.
        is_warning: whether the data is usable in spite of the finding.
    """

    what: str
    location: str
    expected: str
    count: int | None = None
    rows: tuple[int, ...] = ()
    unit: str = "rows"
    values: tuple[str, ...] = ()
    is_warning: bool = False

    def __str__(self) -> str:
        kind = "warning" if self.is_warning else "error"
        parts = [f"{kind}: {self.location}: {self.what}"]
        if self.count is not None:
            parts.append(f"in {self.count:,} {self.unit} ({', '.join(map(str, self.rows))}{self._dots})")
        if self.values:
            parts.append(f"found {', '.join(map(repr, self.values))}{self._dots}")
        return "; ".join([*parts, self.expected])

    @property
    def _dots(self) -> str:
        return ", ..." if self.count is not None and self.count > len(self.rows) else ""


@dataclass
class BeyondFloat16:
    """The values of a column that overflow float16 but not float32.

    Attributes:
        count: number of rows with such values.
        largest: value with the largest magnitude.
        location: file of the first value, with the row group of a parquet file.
        row: row of the first value, in the numbering of `unit`.
        unit: "rows" of a parquet file (from 0) or "lines" of a CSV file (from 1).
    """

    count: int
    largest: float
    location: str
    row: int
    unit: str


@dataclass
class MappingSummary:
    """Statistics of a mapping, filled in by `check_mapping`.

    Attributes:
        rows: number of rows, the largest over the column groups.
        files: number of files.
        labels: {label name: statistics of its values}.
        beyond_float16: {column name: its values that overflow float16}, for columns that have any.
        counts: counts of its values, from which oddities are found; None to count nothing.
        lengths: {column name: lengths of its lists}, of those that belong together but are in different chunks.
    """

    rows: int = 0
    files: int = 0
    labels: dict[str, LabelStatistics] = field(default_factory=dict)
    beyond_float16: dict[str, BeyondFloat16] = field(default_factory=dict)
    counts: MappingCounts | None = None
    lengths: dict[str, list[np.ndarray]] = field(default_factory=dict)


def check_mapping(spec: FeatureSpec, mapping: str, summary: MappingSummary) -> Iterator[Finding]:
    """Scan all files of a mapping once and yield the findings.

    Memory is bounded by a batch of rows, and 16 bytes per row for each list that belongs to one in another
    chunk, such as weights of ids.

    Args:
        spec: a valid specification.
        mapping: name of the mapping to scan.
        summary: empty summary, filled in while the findings are consumed.
    """
    summary.labels = {label.name: LabelStatistics(label) for label in spec.labels}
    summary.files = len(spec.files(mapping))
    apart = _lists_in_other_chunks(spec, mapping)
    summary.lengths = {name: [] for pair in apart.items() for name in pair}
    counts = []
    for chunk in spec.chunks(mapping):
        counts.append((yield from _check_chunk(spec, chunk, summary)))
    known = [rows for rows in counts if rows is not None]
    summary.rows = max(known, default=0)
    if len(set(known)) > 1:
        groups = zip(spec.chunks(mapping), counts, strict=True)
        texts = tuple(f"{chunk.files[0]}, ...: {rows}" for chunk, rows in groups)
        yield Finding("column groups differ in rows", mapping, "row N of each must belong together", values=texts)
    if not summary.rows and None not in counts:
        yield Finding("mapping without rows", mapping, "expected at least one")
    yield from _check_map(spec, mapping)
    yield from _check_lengths(spec, mapping, apart, summary)
    for label in spec.labels:
        yield from _check_classes(summary.labels[label.name], mapping)
    for name, found in summary.beyond_float16.items():
        yield Finding(
            f"value beyond float16's {FLOAT16_MAX:,}",
            f"{mapping}, {name}, first in {found.location}",
            "infinite under --amp_dtype float16: scale the column, or train in float32 or bfloat16",
            count=found.count,
            rows=(found.row,),
            unit=found.unit,
            values=(f"{found.largest:g}",),
            is_warning=True,
        )


def check_folder(spec: FeatureSpec, *, allow_outside_paths: bool = False) -> Iterator[Finding]:
    """Check the files next to the specification: embedding widths, pretrained vectors, and the fitted workflow.

    Args:
        spec: a valid specification.
        allow_outside_paths: whether links may lead out of the specification's folder.
    """
    readers: tuple[tuple[str, Callable[[], object]], ...] = (
        ("embedding widths", lambda: embedding_dims(spec, allow_outside_paths=allow_outside_paths)),
        ("workflow", lambda: workflow_files(spec.folder, allow_outside_paths=allow_outside_paths)),
    )
    for what, read in readers:
        try:
            read()
        except DataError as error:
            yield Finding(f"{what} that cannot be used", named(spec.folder), str(error))
    yield from _check_vectors(spec)


def _check_vectors(spec: FeatureSpec) -> Iterator[Finding]:
    """Read the files of pretrained vectors. Only training needs them: datasets of new rows have none."""
    for feature in spec.pretrained:
        path = spec.path(str(feature.pretrained))
        if not os.path.lexists(path):
            fix = "only needed to train a new model; correct `pretrained`, or write the file"
            yield Finding("missing file of vectors", named(path), fix, is_warning=True)
            continue
        try:
            count = sum(len(ids) for ids, _ in blocks_by_id(spec, feature))
        except (DataError, OSError) as error:
            yield Finding("vectors that cannot be used", named(path), str(error).removeprefix(f"{path}, "))
            continue
        of = spec.features[str(feature.of)]
        if 2 * count < (of.cardinality or 0):
            what = "vectors of less than half of the ids"
            fix = f"the others have a vector of zeros ({count:,} of {of.cardinality:,} ids of {of.name} have one)"
            yield Finding(what, named(path), fix, is_warning=True)


def read_encoders(spec: FeatureSpec, *, allow_outside_paths: bool = False) -> dict[str, Encoder]:
    """Load the encoders of a dataset, by feature; none if there are none, or `check_folder` finds them unusable."""
    try:
        has_workflow = workflow_files(spec.folder, allow_outside_paths=allow_outside_paths)
        return load_encoders(spec.folder / ENCODERS_FOLDER) if has_workflow else {}
    except DataError:
        return {}


def _check_chunk(spec: FeatureSpec, chunk: Chunk, summary: MappingSummary) -> Generator[Finding, None, int | None]:
    """Scan the files of a column group; return its number of rows, or None if a file cannot be read."""
    columns = [describe_column(spec, name) for name in chunk.features]
    scan = _scan_parquet if chunk.type == "parquet" else _scan_csv
    counts = []
    for file in chunk.files:
        path = spec.path(file)
        rows = yield from scan(path, columns, summary)
        if rows == 0:
            # Training reads past an empty part; transcode.py stops at an empty CSV file.
            fix, is_warning = "leave it out of source_spec, or write it again", chunk.type == "parquet"
            yield Finding("file without rows", named(path), fix, is_warning=is_warning)
        counts.append(rows)
    return None if None in counts else sum(rows for rows in counts if rows is not None)


def _check_map(spec: FeatureSpec, mapping: str) -> Iterator[Finding]:
    feature = spec.map_feature
    held = {name for chunk in spec.chunks(mapping) for name in chunk.features}
    if feature is not None and mapping == "test" and feature.name not in held:
        fix = "MAP cannot be computed on it; add the column, or evaluate on a mapping that has it"
        yield Finding(f"map feature {feature.name!r} is missing", mapping, fix, is_warning=True)


def _lists_in_other_chunks(spec: FeatureSpec, mapping: str) -> dict[str, str]:
    """Return {column: the column whose lists are as long} of those that are in different chunks of a mapping."""
    chunk_of = {name: index for index, chunk in enumerate(spec.chunks(mapping)) for name in chunk.features}
    columns = [describe_column(spec, name) for name in chunk_of]
    pairs = {
        column.name: column.aligned_with.name
        for column in columns
        if column.kind in ALIGNMENTS and column.aligned_with is not None
    }
    return {name: other for name, other in pairs.items() if chunk_of[name] != chunk_of[other]}


def _check_lengths(
    spec: FeatureSpec, mapping: str, apart: dict[str, str], summary: MappingSummary
) -> Iterator[Finding]:
    """Compare the lengths of lists in different chunks, unless a chunk lacks rows, which is reported elsewhere."""
    for name, other in apart.items():
        own, others = (np.concatenate([np.zeros(0, np.int64), *summary.lengths[each]]) for each in (name, other))
        tally = _Tally()
        if len(own) == len(others) == summary.rows:
            tally.add(unequal_lengths(describe_column(spec, name), others, own), 0)
        yield from tally.findings(mapping, "rows of the mapping")


def _check_classes(statistics: LabelStatistics, mapping: str) -> Iterator[Finding]:
    if not statistics.label.is_number and statistics.is_constant:
        location, found = f"{mapping}, {statistics.label.name}", (f"{statistics.least:g}",)
        fix = "nothing can be learned or measured with one class"
        yield Finding("label with one class only", location, fix, values=found, is_warning=True)


def _scan_csv(path: Path, columns: Sequence[Column], summary: MappingSummary) -> Generator[Finding, None, int | None]:
    tally, rows, place = _Tally(), 0, named(path)
    try:
        with working_copy(path) as copy:
            for block in read_csv_blocks(copy, columns):
                tally.add(block.problems, block.first_line)
                _count_values(columns, block.table, summary)
                _count_beyond_float16(columns, block.table, summary, place, block.first_line, "lines")
                rows += block.table.num_rows
    except RemoteNotFoundError:
        yield _missing(place)
        return None
    except RemoteError:
        raise
    except (DataError, OSError) as error:
        yield Finding("unreadable file", place, str(error).removeprefix(f"{place}: "))
        return None
    yield from tally.findings(place, "lines")
    return rows


def _missing(place: str) -> Finding:
    return Finding("missing file", place, "see `files` in source_spec")


@dataclass(frozen=True)
class _ParquetFile:
    """A parquet file whose footer has been read: a local one, or an object in a store and its mirror."""

    path: Path
    remote: RemoteFile | None
    footer: Footer

    @classmethod
    def open(cls, path: Path) -> "_ParquetFile":
        url = url_of(path)
        remote = None if url is None else stat(url)
        return cls(path, remote, read_footer(path, remote))

    @contextmanager
    def row_group(self, number: int, columns: Sequence[str]) -> Iterator[pq.ParquetFile]:
        """Open the file to read some columns of a row group, whose checksums are verified; those of an object alone."""
        metadata, checksums, remote = self.footer.metadata, self.footer.checksums, self.remote
        ranges = [] if remote is None else ranges_of(remote, metadata, number, columns)
        with (
            open_regular(self.path) if remote is None else open_ranges(remote, ranges) as opened,
            pq.ParquetFile(arrow_file(opened), metadata=metadata, page_checksum_verification=True) as file,
        ):
            try:
                if checksums is not None:
                    checksums.check_in(opened, number, columns)
                yield file
            except UNREADABLE:
                if remote is not None:  # the copy may be damaged, and not the object: the next check downloads it again
                    forget_ranges(remote, ranges)
                raise


def _scan_parquet(
    path: Path, columns: Sequence[Column], summary: MappingSummary
) -> Generator[Finding, None, int | None]:
    place = named(path)
    try:
        file = _ParquetFile.open(path)
        metadata = file.footer.metadata
        row_group_rows(metadata)
        schema = metadata.schema.to_arrow_schema()
    except (FileNotFoundError, RemoteNotFoundError):
        yield _missing(place)
        return None
    except NotRegularError as error:
        yield Finding("not a regular file", place, str(error).removeprefix(f"{path}: "))
        return None
    except (RemoteError, LostInputError):
        raise
    except UNREADABLE as error:
        yield Finding("unreadable file", place, f"write it again ({error})")
        return None
    usable = []
    for column in columns:
        findings = list(_check_type(column, schema, place))
        yield from findings
        if schema.get_all_field_indices(column.name) and all(finding.is_warning for finding in findings):
            usable.append(column)
    first_row = 0
    for group in range(metadata.num_row_groups if usable else 0):
        yield from _scan_row_group(file, group, first_row, usable, summary)
        first_row += metadata.row_group(group).num_rows
    return metadata.num_rows


def _check_type(column: Column, schema: pa.Schema, place: str) -> Iterator[Finding]:
    """Check that a file has a column exactly once, in a type that can be used."""
    location = f"{place}, {column.name}"
    if len(indices := schema.get_all_field_indices(column.name)) != 1:
        what = "column that occurs twice" if indices else "missing column"
        has = f"the file has {listed(schema.names, len(schema.names))}"
        yield Finding(what, location, has, is_warning=column.kind is None)
        return
    stored = schema.field(column.name).type
    if not column.accepts(stored):
        yield Finding("column type", location, f"expected {column.expected_type}", values=(str(stored),))
        return
    found, declared = dtype_name(stored), column.feature.dtype
    if column.kind is not None and declared is not None and found not in (declared, dtype_name(column.type)):
        yield Finding("column type", location, f"declared as {declared}", values=(found,), is_warning=True)


def _scan_row_group(
    file: _ParquetFile, group: int, first_row: int, columns: Sequence[Column], summary: MappingSummary
) -> Iterator[Finding]:
    tally, row, location = _Tally(), first_row, f"{named(file.path)}, row group {group}"
    names = [column.name for column in columns]
    try:
        with file.row_group(group, names) as opened:
            for batch in opened.iter_batches(ROWS_PER_ROW_GROUP, row_groups=[group], columns=names):
                for column in columns:
                    tally.add(find_violations(column, _plain(batch.column(column.name))), row)
                tally.add(find_unequal_lengths(columns, batch), row)
                _count_values(columns, batch, summary)
                _count_beyond_float16(columns, batch, summary, location, row, "rows")
                row += batch.num_rows
            # Arrow mistakes a truncated column for the end of the row group.
            if row - first_row != (stated := file.footer.metadata.row_group(group).num_rows):
                raise ValueError(f"{row - first_row} rows instead of {stated}")
    except (RemoteError, LostInputError):
        raise
    except UNREADABLE as error:
        yield Finding("unreadable row group", location, f"write the file again ({error})")
    yield from tally.findings(location, "rows")


def _plain(values: pa.Array) -> pa.Array:
    """Cast large and fixed-size lists to plain lists; other types are unchanged."""
    return values.cast(pa.list_(values.type.value_type)) if is_list(values.type) else values


def _count_values(columns: Sequence[Column], rows: pa.Table | pa.RecordBatch, summary: MappingSummary) -> None:
    if summary.counts is not None:
        summary.counts.add(rows)
    for column in columns:
        if column.name in summary.lengths:
            summary.lengths[column.name].append(list_lengths(rows.column(column.name)))
        if column.kind == LABEL:
            column_values = rows.column(column.name)
            known = column_values.combine_chunks() if isinstance(column_values, pa.ChunkedArray) else column_values
            values = as_numbers(known.drop_null()).to_numpy(zero_copy_only=False).astype(np.float64)
            values = values[~np.isnan(values)]
            summary.labels[column.name].add(values[column.domain.allows(values)])


def _count_beyond_float16(
    columns: Sequence[Column],
    rows: pa.Table | pa.RecordBatch,
    summary: MappingSummary,
    location: str,
    first_row: int,
    unit: str,
) -> None:
    """Count the values of numerical features, sequences and regression labels that overflow float16 but not float32.

    Args:
        columns: columns of the rows.
        rows: consecutive rows of a file.
        summary: summary to update.
        location: location of the rows, in words.
        first_row: number of the first row, in the numbering of `unit`.
        unit: "rows" (counted from 0) or "lines" (counted from 1).
    """
    for column in columns:
        is_number = column.kind in (NUMERICAL, SEQUENCE) and not column.has_ids
        if not is_number and not (column.kind == LABEL and column.feature.is_number):
            continue
        values = rows.column(column.name)
        items = pc.list_flatten(values) if is_list(values.type) else values
        if items.type not in WIDER_THAN_FLOAT16:
            continue
        with np.errstate(over="ignore"):
            numbers = items.fill_null(0).to_numpy().astype(np.float32)
        # Values that overflow float32 as well are errors, which `find_violations` reports.
        wrong = np.flatnonzero((np.abs(numbers) > FLOAT16_MAX) & np.isfinite(numbers))
        if len(wrong):
            of_items = np.arange(len(numbers)) if items is values else pc.list_parent_indices(values).to_numpy()
            wrong_rows = np.unique(of_items[wrong])
            largest = float(max(numbers[wrong], key=abs))
            first = BeyondFloat16(0, largest, location, first_row + int(wrong_rows[0]), unit)
            known = summary.beyond_float16.setdefault(column.name, first)
            known.count += len(wrong_rows)
            known.largest = max(known.largest, largest, key=abs)


class _Tally:
    """Accumulates the violations in consecutive tables, per rule and column."""

    def __init__(self) -> None:
        self._violations: dict[tuple[str | None, str, str], tuple[int, list[int], list[str], bool]] = {}

    def add(self, violations: Iterator[Violation] | Sequence[Violation], first_row: int) -> None:
        """Add the violations in a table whose first row has the number `first_row`."""
        for violation in violations:
            key = (violation.column, violation.what, violation.expected)
            count, rows, values, _ = self._violations.get(key, (0, [], [], False))
            new_rows = [first_row + int(row) for row in violation.rows[:VALUES_SHOWN]]
            self._violations[key] = (
                count + len(violation.rows),
                (rows + new_rows)[:VALUES_SHOWN],
                (values + list(violation.values))[:VALUES_SHOWN],
                violation.is_warning,
            )

    def findings(self, location: str, unit: str) -> Iterator[Finding]:
        """Yield one finding per rule and column, for violations found in one location."""
        for (column, what, expected), (count, rows, values, is_warning) in self._violations.items():
            where = location if column is None else f"{location}, {column}"
            yield Finding(
                what, where, f"expected {expected}", count, tuple(rows), unit, tuple(values), is_warning=is_warning
            )
