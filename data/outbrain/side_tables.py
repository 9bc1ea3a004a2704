"""The in-memory tables that clicks are joined with: ads, documents, and the documents' tags."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import DataError
from data.outbrain.raw_tables import META, PROMOTED, TAG_TABLES, RawTable, find_raw, read_blocks, require_raw

SIDE_TABLES = (PROMOTED, META, *TAG_TABLES.values())
TAGS = "tags_of_{}"
# Per entry: document, code and confidence, in two orders, plus key and weight. Per tag: value and weight.
ENTRY_BYTES, TAG_BYTES = 2 * 24 + 16, 120
# Names of the files that `SideTables.to_parquet` writes.
FILES = tuple(f"{name}.parquet" for name in (*(table.name for table in SIDE_TABLES), *map(TAGS.format, TAG_TABLES)))

Report = Callable[[str], None]
Table = TypeVar("Table")


@dataclass(frozen=True, eq=False)
class LookupTable:
    """Columns indexed by a unique integer key, for left joins that never change the number of rows.

    Attributes:
        keys: [rows] int64 keys, ascending.
        columns: columns by name, each [rows] int64, or float64 if values are missing (NaN).
    """

    keys: np.ndarray
    columns: Mapping[str, np.ndarray]

    @classmethod
    def build(cls, rows: pa.Table, key: str, path: Path) -> "LookupTable":
        """Build a table by sorting rows by their key.

        Args:
            rows: table of the key and further numeric columns, in file order.
            key: name of the key column.
            path: path of the file that the rows are from, for messages.

        Raises:
            DataError: if a key occurs twice.
        """
        keys = rows.column(key).to_numpy()
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        repeated = np.flatnonzero(keys[1:] == keys[:-1])
        if len(repeated):
            first, second = order[repeated[0]] + 2, order[repeated[0] + 1] + 2
            raise DataError(
                f"{path}, line {second}: {key} {keys[repeated[0]]} occurs again, after line {first} "
                f"({len(repeated)} such lines in total); joined rows would be doubled, keep one of them"
            )
        others = [name for name in rows.column_names if name != key]
        return cls(keys, {name: _numbers(rows.column(name))[order] for name in others})

    def find(self, wanted: np.ndarray) -> np.ndarray:
        """Return the rows of [n] keys, [n] int64; -1 for unknown keys and NaN."""
        return find_sorted(self.keys, wanted)

    def gather(self, wanted: np.ndarray, suffix: str = "") -> pd.DataFrame:
        """Return the columns at the given keys, [n] float64; NaN if the key or the value is missing.

        Args:
            wanted: [n] keys, possibly NaN.
            suffix: suffix to add to the column names.
        """
        rows = self.find(wanted)
        known = rows >= 0
        gathered = {}
        for name, column in self.columns.items():
            values = np.full(len(rows), np.nan)
            values[known] = column[rows[known]]
            gathered[name + suffix] = values
        return pd.DataFrame(gathered)


def find_sorted(ascending: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the positions of values in an ascending array of distinct values, [n] int64; -1 if absent."""
    if not len(ascending):
        return np.full(len(wanted), -1)
    # searchsorted returns len(ascending) for values above the last one, and for NaN.
    positions = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    return np.where(ascending[positions] == wanted, positions, -1)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ms")).cast(pa.int64())
    return column.to_numpy()


@dataclass(frozen=True, eq=False)
class DocumentTags:
    """One kind of document tags (categories, topics or entities), as (document, tag, confidence) entries.

    Attributes:
        documents: [entries] int64 document ids, ascending; the tags of a document keep the order of the file.
        codes: [entries] int64 indices into `values`.
        confidences: [entries] float64 confidence of each entry.
        values: [size] int64 or strings: all tags.
        idf: [size] float64 inverse document frequency ln(N / number of entries with the tag), where N is the largest
            document id plus 1, as published (the textbook's N is the number of documents).
    """

    documents: np.ndarray
    codes: np.ndarray
    confidences: np.ndarray
    values: np.ndarray
    idf: np.ndarray

    @classmethod
    def fit(cls, documents: np.ndarray, tags: np.ndarray, confidences: np.ndarray) -> "DocumentTags":
        """Fit the tags and their weights.

        Args:
            documents: [entries] int64 document ids, not negative (see `check_tags`).
            tags: [entries] int64 tags or strings.
            confidences: [entries] float64, finite and not negative (see `check_tags`).
        """
        codes, values = pd.factorize(tags, sort=True)
        idf = np.log((documents.max() + 1) / np.bincount(codes, minlength=len(values)))
        return cls._sorted(documents, codes, confidences, np.asarray(values), idf)

    def with_entries(self, documents: np.ndarray, tags: np.ndarray, confidences: np.ndarray) -> "DocumentTags":
        """Return other entries with the fitted tag weights; tags that are new get weight 0."""
        new = pd.Index(np.unique(tags)).difference(pd.Index(self.values))
        values = np.concatenate([self.values, np.asarray(new, self.values.dtype)])
        codes = pd.Index(values).get_indexer(pd.Index(tags))
        return self._sorted(documents, codes, confidences, values, np.append(self.idf, np.zeros(len(new))))

    @classmethod
    def _sorted(
        cls, documents: np.ndarray, codes: np.ndarray, confidences: np.ndarray, values: np.ndarray, idf: np.ndarray
    ) -> "DocumentTags":
        order = np.argsort(documents, kind="stable")
        return cls(documents[order], codes[order].astype(np.int64), confidences[order], values, idf)

    def by_confidence(self) -> "DocumentTags":
        """Return the same entries, with those of a document by descending confidence (ties in file order)."""
        order = np.lexsort((-self.confidences, self.documents))
        return DocumentTags(self.documents[order], self.codes[order], self.confidences[order], self.values, self.idf)

    def lists(self, documents: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the first tags of documents.

        Args:
            documents: [n] document ids; unknown ids and NaN have no tags.
            most: maximum number of tags per document.

        Returns:
            [tags] codes of all documents, concatenated, and the [n] number of tags of each document.
        """
        begin = np.searchsorted(self.documents, documents, side="left")
        end = np.searchsorted(self.documents, documents, side="right")
        lengths = np.minimum(end - begin, most)
        return self.codes[_ranges(begin, lengths)], lengths

    def similarity(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return the cosine similarity of the tf-idf weights of pairs of documents; 0 if one has no tags.

        The weight of a tag is confidence * idf, scaled so that the weights of a document have norm 1. As published,
        the weights of a tag that occurs twice in a document are added up only after scaling.

        Args:
            first, second: [n] document ids.

        Returns:
            [n] float64 similarities.
        """
        keys, weights = self._weights
        size, number = len(self.values), len(self._distinct)
        left, right = find_sorted(self._distinct, first), find_sorted(self._distinct, second)
        known = (left >= 0) & (right >= 0)
        # Pairs of documents repeat a lot, so each distinct pair is computed once.
        codes, pairs = pd.factorize(left[known] * number + right[known])
        left, right = pairs // number, pairs % number
        begin, end = np.searchsorted(keys, left * size), np.searchsorted(keys, (left + 1) * size)
        entries = _ranges(begin, end - begin)
        pair = np.repeat(np.arange(len(pairs)), end - begin)
        # Look up each tag of the left document among the right one's; position -1 (absent) takes the weight 0.
        positions = find_sorted(keys, right[pair] * size + keys[entries] % size)
        products = weights[entries] * np.append(weights, 0.0)[positions]
        cosines = np.zeros(len(first))
        cosines[known] = np.bincount(pair, weights=products, minlength=len(pairs))[codes]
        return cosines

    @cached_property
    def _distinct(self) -> np.ndarray:
        """[documents] int64 distinct document ids, ascending."""
        return np.unique(self.documents)

    @cached_property
    def _weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Distinct ascending keys (index of the document * number of tags + code), and the weight of each."""
        row = np.searchsorted(self._distinct, self.documents)
        weights = self.confidences * self.idf[self.codes]
        lengths = np.sqrt(np.bincount(row, weights=weights**2, minlength=len(self._distinct)))
        weights = np.divide(weights, lengths[row], out=np.zeros_like(weights), where=lengths[row] > 0)
        keys, positions = np.unique(row * len(self.values) + self.codes, return_inverse=True)
        return keys, np.bincount(positions, weights=weights, minlength=len(keys))


def check_tags(path: Path, documents: np.ndarray, confidences: np.ndarray) -> None:
    """Check the [entries] documents and confidences of a file of tags, in file order.

    Raises:
        DataError: if a confidence is negative or not finite, or a document id is negative, naming the line.
    """
    for name, values, wrong in (
        ("document_id", documents, documents < 0),
        ("confidence_level", confidences, ~(np.isfinite(confidences) & (confidences >= 0))),
    ):
        if wrong.any():
            row = int(np.argmax(wrong))
            raise DataError(
                f"{path}, line {row + 2}: {name} is {values[row]}, expected a finite number of at least 0; correct it"
            )


def _ranges(begin: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenate the ranges [begin[i], begin[i] + lengths[i]): [sum of lengths] int64."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(begin - (ends - lengths), lengths)


@dataclass(frozen=True, eq=False)
class SideTables:
    """Tables of ads and documents.

    Attributes:
        promoted: document_id, campaign_id and advertiser_id, by ad_id.
        meta: source_id, publisher_id and publish_time (milliseconds since the Unix epoch), by document_id.
        tags: tags of documents by kind: categories, topics and entities.
    """

    promoted: LookupTable
    meta: LookupTable
    tags: Mapping[str, DocumentTags]

    @classmethod
    def read(
        cls, folder: Path, report: Report, *, fill_publishers: bool, fitted: "SideTables | None" = None
    ) -> "SideTables":
        """Read the raw tables.

        Args:
            folder: folder with the side tables.
            report: callback that takes lines of progress.
            fill_publishers: whether to give each document without a publisher its own one, as published.
            fitted: tables to use where the folder has none; the weights of tags stay as in these. None requires the
                folder to have all of them.

        Raises:
            DataError: if a file is missing or invalid.
        """
        if fitted is None:
            require_raw(folder, SIDE_TABLES)

        def read(table: RawTable, known: Table | None, build: Callable[[Path, pa.Table], Table]) -> Table:
            if known is not None and find_raw(folder, table) is None:
                return known
            path = require_raw(folder, [table])[table.name]
            rows = pa.concat_tables(read_blocks(path, table)).combine_chunks()
            report(f"read {path.name}: {rows.num_rows:,} rows")
            return build(path, rows)

        def documents(path: Path, rows: pa.Table) -> LookupTable:
            return LookupTable.build(_with_publishers(rows) if fill_publishers else rows, "document_id", path)

        tags = {}
        for kind, table in TAG_TABLES.items():
            known = fitted.tags[kind] if fitted else None
            tags[kind] = read(table, known, partial(_build_tags, known))
        promoted = read(
            PROMOTED, fitted.promoted if fitted else None, lambda path, rows: LookupTable.build(rows, "ad_id", path)
        )
        return cls(promoted, read(META, fitted.meta if fitted else None, documents), tags)

    @property
    def memory_bytes(self) -> int:
        """Approximate bytes that the tables take in a process, including derived weights and the texts of tags."""
        lookups = [array for table in (self.promoted, self.meta) for array in (table.keys, *table.columns.values())]
        entries = sum(len(tags.documents) for tags in self.tags.values())
        distinct = sum(len(tags.values) for tags in self.tags.values())
        return sum(array.nbytes for array in lookups) + entries * ENTRY_BYTES + distinct * TAG_BYTES

    def to_parquet(self, folder: Path) -> None:
        """Write one file per table, and one with the distinct tags of each kind, to an existing folder."""
        for table, lookup, key in ((PROMOTED, self.promoted, "ad_id"), (META, self.meta, "document_id")):
            _write(folder, table.name, {key: lookup.keys, **lookup.columns})
        for kind, tags in self.tags.items():
            entries = {"document_id": tags.documents, "code": tags.codes, "confidence": tags.confidences}
            _write(folder, TAG_TABLES[kind].name, entries)
            _write(folder, TAGS.format(kind), {"value": tags.values, "idf": tags.idf})

    @classmethod
    def from_parquet(cls, folder: Path) -> "SideTables":
        """Read what `to_parquet` wrote."""
        tags = {}
        for kind, table in TAG_TABLES.items():
            entries, distinct = _load(folder, table.name), _load(folder, TAGS.format(kind))
            columns = (entries["document_id"], entries["code"], entries["confidence"])
            tags[kind] = DocumentTags(*columns, distinct["value"], distinct["idf"])
        promoted, meta = _load(folder, PROMOTED.name), _load(folder, META.name)
        return cls(LookupTable(promoted.pop("ad_id"), promoted), LookupTable(meta.pop("document_id"), meta), tags)


@lru_cache(maxsize=1)
def load_side_tables(folder: Path) -> SideTables:
    """Return `SideTables.from_parquet(folder)`, cached per process for the latest folder."""
    return SideTables.from_parquet(folder)


def _build_tags(fitted: DocumentTags | None, path: Path, rows: pa.Table) -> DocumentTags:
    documents, tags, confidences = (column.to_numpy() for column in rows.columns)
    check_tags(path, documents, confidences)
    return (DocumentTags.fit if fitted is None else fitted.with_entries)(documents, tags, confidences)


def _with_publishers(rows: pa.Table) -> pa.Table:
    """Give missing publishers the numbers from the largest one plus 2 on, as published."""
    publisher = rows.column("publisher_id").to_numpy().astype(np.float64)
    missing = np.isnan(publisher)
    largest = 0.0 if missing.all() else np.nanmax(publisher)
    publisher[missing] = largest + 1 + np.arange(1, missing.sum() + 1)
    index = rows.column_names.index("publisher_id")
    return rows.set_column(index, "publisher_id", pa.array(publisher.astype(np.int64)))


def _write(folder: Path, name: str, columns: Mapping[str, np.ndarray]) -> None:
    arrays = {
        column: pa.array(values, pa.string() if values.dtype == object else None) for column, values in columns.items()
    }
    pq.write_table(pa.table(arrays), folder / f"{name}.parquet", compression="snappy", write_page_checksum=True)


def _load(folder: Path, name: str) -> dict[str, np.ndarray]:
    table = pq.read_table(folder / f"{name}.parquet", page_checksum_verification=True)
    return {column: table.column(column).to_numpy() for column in table.column_names}
