"""Read the parquet files of a column group: footers are read and checked once, row groups on demand."""

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
MOST_ROWS = 2**31 - 1  # per row group, since row permutations are int32
# Exceptions that reading a damaged file is known to raise.
READ_ERRORS = (OSError, pa.ArrowException, ValueError, MemoryError)


@dataclass(frozen=True)
class ParquetFile:
    """A parquet file as described by its footer.

    Attributes:
        path: path of the file.
        metadata: parsed footer.
        schema: Arrow schema of the columns.
        stamp: size in bytes and modification time (ns) when the footer was read.
        seal: checksums of the column chunks, or None if the file has none.
    """

    path: Path
    metadata: pq.FileMetaData
    schema: pa.Schema
    stamp: tuple[int, int]
    seal: Seal | None

    @classmethod
    def open(cls, path: Path) -> "ParquetFile":
        """Open a file by reading its footer.

        Raises:
            DataError: if the file does not exist or is not valid parquet.
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
        """Return the number of rows of each row group."""
        return row_group_rows(self.metadata)

    def column_bytes(self, row_group: int, name: str) -> int:
        """Return the uncompressed bytes of a column of numbers or lists; 0 for text, whose size the footer lacks."""
        stored = self.schema.field(name).type
        item = getattr(stored, "value_type", stored)
        if not pa.types.is_primitive(item):
            return 0
        chunks = self.metadata.row_group(row_group)
        # A list column is stored under a nested path such as NAME.list.element, hence the comparison by prefix.
        found = [chunks.column(index) for index in range(chunks.num_columns)]
        values = sum(chunk.num_values for chunk in found if f"{chunk.path_in_schema}.".startswith(f"{name}."))
        return values * item.bit_width // 8

    def read(self, row_group: int, columns: Sequence[str]) -> pa.Table:
        """Read columns of a row group and verify checksums: those of the seal, or of the pages if there is no seal.

        Raises:
            DataError: if the file is damaged.
            LostInputError: if the file is gone, unreadable, or has changed since its footer was read.
        """
        place = f"{self.path}, row group {row_group}"
        try:
            # Not memory-mapped: on a disk failure, a read raises, but access to a mapping kills the process (SIGBUS).
            # A seal covers everything that page checksums do.
            verifies_pages = self.seal is None
            with open_regular(self.path) as file, arrow_file(file) as source:
                if _stamp(os.fstat(file.fileno())) != self.stamp:
                    raise LostInputError(f"{self.path}: was changed while it was in use; start again")
                if self.seal is not None:
                    self.seal.check(row_group, columns)
                with pq.ParquetFile(source, metadata=self.metadata, page_checksum_verification=verifies_pages) as rows:
                    # No Arrow threads: the loader already decodes row groups in parallel.
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
    """The rows [begin, end) of the dataset that come from one row group of a column group.

    Attributes:
        table: the stored values.
        place: where the first row is stored.
        begin, end: range of the rows in the dataset.
    """

    table: pa.Table
    place: Place
    begin: int
    end: int


class ColumnGroup:
    """One chunk of a mapping: a set of columns, stored in consecutive files.

    Args:
        files: files of the chunk, in row order.
        targets: columns to decode.

    Attributes:
        files: files of the chunk, in row order.
        targets: columns to decode.
        rows: total number of rows in the files.
        starts: [row groups] int64 first row of each row group in the dataset; empty row groups are left out.
        sizes: [row groups] int64 number of rows of each row group.
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
        """Yield the rows [begin, end) of the dataset, row group by row group.

        Raises:
            DataError: if a file is damaged.
            LostInputError: if a file is gone, unreadable, or has changed since its footer was read.
        """
        # Without duplicates: an extra column can also be a feature.
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
        """Return the uncompressed bytes of the columns to decode in the longest row group."""
        longest = int(np.argmax(self.sizes))
        file, row_group = self.files[self._file[longest]], int(self._row_group[longest])
        return sum(file.column_bytes(row_group, target.name) for target in self.targets)

    def place(self, row: int) -> Place:
        """Return where a row of the dataset is stored."""
        index = int(np.searchsorted(self.starts, row, side="right")) - 1
        path = self.files[self._file[index]].path
        return Place(path, int(self._row_group[index]), row - int(self._file_start[index]))


def open_files(paths: Sequence[Path]) -> list[ParquetFile]:
    """Read the footers of many files in parallel.

    Raises:
        DataError: if a file does not exist or is not valid parquet; names the first such file.
    """
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        return list(pool.map(ParquetFile.open, paths))


def row_group_rows(metadata: pq.FileMetaData) -> list[int]:
    """Return the number of rows of each row group of a footer.

    Raises:
        ValueError: if they do not add up to the rows of the file, or a row group has more than MOST_ROWS.
    """
    rows = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
        raise ValueError("its row groups do not add up")
    if max(rows, default=0) > MOST_ROWS:
        raise ValueError(f"a row group of {max(rows):,} rows, and {MOST_ROWS:,} are the most")
    return rows


def column_problems(file: ParquetFile, targets: Sequence[Target]) -> Iterator[str]:
    """Yield a message for each target column that the file lacks, has twice, or stores in an unsuitable type."""
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
