"""The published raw tables of Kaggle's Outbrain Click Prediction: names, columns, types and nullability."""

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

# Published notation of a missing value, besides an empty cell.
NULL_TEXT = r"\N"
# Origin of the timestamps, which are in milliseconds (14 June 2016, 04:00 UTC), in milliseconds since the Unix epoch.
TIMESTAMP_ORIGIN_MS = 1_465_876_799_998
DAY_MS = 24 * 60 * 60 * 1000


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


def _aspect(name: str, column: str, kind: pa.DataType) -> RawTable:
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
CATEGORIES = _aspect("documents_categories", "category_id", pa.int64())
TOPICS = _aspect("documents_topics", "topic_id", pa.int64())
ENTITIES = _aspect("documents_entities", "entity_id", pa.string())
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

ASPECTS = {"categories": CATEGORIES, "topics": TOPICS, "entities": ENTITIES}
