"""Reads CSV files of a dataset, in bounded memory: no header, one line per row, one cell per feature.

Arrow parses whole blocks of lines. A block that Arrow cannot read is parsed again cell by cell in Python, which is slow
but locates every mistake and defines what is accepted. The fast path must therefore never accept more than the slow
one.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv

from data.errors import DataError
from data.files.values import VALUES_SHOWN, Violation, find_unequal_lengths, find_violations, shorten
from data.spec.columns import Column, is_list
from data.spec.features import Chunk
from data.storage.files import create_new, reading, temporary_beside

BLOCK_BYTES = 2**20
MAX_LINE_BYTES = 2**26
HINT = "see `files` in source_spec"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_BLANK = " \t"
# Also integers printed as floats: 3.0 (and 3.), as pandas writes the ids of a column with nulls.
_INTEGER = re.compile(r"[+-]?[0-9]{1,40}(?:\.0{0,40})?")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
# The spellings of booleans that Arrow accepts.
_TRUTH = dict.fromkeys(["1", "true", "True", "TRUE"], True) | dict.fromkeys(["0", "false", "False", "FALSE"], False)
_CELL = re.compile(r'(?:"([^"]*(?:""[^"]*)*)"|([^",]*))(,|$)')


@dataclass(frozen=True)
class CsvBlock:
    """A block of consecutive lines of a file.

    Attributes:
        path: path of the file.
        first_line: number of the first line, counted from 1.
        table: [lines] values in the columns' types, null where a cell is empty or cannot be parsed.
        problems: all problems in the block; their `rows` count from its first line.
    """

    path: Path
    first_line: int
    table: pa.Table
    problems: tuple[Violation, ...]


def count_lines(path: Path) -> int:
    """Return the number of lines of a file, each of which is a row.

    Raises:
        DataError: The file is missing, unreadable or empty.
        LostInputError: The file can no longer be read.
    """
    lines, last = 0, b""
    with reading(path, HINT) as file:
        while piece := file.read(BLOCK_BYTES):
            lines += piece.count(b"\n")
            last = piece
    if last in (b"", BYTE_ORDER_MARK) and lines == 0:
        raise DataError(f"{path}: is empty; expected one line per row")
    return lines + (not last.endswith(b"\n"))


def read_csv_blocks(path: Path, columns: Sequence[Column]) -> Iterator[CsvBlock]:
    r"""Read a file block by block.

    Accept UTF-8 with or without a byte order mark, \n and \r\n line ends, quoted and unquoted cells, and blanks around
    numbers.

    Raises:
        DataError: The file is missing, unreadable, or has a line longer than `MAX_LINE_BYTES`.
        LostInputError: The file can no longer be read.
    """
    first_line = 1
    with reading(path, HINT) as file:
        for data in _line_blocks(file, path):
            table, problems = _parse(data, columns)
            yield CsvBlock(path, first_line, table, (*problems, *_value_problems(table, columns, problems)))
            first_line += table.num_rows


def _line_blocks(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Yield whole lines, about `BLOCK_BYTES` at a time; every block ends with a newline."""
    rest = file.read(len(BYTE_ORDER_MARK)).removeprefix(BYTE_ORDER_MARK)
    while piece := file.read(BLOCK_BYTES):
        end = piece.rfind(b"\n") + 1
        if end:
            yield rest + piece[:end]
            rest = piece[end:]
        else:
            rest += piece
        if len(rest) > MAX_LINE_BYTES:
            raise DataError(f"{path}: has a line of more than {MAX_LINE_BYTES:,} bytes; expected one row per line")
    if rest:
        yield rest if rest.endswith(b"\n") else rest + b"\n"


def _value_problems(table: pa.Table, columns: Sequence[Column], problems: Sequence[Violation]) -> Iterator[Violation]:
    """Check values against the rules of their columns, except for cells that could not be parsed."""
    for column in columns:
        unread = [problem.rows for problem in problems if problem.column in (None, column.name)]
        for problem in find_violations(column, table.column(column.name).combine_chunks()):
            left = problem.without(np.concatenate(unread)) if unread else problem
            if len(left.rows):
                yield left
    yield from find_unequal_lengths(columns, table)


def _parse(data: bytes, columns: Sequence[Column]) -> tuple[pa.Table, list[Violation]]:
    data = data.replace(b"\r\n", b"\n") if b"\r" in data else data
    if _is_plain(data, len(columns)):
        try:
            table = _parse_fast(data, columns)
        except (pa.ArrowInvalid, UnicodeDecodeError):
            return _parse_slowly(data, columns)
        # Fewer rows than lines, as for a quoted line break, must be reported line by line.
        if table.num_rows == data.count(b"\n"):
            return table, []
    return _parse_slowly(data, columns)


def _is_plain(data: bytes, num_columns: int) -> bool:
    """Return whether Arrow parses these lines like the slow path.

    It does not for stray carriage returns, empty lines of several columns, hexadecimal numbers (which Arrow accepts),
    quotes inside cells, and a first cell that begins with U+FEFF (which Arrow drops as a byte order mark).
    """
    if data.startswith(BYTE_ORDER_MARK):
        return False
    has_empty_line = num_columns > 1 and (data.startswith(b"\n") or b"\n\n" in data)
    has_hexadecimal = b"0x" in data or b"0X" in data
    return not (b"\r" in data or has_empty_line or has_hexadecimal or _has_quote_within_cell(data))


def _has_quote_within_cell(data: bytes) -> bool:
    """Return whether there are quotes other than as the first and last character of a cell."""
    characters = np.frombuffer(data, np.uint8)
    quotes = np.flatnonzero(characters == ord('"'))
    if len(quotes) % 2:
        return True
    before = characters[quotes[::2] - 1]  # for a quote at 0, index -1 is the last character, which is a newline
    after = characters[quotes[1::2] + 1]
    return not np.isin(np.concatenate([before, after]), [ord(","), ord("\n")]).all()


def _parse_fast(data: bytes, columns: Sequence[Column]) -> pa.Table:
    """Parse a block with Arrow; raise ArrowInvalid or UnicodeDecodeError for everything unusual."""
    if not data.isascii():
        data.decode()  # validates the whole block; Arrow's own check is off (check_utf8)
    table = arrow_csv.read_csv(
        pa.BufferReader(data),
        arrow_csv.ReadOptions(
            column_names=[column.name for column in columns], block_size=len(data) + 1, use_threads=False
        ),
        arrow_csv.ParseOptions(ignore_empty_lines=False),
        arrow_csv.ConvertOptions(
            column_types={column.name: _cell_type(column.type) for column in columns},
            null_values=[""],
            check_utf8=False,
        ),
    )
    arrays = [_finish(table.column(column.name).combine_chunks(), column.type) for column in columns]
    return pa.table(arrays, schema=pa.schema([(column.name, column.type) for column in columns]))


def _cell_type(stored: pa.DataType) -> pa.DataType:
    """Return the type that Arrow's CSV reader parses a column as: it supports neither lists nor float16."""
    if pa.types.is_list(stored):
        return pa.string()
    return pa.float32() if stored == pa.float16() else stored


def _finish(cells: pa.Array, stored: pa.DataType) -> pa.Array:
    if pa.types.is_list(stored):
        return _parse_lists(cells, stored)
    return _check_floats(cells, stored) if pa.types.is_floating(stored) else cells


def _check_floats(cells: pa.Array, stored: pa.DataType) -> pa.Array:
    """Cast to the stored type; raise ArrowInvalid for infinity, to which Arrow also rounds numbers out of range."""
    with np.errstate(over="ignore"):
        values = cells.fill_null(0).to_numpy(zero_copy_only=False).astype(stored.to_pandas_dtype(), copy=False)
    if np.isinf(values).any():
        raise pa.ArrowInvalid(f"not a finite {stored}")
    return pa.array(values, mask=cells.is_null().to_numpy(zero_copy_only=False)) if cells.type != stored else cells


def _parse_lists(cells: pa.Array, stored: pa.DataType) -> pa.Array:
    """Parse cells such as `[1, 2]` as lists; raise ArrowInvalid for anything else, including empty cells."""
    texts = pc.ascii_trim_whitespace(cells)
    if not pc.all(pc.and_(pc.starts_with(texts, "["), pc.ends_with(texts, "]"))).as_py():
        raise pa.ArrowInvalid("a list without brackets")
    bodies = pc.ascii_trim_whitespace(pc.binary_slice(texts.cast(pa.binary()), 1, -1).cast(pa.string()))
    parts = pc.split_pattern(bodies, ",")
    lengths = pc.list_value_length(parts).to_numpy(zero_copy_only=False)
    # Splitting the body of "[]" gives one empty text rather than none: drop it.
    filled = pc.not_equal(bodies, "").to_numpy(zero_copy_only=False)
    items = parts.flatten().filter(pa.array(np.repeat(filled, lengths)))
    values = _finish(pc.ascii_trim_whitespace(items).cast(_cell_type(stored.value_type)), stored.value_type)
    offsets = np.concatenate([[0], np.cumsum(lengths * filled)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def _parse_slowly(data: bytes, columns: Sequence[Column]) -> tuple[pa.Table, list[Violation]]:
    """Parse every line and cell on its own; what cannot be parsed becomes null and is listed in the problems."""
    lines = data.split(b"\n")[:-1]
    values: list[list[Any]] = [[None] * len(lines) for _ in columns]
    mistakes: dict[tuple[str | None, str, str], list[tuple[int, str]]] = {}
    for row, line in enumerate(lines):
        try:
            cells = _split(line, columns)
        except ValueError as error:
            key: tuple[str | None, str, str] = (None, "line that cannot be read", str(error))
            mistakes.setdefault(key, []).append((row, line.decode(errors="backslashreplace")))
            continue
        for position, (text, column) in enumerate(zip(cells, columns, strict=True)):
            try:
                values[position][row] = _parse_cell(text, column.type)
            except ValueError:
                key = (column.name, "cell that cannot be read", column.expected)
                mistakes.setdefault(key, []).append((row, text))
    table = pa.table(
        [pa.array(cells, column.type) for cells, column in zip(values, columns, strict=True)],
        names=[column.name for column in columns],
    )
    return table, [_collect(*key, found) for key, found in mistakes.items()]


def _collect(column: str | None, what: str, expected: str, found: list[tuple[int, str]]) -> Violation:
    rows = np.array([row for row, _ in found], np.int64)
    return Violation(what, column, rows, tuple(shorten(text) for _, text in found[:VALUES_SHOWN]), expected)


def _split(line: bytes, columns: Sequence[Column]) -> list[str]:
    """Return the cells of a line, without quotes; raise a ValueError that says what was expected instead."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise ValueError("UTF-8 text") from error
    if "\r" in text:
        raise ValueError("a line without a carriage return (\\r) inside")
    cells, end = [], 0
    while True:
        match = _CELL.match(text, end)
        if match is None:
            raise ValueError("quotes only around whole cells, closed on the same line")
        cells.append(match[2] if match[1] is None else match[1].replace('""', '"'))
        end = match.end()
        if not match[3]:
            break
    if len(cells) != len(columns) or (not text and len(columns) > 1):
        has_lists = any(pa.types.is_list(column.type) for column in columns)
        hint = ' (a list is one cell and needs quotes: "[1, 2]")' if has_lists else ""
        raise ValueError(f"{len(columns)} cells, found {len(cells) if text else 0}{hint}")
    return cells


def _parse_cell(text: str, stored: pa.DataType) -> Any:
    """Return the value of a cell, or None if it is empty; raise a ValueError if it is not a value of the type."""
    if pa.types.is_string(stored):
        return text
    text = text.strip(_BLANK)
    if not text:
        return None
    if pa.types.is_integer(stored):
        return _integer(text, stored)
    if pa.types.is_floating(stored):
        return _number(text, stored)
    if pa.types.is_boolean(stored):
        return _truth(text)
    if text[0] != "[" or text[-1] != "]":
        raise ValueError
    read = _number if pa.types.is_floating(stored.value_type) else _integer
    items = text[1:-1].split(",") if text[1:-1].strip(_BLANK) else []
    return [read(item.strip(_BLANK), stored.value_type) for item in items]


def _integer(text: str, stored: pa.DataType) -> int:
    bounds = np.iinfo(stored.to_pandas_dtype())
    if not _INTEGER.fullmatch(text) or not bounds.min <= (value := int(text.partition(".")[0])) <= bounds.max:
        raise ValueError
    return value


def _truth(text: str) -> bool:
    if text not in _TRUTH:
        raise ValueError
    return _TRUTH[text]


def _number(text: str, stored: pa.DataType) -> Any:
    if not _NUMBER.fullmatch(text):
        raise ValueError
    with np.errstate(over="ignore"):
        value = stored.to_pandas_dtype()(float(text))
    if np.isinf(value) and "inf" not in text.lower():  # too large for the type
        raise ValueError
    return value


def write_csv_chunks(chunks: Iterable[Chunk], folder: Path, tables: Iterable[pa.Table], rows: int) -> None:
    """Write the rows of a mapping to the files of its chunks.

    The files are renamed to their final names once all of them are complete. Missing folders are created; existing
    files are never overwritten.

    Args:
        chunks: column groups to write; each one spreads the rows evenly over its files.
        folder: folder that the file paths are relative to.
        tables: consecutive tables of any number of rows, with the columns of all chunks.
        rows: total number of rows in `tables`.

    Raises:
        DataError: A file already exists, or a chunk has more files than there are rows.
    """
    with ExitStack() as stack:
        writers = [stack.enter_context(_ChunkWriter(chunk, folder, rows)) for chunk in chunks]
        for table in tables:
            for writer in writers:
                writer.write(table)
        for writer in writers:
            writer.finish()


class _ChunkWriter:
    """Streams one column group to temporary files, renames them in `finish`, and removes leftovers on exit.

    Args:
        chunk: column group to write.
        folder: folder that the file paths are relative to.
        rows: total number of rows that will be written.
    """

    def __init__(self, chunk: Chunk, folder: Path, rows: int) -> None:
        self._chunk = chunk
        self._paths = [folder / file for file in chunk.files]
        self._temporaries = [temporary_beside(path) for path in self._paths]
        # File i takes the rows up to ends[i], so that sizes differ by at most one row.
        self._ends = [rows * (index + 1) // len(chunk.files) for index in range(len(chunk.files))]
        self._row = 0
        self._file: BinaryIO | None = None
        check_can_write(chunk, folder, rows)

    def __enter__(self) -> "_ChunkWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
        for temporary in self._temporaries:
            temporary.unlink(missing_ok=True)

    def write(self, table: pa.Table) -> None:
        """Append rows, moving on to the next file when one is full."""
        while table.num_rows:
            index = next(index for index, end in enumerate(self._ends) if end > self._row)
            if self._file is None:
                path = self._temporaries[index]
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = create_new(path)
            part = table.slice(0, self._ends[index] - self._row)
            options = arrow_csv.WriteOptions(include_header=False)
            arrow_csv.write_csv(_as_cells(part.select(self._chunk.features)), self._file, options)
            self._row += part.num_rows
            table = table.slice(part.num_rows)
            if self._row == self._ends[index]:
                self._file.close()
                self._file = None

    def finish(self) -> None:
        """Rename all temporary files to their final names."""
        for temporary, path in zip(self._temporaries, self._paths, strict=True):
            os.replace(temporary, path)


def check_can_write(chunk: Chunk, folder: Path, rows: int) -> None:
    """Raise DataError if a file of the chunk already exists or would be empty."""
    for file in chunk.files:
        path = folder / file
        # Resolved because in "missing/../file", the folder "missing" is only created later.
        if os.path.lexists(path.parent.resolve() / path.name):
            raise DataError(
                f"{folder / file}: already exists and is not overwritten; choose another folder, or delete it"
            )
    if rows < len(chunk.files):
        raise DataError(
            f"{chunk.files[0]}, ...: {len(chunk.files)} files cannot share {rows} rows; ask for at least as many rows"
        )


def _as_cells(table: pa.Table) -> pa.Table:
    """Convert lists to text and float16 to float32, since Arrow's CSV writer supports neither."""
    columns = []
    for column in table.columns:
        if is_list(column.type):
            if column.type.value_type == pa.float16():
                column = column.cast(pa.list_(pa.float32()))
            texts = pc.binary_join(column.cast(pa.list_(pa.string())), ", ")
            column = pc.binary_join_element_wise("[", texts, "]", "")
        elif column.type == pa.float16():
            column = column.cast(pa.float32())
        columns.append(column)
    return pa.table(columns, names=table.column_names)
