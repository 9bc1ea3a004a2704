"""Writes CSV files of a dataset: no header, one line per row, lists as "[1, 2]", nulls as empty cells."""

import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv

from data.atomic import create_new, temporary_beside
from data.conversion.columns import is_list
from data.errors import DataError
from data.specification.feature_spec import Chunk


def write_csv_chunks(chunks: Iterable[Chunk], folder: Path, tables: Iterable[pa.Table], rows: int) -> None:
    """Writes the rows of a mapping to the files of its chunks.

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
        """Appends rows, moving on to the next file when one is full."""
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
        """Renames all temporary files to their final names."""
        for temporary, path in zip(self._temporaries, self._paths, strict=True):
            os.replace(temporary, path)


def check_can_write(chunk: Chunk, folder: Path, rows: int) -> None:
    """Raises DataError if a file of the chunk already exists or would be empty."""
    for file in chunk.files:
        path = folder / file
        # Resolved because in "missing/../file", the folder "missing" is only created later.
        if os.path.lexists(path.parent.resolve() / path.name):
            raise DataError(
                f"{folder / file}: exists already, and is not overwritten; choose another folder, or delete it"
            )
    if rows < len(chunk.files):
        raise DataError(
            f"{chunk.files[0]}, ...: {len(chunk.files)} files cannot share {rows} rows; ask for at least as many rows"
        )


def _as_cells(table: pa.Table) -> pa.Table:
    """Converts lists to text and float16 to float32, since Arrow's CSV writer supports neither."""
    columns = []
    for column in table.columns:
        if is_list(column.type):
            texts = pc.binary_join(column.cast(pa.list_(pa.string())), ", ")
            column = pc.binary_join_element_wise("[", texts, "]", "")
        elif column.type == pa.float16():
            column = column.cast(pa.float32())
        columns.append(column)
    return pa.table(columns, names=table.column_names)
