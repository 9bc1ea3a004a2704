"""The seal of a parquet file: checksums of its footer and of its column chunks, including page headers.

Parquet's own checksums only cover the bodies of pages. A flipped bit in a page header or in the footer usually makes
the file unreadable, but it can also silently change values.

The seal is stored between the last page and the footer, where parquet readers do not look:

    uint32 per column chunk, by row group | uint32 of the footer | MAGIC | footer | its length | PAR1

All numbers are little-endian CRC-32 checksums; that of the footer covers the footer's length and the closing PAR1 too.
Files without a seal, such as those of other programs, are accepted without this check.
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
_TAIL_BYTES = 8  # uint32 length of the footer, then PAR1


@dataclass(frozen=True)
class Seal:
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
        """Reads the chunks of some columns of a row group and verifies their checksums.

        Raises:
            ValueError: A chunk does not match its checksum; the message names the column.
            OSError: The file cannot be read.
        """
        with open_regular(self.path) as file:
            for index in range(self.metadata.num_columns):
                name = self.metadata.schema.column(index).path
                # Leaves of a list are named "column.list.element". Names may contain dots themselves, so this can match
                # a column that was not asked for, which does no harm.
                is_asked = any(name == column or name.startswith(f"{column}.") for column in columns)
                if is_asked and _chunk_sum(file, self.metadata, row_group, index) != self.sums[row_group, index]:
                    raise ValueError(f"column {name!r} does not match its checksum")


def add_seal(path: Path) -> None:
    """Adds a seal to a complete parquet file that has none."""
    with open(path, "r+b") as file:
        metadata = pq.read_metadata(arrow_file(file))
        sums = [
            _chunk_sum(file, metadata, row_group, column)
            for row_group in range(metadata.num_row_groups)
            for column in range(metadata.num_columns)
        ]
        start, footer = _footer(file)
        # Insert the seal before the footer. Offsets in the footer point to pages, which stay where they are.
        file.seek(start)
        file.write(np.array([*sums, zlib.crc32(footer)], _SUM).tobytes() + MAGIC + footer)


def read_footer(path: Path) -> tuple[pq.FileMetaData, Seal | None]:
    """Reads the footer of a file, and its seal if it has one.

    Raises:
        ValueError: The footer does not match its checksum in the seal.
        OSError, pyarrow.ArrowException: The file cannot be read as parquet.
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
    """Returns a native Arrow file for an open file, which Arrow reads without calls into Python.

    It is opened through the descriptor, so it is the same file even if the path was replaced in the meantime.
    """
    return pa.OSFile(f"/dev/fd/{file.fileno()}")


def _footer(file: BinaryIO) -> tuple[int, bytes]:
    """Returns the offset of the footer and all bytes from there on; no bytes if the file does not end with PAR1."""
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
