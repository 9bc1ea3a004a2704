"""Generate a synthetic Outbrain Click Prediction: python -m data.outbrain.synthesize --output RAW --displays N.

Writes the raw tables in the published format, the true click probabilities, and `synthetic.json` with the highest
achievable MAP@12 and the measured counterparts of published figures.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from data.command_line import Parser, whole_number
from data.errors import DataError
from data.files.new_dataset import new_dataset
from data.outbrain import raw_tables as raw
from data.outbrain.synthetic import (
    NUM_TOPICS,
    Displays,
    SyntheticOutbrain,
    blocks,
    category_ids,
    draw_displays,
    draw_page_views,
    hex_digits,
    make_entities,
    make_synthetic,
)
from data.preprocess.prepared import StageLog, run_prepare

SUMMARY_FILE = "synthetic.json"
TRUTH_FILE = "truth/click_probabilities.parquet"
FORMAT_VERSION = 1
MIN_DISPLAYS = 50
DISPLAYS_PER_BLOCK = 16_384
TRUTH_SCHEMA = pa.schema([("display_id", pa.int64()), ("ad_id", pa.int64()), ("probability", pa.float64())])
PLATFORM_NAMES = ("desktop", "mobile", "tablet")

Column: TypeAlias = np.ndarray | pa.Array


def synthesize(output: Path, displays: int, seed: int = 0) -> None:
    """Write the raw tables, the true click probabilities and a summary, atomically.

    Args:
        output: folder for the tables, which is empty or does not exist yet.
        displays: number of training displays, at least 50; a fifth as many displays to predict are added.
        seed: seed of all random numbers.

    Raises:
        DataError: if `output` is not empty, or `displays` is too small.
    """
    if displays < MIN_DISPLAYS:
        raise DataError(f"--displays {displays}: expected at least {MIN_DISPLAYS}")
    if output.is_dir() and any(output.iterdir()):
        first = min(path.name for path in output.iterdir())
        raise DataError(f"{output}: is not empty ({first}); choose another folder, or delete its contents")
    log = StageLog("outbrain")
    with new_dataset(output, SUMMARY_FILE) as draft:
        outbrain = make_synthetic(displays, seed)
        log.write(f"generated {len(outbrain.documents.ids):,} documents and {len(outbrain.ads.document):,} ads")
        rows = _write_documents(draft, outbrain) | _write_promoted(draft, outbrain)
        log.write("wrote the documents_* tables and promoted_content")
        summary = Summary(outbrain)
        rows |= _write_displays(draft, outbrain, summary, log)
        rows |= _write_page_views(draft, outbrain)
        log.write(f"page_views_sample: {rows[raw.PAGE_VIEWS.name]:,} rows")
        described = {
            "format_version": FORMAT_VERSION,
            "displays": displays,
            "rows": summary.rows,
            "seed": seed,
            "map_at_12_ceiling": summary.map_at_12_ceiling,
            "table_rows": rows,
            "marginals": summary.marginals(),
        }
        (draft / SUMMARY_FILE).write_text(json.dumps(described, indent=2) + "\n")
    log.write(f"MAP@12 of ranking by the true probabilities: {summary.map_at_12_ceiling:.4f}")
    log.write(f"done: {output}")


class TableWriter:
    """Writes a table as CSV, with the published order of columns, without quotes, and with empty cells for null.

    Attributes:
        rows: number of rows written so far.
    """

    def __init__(self, folder: Path, table: raw.RawTable) -> None:
        self.rows = 0
        self._names = list(table.columns)
        self._file = (folder / f"{table.name}.csv").open("xb")
        self._file.write((",".join(self._names) + "\n").encode())

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, columns: Mapping[str, Column]) -> None:
        """Append rows, given as [n] values by column name."""
        rows = pa.table({name: columns[name] for name in self._names})
        self.rows += rows.num_rows
        pa_csv.write_csv(rows, self._file, pa_csv.WriteOptions(include_header=False, quoting_style="none"))


def _write_table(
    folder: Path, table: raw.RawTable, rows: np.ndarray, columns: Callable[[np.ndarray], Mapping[str, Column]]
) -> dict[str, int]:
    """Write `columns(block)` for blocks of `rows`; return the number of rows, by table name."""
    with TableWriter(folder, table) as file:
        for block in blocks(rows):
            file.write(columns(block))
    return {table.name: file.rows}


def _write_documents(folder: Path, outbrain: SyntheticOutbrain) -> dict[str, int]:
    """Write documents_meta and the tags of documents."""
    documents = outbrain.documents

    def meta(rows: np.ndarray) -> dict[str, Column]:
        return {
            "document_id": documents.ids[rows],
            "source_id": _optional(documents.source[rows]),
            "publisher_id": _optional(documents.publisher[rows]),
            "publish_time": pc.strftime(pa.array(documents.publish_time[rows]), format="%Y-%m-%d %H:%M:%S"),
        }

    def tags(
        table: raw.RawTable, numbers: np.ndarray, confidence: np.ndarray, names: np.ndarray
    ) -> Callable[[np.ndarray], dict[str, Column]]:
        document, name, level = table.columns

        def columns(block: np.ndarray) -> dict[str, Column]:
            rows, slots = np.nonzero(numbers[block] >= 0)
            rows = block[rows]
            return {document: documents.ids[rows], name: names[numbers[rows, slots]], level: confidence[rows, slots]}

        return columns

    everything = np.arange(len(documents.ids))
    categories = tags(raw.CATEGORIES, documents.categories, documents.category_confidence, category_ids())
    topics = tags(raw.TOPICS, documents.topics, documents.topic_confidence, np.arange(NUM_TOPICS))
    counts = _write_table(folder, raw.META, np.flatnonzero(documents.in_meta), meta)
    counts |= _write_table(folder, raw.CATEGORIES, everything, categories)
    counts |= _write_table(folder, raw.TOPICS, everything, topics)
    return counts | _write_entities(folder, outbrain)


def _write_entities(folder: Path, outbrain: SyntheticOutbrain) -> dict[str, int]:
    documents, numbers, confidence = make_entities(outbrain.source, len(outbrain.documents.ids))

    def columns(rows: np.ndarray) -> dict[str, Column]:
        # Ids of 32 hex digits.
        halves = np.stack([outbrain.source.hashes("entity", numbers[rows], half) for half in range(2)], axis=1)
        return {
            "document_id": outbrain.documents.ids[documents[rows]],
            "entity_id": _texts(hex_digits(halves.ravel()).view("S32").ravel()),
            "confidence_level": confidence[rows],
        }

    return _write_table(folder, raw.ENTITIES, np.arange(len(numbers)), columns)


def _write_promoted(folder: Path, outbrain: SyntheticOutbrain) -> dict[str, int]:
    ads = outbrain.ads

    def columns(rows: np.ndarray) -> dict[str, Column]:
        return {
            "ad_id": rows + 1,
            "document_id": outbrain.documents.ids[ads.document[rows]],
            "campaign_id": ads.campaign[rows] + 1,
            "advertiser_id": ads.advertiser[rows] + 1,
        }

    return _write_table(folder, raw.PROMOTED, np.arange(len(ads.document)), columns)


def _write_displays(draft: Path, outbrain: SyntheticOutbrain, summary: "Summary", log: StageLog) -> dict[str, int]:
    """Write events, clicks_train, clicks_test and the true probabilities, and add the displays to the summary."""
    (draft / TRUTH_FILE).parent.mkdir()
    with (
        TableWriter(draft, raw.EVENTS) as events,
        TableWriter(draft, raw.CLICKS) as clicks,
        TableWriter(draft, raw.CLICKS_TO_PREDICT) as to_predict,
        pq.ParquetWriter(draft / TRUTH_FILE, TRUTH_SCHEMA, write_page_checksum=True) as truth,
    ):
        # Blocks do not cross from training to test.
        for first, last in ((0, outbrain.displays), (outbrain.displays, outbrain.events)):
            for begin in range(first, last, DISPLAYS_PER_BLOCK):
                shown = draw_displays(outbrain, begin, min(begin + DISPLAYS_PER_BLOCK, last))
                events.write(event_columns(outbrain, shown))
                summary.add(shown)
                keys = {"display_id": np.repeat(shown.events, shown.sizes) + 1, "ad_id": shown.ads + 1}
                if first:
                    to_predict.write(keys)
                else:
                    clicks.write(keys | {"clicked": shown.clicked.astype(np.int8)})
                    truth.write_table(pa.table(keys | {"probability": shown.probabilities}, TRUTH_SCHEMA))
                log.write(f"events: {events.rows:,} of {outbrain.events:,}; clicks_train: {clicks.rows:,} rows")
    return {raw.EVENTS.name: events.rows, raw.CLICKS.name: clicks.rows, raw.CLICKS_TO_PREDICT.name: to_predict.rows}


def event_columns(outbrain: SyntheticOutbrain, displays: Displays) -> dict[str, Column]:
    """Return the columns of `events` for displays."""
    platforms = pc.cast(pa.array(displays.platforms), pa.string())
    missing = np.isin(displays.events, outbrain.without_platform)
    return {
        "display_id": displays.events + 1,
        "uuid": _texts(outbrain.uuids(displays.users)),
        "document_id": outbrain.documents.ids[displays.landing],
        "timestamp": displays.timestamps,
        "platform": pc.if_else(pa.array(missing), raw.NULL_TEXT, platforms),
        "geo_location": pa.array(outbrain.locations.texts[displays.locations], pa.string()),
    }


def _write_page_views(draft: Path, outbrain: SyntheticOutbrain) -> dict[str, int]:
    views = draw_page_views(outbrain)

    def columns(rows: np.ndarray) -> dict[str, Column]:
        users = views["users"][rows]
        return {
            "uuid": _texts(outbrain.uuids(users)),
            "document_id": outbrain.documents.ids[views["documents"][rows]],
            "timestamp": views["timestamps"][rows],
            "platform": outbrain.platform(users),
            "geo_location": pa.array(outbrain.locations.texts[outbrain.location(users)], pa.string()),
            "traffic_source": views["traffic_sources"][rows],
        }

    return _write_table(draft, raw.PAGE_VIEWS, np.arange(len(views["users"])), columns)


def _optional(numbers: np.ndarray) -> pa.Array:
    """Convert numbers from 0 to ids from 1, and -1 to null."""
    return pa.array(numbers + 1, mask=numbers < 0)


def _texts(values: np.ndarray) -> pa.Array:
    return pc.cast(pa.array(values), pa.string())


class Summary:
    """Counts over the displays: the highest achievable MAP, and the counterparts of published figures.

    Attributes:
        rows: number of training rows so far.
    """

    def __init__(self, outbrain: SyntheticOutbrain) -> None:
        self.rows = 0
        self._outbrain = outbrain
        self._best_map = 0.0
        self._train_rows = np.zeros(len(outbrain.ads.document), np.int64)
        self._test_rows = np.zeros(len(outbrain.ads.document), np.int64)
        self._platforms = np.zeros(len(PLATFORM_NAMES), np.int64)
        self._locations = np.zeros(len(outbrain.locations.texts), np.int64)

    def add(self, shown: Displays) -> None:
        """Add displays, which must be all training or all test displays."""
        is_train = shown.events[0] < self._outbrain.displays
        counts = self._train_rows if is_train else self._test_rows
        counts += np.bincount(shown.ads, minlength=len(counts))
        has_platform = ~np.isin(shown.events, self._outbrain.without_platform)
        self._platforms += np.bincount(shown.platforms[has_platform] - 1, minlength=len(self._platforms))
        self._locations += np.bincount(shown.locations, minlength=len(self._locations))
        if is_train:
            self.rows += len(shown.ads)
            self._best_map += float(shown.best_map().sum())

    @property
    def map_at_12_ceiling(self) -> float:
        """Expected MAP@12 of the training displays when ranked by the true probabilities."""
        return self._best_map / self._outbrain.displays

    def marginals(self) -> dict[str, float]:
        """Return the counts, fractions and means that correspond to published ones, by name."""
        outbrain, documents = self._outbrain, self._outbrain.documents
        occurring = self._train_rows[self._train_rows > 0]
        events_of_users = np.bincount(outbrain.event_users)
        texts = outbrain.locations.texts
        in_us = np.array([text is not None and text.split(">")[0] == "US" for text in texts])
        shares = {f"share_of_{name}": self._platforms[i] / outbrain.events for i, name in enumerate(PLATFORM_NAMES)}
        measured = {
            "test_displays": outbrain.test_displays,
            "ads_per_display": self.rows / outbrain.displays,
            "ads_in_train": len(occurring),
            "rows_per_ad": occurring.mean(),
            "ads_once": (occurring == 1).mean(),
            "ads_below_10": (occurring < 10).mean(),
            "ads_below_1000": (occurring < 1000).mean(),
            "test_ads_in_train": (self._train_rows[self._test_rows > 0] > 0).mean(),
            **shares,
            "events_without_platform": outbrain.events - self._platforms.sum(),
            "share_of_us": self._locations[in_us].sum() / outbrain.events,
            "events_without_geo": self._locations[[text is None for text in texts]].sum(),
            "users": len(events_of_users),
            "users_once": (events_of_users == 1).mean(),
            "most_events_of_a_user": events_of_users.max(),
            "documents_without_publish_time": np.isnat(documents.publish_time[documents.in_meta]).mean(),
            "documents_without_publisher": (documents.publisher[documents.in_meta] < 0).mean(),
            "documents_without_source": (documents.source[documents.in_meta] < 0).mean(),
        }
        return {
            name: int(value) if float(value).is_integer() else round(float(value), 6)
            for name, value in measured.items()
        }


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0 success, 1 failure, 2 invalid input or arguments."""
    return run_prepare("outbrain", synthesize, _parse(argv))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m data.outbrain.synthesize",
        description=(
            "Generates raw tables in the format of Kaggle's Outbrain Click Prediction, with its published frequencies "
            "and a planted signal, the true click probabilities, and the MAP@12 that a perfect ranking reaches."
        ),
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the tables, empty or new")
    add("--displays", type=whole_number(MIN_DISPLAYS), default=200_000, help="training displays, of 5.16 ads each")
    add("--seed", type=whole_number(0), default=0, help="seed of all random numbers")
    return parser.parse(argv)


if __name__ == "__main__":
    sys.exit(main())
