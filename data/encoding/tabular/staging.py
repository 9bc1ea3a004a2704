"""Raw rows on the disk: read once in blocks, checked, split over the mappings; memory holds a block or a range."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from data.encoding.prepared import SECONDS_BETWEEN_LINES, Progress
from data.encoding.splits import MAPPINGS, draw_order
from data.encoding.tabular.columns import Columns
from data.encoding.text_tables import BLOCK_BYTES, TextForm, read_text_blocks

ROW = "row of the file"
ROWS_PER_RANGE = 1_000_000


@dataclass(frozen=True)
class Source:
    """A raw file and where its rows go.

    Attributes:
        path: the file.
        form: its layout.
        mapping_of: the mapping of each row, [rows] texts, from the rows' numbers in the file, [rows] int64 from 0.
    """

    path: Path
    form: TextForm
    mapping_of: Callable[[np.ndarray], np.ndarray]


def whole_file(mapping: str) -> Callable[[np.ndarray], np.ndarray]:
    """A `mapping_of` that sends every row to one mapping."""
    return lambda rows: np.full(len(rows), mapping, object)


@dataclass
class Staged:
    """The rows of each mapping as parquet files of raw values, in the order of the raw files.

    Attributes:
        folder: where they lie.
        rows: how many rows each mapping has.
        files: of each mapping.
    """

    folder: Path
    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MAPPINGS, 0))
    files: dict[str, list[Path]] = field(default_factory=lambda: {mapping: [] for mapping in MAPPINGS})

    def add(self, mapping: str, rows: pa.Table) -> None:
        """Stores rows behind those of the mapping that are there."""
        path = self.folder / f"{mapping}-{len(self.files[mapping]):06}.parquet"
        pq.write_table(rows, path, write_page_checksum=True)
        self.files[mapping].append(path)
        self.rows[mapping] += rows.num_rows

    def in_file_order(self, mapping: str) -> Iterator[pd.DataFrame]:
        """The rows of a mapping as they stood in the raw files, in frames of raw values."""
        for path in self.files[mapping]:
            yield read_raw_values(path)

    def shuffled(self, mapping: str, seed: int, rows_per_range: int = ROWS_PER_RANGE) -> Iterator[pd.DataFrame]:
        """The rows of a mapping by ascending hash(seed, ORDER, row of the file), in frames of raw values.

        Args:
            mapping: there are rows of it.
            seed: any integer.
            rows_per_range: about how many rows are held, and sorted, at a time.
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
    """Reads raw files into an empty folder.

    Raises:
        DataError: a file cannot be read, or a line is not as declared; naming file and line.
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
    """The raw values of one of the files of `Staged`."""
    return pq.read_table(path, page_checksum_verification=True).drop_columns([ROW]).to_pandas()


def _order(rows: pa.Table, seed: int) -> np.ndarray:
    return draw_order(rows.column(ROW).to_numpy(), seed=seed)


def _ranges(order: np.ndarray, number: int) -> np.ndarray:
    """Which of `number` equal, ascending ranges of the 64-bit numbers each sort key lies in, [rows] int64."""
    return (((order >> np.uint64(32)) * np.uint64(number)) >> np.uint64(32)).astype(np.int64)
