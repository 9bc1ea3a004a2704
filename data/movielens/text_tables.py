"""Read the delimited latin-1 files of GroupLens, plain or gzip-compressed, with line numbers in error messages."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from data.errors import DataError
from data.storage.files import first_file, reading

UNIT_SEPARATOR = b"\x1f"
TEXT_SHOWN = 80
WHOLE_NUMBER = r"^[0-9]{1,18}$"


@dataclass(frozen=True)
class TextForm:
    """The format of a text file.

    Attributes:
        file: name of the file, without `.gz`.
        separator: separator of the fields in a line, one or more characters.
        columns: names of the fields.
        has_header: whether the first line names the columns; it may list further columns after `columns`.
    """

    file: str
    separator: str
    columns: tuple[str, ...]
    has_header: bool = False


@dataclass(frozen=True)
class TextTable:
    """The fields of a file as strings.

    Attributes:
        path: path of the file.
        first_line: line number of row 0.
        texts: table of [rows] strings per field.
    """

    path: Path
    first_line: int
    texts: pa.Table

    def whole_numbers(self, column: str) -> np.ndarray:
        """Return a column as [rows] int64.

        Raises:
            DataError: if a cell is not a non-negative integer, naming the first such line.
        """
        texts = self.texts.column(column)
        wrong = pc.invert(pc.match_substring_regex(texts, WHOLE_NUMBER)).to_numpy()
        self.reject(wrong, column, "a whole number")
        return pc.cast(texts, pa.int64()).to_numpy()

    def optional_texts(self, column: str) -> np.ndarray:
        """Return a column as [rows] objects: strings without surrounding whitespace, None for empty cells."""
        texts = pc.utf8_trim_whitespace(self.texts.column(column))
        return pc.if_else(pc.equal(texts, ""), None, texts).to_numpy()

    def reject(self, wrong: np.ndarray, column: str, expected: str) -> None:
        """Raise a DataError for the first row marked as wrong, if any.

        Args:
            wrong: [rows] bool, whether each row is wrong.
            column: name of the column at fault.
            expected: description of the expected values.
        """
        if wrong.any():
            row = int(np.argmax(wrong))
            found = self.texts.column(column)[row].as_py()[:TEXT_SHOWN]
            raise DataError(f"{self.path}, line {self.line(row)}: {column} is {found!r}, expected {expected}")

    def line(self, row: int) -> int:
        """Return the line number of a row."""
        return self.first_line + row


def find_file(folder: Path, names: list[str]) -> Path | None:
    """Return the first of the named files that exists in a folder, plain or with `.gz`, or None."""
    candidates = [folder / (name + ending) for name in names for ending in ("", ".gz")]
    return first_file(candidates)


def read_text_table(path: Path, form: TextForm) -> TextTable:
    """Read a whole latin-1 file, gzip-compressed if its name ends in `.gz`, ignoring empty lines at its end.

    Raises:
        DataError: if it cannot be read, is empty, or has a line with the wrong number of fields.
    """
    columns, first_line = list(form.columns), 1
    with _opened(path) as file:
        if form.has_header:
            columns, first_line = _header_columns(path, file.readline(), form), 2
        content = file.read().rstrip(b"\r\n")
    if not content:
        raise DataError(f"{path}: is empty; expected lines of {form.separator.join(columns)}")
    return TextTable(path, first_line, _parse(path, content, columns, first_line, form))


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with reading(path, "fetch it again") as file, gzip.open(file) if path.suffix == ".gz" else file as lines:
            yield cast(BinaryIO, lines)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: is not a complete gzip file ({error}); download it again") from error


def _header_columns(path: Path, header: bytes, form: TextForm) -> list[str]:
    columns = header.decode("latin-1").strip().split(form.separator)
    if tuple(columns[: len(form.columns)]) != form.columns or len(set(columns)) < len(columns):
        raise DataError(f"{path}, line 1: {columns}, expected a header that begins with {list(form.columns)}")
    return columns


def _parse(path: Path, content: bytes, columns: list[str], first_line: int, form: TextForm) -> pa.Table:
    separator = form.separator.encode()
    if len(separator) > 1:  # Arrow supports single-byte separators only
        content, separator = content.replace(separator, UNIT_SEPARATOR), UNIT_SEPARATOR
    bad_rows: list[pa_csv.InvalidRow] = []

    def remember(row: pa_csv.InvalidRow) -> str:
        bad_rows.append(row)
        return "error"

    try:
        return pa_csv.read_csv(
            pa.BufferReader(content),
            # One block and one thread, so that Arrow reports row numbers of invalid rows.
            pa_csv.ReadOptions(
                use_threads=False, block_size=len(content) + 1, column_names=columns, encoding="latin-1"
            ),
            pa_csv.ParseOptions(
                delimiter=separator.decode(),
                quote_char=False,
                ignore_empty_lines=False,
                invalid_row_handler=remember,
            ),
            pa_csv.ConvertOptions(column_types={name: pa.string() for name in columns}, strings_can_be_null=False),
        )
    except pa.ArrowInvalid as error:
        if not bad_rows:
            raise DataError(f"{path}: cannot be parsed: {error}") from error
        row = bad_rows[0]
        found = row.text.replace(separator.decode(), form.separator)[:TEXT_SHOWN]
        raise DataError(
            f"{path}, line {row.number - 1 + first_line}: {row.actual_columns} fields, expected "
            f"{row.expected_columns} ({form.separator.join(columns)}), in {found!r}"
        ) from error
