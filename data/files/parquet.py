"""Parquet files with additional checksums, and the writer of a mapping's numbered files.

Parquet's own page checksums cover neither page headers nor the footer. Files of this project therefore carry CRC-32
checksums of every column chunk and of the footer between the last page and the footer, where other readers ignore
them:

    pages | uint32 per row group and column | uint32 of the footer | MAGIC | footer | footer length | PAR1
"""

import hashlib
import os
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import DataError, LostInputError
from data.spec.columns import describe_column
from data.spec.feature_spec import FeatureSpec
from data.spec.features import Chunk
from data.storage.files import create_new, open_regular, sync, temporary_beside
from data.storage.range_cache import Range, forget_ranges, open_ranges
from data.storage.remote import RemoteError, RemoteFile

if TYPE_CHECKING:  # takes a second to import, and every command imports this module
    from pandas import DataFrame

MAGIC = b"SEALED01"
_SUM = np.dtype("<u4")
_TAIL_BYTES = 8  # uint32 length of the footer, then PAR1
_END_BYTES = 2**16  # of an object that are read at once: most footers are shorter
_SMALL_GAP = 2**16  # bytes between two columns that are cheaper to read than another request
# Files of parquet-mr before 1.2.9 understate the lengths of chunks by a page header; Arrow reads so much more of them.
_MARGIN_BYTES = 100
_BLOCK_BYTES = 2**18  # of a chunk that are read at once for its checksum: few enough to stay in a core's cache


@dataclass(frozen=True)
class ChunkChecksums:
    """The checksums of a file's column chunks.

    Attributes:
        path: path of the file.
        metadata: parsed footer of the file.
        sums: [row groups, columns] uint32 checksums; columns as in the footer, where those of a list are its leaves.
    """

    path: Path
    metadata: pq.FileMetaData
    sums: np.ndarray

    def check(self, row_group: int, columns: Collection[str]) -> None:
        """Read the chunks of some columns of a row group and verify their checksums.

        Raises:
            ValueError: A chunk does not match its checksum; the message names the column.
            OSError: The file cannot be read.
        """
        with open_regular(self.path) as file:
            self.check_in(file, row_group, columns)

    def check_in(self, file: BinaryIO, row_group: int, columns: Collection[str]) -> None:
        """Do the same in an open file that has the bytes of these chunks at the places that the footer states."""
        for index in _stored_columns(self.metadata, columns):
            if _chunk_sum(file, self.metadata, row_group, index) != self.sums[row_group, index]:
                name = self.metadata.schema.column(index).path
                raise ValueError(f"column {name!r} does not match its checksum")


def add_checksums(path: Path) -> None:
    """Add checksums to a complete parquet file that has none."""
    with open(path, "r+b") as file:
        metadata = pq.read_metadata(arrow_file(file))
        sums = [
            _chunk_sum(file, metadata, row_group, column)
            for row_group in range(metadata.num_row_groups)
            for column in range(metadata.num_columns)
        ]
        start, footer = _footer(file)
        # Insert the checksums before the footer. Offsets in the footer point to pages, which stay where they are.
        file.seek(start)
        file.write(np.array([*sums, zlib.crc32(footer)], _SUM).tobytes() + MAGIC + footer)


class Footer(NamedTuple):
    """What the end of a parquet file says about it.

    Attributes:
        metadata: the parsed footer.
        checksums: checksums of the column chunks; None if the file has none.
        sha256: SHA-256 checksum, hexadecimal, of the footer and of these checksums. Another content has another one, at
            least where it is stored with such checksums; elsewhere, where it has other sizes or statistics.
    """

    metadata: pq.FileMetaData
    checksums: ChunkChecksums | None
    sha256: str


def read_footer(path: Path, remote: RemoteFile | None = None) -> Footer:
    """Read the footer of a file, and its checksums if it has any.

    Args:
        path: path of the file.
        remote: the object to read instead, of which `path` is the mirror.

    Raises:
        ValueError: The footer does not match its checksum.
        OSError, pyarrow.ArrowException: The file cannot be read as parquet.
        DataError: The file is not a regular file, or the object cannot be read.
    """
    if remote is None:
        return _read_footer(path, open_regular(path, "a parquet file"))
    try:
        return _read_footer(path, _open_end(remote))
    except (RemoteError, LostInputError):
        raise
    except (ValueError, OSError, pa.ArrowException):
        # The copy on the local disk may be damaged, and the object in the store not.
        return _read_footer(path, _open_end(remote, is_new=True))


def _read_footer(path: Path, opened: BinaryIO) -> Footer:
    with opened as file:
        start, footer = _footer(file)
        sum_start = start - len(MAGIC) - _SUM.itemsize
        has_checksums = sum_start > 0 and _bytes(file, start - len(MAGIC), len(MAGIC)) == MAGIC
        if has_checksums and _bytes(file, sum_start, _SUM.itemsize) != np.array(zlib.crc32(footer), _SUM).tobytes():
            raise ValueError("its footer does not match its checksum")
        metadata = pq.read_metadata(arrow_file(file))
        if not has_checksums:
            return Footer(metadata, None, hashlib.sha256(footer).hexdigest())
        shape = (metadata.num_row_groups, metadata.num_columns)
        length = shape[0] * shape[1] * _SUM.itemsize
        stored = _bytes(file, sum_start - length, length)
        sums = np.frombuffer(stored, _SUM).reshape(shape)
        return Footer(metadata, ChunkChecksums(path, metadata, sums), hashlib.sha256(stored + footer).hexdigest())


def ranges_of(file: RemoteFile, metadata: pq.FileMetaData, row_group: int, columns: Collection[str]) -> list[Range]:
    """Return the bytes of an object that hold some columns of a row group: ranges [start, stop) with gaps in between.

    What a damaged footer places outside of the object is left out, for whoever decodes the columns to find.
    """
    ranges: list[Range] = []
    places = (_chunk_place(metadata, row_group, index) for index in _stored_columns(metadata, columns))
    for start, length in sorted(places):
        stop = min(start + length + _MARGIN_BYTES, file.size)
        if not 0 <= start < stop:
            continue
        if ranges and start - ranges[-1][1] <= _SMALL_GAP:
            ranges[-1] = (ranges[-1][0], max(stop, ranges[-1][1]))
        else:
            ranges.append((start, stop))
    return ranges


def _stored_columns(metadata: pq.FileMetaData, columns: Collection[str]) -> Iterator[int]:
    """Yield the indices of the leaves of some columns in the footer."""
    schema, wanted = metadata.schema, frozenset(columns)
    for index in range(metadata.num_columns):
        name = schema.column(index).path
        # Leaves of a list are named "column.list.element". Names may contain dots themselves, so this can match
        # a column that was not asked for, which does no harm.
        if name in wanted or ("." in name and any(name.startswith(f"{column}.") for column in wanted)):
            yield index


def _open_end(remote: RemoteFile, *, is_new: bool = False) -> BinaryIO:
    """Open a local file as long as an object that holds its end, from the checksums on; a new copy if asked for."""

    def end(length: int) -> BinaryIO:
        ranges = [(remote.size - length, remote.size)]
        if is_new:
            forget_ranges(remote, ranges)
        return open_ranges(remote, ranges)

    length = min(_END_BYTES, remote.size)
    file = end(length)
    tail = _bytes(file, max(remote.size - _TAIL_BYTES, 0), _TAIL_BYTES)
    # What the footer says about a column chunk takes more bytes than the chunk's checksum.
    needed = min(2 * (int.from_bytes(tail[:4], "little") + _TAIL_BYTES) + len(MAGIC) + _SUM.itemsize, remote.size)
    if not tail.endswith(b"PAR1") or needed <= length:
        return file
    file.close()
    return end(needed)


def arrow_file(file: BinaryIO) -> pa.NativeFile:
    """Return a native Arrow file for an open file, which Arrow reads without calls into Python.

    It is opened through the descriptor, so it is the same file even if the path was replaced in the meantime.
    """
    return pa.OSFile(f"/dev/fd/{file.fileno()}")


def _footer(file: BinaryIO) -> tuple[int, bytes]:
    """Return the offset of the footer and all bytes from there on; no bytes if the file does not end with PAR1."""
    size = os.fstat(file.fileno()).st_size
    tail = _bytes(file, max(size - _TAIL_BYTES, 0), _TAIL_BYTES)
    if not tail.endswith(b"PAR1"):
        return size, b""
    start = max(size - _TAIL_BYTES - int.from_bytes(tail[:4], "little"), 0)
    return start, _bytes(file, start, size - start)


def _chunk_sum(file: BinaryIO, metadata: pq.FileMetaData, row_group: int, column: int) -> int:
    start, length = _chunk_place(metadata, row_group, column)
    total, block = 0, memoryview(bytearray(min(max(length, 0), _BLOCK_BYTES)))
    while length > 0 and (count := os.preadv(file.fileno(), [block[:length]], start)):
        total, start, length = zlib.crc32(block[:count], total), start + count, length - count
    return total


def _chunk_place(metadata: pq.FileMetaData, row_group: int, column: int) -> tuple[int, int]:
    """Return the offset and the length of a column chunk."""
    chunk = metadata.row_group(row_group).column(column)
    start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    return start, chunk.total_compressed_size


def _bytes(file: BinaryIO, start: int, length: int) -> bytes:
    return os.pread(file.fileno(), length, start)


ROWS_PER_ROW_GROUP = 131_072
COMPRESSION = "snappy"
ROWS_PER_FILE = 8 * ROWS_PER_ROW_GROUP


def parquet_schema(spec: FeatureSpec, columns: Sequence[str]) -> pa.Schema:
    """Return the schema of some columns: their declared dtypes, by default int64 for ids and float32 for values.

    Multi-hot columns are lists. A column in no channel that states neither dtype nor cardinality is text.
    """
    return pa.schema([(name, describe_column(spec, name).type) for name in columns])


class DatasetWriter:
    """Streams the rows of one mapping to `<mapping>_0.parquet`, `<mapping>_1.parquet`, ... in a folder.

    A context manager: the files get their names when the block succeeds, and are removed when it fails. Pages,
    column chunks and the footer carry checksums. Use it on the draft folder of `new_dataset`:

        with new_dataset(output) as draft:
            with DatasetWriter(draft, "train", parquet_schema(spec, names)) as train:
                for frame in frames:
                    train.write(frame)
            spec.with_sources({"train": (train.chunk,)}, draft).write(draft / SPEC_FILE)

    Args:
        folder: existing folder to write to.
        mapping: name of the mapping in the specification.
        schema: columns to store, in order; rows are cast to it.
        rows_per_file: maximum number of rows per file.

    Attributes:
        rows: number of rows passed to `write` so far.

    Raises:
        DataError: Rows do not fit the schema, or there are no rows at all.
    """

    def __init__(self, folder: Path, mapping: str, schema: pa.Schema, rows_per_file: int = ROWS_PER_FILE) -> None:
        if rows_per_file < 1:
            raise DataError(f"{mapping}: rows per file must be at least 1, got {rows_per_file}")
        self.rows = 0
        self._folder = Path(folder)
        self._mapping = mapping
        self._schema = schema
        self._rows_per_file = rows_per_file
        self._pending = schema.empty_table()
        self._writer: pq.ParquetWriter | None = None
        self._file: BinaryIO | None = None
        self._rows_in_file = 0
        self._temporaries: list[Path] = []

    def __enter__(self) -> "DatasetWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            self._discard()

    @property
    def chunk(self) -> Chunk:
        """The chunk of the specification that lists the files written so far; complete once the block has ended."""
        names = tuple(self._part_name(index) for index in range(len(self._temporaries)))
        return Chunk(type="parquet", features=tuple(self._schema.names), files=names)

    def write(self, rows: "pa.Table | DataFrame") -> None:
        """Append the rows of a table or data frame that has all columns of the schema; others are dropped."""
        table = self._fit(rows)
        self.rows += table.num_rows
        self._pending = pa.concat_tables([self._pending, table])
        while self._pending.num_rows >= self._row_group_limit():
            self._write_row_group(self._row_group_limit())

    def _fit(self, rows: "pa.Table | DataFrame") -> pa.Table:
        columns = list(rows.column_names if isinstance(rows, pa.Table) else rows.columns)
        missing = [name for name in self._schema.names if name not in columns]
        if missing:
            raise DataError(f"{self._mapping}: columns {missing} are missing; found {columns}")
        try:
            if isinstance(rows, pa.Table):
                return rows.select(self._schema.names).cast(self._schema)
            return pa.Table.from_pandas(rows, self._schema, preserve_index=False).replace_schema_metadata(None)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise DataError(f"{self._mapping}: rows do not fit the specification's types: {error}") from error

    def _row_group_limit(self) -> int:
        """Return the rows of the next full row group: fewer at the end of a file, so that no group spans two files."""
        return min(ROWS_PER_ROW_GROUP, self._rows_per_file - self._rows_in_file)

    def _write_row_group(self, rows: int) -> None:
        if self._writer is None:
            self._temporaries.append(temporary_beside(self._folder / "part"))
            self._file = create_new(self._temporaries[-1])
            self._writer = pq.ParquetWriter(self._file, self._schema, compression=COMPRESSION, write_page_checksum=True)
        self._writer.write_table(self._pending.slice(0, rows), row_group_size=ROWS_PER_ROW_GROUP)
        self._pending = self._pending.slice(rows)
        self._rows_in_file += rows
        if self._rows_in_file == self._rows_per_file:
            self._close_file()

    def _close_file(self) -> None:
        if self._writer is not None and self._file is not None:
            self._writer.close()
            self._file.close()
            self._writer = self._file = None
            self._rows_in_file = 0
            add_checksums(self._temporaries[-1])
            sync(self._temporaries[-1])

    def _finish(self) -> None:
        if self.rows == 0:
            raise DataError(f"{self._mapping}: no rows to write; a mapping needs at least one")
        if self._pending.num_rows:
            self._write_row_group(self._pending.num_rows)
        self._close_file()
        for index, temporary in enumerate(self._temporaries):
            os.replace(temporary, self._folder / self._part_name(index))
        sync(self._folder)

    def _discard(self) -> None:
        """Close the open file and remove all temporary files that have not been renamed."""
        for opened in (self._writer, self._file):
            with suppress(OSError):  # closing flushes, which fails on a full disk; the file is removed anyway
                if opened is not None:
                    opened.close()
        self._writer = self._file = None
        for temporary in self._temporaries:
            temporary.unlink(missing_ok=True)

    def _part_name(self, index: int) -> str:
        return f"{self._mapping}_{index}.parquet"
