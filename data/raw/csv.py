"""Parse CSV files with Arrow, in blocks of rows; what Arrow rejects is located and explained."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.csv as arrow_csv

from data.errors import DataError, listed, nearest, shown
from data.raw.cells import TEXT, CellError, as_table, combined, convert, trimmed
from data.raw.text import BYTE_ORDER_MARK, UTF8_FIX, Records, ahead, find_line, open_text
from data.spec.raw.spec import RawChunk, Reading

# Arrow parses parts of this size in parallel; larger ones leave the cache.
PARSED_BYTES = 2**21
ROWS_SEARCHED = 2**16
DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
SEPARATORS = (",", ";", "\t", "|", "::", " ")


def csv_tables(
    path: Path, chunk: RawChunk, readings: Sequence[Reading], block_rows: int
) -> Iterator[tuple[int, pa.Table]]:
    """Yield the rows of a CSV file, plain or compressed, in blocks.

    Args:
        path: path of the file.
        chunk: format of the file.
        readings: columns to read.
        block_rows: approximate number of rows per block.

    Yields:
        The number of the first row of a block, from 0, and its values, one column per reading.

    Raises:
        DataError: if the file is invalid, naming line and column.
        LostInputError: if the file can no longer be read.
    """
    records = Records(chunk.separator, chunk.quote)
    parser = _CsvParser(path, chunk, records, readings)
    row = 0
    with open_text(path) as file:
        for offset, data in ahead(_data_blocks(path, chunk, records, file, block_rows)):
            table = parser.parse(data, offset)
            if table.num_rows:
                yield row, table
            row += table.num_rows


def csv_columns(path: Path, chunk: RawChunk) -> list[str]:
    """Return the names of the columns of a CSV file.

    Raises:
        DataError: if the file is not valid text.
    """
    return _first_cells(path, Records(chunk.separator, chunk.quote)) if chunk.has_header else list(chunk.columns)


def csv_line(path: Path, chunk: RawChunk, row: int) -> int:
    """Return the number of the line at which a row of a CSV file begins, from 1, as an editor shows it.

    Args:
        path: path of the file, which has the row.
        chunk: format of the file.
        row: number of the row, from 0, without the header.
    """
    records, is_one_column = Records(chunk.separator, chunk.quote), len(csv_columns(path, chunk)) == 1
    with open_text(path) as file:
        for offset, data in _data_blocks(path, chunk, records, file, ROWS_SEARCHED):
            starts = records.starts(data, keeps_empty=is_one_column)
            if row < len(starts):
                return find_line(path, offset + records.distance(data[: starts[row]]))
            row -= len(starts)
    raise DataError(f"{path}: was changed while it was read; run again")


def _first_cells(path: Path, records: Records) -> list[str]:
    """Return the cells of the first line that is not empty; none if there is none."""
    with open_text(path) as file:
        for _, data in records.blocks(file, 1, path):
            if first := records.first(data)[0]:
                return [cell.decode(errors="backslashreplace") for cell in records.cells(first)]
    return []


def _data_blocks(
    path: Path, chunk: RawChunk, records: Records, file: BinaryIO, rows: int
) -> Iterator[tuple[int, bytes]]:
    """Yield `Records.blocks` without the header."""
    is_before = chunk.has_header
    for offset, data in records.blocks(file, rows, path):
        header, end = records.first(data) if is_before else (b"", 0)
        is_before = is_before and not header
        yield offset + records.distance(data[:end]), data[end:]


class _CsvParser:
    """Parses the blocks of a CSV file.

    Args:
        path: path of the file.
        chunk: format of the file.
        records: the rows of the file.
        readings: columns to read.
    """

    def __init__(self, path: Path, chunk: RawChunk, records: Records, readings: Sequence[Reading]):
        self.path, self.chunk, self.records, self.readings = path, chunk, records, readings
        cells = _first_cells(path, records)
        self.names = cells if chunk.has_header else list(chunk.columns)
        if cells and chunk.has_header:
            self._check_header(cells)
        elif cells:
            self._check_first_row(cells)
        self.types = _parsed_types(readings)

    def parse(self, data: bytes, offset: int) -> pa.Table:
        """Parse a block that begins at an offset of the file: [rows] values per reading."""
        columns = self._cells(data, offset)
        if self.chunk.trim:
            columns = {name: trimmed(cells, self.chunk.null) for name, cells in columns.items()}
        values = []
        for reading in self.readings:
            try:
                values.append(convert(columns[reading.column], reading, self.chunk.null))
            except CellError as error:
                raise self._bad_cell(data, offset, reading, error) from error
        return as_table(self.readings, values, len(columns[self._included()[0]]))

    def _included(self) -> list[str]:
        return list(dict.fromkeys(reading.column for reading in self.readings)) or self.names[:1]

    def _cells(self, data: bytes, offset: int) -> dict[str, pa.Array]:
        if not data:
            return {name: pa.nulls(0) for name in self._included()}
        try:
            return self._parse_arrow(data)
        except pa.ArrowInvalid:
            # Cells that Arrow does not take as numbers, such as blanks, from here on.
            self.types = {name: TEXT for name in self.types}
        try:
            return self._parse_arrow(data)
        except pa.ArrowInvalid as error:
            raise self._explain(data, offset, error) from error

    def _parse_arrow(self, data: bytes) -> dict[str, pa.Array]:
        included = self._included()
        quote = self.records.quote.decode() if self.records.quote else False
        if data.startswith(BYTE_ORDER_MARK):
            data = BYTE_ORDER_MARK + data  # the first cell begins with it; Arrow drops one in front of any data
        table = arrow_csv.read_csv(
            pa.BufferReader(data),
            arrow_csv.ReadOptions(column_names=self.names, block_size=PARSED_BYTES),
            arrow_csv.ParseOptions(
                delimiter=self.records.separator.decode(),
                quote_char=quote,
                double_quote=bool(quote),
                newlines_in_values=self.records.quote is not None and self.records.quote in data,
                ignore_empty_lines=len(self.names) > 1,
            ),
            arrow_csv.ConvertOptions(
                column_types={name: self.types.get(name, TEXT) for name in included},
                include_columns=included,
                null_values=["", *self.chunk.null],
                strings_can_be_null=True,
            ),
        )
        return {name: combined(table.column(name)) for name in included}

    def _check_header(self, cells: list[str]) -> None:
        counts = Counter(cells)
        for reading in self.readings:
            if counts[reading.column] > 1:
                raise DataError(
                    f"{self.path}, line 1: {counts[reading.column]} columns are named {reading.column!r}; rename one"
                )
            if reading.column not in counts:
                raise DataError(f"{self.path}, line 1: {self._missing_column(reading.column, cells)}")

    def _missing_column(self, column: str, cells: list[str]) -> str:
        found = f"has no column {column!r}; "
        text = self.records.separator.decode().join(cells)
        if len(cells) == 1 and (separator := _guess_separator(text, None)):
            return found + _separator_fix(separator)
        if all(_is_number(cell) for cell in cells):
            return f"is read as the header and holds numbers: {shown(text)}; drop `header: true` and list `features`"
        guess = nearest(column, cells)
        hint = f"did you mean {guess!r}?" if guess else f"its columns are {listed(cells, len(cells))}"
        if any(_is_number(cell) for cell in cells):
            hint += "; if line 1 is a row of data, drop `header: true` and list `features`"
        return found + hint

    def _check_first_row(self, cells: list[str]) -> None:
        # Numbers that equal names which are numbers themselves say nothing.
        names = {name.strip().casefold() for name in self.names if not _is_number(name)}
        equal = sum(cell.strip().casefold() in names for cell in cells)
        if equal and 2 * equal >= len(cells):
            raise DataError(
                f"{self.path}, line 1: names the columns ({listed(cells, len(cells))}); write `header: true`, and drop "
                "`features`"
            )

    def _explain(self, data: bytes, offset: int, cause: Exception) -> DataError:
        """Find the first row with the wrong number of cells or invalid UTF-8."""
        included = [self.names.index(name) for name in self._included()]
        for start in self._starts(data):
            record, _ = self.records.first(data[start : start + 2**20])
            cells = self.records.cells(record)
            where = f"{self.path}, line {self._line(data, offset, start)}"
            if record and len(cells) != len(self.names):
                return DataError(f"{where}: {self._wrong_count(cells)}")
            for index in included:
                try:
                    cells[index].decode() if cells else ""
                except UnicodeDecodeError:
                    name = self.names[index]
                    return DataError(f"{where}: column {name!r} is not UTF-8: {cells[index]!r}; {UTF8_FIX}")
        return DataError(f"{self.path}: cannot be parsed: {cause}")

    def _wrong_count(self, cells: list[bytes]) -> str:
        text = self.records.separator.join(cells).decode(errors="backslashreplace")
        found = f"{len(cells)} {'cell' if len(cells) == 1 else 'cells'}, expected {len(self.names)}, in {shown(text)}"
        if len(cells) == 1 and (separator := _guess_separator(text, len(self.names))):
            return f"{found}; {_separator_fix(separator)}"
        names = "the header" if self.chunk.has_header else "`features`"
        return f"{found}; {names} has {listed(self.names, len(self.names))}"

    def _bad_cell(self, data: bytes, offset: int, reading: Reading, error: CellError) -> DataError:
        if error.row is None:
            return error.located(str(self.path), reading)
        start = self._starts(data)[error.row]
        line = self._line(data, offset, start)
        if line == 1 and not self.chunk.has_header and self._looks_like_names(data):
            error.expected += "; if line 1 names the columns, write `header: true` and drop `features`"
        elif reading.dtype.startswith("float") and not reading.is_list:
            cells = self.records.cells(self.records.first(data[start:])[0])
            error.expected += _number_fix(cells[self.names.index(reading.column)].decode(errors="replace").strip())
        return error.located(f"{self.path}, line {line}", reading)

    def _looks_like_names(self, data: bytes) -> bool:
        return not any(
            _is_number(cell.decode(errors="replace")) for cell in self.records.cells(self.records.first(data)[0])
        )

    def _starts(self, data: bytes) -> list[int]:
        return self.records.starts(data, keeps_empty=len(self.names) == 1)

    def _line(self, data: bytes, offset: int, start: int) -> int:
        return find_line(self.path, offset + self.records.distance(data[:start]))


def _parsed_types(readings: Sequence[Reading]) -> dict[str, pa.DataType]:
    """Return the type that Arrow parses each column as, from which all its readings are derived."""
    types: dict[str, pa.DataType] = {}
    for reading in readings:
        wanted = _parsed_type(reading)
        types[reading.column] = wanted if types.get(reading.column, wanted) == wanted else TEXT
    return types


def _parsed_type(reading: Reading) -> pa.DataType:
    if reading.is_list:
        return pa.string()  # lists rarely repeat
    if reading.dtype in ("float16", "float32", "float64"):
        return pa.float64()
    if reading.dtype in ("int8", "int16", "int32", "int64") or (reading.dtype == "timestamp" and reading.unit):
        return pa.int64()
    return TEXT


def _guess_separator(text: str, fields: int | None) -> str | None:
    """Return the separator that splits a line into the expected number of fields, or else into the most."""
    counts = {separator: text.count(separator) + 1 for separator in SEPARATORS}
    exact = [separator for separator, count in counts.items() if count == fields]
    best = exact[0] if exact else max(counts, key=lambda separator: counts[separator])
    return best if counts[best] > 1 else None


def _separator_fix(separator: str) -> str:
    shown_separator = separator.replace("\t", "\\t")
    return f'cells seem to be separated by "{shown_separator}"; write `separator: "{shown_separator}"`'


def _number_fix(text: str) -> str:
    """Return what to write for a cell of a column of numbers that is not a number."""
    if DECIMAL_COMMA.fullmatch(text):
        return "; replace the comma by a point"
    if _is_number(text):
        return ""
    word = json.dumps(text, ensure_ascii=False)
    return (
        f"; write `null: [{word}]` beside `files` if this means a missing value, `encode: {{map: {{{word}: 0, ...}}}}` "
        "for a label of texts, or `encode: vocabulary` for ids"
    )


def _is_number(text: str) -> bool:
    try:
        float(text or "0")
    except ValueError:
        return False
    return True
