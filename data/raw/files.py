"""Read raw files, CSV or parquet, in blocks of rows.

Blocks never influence values: a file gives the same rows whatever its blocks, and a CSV file the same as a parquet
file of the same values. Columns that are not read are not converted.
"""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa

from data.errors import DataError, shown
from data.raw.cells import CellError, convert
from data.raw.csv import csv_columns, csv_line, csv_tables
from data.raw.parquet import count_parquet_rows, parquet_columns, parquet_tables
from data.raw.text import sample_text
from data.spec.raw.spec import RawChunk, Reading
from data.storage.file_patterns import ANY, files_there, find_files, has_wildcard, located
from data.storage.remote import is_url, named, url_of
from data.storage.working_copy import working_copy

PARTITION = re.compile(r"([^=]+)=(.*)")
NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"
# Of a chunk's text files, to estimate its number of rows.
FILES_SAMPLED = 8
SAMPLED_BYTES = 2**20


@dataclass(frozen=True)
class RawBlock:
    """Consecutive rows of a raw file.

    Attributes:
        file: path of the file relative to the specification's folder, with forward slashes.
        first_row: number of the first row in the file, from 0.
        table: [rows] values, one column per reading, named and typed as the reading says: dictionary<int32, string>, a
            number type, int64 microseconds (UTC) of a timestamp, or lists of string, number or int64; null where
            missing.
    """

    file: str
    first_row: int
    table: pa.Table


def read_raw(
    chunk: RawChunk,
    folder: Path,
    readings: Sequence[Reading],
    *,
    block_rows: int,
    scratch: Path | None = None,
    allow_outside_paths: bool = False,
) -> Iterator[RawBlock]:
    """Read the files of a chunk, in sorted path order.

    A file in a store is downloaded before its first block, and its copy is removed after its last one.

    Args:
        chunk: files and their format.
        folder: folder that paths are relative to.
        readings: columns to read and their types.
        block_rows: approximate number of rows per block.
        scratch: existing folder for the copy of a file in a store; by default that of temporary files.
        allow_outside_paths: read files outside of the folder.

    Yields:
        Blocks of rows, at least one row each.

    Raises:
        DataError: if a file is missing or invalid, naming file, line or row, and column.
        LostInputError: if a file can no longer be read.
    """
    files = list_files(chunk, folder, allow_outside_paths=allow_outside_paths)
    keys = _common_keys(files)
    blocks = csv_tables if chunk.type == "csv" else parquet_tables
    stored = [reading for reading in readings if reading.column not in keys]
    folders = [reading for reading in readings if reading.column in keys]
    for file in files:
        partition = partition_keys(file)
        with working_copy(located(folder, file), scratch) as path:
            _check_keys(path, chunk, [reading.column for reading in folders])
            for first_row, table in blocks(path, chunk, stored, block_rows):
                for reading in folders:
                    values = _partition_values(path, partition[reading.column], reading, table.num_rows)
                    table = table.append_column(reading.name, values)
                yield RawBlock(file, first_row, table.select([reading.name for reading in readings]))


def locate_row(path: Path, chunk: RawChunk, row: int, scratch: Path | None = None) -> str:
    """Return the location of a row (numbered from 0) for messages: the line of a CSV file, else the row from 1.

    A file in a store is downloaded to `scratch`, an existing folder, and removed.
    """
    if chunk.type != "csv":
        return f"{named(path)}, row {row + 1}"
    with working_copy(path, scratch) as copy:
        return f"{named(path)}, line {csv_line(copy, chunk, row)}"


# Files


def list_files(chunk: RawChunk, folder: Path, *, allow_outside_paths: bool = False) -> list[str]:
    """Return the files of a chunk as sorted paths relative to a folder, with forward slashes, each once.

    A path is a file, a folder or a glob, see `data.storage.file_patterns`. Of several globs, at least one must match a
    file, so that a specification can name the forms of a file.

    Raises:
        DataError: if a path does not exist, no glob matches, or a path leads out of the folder.
    """
    return find_entries(chunk.files, folder, chunk.type, allow_outside_paths=allow_outside_paths)


def find_entries(
    entries: Sequence[str], folder: Path, kind: str = ANY, *, allow_outside_paths: bool = False
) -> list[str]:
    """Return the files that entries of `files:` stand for, as `list_files` does; `kind` may be ANY."""
    found: set[str] = set()
    for entry in entries:
        matches = find_files(entry, folder, kind, allow_outside_paths=allow_outside_paths)
        if not matches and not has_wildcard(entry):
            raise DataError(f"{named(folder)}: no file matches {shown(entry)}{files_there(folder, entry)}")
        found.update(
            name if is_url(name) else Path(os.path.relpath(folder / name, folder)).as_posix() for name in matches
        )
    if not found:
        patterns = " or ".join(map(shown, entries))
        raise DataError(f"{named(folder)}: no file matches {patterns}{files_there(folder, entries[0])}")
    return sorted(found)


def column_names(
    chunk: RawChunk, folder: Path, *, scratch: Path | None = None, allow_outside_paths: bool = False
) -> set[str]:
    """Return the names of the columns that every file of a chunk has, with the keys of its folders.

    Raises:
        DataError: as `read_raw`.
    """
    names: set[str] | None = None
    for file in list_files(chunk, folder, allow_outside_paths=allow_outside_paths):
        with working_copy(located(folder, file), scratch) as path:
            own = {*_stored_columns(path, chunk), *partition_keys(file)}
        names = own if names is None else names & own
    return names or set()


def _stored_columns(path: Path, chunk: RawChunk) -> list[str]:
    return csv_columns(path, chunk) if chunk.type == "csv" else list(parquet_columns(path))


def count_rows_estimate(chunk: RawChunk, folder: Path, *, allow_outside_paths: bool = False) -> int:
    """Return about how many rows a chunk has, for showing progress: exact for parquet and small text files.

    The rows of larger text files follow from their sizes and from the beginnings of some of them. If a file is in a
    store, the result is 0.

    Raises:
        DataError: if a file is missing or cannot be read.
    """
    if any(url_of(located(folder, entry)) is not None for entry in chunk.files):
        return 0
    paths = [folder / file for file in list_files(chunk, folder, allow_outside_paths=allow_outside_paths)]
    if chunk.type == "parquet":
        return sum(map(count_parquet_rows, paths))
    rows, sampled = 0, 0
    for path in paths[:: -(-len(paths) // FILES_SAMPLED)]:
        data, size = sample_text(path, SAMPLED_BYTES)
        rows += max(data.count(b"\n") + (not data.endswith(b"\n")) - chunk.has_header, 0) if data else 0
        sampled += size
    total = sum(path.stat().st_size for path in paths)
    return round(rows * total / sampled) if sampled else 0


def partition_keys(file: str) -> dict[str, str | None]:
    """Return the Hive keys in a path, such as {"day": "2014-10-21"}; None for a missing value."""
    matches = [PARTITION.fullmatch(part) for part in file.split("/")[:-1]]
    values = {unquote(match[1]): unquote(match[2]) for match in matches if match}
    return {key: None if value == NO_PARTITION else value for key, value in values.items()}


def _check_keys(path: Path, chunk: RawChunk, keys: Collection[str]) -> None:
    """Raise a DataError if a file has a column with the name of a key of its folder."""
    clash = sorted(set(keys).intersection(_stored_columns(path, chunk))) if keys else []
    if clash:
        raise DataError(
            f"{path}: has a column {clash[0]!r}, which is also a key of its folder ({clash[0]}=...); remove the column "
            "from the file, or rename the folder"
        )


def _common_keys(files: Sequence[str]) -> set[str]:
    keys = {tuple(sorted(partition_keys(file))): file for file in reversed(files)}
    if len(keys) > 1:
        (first, file), (second, other) = list(keys.items())[-2:]
        raise DataError(
            f"{file}: has the partition keys {_named(first)}, but {other} has {_named(second)}; list them in sources "
            "of their own"
        )
    return set(next(iter(keys), ()))


def _named(keys: Collection[str]) -> str:
    return ", ".join(keys) or "none"


def _partition_values(path: Path, value: str | None, reading: Reading, rows: int) -> pa.Array:
    try:
        return convert(pa.array([value], pa.string()), reading).take(pa.array([0] * rows, pa.int32()))
    except CellError as error:
        raise error.located(f"{path}, partition", reading) from error
