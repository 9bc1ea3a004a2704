"""The seal of a parquet file: checksums of its footer and of its column chunks, page headers included.

Parquet's own checksums cover the bodies of pages alone. A bit that flips in a page header or in the footer mostly makes
the file unreadable, but can also pass for other values.

A seal lies between the last page and the footer, where no reader of parquet looks:

    uint32 per column chunk, row group after row group | uint32 of the footer | MAGIC | footer | its length | PAR1

Numbers are little-endian CRC-32 sums; that of the footer includes its length and the closing magic. Files without a
seal, such as those of other programs, are taken as they are.
"""

import os
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.files import open_regular

MAGIC = b"SEALED01"
_SUM = np.dtype("<u4")
_TAIL_BYTES = 8  # the footer's length, and PAR1


@dataclass(frozen=True)
class Seal:
    """The checksums of a file's column chunks.

    Attributes:
        path: of the file.
        metadata: its footer.
        sums: [row groups, columns] uint32; columns as the footer counts them, which are the leaves of lists.
    """

    path: Path
    metadata: pq.FileMetaData
    sums: np.ndarray

    def check(self, row_group: int, columns: Collection[str]) -> None:
        """Reads the chunks of some columns and compares their sums.

        Raises:
            ValueError: a chunk is not what was written; names the column.
            OSError: the file cannot be read.
        """
        with open_regular(self.path) as file:
            for index in range(self.metadata.num_columns):
                name = self.metadata.schema.column(index).path
                # A name may hold dots itself. A chunk that is checked without need does no harm.
                is_asked = any(name == column or name.startswith(f"{column}.") for column in columns)
                if is_asked and _chunk_sum(file, self.metadata, row_group, index) != self.sums[row_group, index]:
                    raise ValueError(f"column {name!r} does not match its checksum")


def add_seal(path: Path) -> None:
    """Seals a parquet file that is complete and has no seal."""
    with open(path, "r+b") as file:
        metadata = pq.read_metadata(arrow_file(file))
        sums = [
            _chunk_sum(file, metadata, row_group, column)
            for row_group in range(metadata.num_row_groups)
            for column in range(metadata.num_columns)
        ]
        start, footer = _footer(file)
        file.seek(start)
        file.write(np.array([*sums, zlib.crc32(footer)], _SUM).tobytes() + MAGIC + footer)


def read_footer(path: Path) -> tuple[pq.FileMetaData, Seal | None]:
    """The footer of a file, and its seal where it has one.

    Raises:
        ValueError: the footer is not what was sealed.
        OSError, pyarrow.ArrowException: the file cannot be read as parquet.
    """
    with open_regular(path, "a parquet file") as file:
        start, footer = _footer(file)
        sum_start = start - len(MAGIC) - _SUM.itemsize
        is_sealed = sum_start > 0 and _bytes(file, start - len(MAGIC), len(MAGIC)) == MAGIC
        if is_sealed and _bytes(file, sum_start, _SUM.itemsize) != np.array(zlib.crc32(footer), _SUM).tobytes():
            raise ValueError("its footer does not match its checksum")
        metadata = pq.read_metadata(arrow_file(file))
        if not is_sealed:
            return metadata, None
        shape = (metadata.num_row_groups, metadata.num_columns)
        length = shape[0] * shape[1] * _SUM.itemsize
        sums = np.frombuffer(_bytes(file, sum_start - length, length), _SUM).reshape(shape)
        return metadata, Seal(path, metadata, sums)


def arrow_file(file: BinaryIO) -> pa.NativeFile:
    """The file as Arrow reads it best, by itself; opened through the descriptor, it is the same file for sure."""
    return pa.OSFile(f"/dev/fd/{file.fileno()}")


def _footer(file: BinaryIO) -> tuple[int, bytes]:
    """Where the footer of a file starts, and all bytes from there on; none of a file that does not end as parquet."""
    size = os.fstat(file.fileno()).st_size
    tail = _bytes(file, max(size - _TAIL_BYTES, 0), _TAIL_BYTES)
    if not tail.endswith(b"PAR1"):
        return size, b""
    start = max(size - _TAIL_BYTES - int.from_bytes(tail[:4], "little"), 0)
    return start, _bytes(file, start, size - start)


def _chunk_sum(file: BinaryIO, metadata: pq.FileMetaData, row_group: int, column: int) -> int:
    chunk = metadata.row_group(row_group).column(column)
    start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    return zlib.crc32(_bytes(file, start, chunk.total_compressed_size))


def _bytes(file: BinaryIO, start: int, length: int) -> bytes:
    return os.pread(file.fileno(), length, start)
