"""A sample of raw files whose format is unknown: which files, how they are written, and some of their rows."""

import csv
import io
import os
import re
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from data.errors import DataError, shown
from data.raw.files import find_entries, partition_keys
from data.raw.text import COMPRESSED, open_both, open_text
from data.spec.raw.spec import RawChunk
from data.storage.files import open_regular, reading

MAX_FILES = 16
# Compressed files are read to their end only if those of the sample are not larger than this in all.
MAX_COMPRESSED_BYTES = 2**28
HEAD_BYTES = 2**18
HEAD_LINES = 300
BLOCK_BYTES = 2**20
SEPARATORS = (",", "\t", ";", "|", "\x01", " ")
DOUBLE_QUOTE: str | None = '"'
PARQUET_MAGIC = b"PAR1"
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?$"
# Words that mean a missing value wherever they occur, and words that do so among numbers.
NULL_WORDS = ("\\N", "NULL", "null", "NaN", "nan", "(null)", "N/A", "n/a", "#N/A", "?")
NULL_AMONG_NUMBERS = r"(?i)^(\W+|n/?a|nan|null|nil|none|missing|unknown|undefined|#n/a|\\n)$"
MAX_NULL_WORDS_PER_COLUMN = 3
# Share of the cells of a column of numbers that may be words for a missing value.
MAX_NULL_SHARE = 0.95
FIX_FILES = "check the pattern (in quotes, so that the shell does not expand it)"


@dataclass(frozen=True)
class RawSample:
    """Some rows of raw files.

    Attributes:
        files: the files that the patterns match, sorted.
        sampled: how many of them were read.
        chunk: their format, with the words for a missing value that were found, and `trim` if cells begin or end with
            white space.
        table: the rows. Columns of CSV files and Hive keys are strings without surrounding white space, null where a
            cell is empty or a word for a missing value.
        is_complete: whether the sample has all rows of all files.
        is_spread: whether it has rows from the start to the end of the files; False if it has the start only.
        estimated_rows: number of rows of all files.
    """

    files: tuple[Path, ...]
    sampled: int
    chunk: RawChunk
    table: pa.Table
    is_complete: bool = True
    is_spread: bool = True
    estimated_rows: int = 0


@dataclass
class _Progress:
    """What was read so far, for the estimate of the number of rows."""

    estimated_rows: float = 0.0
    bytes_of_files: int = 0
    is_complete: bool = True
    is_spread: bool = True
    tables: list[pa.Table] = field(default_factory=list)


def find_raw_files(patterns: Sequence[str], folder: Path) -> tuple[Path, ...]:
    """Return the files that paths, globs and folders match, sorted.

    Raises:
        DataError: A pattern matches no file.
    """
    files = find_entries(patterns, folder, allow_outside_paths=True)
    # Relative to the folder if inside of it.
    return tuple(Path(os.path.abspath(folder / file)) if file.startswith("..") else folder / file for file in files)


def draw_sample(files: Sequence[Path], rows: int, labels: Sequence[str] = ()) -> RawSample:
    """Read about `rows` rows from up to 16 files, from the start, the middle and the end of each.

    Args:
        files: the raw files, sorted.
        rows: approximate number of rows to read.
        labels: names of columns that the files are expected to have; a first line with one of them is a header.

    Raises:
        DataError: A file cannot be read, or is not text or parquet, or the files differ in their columns.
    """
    chosen = [files[index] for index in np.unique(np.linspace(0, len(files) - 1, MAX_FILES).round().astype(int))]
    types = {file: _type_of(file) for file in chosen}
    if len(set(types.values())) > 1:
        csv_file, parquet_file = (next(file for file in chosen if types[file] == type) for type in ("csv", "parquet"))
        raise DataError(
            f"{csv_file} is CSV and {parquet_file} is parquet; infer a specification of one format at a time"
        )
    progress = _Progress()
    per_file = max(1, rows // len(chosen))
    if types[chosen[0]] == "parquet":
        for file in chosen:
            _sample_parquet(file, per_file, progress)
        return _sample_of(files, len(chosen), RawChunk("parquet", ()), progress)
    head, chunk = _first_format(chosen, labels)
    budget = sum(file.stat().st_size for file in chosen if file.suffix in COMPRESSED)
    for file in chosen:
        _sample_csv(file, chunk, _bytes_per_row(head) * per_file, budget <= MAX_COMPRESSED_BYTES, progress)
    return _sample_of(files, len(chosen), chunk, progress)


def _sample_of(files: Sequence[Path], sampled: int, chunk: RawChunk, progress: _Progress) -> RawSample:
    if not any(table.num_rows for table in progress.tables):
        raise DataError(f"{files[0]}: holds no rows; {FIX_FILES}")
    try:
        table = pa.concat_tables(progress.tables, promote_options="permissive").combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"{files[0]}: the types of its columns differ from those of other files: {error}") from error
    if chunk.type == "csv":
        table, has_space = _trimmed(table)
        table, null = _without_null_words(table)
        chunk = replace(chunk, null=null, trim=has_space)
    all_bytes = sum(file.stat().st_size for file in files)
    estimate = progress.estimated_rows * all_bytes / max(1, progress.bytes_of_files)
    is_complete = progress.is_complete and sampled == len(files)
    rows = table.num_rows if is_complete else max(table.num_rows, round(estimate))
    return RawSample(tuple(files), sampled, chunk, table, is_complete, progress.is_spread, rows)


def _type_of(path: Path) -> Literal["csv", "parquet"]:
    with reading(path, FIX_FILES) as file:
        return "parquet" if file.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC else "csv"


# How CSV files are written.


def _first_format(files: Sequence[Path], labels: Sequence[str]) -> tuple[list[bytes], RawChunk]:
    """Return the first lines and the format of the first file with rows; check that the others have its header."""
    heads = {file: head for file in files if (head := _head(file))}
    if not heads:
        raise DataError(f"{files[0]}: is empty; {FIX_FILES}")
    first, head = next(iter(heads.items()))
    chunk = _format(first, head, labels)
    for file, other in heads.items():
        if chunk.has_header and other[0].strip() != head[0].strip():
            columns = ", ".join(_fields(file, other[:1], chunk.separator, chunk.quote)[0])
            raise DataError(
                f"{file}, line 1: {shown(columns)} is not the header of {first}; give files with the same columns"
            )
    return head, chunk


def _head(path: Path) -> list[bytes]:
    """Return the first lines of a file, without a byte order mark."""
    with open_text(path) as content:
        data = content.read(HEAD_BYTES).removeprefix(b"\xef\xbb\xbf")
    if b"\0" in data:
        raise DataError(f"{path}: holds NUL bytes, as binary files and UTF-16 do; expected text in UTF-8, or parquet")
    lines = data.splitlines(keepends=True)
    complete = lines[:-1] if len(lines) > 1 and len(data) >= HEAD_BYTES - 3 else lines
    return [line for line in complete[:HEAD_LINES] if line.strip()]


def _bytes_per_row(head: list[bytes]) -> int:
    return max(1, sum(map(len, head)) // len(head))


def _fields(path: Path, lines: list[bytes], separator: str, quote: str | None) -> list[list[str]]:
    try:
        text = b"".join(lines).decode()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: not UTF-8; convert the file: iconv -f latin1 -t utf-8 {path.name} > NEW"
        ) from error
    try:
        if quote is None:
            return list(csv.reader(io.StringIO(text), delimiter=separator, quoting=csv.QUOTE_NONE))
        return list(csv.reader(io.StringIO(text), delimiter=separator, quotechar=quote))
    except csv.Error:
        return []


def _format(path: Path, head: list[bytes], labels: Sequence[str]) -> RawChunk:
    """Choose the separator and quote that give lines with equally many fields, and whether line 1 is a header."""
    best: tuple[float, int] = (0.0, 1)
    separator, quote, rows = ",", DOUBLE_QUOTE, _fields(path, head, ",", DOUBLE_QUOTE)
    for tried in SEPARATORS:
        for tried_quote in (DOUBLE_QUOTE, None):
            fields = _fields(path, head, tried, tried_quote)
            usual, lines = Counter(map(len, fields)).most_common(1)[0] if fields else (1, 0)
            score = (round(lines / max(1, len(fields)), 2), len(fields))
            if usual > 1 and score > best:
                best, separator, quote, rows = score, tried, tried_quote, fields
    return _with_columns(path, separator, quote, rows, labels)


def _with_columns(
    path: Path, separator: str, quote: str | None, rows: list[list[str]], labels: Sequence[str]
) -> RawChunk:
    first = [cell.strip() for cell in rows[0]]
    has_header = any(label in first for label in labels) or _looks_like_header(first, rows[1:])
    if not has_header:
        names = tuple(f"column_{number}" for number in range(1, len(first) + 1))
        return RawChunk("csv", (), names, separator=separator, quote=quote)
    if double := next((name for name, times in Counter(rows[0]).items() if times > 1), None):
        raise DataError(f"{path}, line 1: two columns are called {shown(double)}; rename one")
    return RawChunk("csv", (), tuple(rows[0]), has_header=True, separator=separator, quote=quote)


def _looks_like_header(first: list[str], rows: list[list[str]]) -> bool:
    """Return whether a first line has distinct texts, over numbers or texts that occur nowhere below them."""
    if (
        len(set(first)) < len(first)
        or len(first) == 1
        and not first[0]
        or any(re.match(NUMBER, cell) for cell in first)
    ):
        return False
    below = [[row[index].strip() for row in rows if len(row) == len(first)] for index in range(len(first))]
    if not below or not below[0]:
        return True
    return not any(name and name in cells for name, cells in zip(first, below, strict=True))


# Rows of CSV files.


def _sample_csv(path: Path, chunk: RawChunk, budget: int, may_read_on: bool, progress: _Progress) -> None:
    """Add rows of a file: of its start, middle and end, each of a third of the budget in bytes."""
    size = path.stat().st_size
    with open_both(path) as (content, stored):
        if path.suffix in COMPRESSED:
            pieces, length = _streamed(content, stored, size, budget // 3, may_read_on)
        else:
            pieces, length = _seeked(stored, size, budget // 3)
    parsed = [_parsed(path, piece, chunk, is_start=not number) for number, piece in enumerate(pieces)]
    tables = [_with_hive_keys(table, path) for table in parsed if table is not None]
    rows, read = sum(table.num_rows for table in tables), sum(map(len, pieces))
    progress.tables += tables
    progress.bytes_of_files += size
    progress.estimated_rows += rows * length / max(1, read)
    progress.is_complete &= len(pieces) == 1 and read >= length
    progress.is_spread &= len(pieces) > 1 or read >= length


def _seeked(file: BinaryIO, size: int, budget: int) -> tuple[list[bytes], int]:
    """Return pieces of an uncompressed file, in whole lines, and its length."""
    budget = max(budget, HEAD_BYTES)
    if size <= 3 * budget:
        return [file.read()], size
    pieces = [file.read(budget)]
    for start in ((size - budget) // 2, size - budget):
        file.seek(start)
        pieces.append(file.read(budget))
    return [_whole_lines(piece, number > 0, number < 2) for number, piece in enumerate(pieces)], size


def _streamed(
    content: BinaryIO, stored: BinaryIO, size: int, budget: int, may_read_on: bool
) -> tuple[list[bytes], int]:
    """Return pieces of a compressed file, in whole lines, and its uncompressed length, estimated if not read."""
    budget = max(budget, HEAD_BYTES)
    start = content.read(4 * budget)
    if len(start) < 4 * budget:
        return _seeked(io.BytesIO(start), len(start), budget)
    if not may_read_on:
        return [_whole_lines(start[: 3 * budget], False, True)], round(len(start) * size / max(1, stored.tell()))
    length, middle, middle_end = len(start), b"", 0
    last = deque[bytes](maxlen=budget // BLOCK_BYTES + 1)
    while block := content.read(BLOCK_BYTES):
        length += len(block)
        last.append(block)
        if len(middle) < budget and stored.tell() > size / 2:
            middle, middle_end = middle + block, length
    end = (start[-budget:] + b"".join(last))[-budget:]
    if middle_end > length - len(end):  # the last piece overlaps it
        middle = start[2 * budget : 3 * budget]
    pieces = [start[:budget], middle, end]
    return [_whole_lines(piece, number > 0, number < 2) for number, piece in enumerate(pieces)], length


def _whole_lines(piece: bytes, is_cut_before: bool, is_cut_after: bool) -> bytes:
    begin = piece.find(b"\n") + 1 if is_cut_before else 0
    end = piece.rfind(b"\n") + 1 if is_cut_after else len(piece)
    return piece[begin:end]


def _parsed(path: Path, piece: bytes, chunk: RawChunk, is_start: bool) -> pa.Table | None:
    """Return the rows of a piece as strings; None if it is empty, or cannot be parsed and is not the file's start."""
    bad: list[pa_csv.InvalidRow] = []

    def skip(row: pa_csv.InvalidRow) -> str:
        bad.append(row)
        return "skip"

    skipped = int(is_start and chunk.has_header)
    if not piece.strip() or (skipped and piece.count(b"\n") < 2 and not piece.partition(b"\n")[2].strip()):
        return None
    names = list(chunk.columns)
    try:
        table = pa_csv.read_csv(
            pa.BufferReader(piece),
            # One block in one thread, so that rows have numbers.
            pa_csv.ReadOptions(use_threads=False, block_size=len(piece) + 1, column_names=names, skip_rows=skipped),
            pa_csv.ParseOptions(
                delimiter=chunk.separator,
                quote_char=chunk.quote or False,
                newlines_in_values=chunk.quote is not None,
                invalid_row_handler=skip,
            ),
            pa_csv.ConvertOptions(
                column_types={name: pa.string() for name in names}, null_values=[""], strings_can_be_null=True
            ),
        )
    except pa.ArrowInvalid as error:
        if not is_start:
            return None
        if "UTF8" in str(error):
            raise DataError(f"{path}: not UTF-8 ({error}); convert it: iconv -f latin1 -t utf-8") from error
        raise DataError(f"{path}: cannot be read as CSV: {error}") from error
    if bad and is_start:
        row = bad[0]
        found = f"{row.actual_columns} fields, expected {row.expected_columns}"
        raise DataError(f"{path}, line {row.number}: {found}, as in line 1 (separated by {shown(chunk.separator)})")
    return table


def _trimmed(table: pa.Table) -> tuple[pa.Table, bool]:
    """Return a table of strings without white space around them, null where nothing is left, and if there was any."""
    columns = [pc.utf8_trim_whitespace(column) for column in table.columns]
    has_space = any(
        not pc.all(pc.equal(trimmed, column), min_count=0).as_py()
        for trimmed, column in zip(columns, table.columns, strict=True)
    )
    columns = [pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column) for column in columns]
    return pa.table(columns, names=table.column_names), has_space


def _without_null_words(table: pa.Table) -> tuple[pa.Table, tuple[str, ...]]:
    """Return a table of strings without the words for a missing value, and the words that were found."""
    words = dict.fromkeys(word for column in table.columns for word in _null_words(pc.value_counts(column)))
    if not words:
        return table, ()
    known = pa.array(list(words))
    columns = [
        pc.if_else(pc.is_in(column, value_set=known), pa.scalar(None, pa.string()), column) for column in table.columns
    ]
    return pa.table(columns, names=table.column_names), tuple(words)


def _null_words(counted: pa.StructArray) -> list[str]:
    values, counts = counted.field(0), counted.field(1).to_numpy()
    words = [word for word in values.filter(pc.is_in(values, value_set=pa.array(NULL_WORDS))).to_pylist() if word]
    is_other = pc.fill_null(pc.invert(pc.match_substring_regex(values, NUMBER)), False).to_numpy(zero_copy_only=False)
    others = values.filter(pa.array(is_other)).to_pylist()
    are_few = len(others) <= MAX_NULL_WORDS_PER_COLUMN and len(others) < len(values.drop_null())
    share = counts[is_other].sum() / max(1, counts.sum())
    if are_few and share <= MAX_NULL_SHARE and all(re.match(NULL_AMONG_NUMBERS, other) for other in others):
        words += others
    return words


def _with_hive_keys(table: pa.Table, path: Path) -> pa.Table:
    """Add the keys of Hive folders, such as day=2014-10-21/, as columns of strings."""
    for key, value in partition_keys(path.as_posix()).items():
        if key not in table.column_names:
            table = table.append_column(key, pa.array([value] * table.num_rows, pa.string()))
    return table


# Rows of parquet files.


def _sample_parquet(path: Path, rows: int, progress: _Progress) -> None:
    """Add rows of a file: of its first, middle and last row group."""
    try:
        with open_regular(path) as file:
            parquet = pq.ParquetFile(file)
            groups = sorted({0, parquet.num_row_groups // 2, max(0, parquet.num_row_groups - 1)})
            groups = groups if parquet.num_row_groups else []
            tables = []
            for group in groups:
                size = max(1, rows // len(groups))
                batch = next(parquet.iter_batches(batch_size=size, row_groups=[group]), None)
                tables += [] if batch is None else [pa.Table.from_batches([batch])]
            tables = tables or [parquet.schema_arrow.empty_table()]
            total = parquet.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as parquet: {error}") from error
    progress.tables += [_with_hive_keys(_plain(table), path) for table in tables]
    progress.bytes_of_files += path.stat().st_size
    progress.estimated_rows += total
    progress.is_complete &= sum(table.num_rows for table in tables) == total


def _plain(table: pa.Table) -> pa.Table:
    """Decode dictionaries."""
    columns = [
        column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        for column in table.columns
    ]
    return pa.table(columns, names=table.column_names)
