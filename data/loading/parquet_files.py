"""The parquet files of one column group: footers read once and checked, row groups read on demand."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.conversion.parquet_seal import Seal, arrow_file, read_footer
from data.errors import DataError, LostInputError
from data.files import is_of_system, open_regular
from data.loading.targets import Target
from data.loading.value_checks import Place
from data.specification.problems import listed

FOOTER_THREADS = 8
MOST_ROWS = 2**31 - 1  # of a row group: the order of its rows is of int32
# What reading damaged files was seen to raise.
READ_ERRORS = (OSError, pa.ArrowException, ValueError, MemoryError)


@dataclass(frozen=True)
class ParquetFile:
    """A file as its footer describes it.

    Attributes:
        path: of the file.
        metadata: the footer.
        schema: the columns as Arrow types.
        stamp: size in bytes and time of the last change, when the footer was read.
        seal: the checksums of its column chunks, of a file that has them.
    """

    path: Path
    metadata: pq.FileMetaData
    schema: pa.Schema
    stamp: tuple[int, int]
    seal: Seal | None

    @classmethod
    def open(cls, path: Path) -> "ParquetFile":
        """Reads the footer.

        Raises:
            DataError: there is no such file, or it is not parquet.
        """
        try:
            stamp = _stamp(path.stat())
            metadata, seal = read_footer(path)
            opened = cls(path, metadata, metadata.schema.to_arrow_schema(), stamp, seal)
            opened.row_group_rows()
            return opened
        except DataError:
            raise
        except FileNotFoundError as error:
            raise DataError(f"{path}: no such file; the feature specification lists it in source_spec") from error
        except READ_ERRORS as error:
            raise DataError(f"{path}: cannot be read as parquet ({_first_line(error)}); write it again") from error

    def row_group_rows(self) -> list[int]:
        """Rows of each row group."""
        return row_group_rows(self.metadata)

    def column_bytes(self, row_group: int, name: str) -> int:
        """Bytes of a column of numbers, or of lists of numbers, unpacked; 0 for texts, whose length is not declared."""
        stored = self.schema.field(name).type
        item = getattr(stored, "value_type", stored)
        if not pa.types.is_primitive(item):
            return 0
        chunks = self.metadata.row_group(row_group)
        found = [chunks.column(index) for index in range(chunks.num_columns)]
        values = sum(chunk.num_values for chunk in found if f"{chunk.path_in_schema}.".startswith(f"{name}."))
        return values * item.bit_width // 8

    def read(self, row_group: int, columns: Sequence[str]) -> pa.Table:
        """Reads columns of a row group, checksums verified: the seal's, or those of the pages where there is no seal.

        Raises:
            DataError: the file is damaged.
            LostInputError: it is gone, or is not what it was when its footer was read.
        """
        place = f"{self.path}, row group {row_group}"
        try:
            # Not memory-mapped: where a disk fails, a read raises, and a map kills the process.
            # The seal covers all that page checksums do.
            verifies_pages = self.seal is None
            with open_regular(self.path) as file, arrow_file(file) as source:
                if _stamp(os.fstat(file.fileno())) != self.stamp:
                    raise LostInputError(f"{self.path}: was changed while it was in use; start again")
                if self.seal is not None:
                    self.seal.check(row_group, columns)
                with pq.ParquetFile(source, metadata=self.metadata, page_checksum_verification=verifies_pages) as rows:
                    # One thread: row groups are decoded in parallel.
                    table = rows.read_row_group(row_group, columns=list(columns), use_threads=False)
        except (DataError, LostInputError):
            raise
        except READ_ERRORS as error:
            if isinstance(error, OSError) and is_of_system(error):
                raise LostInputError(f"{place}: can no longer be read ({_first_line(error)})") from error
            if isinstance(error, MemoryError):
                raise DataError(
                    f"{place}: does not fit into memory; write the file again, in smaller row groups"
                ) from error
            raise DataError(
                f"{place}: cannot be decoded ({_first_line(error)}); the file is damaged: restore it, or write it again"
            ) from error
        if table.num_rows != self.metadata.row_group(row_group).num_rows:
            raise DataError(f"{place}: holds other rows than its footer says; write it again")
        return table


class Piece(NamedTuple):
    """Rows that one row group of a column group gives to a range of the dataset."""

    table: pa.Table
    place: Place
    begin: int
    end: int


class ColumnGroup:
    """One chunk of a mapping: columns, and the files that hold their rows one after the other.

    Args:
        files: in row order.
        targets: the columns to decode.

    Attributes:
        files: as given.
        targets: as given.
        rows: of all files.
        starts: [row groups] int64 first row of each row group in the dataset; empty ones are left out.
        sizes: [row groups] int64 their rows.
    """

    def __init__(self, files: Sequence[ParquetFile], targets: Sequence[Target]):
        self.files = tuple(files)
        self.targets = tuple(targets)
        rows = [file.row_group_rows() for file in self.files]
        counts = np.array([len(groups) for groups in rows], np.int64)
        sizes = np.array([size for groups in rows for size in groups], np.int64)
        ends = np.cumsum(sizes)
        file_starts = np.concatenate([[0], np.cumsum([sum(groups) for groups in rows])])
        filled = sizes > 0
        self.rows = int(file_starts[-1])
        self.sizes, self.starts = sizes[filled], (ends - sizes)[filled]
        self._file = np.repeat(np.arange(len(self.files)), counts)[filled]
        self._row_group = np.concatenate([np.arange(count) for count in counts])[filled]
        self._file_start = file_starts[self._file]

    def read(self, begin: int, end: int) -> Iterator[Piece]:
        """The rows [begin, end) of the dataset, row group by row group.

        Raises:
            DataError: as `ParquetFile.read`.
        """
        names = list(dict.fromkeys(target.name for target in self.targets))
        first = int(np.searchsorted(self.starts, begin, side="right")) - 1
        last = int(np.searchsorted(self.starts, end, side="left"))
        for index in range(first, last):
            start = int(self.starts[index])
            low, high = max(begin, start), min(end, start + int(self.sizes[index]))
            file, row_group = self.files[self._file[index]], int(self._row_group[index])
            table = file.read(row_group, names).slice(low - start, high - low)
            yield Piece(table, self.place(low), low, high)

    def unpacked_bytes(self) -> int:
        """Bytes of the columns of the longest row group, unpacked."""
        longest = int(np.argmax(self.sizes))
        file, row_group = self.files[self._file[longest]], int(self._row_group[longest])
        return sum(file.column_bytes(row_group, target.name) for target in self.targets)

    def place(self, row: int) -> Place:
        """Where a row of the dataset is stored."""
        index = int(np.searchsorted(self.starts, row, side="right")) - 1
        path = self.files[self._file[index]].path
        return Place(path, int(self._row_group[index]), row - int(self._file_start[index]))


def open_files(paths: Sequence[Path]) -> list[ParquetFile]:
    """Reads the footers of many files at once.

    Raises:
        DataError: as `ParquetFile.open`, for the first file that fails.
    """
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        return list(pool.map(ParquetFile.open, paths))


def row_group_rows(metadata: pq.FileMetaData) -> list[int]:
    """Rows of each row group of a footer.

    Raises:
        ValueError: they are not those of the whole file, or too many in one.
    """
    rows = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
        raise ValueError("its row groups do not add up")
    if max(rows, default=0) > MOST_ROWS:
        raise ValueError(f"a row group of {max(rows):,} rows, and {MOST_ROWS:,} are the most")
    return rows


def column_problems(file: ParquetFile, targets: Sequence[Target]) -> Iterator[str]:
    """What columns a file lacks or stores in a type that does not fit."""
    for target in targets:
        indices = file.schema.get_all_field_indices(target.name)
        if len(indices) != 1:
            found = "twice" if indices else f"not among {listed(file.schema.names, len(file.schema.names))}"
            yield f"{file.path}: column {target.name!r} is {found}; expected once, as {target.expected_type}"
            continue
        stored = file.schema.field(indices[0]).type
        if not target.accepts(stored):
            yield (
                f"{file.path}: column {target.name!r} is stored as {stored}, expected {target.expected_type}; "
                "cast it and write the file again, or move it to another channel"
            )


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
