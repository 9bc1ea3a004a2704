"""Stage raw rows on disk, parsed and split by mapping, so that memory holds one block or range at a time."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from data.preprocess.prepared import SECONDS_BETWEEN_LINES, Progress
from data.preprocess.splits import MAPPINGS, draw_order
from data.preprocess.tabular.columns import Columns
from data.preprocess.text_tables import BLOCK_BYTES, TextForm, read_text_blocks

ROW = "row of the file"
ROWS_PER_RANGE = 1_000_000


@dataclass(frozen=True)
class Source:
    """A raw file and the mappings that its rows belong to.

    Attributes:
        path: path of the file.
        form: format of the file.
        mapping_of: maps [rows] int64 row numbers in the file, from 0, to [rows] mapping names.
    """

    path: Path
    form: TextForm
    mapping_of: Callable[[np.ndarray], np.ndarray]


def whole_file(mapping: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return a `mapping_of` that assigns every row to one mapping."""
    return lambda rows: np.full(len(rows), mapping, object)


@dataclass
class Staged:
    """The rows of each mapping as parquet files of raw values, in the order of the raw files.

    Attributes:
        folder: folder of the parquet files.
        rows: number of rows, by mapping.
        files: paths of the parquet files, by mapping.
    """

    folder: Path
    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MAPPINGS, 0))
    files: dict[str, list[Path]] = field(default_factory=lambda: {mapping: [] for mapping in MAPPINGS})

    def add(self, mapping: str, rows: pa.Table) -> None:
        """Append rows to a mapping."""
        path = self.folder / f"{mapping}-{len(self.files[mapping]):06}.parquet"
        pq.write_table(rows, path, write_page_checksum=True)
        self.files[mapping].append(path)
        self.rows[mapping] += rows.num_rows

    def in_file_order(self, mapping: str) -> Iterator[pd.DataFrame]:
        """Yield the rows of a mapping in the order of the raw files, as frames of raw values."""
        for path in self.files[mapping]:
            yield read_raw_values(path)

    def shuffled(self, mapping: str, seed: int, rows_per_range: int = ROWS_PER_RANGE) -> Iterator[pd.DataFrame]:
        """Yield the rows of a mapping in ascending order of hash(seed, ORDER, row number), as frames of raw values.

        This is an external bucket sort: rows are first distributed over files by ranges of their sort keys, then each
        file is sorted in memory.

        Args:
            mapping: name of a mapping with at least one row.
            seed: seed of the order, any integer.
            rows_per_range: approximate number of rows to hold in memory and sort at a time.
        """
        number = -(-self.rows[mapping] // rows_per_range)
        paths = [self.folder / f"range-{index:06}.parquet" for index in range(number)]
        schema = pq.read_schema(self.files[mapping][0])
        with ExitStack() as stack:
            writers = [stack.enter_context(pq.ParquetWriter(path, schema, write_page_checksum=True)) for path in paths]
            for file in self.files[mapping]:
                rows = pq.read_table(file, page_checksum_verification=True)
                ranges = _ranges(_order(rows, seed), number)
                for index in np.unique(ranges):
                    writers[index].write_table(rows.filter(pa.array(ranges == index)))
        for path in paths:
            rows = pq.read_table(path, page_checksum_verification=True)
            yield rows.take(np.argsort(_order(rows, seed), kind="stable")).drop_columns([ROW]).to_pandas()
            path.unlink()


def stage(
    sources: Sequence[Source], columns: Columns, folder: Path, progress: Progress, block_bytes: int = BLOCK_BYTES
) -> Staged:
    """Parse raw files and stage their rows in an empty folder.

    Args:
        sources: raw files, read in order.
        columns: declaration of their columns.
        folder: empty folder for the staged files.
        progress: progress to report on.
        block_bytes: bytes of a raw file to read at a time.

    Raises:
        DataError: if a file cannot be read, or a line does not match the declaration, naming file and line.
    """
    staged = Staged(folder)
    for source in sources:
        first, told = 0, time.monotonic()
        for block in read_text_blocks(source.path, source.form, block_bytes):
            rows = np.arange(first, first + block.texts.num_rows)
            first += len(rows)
            values = columns.read(block).append_column(ROW, pa.array(rows))
            mappings = source.mapping_of(rows)
            for mapping in sorted(set(mappings)):
                staged.add(mapping, values.filter(pa.array(mappings == mapping)))
            if time.monotonic() - told >= SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                progress.tell(f"{source.path.name}: {first:,} rows so far")
        progress.tell(f"{source.path.name}: read {first:,} rows")
    return staged


def read_raw_values(path: Path) -> pd.DataFrame:
    """Read the raw values of one of the files of `Staged`."""
    return pq.read_table(path, page_checksum_verification=True).drop_columns([ROW]).to_pandas()


def _order(rows: pa.Table, seed: int) -> np.ndarray:
    return draw_order(rows.column(ROW).to_numpy(), seed=seed)


def _ranges(order: np.ndarray, number: int) -> np.ndarray:
    """Return which of `number` equal, ascending ranges of uint64 each sort key is in, [rows] int64."""
    # order * number / 2**64, from the upper 32 bits so that the product fits 64 bits.
    return (((order >> np.uint64(32)) * np.uint64(number)) >> np.uint64(32)).astype(np.int64)
