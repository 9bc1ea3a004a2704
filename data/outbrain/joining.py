"""Join clicks with their events, ads and documents, one partition of the displays at a time.

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

from data.errors import DataError
from data.outbrain.columns import AD, CLICKED, DISPLAY, DISPLAY_ADS, DOCUMENT, DOCUMENT_PROMO, FOLD, GEO, TIMESTAMP
from data.outbrain.raw import read_blocks
from data.outbrain.raw_tables import EVENTS, RawTable
from data.outbrain.side_tables import SideTables
from data.outbrain.split import display_order, folds, is_training, ranges

TRAIN, VALID = "train", "valid"
CLICKS = "clicks"
# Events without the user, which no feature uses.
EVENT_COLUMNS = [DISPLAY, DOCUMENT, TIMESTAMP, "platform", GEO]


@dataclass(frozen=True)
class JoinedFiles:
    """Paths of the raw files to join, for messages."""

    clicks: Path
    events: Path


@dataclass(frozen=True)
class Joined:
    """Row counts of a joined part, or of several parts; can be added up.

    Attributes:
        rows: number of rows, by mapping.
        unknown: number of rows without a match, by table and column; they get nulls.
    """

    rows: Mapping[str, int]
    unknown: Mapping[str, int]

    def __add__(self, other: "Joined") -> "Joined":
        return Joined(_added(self.rows, other.rows), _added(self.unknown, other.unknown))


def divide(
    path: Path, table: RawTable, name: str, parts: int, folder: Path, seed: int, tell: Callable[[int], None]
) -> int:
    """Partition a raw table by display into files `NAME-PART.parquet`, and return its number of rows.

    Args:
        path: path of the raw file.
        table: description of the raw file, which must have display ids.
        name: prefix of the files.
        parts: number of parts.
        folder: folder for the files.
        seed: seed of the order of displays.
        tell: callback that takes the number of rows read so far.

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
            tell(rows)
    finally:
        for writer in writers.values():
            writer.close()
    return rows


def join_part(part: int, folder: Path, tables: SideTables, seed: int, *, split: bool, files: JoinedFiles) -> Joined:
    """Join the clicks and events of a part into `train-PART.parquet` and `valid-PART.parquet`, if they have rows.

    Rows are sorted by the sort key of their display, then by ad id. Rows with an ad or document that the side tables
    do not list get nulls.

    Args:
        part: index of the part.
        folder: folder of the partitioned and joined files.
        tables: side tables to join with.
        seed: seed of the split, the folds and the order.
        split: whether to split into training and validation; if False, all rows go to validation.
        files: paths of the raw files, for messages.

    Raises:
        DataError: if an ad is in a display twice, or a display does not have exactly one event.
    """
    path = _part(folder, CLICKS, part)
    if not path.exists():
        return Joined({TRAIN: 0, VALID: 0}, {})
    clicks = _ordered_clicks(pq.read_table(path, page_checksum_verification=True), seed, files)
    display = clicks[DISPLAY].to_numpy()
    events = _events(folder, part, display, files)
    promoted = tables.promoted.gather(clicks[AD].to_numpy()).rename(columns={DOCUMENT: DOCUMENT_PROMO})
    about = tables.meta.gather(events[DOCUMENT].to_numpy())
    about_promo = tables.meta.gather(promoted[DOCUMENT_PROMO].to_numpy(), "_promo")
    training = is_training(display, events[TIMESTAMP].to_numpy(), seed=seed) & split
    frame = pd.concat([clicks, events, promoted, about, about_promo], axis=1)
    frame[DISPLAY_ADS] = _run_lengths(display)
    frame[FOLD] = folds(display, training, seed=seed)
    if len(frame) != len(clicks):
        raise RuntimeError(f"part {part}: {len(clicks)} clicks became {len(frame)} rows")
    for mapping, chosen in ((TRAIN, training), (VALID, ~training)):
        if chosen.any():
            frame[chosen].to_parquet(_part(folder, mapping, part), index=False, write_page_checksum=True)
    return Joined({TRAIN: int(training.sum()), VALID: int((~training).sum())}, _unknown(tables, frame))


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


def _ordered_clicks(table: pa.Table, seed: int, files: JoinedFiles) -> pd.DataFrame:
    clicks = table.to_pandas()
    display, ad = clicks[DISPLAY].to_numpy(), clicks[AD].to_numpy()
    order = np.lexsort((ad, display, display_order(display, seed=seed)))
    display, ad = display[order], ad[order]
    repeated = np.flatnonzero((display[1:] == display[:-1]) & (ad[1:] == ad[:-1]))
    if len(repeated):
        first = repeated[0]
        raise DataError(
            f"{files.clicks}: has ad_id {ad[first]} twice in display_id {display[first]} ({len(repeated)} such rows "
            "among a part of the displays); keep one row of each"
        )
    return clicks.iloc[order].reset_index(drop=True)


def _events(folder: Path, part: int, display: np.ndarray, files: JoinedFiles) -> pd.DataFrame:
    """Return the event of each row of [rows] displays, without the display id."""
    path = _part(folder, EVENTS.name, part)
    if path.exists():
        table = pq.read_table(path, page_checksum_verification=True).to_pandas()
    else:
        table = pd.DataFrame(columns=EVENT_COLUMNS)
    index = pd.Index(table[DISPLAY].to_numpy(np.int64))
    twice = index[index.duplicated()]
    if len(twice):
        raise DataError(
            f"{files.events}: has display_id {twice[0]} twice ({len(twice)} such rows among a part of the displays); "
            "joined rows would be doubled, keep one of them"
        )
    rows = index.get_indexer(pd.Index(display))
    if (rows < 0).any():
        missing = np.unique(display[rows < 0])
        raise DataError(
            f"{files.events}: has no row for display_id {missing[0]} of {files.clicks.name} ({len(missing)} such "
            "displays among a part of them); fetch the whole table, or drop these clicks"
        )
    events = table.iloc[rows].reset_index(drop=True).drop(columns=DISPLAY)
    return events.astype({DOCUMENT: np.int64, TIMESTAMP: np.int64, "platform": np.float64, GEO: object})


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
