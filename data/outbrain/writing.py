"""Encode parts and write the dataset's files in an order that does not depend on the number of parts or workers.

This is an external sort: the encoded rows of each part are split into pieces by range of their sort key, then the
pieces of each range are sorted and appended to the files. The concatenated files are always the same table.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from data.files.parquet import DatasetWriter
from data.outbrain.columns import AD, CLICKED, DISPLAY
from data.outbrain.joining import TRAIN
from data.outbrain.recipe import Fitted
from data.outbrain.recipes import find_recipe
from data.outbrain.side_tables import load_side_tables
from data.outbrain.split import display_order, ranges, row_order
from data.outbrain.statistics import load_out_of_fold
from data.preprocess.encoder_files import load_encoders
from data.preprocess.nvtabular_operators import to_host
from data.preprocess.nvtabular_setup import Dataset, to_device
from data.spec.features import Chunk

# Columns of a piece besides those of the dataset.
ORDER, RAW_AD = ".order", "raw_ad_id"


@dataclass(frozen=True)
class Encoding:
    """How to encode the parts of a mapping. Holds paths rather than data, so that it is cheap to send to workers.

    Attributes:
        recipe: name of the recipe.
        encoders: folder of the encoders.
        tables: folder of the side tables.
        out_of_fold: folder of the out-of-fold rates for training rows; None for rows to predict.
        schema: Arrow schema of the dataset's columns.
        mapping: name of the mapping; TRAIN shuffles single rows, other mappings whole displays.
        ranges: number of ranges of the sort key.
        seed: seed of the order.
        pieces: folder for the pieces.
    """

    recipe: str
    encoders: Path
    tables: Path
    out_of_fold: Path | None
    schema: pa.Schema
    mapping: str
    ranges: int
    seed: int
    pieces: Path

    def encode_part(self, path: Path) -> int:
        """Encode a joined part, write its pieces, and return its number of rows.

        Raises:
            RuntimeError: if encoding changed the number of rows.
        """
        joined = pq.read_table(path, page_checksum_verification=True).to_pandas()
        encoded = _encoded(_workflow(self.recipe, self.encoders, self.tables, self.out_of_fold), joined)
        if len(encoded) != len(joined):
            raise RuntimeError(f"{path.name}: {len(joined)} rows became {len(encoded)}")
        display, ad = joined[DISPLAY].to_numpy(), joined[AD].to_numpy()
        by_row = self.mapping == TRAIN
        order = row_order(display, ad, seed=self.seed) if by_row else display_order(display, seed=self.seed)
        clicked = joined.get(CLICKED)
        self._write_pieces(encoded.assign(**{DISPLAY: display, RAW_AD: ad, CLICKED: clicked, ORDER: order}), path)
        return len(encoded)

    def _write_pieces(self, frame: pd.DataFrame, path: Path) -> None:
        extra = {DISPLAY: pa.int64(), RAW_AD: pa.int64(), ORDER: pa.uint64()}
        fields = [pa.field(name, kind) for name, kind in extra.items() if name not in self.schema.names]
        table = pa.Table.from_pandas(frame, pa.schema([*self.schema, *fields]), preserve_index=False)
        target = ranges(frame[ORDER].to_numpy(), self.ranges)
        order = np.argsort(target, kind="stable")
        ends = np.searchsorted(target[order], np.arange(self.ranges + 1))
        table = table.take(pa.array(order))
        for number in np.flatnonzero(np.diff(ends)).tolist():
            piece = table.slice(ends[number], ends[number + 1] - ends[number])
            folder = self._pieces(number)
            folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(piece, folder / path.name, write_page_checksum=True)

    def sorted_ranges(self) -> Iterator[pa.Table]:
        """Yield the sorted rows of each range, then delete its pieces."""
        for number in range(self.ranges):
            folder = self._pieces(number)
            if not folder.exists():
                continue
            table = pa.concat_tables(
                [pq.read_table(path, page_checksum_verification=True) for path in sorted(folder.iterdir())]
            )
            # lexsort's last key is the primary one; display and ad break ties.
            keys = [table.column(name).to_numpy() for name in (RAW_AD, DISPLAY, ORDER)]
            yield table.take(pa.array(np.lexsort(keys)))
            shutil.rmtree(folder)

    def _pieces(self, number: int) -> Path:
        return self.pieces / f"{self.mapping}-{number:05d}"


def write_files(encoding: Encoding, folder: Path, rows: int, files: int, done: Callable[[int], None]) -> Chunk:
    """Write the pieces of a mapping to `FOLDER/part_0.parquet`, ..., with equal numbers of rows but for the last.

    Args:
        encoding: encoding whose pieces to write.
        folder: folder for the files; it is created.
        rows: total number of rows of the pieces.
        files: maximum number of files.
        done: callback that takes the number of rows written so far.

    Returns:
        The chunk of the files in the specification, with names relative to the parent of the folder.

    Raises:
        RuntimeError: if the pieces do not have `rows` rows.
    """
    folder.mkdir()
    with DatasetWriter(folder, "part", encoding.schema, max(1, -(-rows // files))) as writer:
        for table in encoding.sorted_ranges():
            writer.write(table)
            done(writer.rows)
    if writer.rows != rows:
        raise RuntimeError(f"{folder.name}: {rows} joined rows became {writer.rows}")
    chunk = writer.chunk
    return Chunk(chunk.type, chunk.features, tuple(f"{folder.name}/{name}" for name in chunk.files))


def _encoded(workflow: Any, joined: pd.DataFrame) -> pd.DataFrame:
    if workflow.output_schema is None:
        workflow.fit_schema(Dataset(to_device(joined)).schema)
    return to_host(workflow.transform(to_device(joined))).reset_index(drop=True)


@lru_cache(maxsize=1)
def _workflow(recipe: str, encoders: Path, tables: Path, out_of_fold: Path | None) -> Any:
    """Build the NVTabular workflow, cached so that each process builds it once per mapping."""
    rates = {} if out_of_fold is None else load_out_of_fold(out_of_fold)
    return find_recipe(recipe).workflow(Fitted(load_encoders(encoders), rates), load_side_tables(tables))
