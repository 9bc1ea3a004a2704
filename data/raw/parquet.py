"""Read parquet files, in blocks of rows."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import DataError, LostInputError, listed, nearest
from data.files.parquet import arrow_file
from data.raw.cells import CellError, as_table, combined, convert, used_dictionary
from data.raw.text import HINT, SIGNATURES
from data.spec.raw.spec import RawChunk, Reading
from data.storage.files import is_of_system
from data.storage.files import reading as opened

PARQUET_ERRORS = (OSError, pa.ArrowException, ValueError, MemoryError)


def parquet_tables(
    path: Path, chunk: RawChunk, readings: Sequence[Reading], block_rows: int
) -> Iterator[tuple[int, pa.Table]]:
    """Yield the rows of a parquet file in blocks.

    Args:
        path: path of the file.
        chunk: format of the file.
        readings: columns to read.
        block_rows: maximum number of rows per block.

    Yields:
        The number of the first row of a block, from 0, and its values, one column per reading.

    Raises:
        DataError: if the file is invalid, naming row and column.
        LostInputError: if the file can no longer be read.
    """
    row = 0
    with _open_parquet(path) as file:
        for table in _batches(path, file, readings, block_rows):
            yield row, _converted(path, row, table, readings)
            row += table.num_rows


def count_parquet_rows(path: Path) -> int:
    """Return the number of rows of a parquet file.

    Raises:
        DataError: if the file is missing or invalid.
        LostInputError: if the file can no longer be read.
    """
    with _open_parquet(path) as file, arrow_file(file) as source, pq.ParquetFile(source) as rows:
        return rows.metadata.num_rows


def parquet_columns(path: Path) -> list[str]:
    """Return the names of the columns of a parquet file.

    Raises:
        DataError: if the file is missing or invalid.
        LostInputError: if the file can no longer be read.
    """
    with _open_parquet(path) as file, arrow_file(file) as source, pq.ParquetFile(source) as rows:
        return list(rows.schema_arrow.names)


@contextmanager
def _open_parquet(path: Path) -> Iterator[BinaryIO]:
    with opened(path, HINT) as file:
        _check_parquet(path, file)
        try:
            yield file
        except PARQUET_ERRORS as error:
            if isinstance(error, DataError | LostInputError) or (isinstance(error, OSError) and is_of_system(error)):
                raise
            raise DataError(f"{path}: cannot be read as parquet ({error}); write it again") from error


def _check_parquet(path: Path, file: BinaryIO) -> None:
    start = file.read(4)
    if start != b"PAR1":
        what = next((f", but {kind}" for signature, (kind, _) in SIGNATURES.items() if start.startswith(signature)), "")
        fix = "decompress it" if what else "write `type: csv` if it is text"
        raise DataError(f"{path}: is not a parquet file{what}; {fix}")


def _batches(path: Path, file: BinaryIO, readings: Sequence[Reading], block_rows: int) -> Iterator[pa.Table]:
    with arrow_file(file) as source, pq.ParquetFile(source) as plain:
        schema = plain.schema_arrow
        names = list(dict.fromkeys(reading.column for reading in readings))
        for name in names:
            if name not in schema.names:
                guess = nearest(name, schema.names)
                known = f"did you mean {guess!r}?" if guess else f"its columns are {listed(schema.names, len(schema))}"
                raise DataError(f"{path}: has no column {name!r}; {known}")
        texts = [name for name in names if pa.types.is_string(schema.field(name).type)]
        with arrow_file(file) as again, pq.ParquetFile(again, read_dictionary=texts) as rows:
            held: list[pa.RecordBatch] = []
            for batch in rows.iter_batches(batch_size=block_rows, columns=names):
                # Batches end with row groups, which may be small.
                if held and sum(part.num_rows for part in held) + batch.num_rows > block_rows:
                    yield pa.Table.from_batches(held)
                    held = []
                held.append(batch)
            if held:
                yield pa.Table.from_batches(held)


def _converted(path: Path, first_row: int, table: pa.Table, readings: Sequence[Reading]) -> pa.Table:
    values = []
    columns = {name: combined(table.column(name)) for name in {reading.column for reading in readings}}
    for reading in readings:
        cells = columns[reading.column]
        if pa.types.is_dictionary(cells.type):
            cells = used_dictionary(cells)
        try:
            values.append(convert(cells, reading))
        except CellError as error:
            row = "" if error.row is None else f", row {first_row + error.row + 1}"
            raise error.located(f"{path}{row}", reading) from error
    return as_table(readings, values, table.num_rows)
