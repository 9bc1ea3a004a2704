"""Read text files, plain or compressed, in blocks of whole CSV records."""

import bz2
import gzip
import re
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import numpy as np
import pyarrow as pa

from data.errors import DataError
from data.storage.files import is_of_system, reading

HINT = "see `files` in source_spec"
UTF8_FIX = "save the file as UTF-8, as with: iconv -f latin1 -t utf-8 OLD > NEW"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# First bytes of files that are not text, with their name and what to do.
SIGNATURES = {
    b"\x1f\x8b": ("gzip-compressed", "rename it to {name}.gz"),
    b"\x28\xb5\x2f\xfd": ("compressed with Zstandard", "rename it to {name}.zst"),
    b"BZh": ("compressed with bzip2", "rename it to {name}.bz2"),
    b"PK\x03\x04": ("a zip archive", "rename it to {name}.zip"),
    b"PAR1": ("a parquet file", "write `type: parquet`"),
    b"\xff\xfe": ("UTF-16 text", "save it as UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "save it as UTF-8"),
}
WORKBOOKS = (".xlsx", ".xlsm", ".ods")
COMPRESSED = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd", ".bz2": b"BZh", ".zip": b"PK"}
SIGNATURE_BYTES = 4
DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError)
# Replaces a separator of several bytes, which Arrow does not support.
UNIT_SEPARATOR = b"\x1f"
PROBE_BYTES = 2**18
MAX_BLOCK_BYTES = 2**28
MAX_RECORD_BYTES = 2**26

T = TypeVar("T")


@contextmanager
def open_text(path: Path) -> Iterator[BinaryIO]:
    """Open a text file, decompressed by its suffix: .gz, .zst, .bz2 or .zip (of one file).

    Raises:
        DataError: if the file is missing, damaged, or not what its suffix says.
        LostInputError: if it can no longer be read.
    """
    with open_both(path) as (text, _):
        yield text


def sample_text(path: Path, size: int) -> tuple[bytes, int]:
    """Return the first decompressed bytes of a file, and how many bytes of the file they take, approximately.

    Raises:
        DataError: if the file is missing, damaged, or not what its suffix says.
        LostInputError: if it can no longer be read.
    """
    with open_both(path) as (text, file):
        data = text.read(size)
        return data, file.tell() if len(data) == size else path.stat().st_size


@contextmanager
def open_both(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Open a file as `open_text` does, and yield the decompressed text and the file itself.

    Raises:
        DataError: if the file is missing, damaged, or not what its suffix says.
        LostInputError: if it can no longer be read.
    """
    with reading(path, HINT) as file:
        start = file.read(SIGNATURE_BYTES)
        file.seek(0)
        _check_signature(path, start)
        try:
            with _decompressed(path, file) as text:
                yield text, file
        except DAMAGE as error:
            if isinstance(error, OSError) and is_of_system(error) or path.suffix not in COMPRESSED:
                raise
            raise DataError(f"{path}: is not a complete {path.suffix} file ({error}); fetch it again") from error


def _check_signature(path: Path, start: bytes) -> None:
    expected = COMPRESSED.get(path.suffix)
    if expected is not None:
        if start and not start.startswith(expected):
            raise DataError(f"{path}: is not a {path.suffix} file; if it is plain text, rename it to {path.stem}")
        return
    if path.suffix in WORKBOOKS and start.startswith(b"PK"):
        raise DataError(f"{path}: is an Excel workbook; save it as CSV")
    for signature, (what, fix) in SIGNATURES.items():
        if start.startswith(signature):
            raise DataError(f"{path}: is {what}, expected plain text; {fix.format(name=path.name)}")


def _decompressed(path: Path, file: BinaryIO) -> BinaryIO:
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(file))
    if path.suffix == ".bz2":
        return cast(BinaryIO, bz2.open(file))
    if path.suffix == ".zst":
        return cast(BinaryIO, pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd"))
    if path.suffix == ".zip":
        return _only_member(path, file)
    return file


def _only_member(path: Path, file: BinaryIO) -> BinaryIO:
    archive = zipfile.ZipFile(file)
    names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
    if len(names) != 1:
        found = ", ".join(names[:3]) or "none"
        raise DataError(f"{path}: holds {len(names)} files ({found}), expected one; extract them")
    return cast(BinaryIO, archive.open(names[0]))


def ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield items, the next of which is prepared by a thread in the meantime."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(next, items, end)
        while (item := upcoming.result()) is not end:
            upcoming = pool.submit(next, items, end)
            yield cast(T, item)


class Records:
    """The records (rows) of CSV text: where they end, given that quoted cells may hold separators and line breaks.

    Args:
        separator: separator of the cells, of any length.
        quote: quote character, or None. Separators of several bytes exclude quotes.
    """

    def __init__(self, separator: str, quote: str | None):
        self.long_separator = separator.encode() if len(separator.encode()) > 1 else None
        self.separator = UNIT_SEPARATOR if self.long_separator else separator.encode()
        self.quote = None if quote is None or self.long_separator else quote.encode()

    def blocks(self, file: BinaryIO, rows: int, path: Path) -> Iterator[tuple[int, bytes]]:
        """Read a file in blocks of whole records, of about `rows` records each.

        Args:
            file: text, with or without a byte order mark.
            rows: approximate number of records.
            path: path of the file, for messages.

        Yields:
            The offset of a block in the file, and its bytes; separators of several bytes are replaced by
            `UNIT_SEPARATOR`.

        Raises:
            DataError: if a record is longer than `MAX_RECORD_BYTES`, or a quoted cell is not closed.
        """
        start = file.read(PROBE_BYTES)
        buffer, is_last = start.removeprefix(BYTE_ORDER_MARK), False
        offset = len(start) - len(buffer)
        size = wanted = _block_bytes(buffer, rows)
        while buffer or not is_last:
            if len(buffer) < wanted and not is_last:
                piece = file.read(wanted - len(buffer))
                is_last = not piece
                buffer += piece
                continue
            end = self.complete(buffer[:wanted]) if len(buffer) > wanted or not is_last else self._closed(buffer)
            if end:
                yield offset, self._single_separators(buffer[:end], path)
                buffer, offset, wanted = buffer[end:], offset + end, size
            elif (is_last and len(buffer) <= wanted) or wanted > MAX_RECORD_BYTES:
                raise _open_record(path, offset + self._scan(buffer)[-1], len(buffer))
            else:
                wanted *= 2

    def complete(self, data: bytes) -> int:
        """Return how many bytes at the start of the data are whole records that end with a newline."""
        end = data.rfind(b"\n") + 1
        if self.quote is None or data.find(self.quote, 0, end) < 0:
            return end
        quotes = self._regular_quotes(data)
        if quotes is None:
            return self._last_end(data)
        while end:
            before = int(np.searchsorted(quotes, end))
            if before % 2 == 0:
                break
            end = data.rfind(b"\n", 0, int(quotes[before - 1])) + 1
        return end

    def starts(self, data: bytes, *, keeps_empty: bool) -> list[int]:
        """Return the positions at which records start, without those of empty lines unless they are kept."""
        bounds = self._scan(data)
        pairs = zip(bounds, bounds[1:], strict=False)
        return [start for start, end in pairs if keeps_empty or data[start:end].strip(b"\r\n")]

    def first(self, data: bytes) -> tuple[bytes, int]:
        """Return the first record that is not empty, and where it ends; nothing if all are empty."""
        record, position = _patterns(self.separator, self.quote)[1], 0
        while position < len(data) and (match := record.match(data, position)) is not None:
            position = match.end()
            if match[0].strip(b"\r\n"):
                return match[0], position
        return b"", position

    def distance(self, data: bytes) -> int:
        """Return how many bytes of the file some bytes of a block are: separators of several bytes were replaced."""
        longer = len(self.long_separator) - 1 if self.long_separator else 0
        return len(data) + longer * data.count(UNIT_SEPARATOR) if longer else len(data)

    def cells(self, record: bytes) -> list[bytes]:
        """Return the cells of a record, without their quotes."""
        cells, position = [], 0
        cell = _patterns(self.separator, self.quote)[0]
        record = record.rstrip(b"\r\n")
        while (match := cell.match(record, position)) is not None:
            cells.append(self._unquoted(match[0]))
            position = match.end() + len(self.separator)
            if position > len(record):
                break
        return cells

    def _unquoted(self, cell: bytes) -> bytes:
        if self.quote is None or not cell.startswith(self.quote):
            return cell
        end = re.match(b"%b(?:[^%b]++|%b%b)*+" % ((re.escape(self.quote),) * 4), cell)
        inner, rest = cell[1 : end.end()] if end else cell, cell[end.end() + 1 :] if end else b""
        return inner.replace(self.quote * 2, self.quote) + rest

    def _closed(self, data: bytes) -> int:
        """Return the length of the last records of a file, or 0 if a quoted cell is not closed."""
        if self.quote is None or self.quote not in data:
            return len(data)
        quotes = self._regular_quotes(data)
        is_closed = len(quotes) % 2 == 0 if quotes is not None else self._scan(data)[-1] == len(data)
        return len(data) if is_closed else 0

    def _scan(self, data: bytes) -> list[int]:
        """Return the bounds of records, by walking over them; stop at a quoted cell that is not closed."""
        record, bounds = _patterns(self.separator, self.quote)[1], [0]
        while bounds[-1] < len(data) and (match := record.match(data, bounds[-1])) is not None:
            bounds.append(match.end())
        return bounds

    def _last_end(self, data: bytes) -> int:
        return next((end for end in reversed(self._scan(data)) if data[end - 1 : end] == b"\n"), 0)

    def _regular_quotes(self, data: bytes) -> np.ndarray | None:
        """Return the positions of quotes, or None unless they stand only around whole cells, or doubled in them.

        Then a position is inside a quoted cell if an odd number of quotes precede it.
        """
        quotes = np.flatnonzero(np.frombuffer(data, np.uint8) == cast(bytes, self.quote)[0])
        is_beside = np.frombuffer(data.translate(self._beside_quotes), bool)
        opening, closing = quotes[::2], quotes[1::2]
        # At the start of the data a cell begins, and what follows its end is not known.
        starts_cell = is_beside[opening[opening > 0] - 1]
        ends_cell = is_beside[closing[: np.searchsorted(closing, len(data) - 1)] + 1]
        return quotes if starts_cell.all() and ends_cell.all() else None

    @cached_property
    def _beside_quotes(self) -> bytes:
        """Map each byte to 1 if it may stand next to the quotes around a cell, where another one is a doubled quote."""
        beside = self.separator + cast(bytes, self.quote) + b"\r\n"
        return bytes(byte in beside for byte in range(256))

    def _single_separators(self, data: bytes, path: Path) -> bytes:
        if self.long_separator is None:
            return data
        if UNIT_SEPARATOR in data:
            raise DataError(f"{path}: holds the character U+001F, which separators of several characters exclude")
        return data.replace(self.long_separator, UNIT_SEPARATOR)


@cache
def _patterns(separator: bytes, quote: bytes | None) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """Return the patterns of a cell with its quotes, and of a record with its line end."""
    mark = re.escape(separator)
    plain = b"[^%b\\r\\n]*+" % mark
    if quote is None:
        cell = plain
    else:
        q = re.escape(quote)
        cell = b"(?:%b(?:[^%b]++|%b%b)*+%b%b|(?!%b)%b)" % (q, q, q, q, q, plain, q, plain)
    return re.compile(cell), re.compile(b"%b(?:%b%b)*+(?:\\r\\n|\\r|\\n|\\Z)" % (cell, mark, cell))


def _block_bytes(start: bytes, rows: int) -> int:
    per_row = len(start) / max(start.count(b"\n"), 1)
    return int(min(max(per_row * rows, 1), MAX_BLOCK_BYTES))


def _open_record(path: Path, offset: int, size: int) -> DataError:
    what = f"of more than {MAX_RECORD_BYTES:,} bytes" if size > MAX_RECORD_BYTES else "with a quote that is not closed"
    return DataError(
        f"{path}, line {find_line(path, offset)}: begins a row {what}; close the quote, or write `quote: null` if "
        "quotes are plain text"
    )


def find_line(path: Path, offset: int) -> int:
    """Return the number of the line, from 1, that begins at a byte of the decompressed text."""
    line = 1
    with open_text(path) as file:
        while offset > 0 and (piece := file.read(min(offset, 2**20))):
            line += piece.count(b"\n")
            offset -= len(piece)
    return line
