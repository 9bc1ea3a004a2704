"""Split rows, and join clicks with their events, ads and documents, one part of the displays at a time.

Split, fold and order of a row are pure functions of seed, display, ad and day. With the row hash of
`data.encoding.hashing` and the purposes below, a display is in training if its day (the timestamp of its event in
whole days, 0 to 12 in the published clicks) is at most 10 and hash(seed, SPLIT, display) >= 0.2 * 2**64, else in
validation: 80% of the displays of the first eleven days are for training; the other 20% and the two later days are for
validation. The fold of a training row is hash(seed, FOLD, display) mod 10. Training rows are stored by ascending
hash(seed, ORDER, display, ad), validation rows display by display, by hash(seed, ORDER, display).

A part holds the displays whose sort key is in one of several equal ranges. All rows of a display are therefore in the
same part, parts have about the same size, and the order of the concatenated parts does not depend on their number.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from data.encoding.encoders import NOT_IN_A_FOLD
from data.encoding.hashing import buckets, hash_rows
from data.encoding.splits import FOLD, ORDER, SPLIT, ranges
from data.errors import DataError
from data.outbrain.raw_tables import (
    AD,
    CLICKED,
    DAY_MS,
    DISPLAY,
    DOCUMENT,
    EVENTS,
    GEO,
    TIMESTAMP,
    RawTable,
    read_blocks,
)
from data.outbrain.side_tables import SideTables, load_side_tables

TRAIN, VALID = "train", "valid"
CLICKS = "clicks"  # prefix of the files of partitioned clicks
# Events without the user, which no feature uses.
EVENT_COLUMNS = [DISPLAY, DOCUMENT, TIMESTAMP, "platform", GEO]
# Columns of joined rows besides the raw ones: the promoted document, the fold, and the number of ads in the display.
DOCUMENT_PROMO, FOLD_COLUMN, DISPLAY_ADS = "document_id_promo", "fold", "display_ads"
LAST_TRAINING_DAY = 10
VALIDATION_SHARE = 0.2
NUM_FOLDS = 10


def is_training(display_id: np.ndarray, timestamp: np.ndarray, *, seed: int) -> np.ndarray:
    """Return whether displays are for training, [rows] bool.

    Args:
        display_id: [rows] int64 display ids.
        timestamp: [rows] int64 timestamps of the events, in milliseconds since Outbrain's origin.
        seed: seed of the split, any integer.
    """
    held_out = hash_rows(seed, SPLIT, display_id) < np.uint64(VALIDATION_SHARE * 2.0**64)
    return (timestamp // DAY_MS <= LAST_TRAINING_DAY) & ~held_out


def folds(display_id: np.ndarray, training: np.ndarray, *, seed: int) -> np.ndarray:
    """Return the folds of displays, [rows] int64 in [0, NUM_FOLDS), or -1 outside training."""
    return np.where(training, buckets(hash_rows(seed, FOLD, display_id), NUM_FOLDS), NOT_IN_A_FOLD)


def display_order(display_id: np.ndarray, *, seed: int) -> np.ndarray:
    """Return [rows] uint64 sort keys that keep the rows of a display together."""
    return hash_rows(seed, ORDER, display_id)


def row_order(display_id: np.ndarray, ad_id: np.ndarray, *, seed: int) -> np.ndarray:
    """Return [rows] uint64 sort keys that shuffle rows."""
    return hash_rows(seed, ORDER, display_id, ad_id)


@dataclass(frozen=True)
class JoinCounts:
    """Row counts of a joined part, or of several parts; can be added up.

    Attributes:
        rows: number of rows, by mapping.
        unknown: number of rows without a match, by table and column; they get nulls.
    """

    rows: Mapping[str, int]
    unknown: Mapping[str, int]

    def __add__(self, other: "JoinCounts") -> "JoinCounts":
        return JoinCounts(_added(self.rows, other.rows), _added(self.unknown, other.unknown))


def divide(
    path: Path, table: RawTable, name: str, parts: int, folder: Path, seed: int, report: Callable[[int], None]
) -> int:
    """Partition a raw table by display into files `NAME-PART.parquet`, and return its number of rows.

    Args:
        path: path of the raw file.
        table: description of the raw file, which must have display ids.
        name: prefix of the files.
        parts: number of parts.
        folder: folder for the files.
        seed: seed of the order of displays.
        report: callback that takes the number of rows read so far.

    Raises:
        DataError: if a row is invalid.
    """
    columns = [column for column in table.columns if name == CLICKS or column in EVENT_COLUMNS]
    writers: dict[int, pq.ParquetWriter] = {}
    rows = 0
    try:
        for block in read_blocks(path, table):
            if CLICKED in columns:
                _check_clicked(path, block, rows)
            part = ranges(display_order(block.column(DISPLAY).to_numpy(), seed=seed), parts)
            # Group the block's rows by part, so that each part is a slice: rows [ends[p], ends[p + 1]).
            order = np.argsort(part, kind="stable")
            ends = np.searchsorted(part[order], np.arange(parts + 1))
            ordered = block.select(columns).take(pa.array(order))
            for number in np.flatnonzero(np.diff(ends)).tolist():
                if number not in writers:
                    writers[number] = pq.ParquetWriter(
                        _part(folder, name, number), ordered.schema, write_page_checksum=True
                    )
                writers[number].write_table(ordered.slice(ends[number], ends[number + 1] - ends[number]))
            rows += block.num_rows
            report(rows)
    finally:
        for writer in writers.values():
            writer.close()
    return rows


@dataclass(frozen=True)
class PartJoiner:
    """Joins the parts in a folder. Holds paths rather than data, so that it is cheap to send to workers.

    Attributes:
        folder: folder of the partitioned and joined files.
        tables: folder of the side tables, as parquet.
        seed: seed of the split, the folds and the order.
        split: whether to split into training and validation; if False, all rows go to validation.
        clicks, events: paths of the raw files, for messages.
    """

    folder: Path
    tables: Path
    seed: int
    split: bool
    clicks: Path
    events: Path

    def join(self, part: int) -> JoinCounts:
        """Join the clicks and events of a part into `train-PART.parquet` and `valid-PART.parquet`, if they have rows.

        Rows are sorted by the sort key of their display, then by ad id. Rows with an ad or document that the side
        tables do not list get nulls.

        Raises:
            DataError: if an ad is in a display twice, or a display does not have exactly one event.
        """
        path = _part(self.folder, CLICKS, part)
        if not path.exists():
            return JoinCounts({TRAIN: 0, VALID: 0}, {})
        clicks = self._sorted_clicks(pq.read_table(path, page_checksum_verification=True))
        display = clicks[DISPLAY].to_numpy()
        tables, events = load_side_tables(self.tables), self._events(part, display)
        promoted = tables.promoted.gather(clicks[AD].to_numpy()).rename(columns={DOCUMENT: DOCUMENT_PROMO})
        meta = tables.meta.gather(events[DOCUMENT].to_numpy())
        meta_promo = tables.meta.gather(promoted[DOCUMENT_PROMO].to_numpy(), "_promo")
        training = is_training(display, events[TIMESTAMP].to_numpy(), seed=self.seed) & self.split
        frame = pd.concat([clicks, events, promoted, meta, meta_promo], axis=1)
        frame[DISPLAY_ADS] = _run_lengths(display)
        frame[FOLD_COLUMN] = folds(display, training, seed=self.seed)
        if len(frame) != len(clicks):
            raise RuntimeError(f"part {part}: {len(clicks)} clicks became {len(frame)} rows")
        for mapping, chosen in ((TRAIN, training), (VALID, ~training)):
            if chosen.any():
                path = _part(self.folder, mapping, part)
                frame[chosen].to_parquet(path, index=False, write_page_checksum=True)
        return JoinCounts({TRAIN: int(training.sum()), VALID: int((~training).sum())}, _unknown(tables, frame))

    def _sorted_clicks(self, table: pa.Table) -> pd.DataFrame:
        clicks = table.to_pandas()
        display, ad = clicks[DISPLAY].to_numpy(), clicks[AD].to_numpy()
        order = np.lexsort((ad, display, display_order(display, seed=self.seed)))
        display, ad = display[order], ad[order]
        repeated = np.flatnonzero((display[1:] == display[:-1]) & (ad[1:] == ad[:-1]))
        if len(repeated):
            first = repeated[0]
            raise DataError(
                f"{self.clicks}: has ad_id {ad[first]} twice in display_id {display[first]} ({len(repeated)} such rows "
                "among a part of the displays); keep one row of each"
            )
        return clicks.iloc[order].reset_index(drop=True)

    def _events(self, part: int, display: np.ndarray) -> pd.DataFrame:
        """Return the event of each row of [rows] displays, without the display id."""
        path = _part(self.folder, EVENTS.name, part)
        if path.exists():
            table = pq.read_table(path, page_checksum_verification=True).to_pandas()
        else:
            table = pd.DataFrame(columns=EVENT_COLUMNS)
        index = pd.Index(table[DISPLAY].to_numpy(np.int64))
        twice = index[index.duplicated()]
        if len(twice):
            raise DataError(
                f"{self.events}: has display_id {twice[0]} twice ({len(twice)} such rows among a part of the "
                "displays); joined rows would be doubled, keep one of them"
            )
        rows = index.get_indexer(pd.Index(display))
        if (rows < 0).any():
            missing = np.unique(display[rows < 0])
            raise DataError(
                f"{self.events}: has no row for display_id {missing[0]} of {self.clicks.name} ({len(missing)} such "
                "displays among a part of them); download the whole table, or drop these clicks"
            )
        events = table.iloc[rows].reset_index(drop=True).drop(columns=DISPLAY)
        return events.astype({DOCUMENT: np.int64, TIMESTAMP: np.int64, "platform": np.float64, GEO: object})


def joined_parts(folder: Path, mapping: str) -> list[Path]:
    """Return the joined files of a mapping, in order."""
    return sorted(folder.glob(f"{mapping}-*.parquet"))


def _part(folder: Path, name: str, part: int) -> Path:
    return folder / f"{name}-{part:05d}.parquet"


def _check_clicked(path: Path, block: pa.Table, rows: int) -> None:
    clicked = block.column(CLICKED).to_numpy()
    wrong = (clicked != 0) & (clicked != 1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(f"{path}, line {rows + row + 2}: clicked is {clicked[row]}, expected 0 or 1")


def _run_lengths(display: np.ndarray) -> np.ndarray:
    """Return the number of rows of each row's display, [rows] int64; rows of a display must be adjacent."""
    first = np.flatnonzero(np.append(True, display[1:] != display[:-1]))
    lengths = np.diff(np.append(first, len(display)))
    return np.repeat(lengths, lengths)


def _unknown(tables: SideTables, frame: pd.DataFrame) -> dict[str, int]:
    documents = {name: tables.meta.find(frame[name].to_numpy()) < 0 for name in (DOCUMENT, DOCUMENT_PROMO)}
    unknown = {"promoted_content, ad_id": tables.promoted.find(frame[AD].to_numpy()) < 0}
    unknown |= {f"documents_meta, {name}": rows for name, rows in documents.items()}
    return {name: int(rows.sum()) for name, rows in unknown.items()}


def _added(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    return {name: first.get(name, 0) + second.get(name, 0) for name in {**first, **second}}
