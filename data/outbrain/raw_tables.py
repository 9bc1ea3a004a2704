"""The raw tables of Kaggle's Outbrain Click Prediction: names, columns and types; reading them and checking every cell.

Files may be plain, gzip-compressed or zipped as on Kaggle, and are read in blocks.
"""

import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from data.errors import DataError, LostInputError
from data.storage.files import first_file, open_regular, reading

# Published notation of a missing value, besides an empty cell.
NULL_TEXT = r"\N"
# Origin of the timestamps, which are in milliseconds (14 June 2016, 04:00 UTC), in milliseconds since the Unix epoch.
TIMESTAMP_ORIGIN_MS = 1_465_876_799_998
DAY_MS = 24 * 60 * 60 * 1000

DISPLAY, AD, CLICKED = "display_id", "ad_id", "clicked"
TIMESTAMP, DOCUMENT, GEO = "timestamp", "document_id", "geo_location"

BLOCK_BYTES = 2**23
ENDINGS = (".csv", ".csv.gz", ".csv.zip")
# The last bytes of a gzip file hold the uncompressed size, modulo 2**32.
GZIP_END_BYTES = 4
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
READ_ERRORS = (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError, NotImplementedError)
ROW_IN_MESSAGE = re.compile(r"Row #(\d+): ")
COLUMN_IN_MESSAGE = re.compile(r"In CSV column #(\d+): ")
HEXADECIMAL = re.compile(rb"0[xX]")
WHOLE_NUMBER = r"^-?[0-9]+$"
# Folder of metadata that macOS adds to zip files.
MAC_FOLDER = "__MACOSX/"


@dataclass(frozen=True)
class RawTable:
    """The description of a raw table.

    Attributes:
        name: name of the file, without `.csv`.
        columns: types of the columns to read, by name; a file may have other columns too, in any order.
        nullable: names of the columns that may have missing values.
    """

    name: str
    columns: Mapping[str, pa.DataType]
    nullable: frozenset[str] = frozenset()

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of the columns."""
        return pa.schema([pa.field(name, kind, name in self.nullable) for name, kind in self.columns.items()])


def _tag_table(name: str, column: str, kind: pa.DataType) -> RawTable:
    return RawTable(name, {"document_id": pa.int64(), column: kind, "confidence_level": pa.float64()})


CLICKS = RawTable("clicks_train", {"display_id": pa.int64(), "ad_id": pa.int64(), "clicked": pa.int64()})
CLICKS_TO_PREDICT = RawTable("clicks_test", {"display_id": pa.int64(), "ad_id": pa.int64()})
EVENTS = RawTable(
    "events",
    {
        "display_id": pa.int64(),
        "uuid": pa.string(),
        "document_id": pa.int64(),
        "timestamp": pa.int64(),
        "platform": pa.int64(),
        "geo_location": pa.string(),
    },
    frozenset({"platform", "geo_location"}),
)
PROMOTED = RawTable(
    "promoted_content",
    {"ad_id": pa.int64(), "document_id": pa.int64(), "campaign_id": pa.int64(), "advertiser_id": pa.int64()},
)
META = RawTable(
    "documents_meta",
    {"document_id": pa.int64(), "source_id": pa.int64(), "publisher_id": pa.int64(), "publish_time": pa.timestamp("s")},
    frozenset({"source_id", "publisher_id", "publish_time"}),
)
CATEGORIES = _tag_table("documents_categories", "category_id", pa.int64())
TOPICS = _tag_table("documents_topics", "topic_id", pa.int64())
ENTITIES = _tag_table("documents_entities", "entity_id", pa.string())
PAGE_VIEWS = RawTable(
    "page_views_sample",
    {
        "uuid": pa.string(),
        "document_id": pa.int64(),
        "timestamp": pa.int64(),
        "platform": pa.int64(),
        "geo_location": pa.string(),
        "traffic_source": pa.int64(),
    },
    frozenset({"platform", "geo_location"}),
)

TAG_TABLES = {"categories": CATEGORIES, "topics": TOPICS, "entities": ENTITIES}


def find_raw(folder: Path, table: RawTable) -> Path | None:
    """Return the file of a table, preferring `.csv` to `.csv.gz` to `.csv.zip`, or None."""
    paths = [Path(folder) / (table.name + ending) for ending in ENDINGS]
    return first_file(paths)


def require_raw(folder: Path, tables: Sequence[RawTable]) -> dict[str, Path]:
    """Return the files of several tables, by table name.

    Raises:
        DataError: if files are missing, naming all of them.
    """
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: is not a folder; pass the one that holds the unpacked Outbrain tables")
    found = {table.name: find_raw(folder, table) for table in tables}
    missing = [f"{name}.csv" for name, path in found.items() if path is None]
    if missing:
        raise DataError(
            f"{folder}: {', '.join(missing)} missing (looked for {', '.join(ENDINGS)}). Download the tables from "
            "https://www.kaggle.com/c/outbrain-click-prediction/data, or generate some with data.outbrain.synthesize"
        )
    return {name: path for name, path in found.items() if path is not None}


def read_blocks(path: Path, table: RawTable) -> Iterator[pa.Table]:
    """Read the rows of a file in blocks of about BLOCK_BYTES, in order.

    Yields:
        Tables with the schema of `table`. Empty cells and `\\N` are null, which only nullable columns may be.

    Raises:
        DataError: if the file cannot be read, is empty or lacks a column, or a line is not as published, naming file,
            line and value.
    """
    with _open(path) as file:
        names = _header(path, file.readline(), table)
        rows = 0
        for block in _line_blocks(path, file):
            parsed = _parse(path, block, names, table, rows + 2)
            rows += parsed.num_rows
            yield parsed
    if not rows:
        raise DataError(f"{path}: has no rows, only a header; download the file again")


def estimated_rows(path: Path) -> int:
    """Estimate the number of rows of a file from its size and its first lines."""
    with _open(path) as file:
        sample = file.read(2**16)
    lines = max(sample.count(b"\n"), 1)
    return int(_unpacked_bytes(path) / max(len(sample), 1) * lines) + 1


def _unpacked_bytes(path: Path) -> int:
    if path.suffix == ".zip":
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    size = path.stat().st_size
    if path.suffix == ".gz" and size >= GZIP_END_BYTES:
        with open_regular(path) as file:
            file.seek(-GZIP_END_BYTES, io.SEEK_END)
            return max(int.from_bytes(file.read(GZIP_END_BYTES), "little"), size)
    return size


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    try:
        with reading(path, "download it again") as stored:
            if path.suffix == ".zip":
                with zipfile.ZipFile(stored) as archive, archive.open(_entry(path, archive.namelist())) as file:
                    yield cast(BinaryIO, file)
            else:
                with gzip.open(stored) if path.suffix == ".gz" else stored as file:
                    yield cast(BinaryIO, file)
    except (DataError, LostInputError):
        raise
    except READ_ERRORS as error:
        raise DataError(f"{path}: cannot be read ({error}); download it again") from error


def _entry(path: Path, names: list[str]) -> str:
    """Return the name of the table in a zip file, which must contain exactly one."""
    entries = [name for name in names if PurePosixPath(name).name == path.stem and not name.startswith(MAC_FOLDER)]
    if len(entries) != 1:
        raise DataError(f"{path}: expected one file {path.stem} in it, found {names[:5]}")
    return entries[0]


def _header(path: Path, line: bytes, table: RawTable) -> list[str]:
    if not line.strip():
        raise DataError(f"{path}: is empty; expected a header with {', '.join(table.columns)}")
    names = [name.strip().strip('"') for name in line.removeprefix(BYTE_ORDER_MARK).decode(errors="replace").split(",")]
    missing = [name for name in table.columns if names.count(name) != 1]
    if missing:
        raise DataError(f"{path}, line 1: columns {missing} must occur exactly once; found {names}")
    return names


def _line_blocks(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """Yield blocks of whole lines, each ending with a newline."""
    rest = b""
    while piece := file.read(BLOCK_BYTES):
        end = piece.rfind(b"\n") + 1
        if end:
            yield rest + piece[:end]
            rest = piece[end:]
        elif len(rest := rest + piece) > 2 * BLOCK_BYTES:
            raise DataError(f"{path}: has a line of more than {BLOCK_BYTES:,} bytes; expected one row per line")
    if rest.strip():
        yield rest + b"\n"


def _parse(path: Path, block: bytes, names: list[str], table: RawTable, first_line: int) -> pa.Table:
    if HEXADECIMAL.search(block):
        _reject_hexadecimal(path, block, names, table, first_line)
    try:
        parsed = _read_block(block, names, table.columns)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        message = str(error).splitlines()[0]
        row, column = ROW_IN_MESSAGE.search(message), COLUMN_IN_MESSAGE.search(message)
        line = f", line {first_line + int(row[1]) - 1}" if row else f", from line {first_line}"
        name = f"{names[int(column[1])]}: " if column else ""
        reason = ROW_IN_MESSAGE.sub("", COLUMN_IN_MESSAGE.sub("", message))
        raise DataError(f"{path}{line}: {name}{reason}; correct it, or download the file again") from error
    for name in table.columns:
        if name not in table.nullable and parsed.column(name).null_count:
            row_number = int(np.argmax(pc.is_null(parsed.column(name)).to_numpy()))
            raise DataError(f"{path}, line {first_line + row_number}: {name} is missing; every row needs one")
    return parsed


def _read_block(block: bytes, names: list[str], columns: Mapping[str, pa.DataType]) -> pa.Table:
    return pa_csv.read_csv(
        pa.BufferReader(block),
        # One block and one thread, so that Arrow's errors name the row.
        pa_csv.ReadOptions(use_threads=False, block_size=len(block) + 1, column_names=names),
        pa_csv.ParseOptions(ignore_empty_lines=False),
        pa_csv.ConvertOptions(
            column_types=dict(columns),
            include_columns=list(columns),
            null_values=["", NULL_TEXT],
            strings_can_be_null=True,
        ),
    )


def _reject_hexadecimal(path: Path, block: bytes, names: list[str], table: RawTable, first_line: int) -> None:
    """Raise a DataError for hexadecimal integers, which Arrow would accept but the published tables do not have."""
    wholes = [name for name, kind in table.columns.items() if kind == pa.int64()]
    try:
        texts = _read_block(block, names, {name: pa.string() for name in wholes})
    except (pa.ArrowInvalid, UnicodeDecodeError):
        return  # the caller reports it with its location
    for name in wholes:
        cells = texts.column(name).fill_null("0")
        wrong = pc.invert(pc.match_substring_regex(cells, WHOLE_NUMBER)).to_numpy()
        if wrong.any():
            row = int(np.argmax(wrong))
            raise DataError(
                f"{path}, line {first_line + row}: {name} is {cells[row].as_py()!r}, expected a whole number; "
                "correct it, or download the file again"
            )
