"""The in-memory tables that clicks are joined with: ads, documents and the tags of documents."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.outbrain.aspects import Aspect, check_tags
from data.outbrain.lookup import LookupTable
from data.outbrain.raw import find_raw, read_blocks, require_raw
from data.outbrain.raw_tables import ASPECTS, META, PROMOTED, RawTable

SIDE_TABLES = (PROMOTED, META, *ASPECTS.values())
TAGS = "tags_of_{}"
# Per entry: document, code and confidence, in two orders, plus key and weight. Per tag: value and weight.
ENTRY_BYTES, TAG_BYTES = 2 * 24 + 16, 120
# Names of the files that `SideTables.to_parquet` writes.
FILES = tuple(f"{name}.parquet" for name in (*(table.name for table in SIDE_TABLES), *map(TAGS.format, ASPECTS)))

Tell = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class SideTables:
    """Tables of ads and documents.

    Attributes:
        promoted: document_id, campaign_id and advertiser_id, by ad_id.
        meta: source_id, publisher_id and publish_time (milliseconds since the Unix epoch), by document_id.
        aspects: tags of documents, by name of the aspect: categories, topics and entities.
    """

    promoted: LookupTable
    meta: LookupTable
    aspects: Mapping[str, Aspect]

    @classmethod
    def read(cls, folder: Path, tell: Tell, *, fill_publishers: bool) -> "SideTables":
        """Read the raw tables.

        Args:
            folder: folder with all side tables.
            tell: callback that takes lines of progress.
            fill_publishers: whether to give each document without a publisher its own one, as published.

        Raises:
            DataError: if a file is missing or invalid.
        """
        require_raw(folder, SIDE_TABLES)
        aspects = {name: _read_aspect(folder, table, None, tell) for name, table in ASPECTS.items()}
        return cls(_read_promoted(folder, tell), _read_meta(folder, tell, fill_publishers), aspects)

    def replaced(self, folder: Path, tell: Tell, *, fill_publishers: bool) -> "SideTables":
        """Return these tables, with those that exist in a folder read from there; tag weights stay as fitted."""
        return SideTables(
            self.promoted if find_raw(folder, PROMOTED) is None else _read_promoted(folder, tell),
            self.meta if find_raw(folder, META) is None else _read_meta(folder, tell, fill_publishers),
            {
                name: self.aspects[name]
                if find_raw(folder, table) is None
                else _read_aspect(folder, table, self.aspects[name], tell)
                for name, table in ASPECTS.items()
            },
        )

    @property
    def memory_bytes(self) -> int:
        """Approximate bytes that the tables take in a process, including derived weights and the texts of tags."""
        lookups = [array for table in (self.promoted, self.meta) for array in (table.keys, *table.columns.values())]
        entries = sum(len(aspect.documents) for aspect in self.aspects.values())
        tags = sum(len(aspect.values) for aspect in self.aspects.values())
        return sum(array.nbytes for array in lookups) + entries * ENTRY_BYTES + tags * TAG_BYTES

    def to_parquet(self, folder: Path) -> None:
        """Write one file per table, and one with the tags of each aspect, to an existing folder."""
        for table, lookup, key in ((PROMOTED, self.promoted, "ad_id"), (META, self.meta, "document_id")):
            _write(folder, table.name, {key: lookup.keys, **lookup.columns})
        for name, aspect in self.aspects.items():
            entries = {"document_id": aspect.documents, "code": aspect.codes, "confidence": aspect.confidences}
            _write(folder, ASPECTS[name].name, entries)
            _write(folder, TAGS.format(name), {"value": aspect.values, "idf": aspect.idf})

    @classmethod
    def from_parquet(cls, folder: Path) -> "SideTables":
        """Read what `to_parquet` wrote."""
        aspects = {}
        for name, table in ASPECTS.items():
            entries, tags = _load(folder, table.name), _load(folder, TAGS.format(name))
            aspects[name] = Aspect(
                entries["document_id"], entries["code"], entries["confidence"], tags["value"], tags["idf"]
            )
        return cls(_lookup(folder, PROMOTED, "ad_id"), _lookup(folder, META, "document_id"), aspects)


@lru_cache(maxsize=1)
def load_side_tables(folder: Path) -> SideTables:
    """Return `SideTables.from_parquet(folder)`, cached per process for the latest folder."""
    return SideTables.from_parquet(folder)


def _read(folder: Path, table: RawTable, tell: Tell) -> tuple[Path, pa.Table]:
    path = require_raw(folder, [table])[table.name]
    rows = pa.concat_tables(read_blocks(path, table)).combine_chunks()
    tell(f"read {path.name}: {rows.num_rows:,} rows")
    return path, rows


def _read_promoted(folder: Path, tell: Tell) -> LookupTable:
    path, rows = _read(folder, PROMOTED, tell)
    return LookupTable.build(rows, "ad_id", path)


def _read_meta(folder: Path, tell: Tell, fill_publishers: bool) -> LookupTable:
    path, rows = _read(folder, META, tell)
    if fill_publishers:
        publisher = rows.column("publisher_id").to_numpy().astype(np.float64)
        missing = np.isnan(publisher)
        largest = 0.0 if missing.all() else np.nanmax(publisher)
        publisher[missing] = largest + 1 + np.arange(1, missing.sum() + 1)
        index = rows.column_names.index("publisher_id")
        rows = rows.set_column(index, "publisher_id", pa.array(publisher.astype(np.int64)))
    return LookupTable.build(rows, "document_id", path)


def _read_aspect(folder: Path, table: RawTable, fitted: Aspect | None, tell: Tell) -> Aspect:
    path, rows = _read(folder, table, tell)
    documents, tags, confidences = (rows.column(name).to_numpy() for name in table.columns)
    check_tags(path, documents, confidences)
    return (Aspect.fit if fitted is None else fitted.with_entries)(documents, tags, confidences)


def _write(folder: Path, name: str, columns: Mapping[str, np.ndarray]) -> None:
    arrays = {
        column: pa.array(values, pa.string() if values.dtype == object else None) for column, values in columns.items()
    }
    pq.write_table(pa.table(arrays), folder / f"{name}.parquet", compression="snappy", write_page_checksum=True)


def _load(folder: Path, name: str) -> dict[str, np.ndarray]:
    table = pq.read_table(folder / f"{name}.parquet", page_checksum_verification=True)
    return {column: table.column(column).to_numpy() for column in table.column_names}


def _lookup(folder: Path, table: RawTable, key: str) -> LookupTable:
    columns = _load(folder, table.name)
    return LookupTable(columns.pop(key), columns)
