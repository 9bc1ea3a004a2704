"""Write the tables of the synthetic Outbrain in the published format."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from data.outbrain.synthetic.displays import Displays, PageViews
from data.outbrain.synthetic.documents import NUM_TOPICS, category_ids, make_entities
from data.outbrain.synthetic.random import Draws
from data.outbrain.synthetic.users import Users, hex_digits
from data.outbrain.synthetic.world import World
from data.outbrain.tables import CATEGORIES, ENTITIES, META, NULL_TEXT, PROMOTED, TOPICS, RawTable

ROWS_PER_BLOCK = 262_144

Column: TypeAlias = np.ndarray | pa.Array


class TableWriter:
    """Writes a table as CSV, with the published order of columns, without quotes, and with empty cells for null.

    Args:
        folder: folder for `<table>.csv`.
        table: table to write.

    Attributes:
        rows: number of rows written so far.
    """

    def __init__(self, folder: Path, table: RawTable) -> None:
        self.rows = 0
        self._names = list(table.columns)
        self._file = (folder / f"{table.name}.csv").open("xb")
        self._file.write((",".join(self._names) + "\n").encode())

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, columns: Mapping[str, Column]) -> None:
        """Append rows, given as [n] values by column name."""
        rows = pa.table({name: columns[name] for name in self._names})
        self.rows += rows.num_rows
        pa_csv.write_csv(rows, self._file, pa_csv.WriteOptions(include_header=False, quoting_style="none"))


def write_documents(folder: Path, world: World) -> dict[str, int]:
    """Write documents_meta and the tags of documents; return the number of rows of each table."""
    documents = world.documents
    with TableWriter(folder, META) as file:
        for chosen in _blocks(np.flatnonzero(documents.in_meta)):
            times = pa.array(documents.publish_time[chosen])
            file.write(
                {
                    "document_id": documents.ids[chosen],
                    "source_id": _optional(documents.source[chosen]),
                    "publisher_id": _optional(documents.publisher[chosen]),
                    "publish_time": pc.strftime(times, format="%Y-%m-%d %H:%M:%S"),
                }
            )
    levels, topics = documents.category_confidence, np.arange(NUM_TOPICS)
    return {
        META.name: file.rows,
        CATEGORIES.name: _write_aspect(folder, CATEGORIES, documents.ids, documents.categories, levels, category_ids()),
        TOPICS.name: _write_aspect(folder, TOPICS, documents.ids, documents.topics, documents.topic_confidence, topics),
        ENTITIES.name: _write_entities(folder, world),
    }


def write_promoted(folder: Path, world: World) -> dict[str, int]:
    """Write promoted_content; return its number of rows, by table name."""
    ads = world.ads
    with TableWriter(folder, PROMOTED) as file:
        for chosen in _blocks(np.arange(len(ads))):
            file.write(
                {
                    "ad_id": chosen + 1,
                    "document_id": world.documents.ids[ads.document[chosen]],
                    "campaign_id": ads.campaign[chosen] + 1,
                    "advertiser_id": ads.advertiser[chosen] + 1,
                }
            )
    return {PROMOTED.name: file.rows}


def event_columns(world: World, displays: Displays) -> dict[str, Column]:
    """Return the columns of `events` for displays."""
    platforms = pc.cast(pa.array(displays.platforms), pa.string())
    missing = np.isin(displays.events, world.without_platform)
    return {
        "display_id": displays.events + 1,
        "uuid": _texts(world.users.uuids(displays.users)),
        "document_id": world.documents.ids[displays.landing],
        "timestamp": displays.timestamps,
        "platform": pc.if_else(pa.array(missing), NULL_TEXT, platforms),
        "geo_location": _geo(world.users, displays.places),
    }


def view_columns(world: World, views: PageViews) -> Iterator[dict[str, Column]]:
    """Yield the columns of `page_views_sample` in blocks."""
    for chosen in _blocks(np.arange(len(views))):
        users = views.users[chosen]
        yield {
            "uuid": _texts(world.users.uuids(users)),
            "document_id": world.documents.ids[views.documents[chosen]],
            "timestamp": views.timestamps[chosen],
            "platform": world.users.platform(users),
            "geo_location": _geo(world.users, world.users.place(users)),
            "traffic_source": views.traffic_sources[chosen],
        }


def _write_aspect(
    folder: Path, table: RawTable, ids: np.ndarray, numbers: np.ndarray, confidence: np.ndarray, names: np.ndarray
) -> int:
    """Write an aspect of all documents, and return its number of rows.

    Args:
        folder: folder for the file.
        table: table to write.
        ids: [documents] document_ids.
        numbers: [documents, slots] tag numbers, -1 for no row.
        confidence: [documents, slots] confidences.
        names: [tags] written value of each tag number.
    """
    document, name, level = table.columns
    with TableWriter(folder, table) as file:
        for chosen in _blocks(np.arange(len(ids))):
            rows, slots = np.nonzero(numbers[chosen] >= 0)
            rows = chosen[rows]
            file.write({document: ids[rows], name: names[numbers[rows, slots]], level: confidence[rows, slots]})
    return file.rows


def _write_entities(folder: Path, world: World) -> int:
    rows, numbers, confidence = make_entities(world.draws, len(world.documents))
    with TableWriter(folder, ENTITIES) as file:
        for chosen in _blocks(np.arange(len(rows))):
            file.write(
                {
                    "document_id": world.documents.ids[rows[chosen]],
                    "entity_id": _texts(_entity_ids(world.draws, numbers[chosen])),
                    "confidence_level": confidence[chosen],
                }
            )
    return file.rows


def _entity_ids(draws: Draws, numbers: np.ndarray) -> np.ndarray:
    """Return entity ids of 32 hex digits, [n] bytes."""
    halves = np.stack([draws.hashes("entity", numbers, half) for half in range(2)], axis=1)
    return hex_digits(halves.ravel()).view("S32").ravel()


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for begin in range(0, len(rows), ROWS_PER_BLOCK):
        yield rows[begin : begin + ROWS_PER_BLOCK]


def _optional(numbers: np.ndarray) -> pa.Array:
    """Convert numbers from 0 to ids from 1, and -1 to null."""
    return pa.array(numbers + 1, mask=numbers < 0)


def _texts(values: np.ndarray) -> pa.Array:
    return pc.cast(pa.array(values), pa.string())


def _geo(users: Users, places: np.ndarray) -> pa.Array:
    return pa.array(users.places.texts, pa.string()).take(pa.array(places))
