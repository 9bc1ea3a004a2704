"""Read raw files, CSV or parquet, in blocks of rows.

Blocks never influence values: a file gives the same rows whatever its blocks, and a CSV file the same as a parquet
file of the same values. Columns that are not read are not converted.
"""

import glob
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import DataError, listed, shown
from data.raw.cells import CellError, convert
from data.raw.csv import csv_columns, csv_line, csv_tables
from data.raw.parquet import count_parquet_rows, parquet_tables
from data.raw.text import sample_text
from data.spec.raw.spec import RawChunk, Reading
from data.storage.files import find_escape

# Files of a folder that hold no rows, such as _SUCCESS and the specification.
SKIPPED_PREFIXES = (".", "_")
SKIPPED_SUFFIXES = (".yaml", ".yml", ".json", ".md", ".crc")
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
    allow_outside_paths: bool = False,
) -> Iterator[RawBlock]:
    """Read the files of a chunk, in sorted path order.

    Args:
        chunk: files and their format.
        folder: folder that paths are relative to.
        readings: columns to read and their types.
        block_rows: approximate number of rows per block.
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
    for file in files:
        partition = partition_keys(file)
        stored = [reading for reading in readings if reading.column not in keys]
        folders = [reading for reading in readings if reading.column in keys]
        for first_row, table in blocks(folder / file, chunk, stored, block_rows):
            for reading in folders:
                values = _partition_values(folder / file, partition[reading.column], reading, table.num_rows)
                table = table.append_column(reading.name, values)
            yield RawBlock(file, first_row, table.select([reading.name for reading in readings]))


def locate_row(path: Path, chunk: RawChunk, row: int) -> str:
    """Return the location of a row (numbered from 0) for messages: the line of a CSV file, else the row from 1."""
    return f"{path}, line {csv_line(path, chunk, row)}" if chunk.type == "csv" else f"{path}, row {row + 1}"


# Files


def list_files(chunk: RawChunk, folder: Path, *, allow_outside_paths: bool = False) -> list[str]:
    """Return the files of a chunk as sorted paths relative to a folder, with forward slashes, each once.

    A path is a file, a folder or a glob (`**` matches any folders). A folder stands for all files in it and below,
    except for YAML, JSON and Markdown files and those whose names begin with "." or "_". Of several globs, at least one
    must match a file, so that a specification can name the forms of a file.

    Raises:
        DataError: if a path does not exist, no glob matches, or a path leads out of the folder.
    """
    found: set[str] = set()
    resolved: dict[str, str] = {}
    for pattern in chunk.files:
        if not allow_outside_paths and (mistake := find_escape(_fixed_part(pattern), os.path.realpath(folder), {})):
            raise DataError(f"{folder}: {shown(pattern)} {mistake}, or pass --allow_outside_paths")
        matches = _matches(folder, pattern)
        if not matches and not glob.has_magic(pattern):
            raise DataError(f"{folder}: no file matches {shown(pattern)}{_files_there(folder, pattern)}")
        found.update(matches)
    if not found:
        patterns = " or ".join(map(shown, chunk.files))
        raise DataError(f"{folder}: no file matches {patterns}{_files_there(folder, chunk.files[0])}")
    for file in found if not allow_outside_paths else ():
        if mistake := find_escape(file, os.path.realpath(folder), resolved):
            raise DataError(f"{folder}: {shown(file)} {mistake}, or pass --allow_outside_paths")
    return sorted(found)


def column_names(chunk: RawChunk, folder: Path, *, allow_outside_paths: bool = False) -> set[str]:
    """Return the names of the columns that every file of a chunk has, with the keys of its folders.

    Raises:
        DataError: as `read_raw`.
    """
    names: set[str] | None = None
    for file in list_files(chunk, folder, allow_outside_paths=allow_outside_paths):
        path = folder / file
        found = csv_columns(path, chunk) if chunk.type == "csv" else pq.read_schema(path).names
        own = {*found, *partition_keys(file)}
        names = own if names is None else names & own
    return names or set()


def count_rows_estimate(chunk: RawChunk, folder: Path, *, allow_outside_paths: bool = False) -> int:
    """Return about how many rows a chunk has, for showing progress: exact for parquet and small text files.

    The rows of larger text files follow from their sizes and from the beginnings of some of them.

    Raises:
        DataError: if a file is missing or cannot be read.
    """
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


def _fixed_part(pattern: str) -> str:
    """Return the leading folders of a path without wildcards."""
    parts = pattern.split("/")
    wild = next((index for index, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return "/".join(parts[:wild]) or ("/" if os.path.isabs(pattern) else ".")


def _matches(folder: Path, pattern: str) -> list[str]:
    literal = [folder / pattern] if (folder / pattern).exists() else []
    paths = literal or [folder / found for found in glob.glob(pattern, root_dir=folder, recursive=True)]
    files = [file for path in paths for file in (_files_below(path) if path.is_dir() else [path])]
    return [Path(os.path.relpath(file, folder)).as_posix() for file in files]


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(SKIPPED_PREFIXES)]
        for name in names:
            if not name.startswith(SKIPPED_PREFIXES) and not name.endswith(SKIPPED_SUFFIXES):
                yield Path(parent) / name


def _files_there(folder: Path, pattern: str) -> str:
    there = folder / _fixed_part(os.path.dirname(pattern))
    if not there.is_dir():
        there = folder
    if not there.is_dir():
        return "; there is no such folder"
    names, what = sorted(os.listdir(there)), "the folder" if there == folder else str(there)
    return f"; {what} holds {listed(names, len(names))}" if names else f"; {what} is empty"


def partition_keys(file: str) -> dict[str, str | None]:
    """Return the Hive keys in a path, such as {"day": "2014-10-21"}; None for a missing value."""
    matches = [PARTITION.fullmatch(part) for part in file.split("/")[:-1]]
    values = {unquote(match[1]): unquote(match[2]) for match in matches if match}
    return {key: None if value == NO_PARTITION else value for key, value in values.items()}


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
