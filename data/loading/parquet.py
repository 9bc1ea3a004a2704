"""Decode the rows of a mapping from parquet, row group by row group."""

import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import DataError, LostInputError, listed, nearest
from data.files.parquet import ChunkChecksums, arrow_file, ranges_of, read_footer
from data.loading.batch import (
    ITEM_BYTES,
    Batch,
    by_column,
    bytes_per_row,
    column_bytes_per_row,
    copy_columns,
    empty_batch,
    slice_rows,
    vector_columns,
)
from data.loading.decode import (
    BatchColumn,
    Decoded,
    DecodedLists,
    Location,
    OovPolicy,
    batch_columns,
    decode_column,
    extra_dtype,
)
from data.loading.identity import DataIdentity
from data.loading.lists import join_rows
from data.spec.columns import ALIGNMENTS
from data.spec.feature_spec import FeatureSpec
from data.spec.features import Chunk
from data.storage.files import is_of_system, open_regular
from data.storage.range_cache import forget_ranges, open_ranges
from data.storage.remote import RemoteError, RemoteFile, stat, url_of

FOOTER_THREADS = 8
PROBLEMS_SHOWN = 20
MOST_ROWS = 2**31 - 1  # per row group, since row permutations are int32
# Exceptions that reading a damaged file is known to raise.
READ_ERRORS = (OSError, pa.ArrowException, ValueError, MemoryError)


@dataclass(frozen=True)
class ParquetFile:
    """A parquet file as described by its footer.

    Attributes:
        path: path of the file.
        metadata: parsed footer.
        schema: Arrow schema of the columns.
        stamp: size in bytes and modification time (ns) when the footer was read.
        checksums: checksums of the column chunks, or None if the file has none.
        sha256: checksum of the footer and of `checksums`, hexadecimal.
        remote: the object in a store of which `path` is the mirror, or None if the file is local.
    """

    path: Path
    metadata: pq.FileMetaData
    schema: pa.Schema
    stamp: tuple[int, int]
    checksums: ChunkChecksums | None
    sha256: str
    remote: RemoteFile | None = None

    @classmethod
    def open(cls, path: Path) -> "ParquetFile":
        """Open a file by reading its footer; that of an object in a store, if the path lies in its mirror.

        Raises:
            DataError: if the file does not exist or is not valid parquet, or the store cannot be read.
            LostInputError: if the object was replaced in the meantime.
        """
        url = url_of(path)
        try:
            remote = None if url is None else stat(url)
            stamp = _stamp(path.stat()) if remote is None else (remote.size, remote.modified_ns)
            metadata, checksums, sha256 = read_footer(path, remote)
            opened = cls(path, metadata, metadata.schema.to_arrow_schema(), stamp, checksums, sha256, remote)
            opened.row_group_rows()
            return opened
        except (DataError, LostInputError):
            raise
        except FileNotFoundError as error:
            raise DataError(f"{path}: no such file; the feature specification lists it in source_spec") from error
        except READ_ERRORS as error:
            raise DataError(
                f"{url or path}: cannot be read as parquet ({_first_line(error)}); write it again"
            ) from error

    def row_group_rows(self) -> list[int]:
        """Return the number of rows of each row group."""
        return row_group_rows(self.metadata)

    def column_bytes(self, row_group: int, name: str) -> int:
        """Return the uncompressed bytes of a column of numbers or lists; 0 for text, whose size the footer lacks."""
        stored = self.schema.field(name).type
        item = getattr(stored, "value_type", stored)
        if not pa.types.is_primitive(item):
            return 0
        chunks = self.metadata.row_group(row_group)
        # A list column is stored under a nested path such as NAME.list.element, hence the comparison by prefix.
        found = [chunks.column(index) for index in range(chunks.num_columns)]
        values = sum(chunk.num_values for chunk in found if f"{chunk.path_in_schema}.".startswith(f"{name}."))
        return values * item.bit_width // 8

    def list_values(self, name: str) -> np.ndarray:
        """Return the number of values in the lists of a column, [row_groups] int64; an empty list counts as one."""
        paths = [self.metadata.schema.column(index).path for index in range(self.metadata.num_columns)]
        # A list column is stored under a nested path such as NAME.list.element.
        found = [index for index, path in enumerate(paths) if path.startswith(f"{name}.")]
        groups = (self.metadata.row_group(number) for number in range(self.metadata.num_row_groups))
        return np.array([sum(group.column(index).num_values for index in found) for group in groups], np.int64)

    def fetch(self, row_group: int, columns: Sequence[str]) -> None:
        """Download what `read` needs into the local cache, if the file is remote. Raise as `read` does."""
        if self.remote is not None:
            with self._opened(row_group, columns):
                pass

    def stored_bytes(self, row_group: int, columns: Sequence[str]) -> int:
        """Return the bytes that `fetch` downloads; 0 for a local file."""
        if self.remote is None:
            return 0
        return sum(stop - start for start, stop in ranges_of(self.remote, self.metadata, row_group, columns))

    def read(self, row_group: int, columns: Sequence[str]) -> Iterator[tuple[str, pa.ChunkedArray]]:
        """Yield columns of a row group by name, and verify checksums: those of the column chunks, or else of the pages.

        They are read one by one: a column that is used and dropped leaves its memory, still in the cache, to the next.

        Raises:
            DataError: if the file is damaged.
            LostInputError: if the file is gone, unreadable, or has changed since its footer was read.
        """
        left = list(columns)
        try:
            for named in self._read(row_group, columns):
                left.pop(0)
                yield named
        except DataError:
            if self.remote is None:
                raise
            # The copy on the local disk may be damaged, and the object in the store not.
            forget_ranges(self.remote, ranges_of(self.remote, self.metadata, row_group, columns))
            yield from self._read(row_group, left)

    def _read(self, row_group: int, columns: Sequence[str]) -> Iterator[tuple[str, pa.ChunkedArray]]:
        where = f"{self.remote.url if self.remote else self.path}, row group {row_group}"
        try:
            # Not memory-mapped: on a disk failure, a read raises, but access to a mapping kills the process (SIGBUS).
            # Those of the chunks cover everything that page checksums do.
            verifies_pages = self.checksums is None
            with self._opened(row_group, columns) as file, arrow_file(file) as source:
                if self.checksums is not None:
                    self.checksums.check_in(file, row_group, columns)
                with pq.ParquetFile(source, metadata=self.metadata, page_checksum_verification=verifies_pages) as rows:
                    for name in columns:
                        # No Arrow threads: the loader already decodes row groups in parallel.
                        table = rows.read_row_group(row_group, columns=[name], use_threads=False)
                        if table.num_rows != self.metadata.row_group(row_group).num_rows:
                            raise DataError(f"{where}: its rows differ from its footer; write it again")
                        yield name, table.column(name)
        except (DataError, LostInputError):
            raise
        except READ_ERRORS as error:
            if isinstance(error, OSError) and is_of_system(error):
                raise LostInputError(f"{where}: can no longer be read ({_first_line(error)})") from error
            if isinstance(error, MemoryError):
                raise DataError(
                    f"{where}: does not fit into memory; rewrite the file with smaller row groups"
                ) from error
            raise DataError(
                f"{where}: cannot be decoded ({_first_line(error)}): the file is damaged; restore it, or write it again"
            ) from error

    @contextmanager
    def _opened(self, row_group: int, columns: Sequence[str]) -> Iterator[BinaryIO]:
        """Open the file, or a local one that holds these columns of the object at their places."""
        if self.remote is None:
            with open_regular(self.path) as file:
                if _stamp(os.fstat(file.fileno())) != self.stamp:
                    raise LostInputError(f"{self.path}: was changed while it was in use; start again")
                yield file
            return
        try:
            opened = open_ranges(self.remote, ranges_of(self.remote, self.metadata, row_group, columns))
        except RemoteError as error:  # the store could be read before
            raise LostInputError(str(error)) from error
        with opened as file:
            yield file


class ColumnGroup:
    """One chunk of a mapping: a set of columns, stored in consecutive files.

    Args:
        files: files of the chunk, in row order.
        columns: columns to decode.

    Attributes:
        files: files of the chunk, in row order.
        columns: columns to decode.
        columns_of: the same by name; an extra column can also be a feature.
        rows: total number of rows in the files.
        starts: [row groups] int64 first row of each row group in the dataset; empty row groups are left out.
        sizes: [row groups] int64 number of rows of each row group.
    """

    def __init__(self, files: Sequence[ParquetFile], columns: Sequence[BatchColumn]):
        self.files = tuple(files)
        self.columns = tuple(columns)
        self.columns_of: dict[str, list[BatchColumn]] = {}
        for column in columns:
            self.columns_of.setdefault(column.name, []).append(column)
        rows = [file.row_group_rows() for file in self.files]
        counts = np.array([len(groups) for groups in rows], np.int64)
        sizes = np.array([size for groups in rows for size in groups], np.int64)
        ends = np.cumsum(sizes)
        file_starts = np.concatenate([[0], np.cumsum([sum(groups) for groups in rows])])
        filled = sizes > 0
        self.rows = int(file_starts[-1])
        self.sizes, self.starts = sizes[filled], (ends - sizes)[filled]
        self._file = np.repeat(np.arange(len(self.files)), counts)[filled]
        self._row_group = np.concatenate([np.arange(count) for count in counts])[filled]
        self._file_start = file_starts[self._file]

    def read(self, begin: int, end: int) -> Iterator[tuple[range, Iterator[tuple[str, pa.ChunkedArray]]]]:
        """Yield the rows [begin, end) of the dataset, row group by row group: which rows, and their columns by name.

        Raises:
            DataError: if a file is damaged.
            LostInputError: if a file is gone, unreadable, or has changed since its footer was read.
        """
        for index in self._overlapping(begin, end):
            start = int(self.starts[index])
            low, high = max(begin, start), min(end, start + int(self.sizes[index]))
            file, row_group = self.files[self._file[index]], int(self._row_group[index])
            columns = file.read(row_group, list(self.columns_of))
            yield range(low, high), ((name, column.slice(low - start, high - low)) for name, column in columns)

    def fetch(self, begin: int, end: int) -> None:
        """Download the row groups of the rows [begin, end) into the local cache, unless they are local files."""
        for index in self._overlapping(begin, end):
            self.files[self._file[index]].fetch(int(self._row_group[index]), list(self.columns_of))

    def stored_bytes(self) -> int:
        """Return the bytes that `fetch` downloads of the longest row group."""
        longest = int(np.argmax(self.sizes))
        return self.files[self._file[longest]].stored_bytes(int(self._row_group[longest]), list(self.columns_of))

    def _overlapping(self, begin: int, end: int) -> range:
        first = int(np.searchsorted(self.starts, begin, side="right")) - 1
        return range(first, int(np.searchsorted(self.starts, end, side="left")))

    def widest_column_bytes(self) -> int:
        """Return the uncompressed bytes of the largest column to decode in the longest row group."""
        longest = int(np.argmax(self.sizes))
        file, row_group = self.files[self._file[longest]], int(self._row_group[longest])
        return max((file.column_bytes(row_group, name) for name in self.columns_of), default=0)

    def values_per_row(self, column: BatchColumn) -> float:
        """Return an upper bound of the mean length of a column's lists in any row group, after the cut."""
        counts = np.concatenate([file.list_values(column.name) for file in self.files])
        sizes = np.concatenate([file.row_group_rows() for file in self.files])
        return min(float(np.max(counts / np.maximum(sizes, 1))), column.longest or 0)

    def location(self, row: int) -> Location:
        """Return where a row of the dataset is stored."""
        index = int(np.searchsorted(self.starts, row, side="right")) - 1
        path = self.files[self._file[index]].path
        return Location(path, int(self._row_group[index]), row - int(self._file_start[index]))


def open_files(paths: Sequence[Path]) -> list[ParquetFile]:
    """Read the footers of many files in parallel.

    Raises:
        DataError: if a file does not exist or is not valid parquet; names the first such file.
    """
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        return list(pool.map(ParquetFile.open, paths))


def row_group_rows(metadata: pq.FileMetaData) -> list[int]:
    """Return the number of rows of each row group of a footer.

    Raises:
        ValueError: if they do not add up to the rows of the file, or a row group has more than MOST_ROWS.
    """
    rows = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
        raise ValueError("its row groups do not add up")
    if max(rows, default=0) > MOST_ROWS:
        raise ValueError(f"a row group of {max(rows):,} rows; expected at most {MOST_ROWS:,}")
    return rows


def column_problems(file: ParquetFile, columns: Sequence[BatchColumn]) -> Iterator[str]:
    """Yield a message for each column that the file lacks, has twice, or stores in an unsuitable type."""
    for column in columns:
        indices = file.schema.get_all_field_indices(column.name)
        if len(indices) != 1:
            found = "twice" if indices else f"not among {listed(file.schema.names, len(file.schema.names))}"
            yield f"{file.path}: column {column.name!r} is {found}; expected once, as {column.expected_type}"
            continue
        stored = file.schema.field(indices[0]).type
        if not column.accepts(stored):
            yield (
                f"{file.path}: column {column.name!r} is stored as {stored}, expected {column.expected_type}; "
                "cast it and write the file again, or move it to another channel"
            )


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


class ParquetReader:
    """Opens the files of a mapping and decodes ranges of their rows.

    Its row groups are those of the column group with the fewest. Where another column group is split differently, its
    overlapping row groups are read along with each of them. All methods are thread-safe.

    Args:
        spec: feature specification of the dataset.
        mapping: name of the mapping to read.
        with_group: whether to decode the map feature.
        extra_columns: names of further columns to decode, whether or not they are features.
        needs_labels: whether labels and sample weights are required. If False, absent or null labels are NaN and
            all sample weights are 1.
        oov_policy: how to handle ids outside [0, cardinality): "error", "unseen" (use the feature's `unseen_id`; an
            error if it states none), "clip" (use the nearest valid id) or "drop" (clip, and set the weight of the row
            to 0).

    Attributes:
        rows: number of rows in the mapping.
        row_group_rows: [row_groups] int64 number of rows of each row group, all positive.
        identity: what identifies the rows and their order.

    Raises:
        DataError: if a file is missing or damaged, a column is missing or has the wrong type, the column groups
            differ in length, or there are no rows.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        mapping: str,
        *,
        with_group: bool = False,
        extra_columns: Sequence[str] = (),
        needs_labels: bool = True,
        oov_policy: OovPolicy = "error",
    ):
        self._spec, self._with_group, self._oov_policy = spec, with_group, oov_policy
        self._converting = threading.Lock()
        chunks = spec.chunks(mapping)
        if any(chunk.type != "parquet" for chunk in chunks):
            raise DataError(f"mapping {mapping!r} is in CSV files; turn them into parquet with transcode.py first")
        if with_group and spec.map_feature is None:
            raise DataError("the map channel of the feature specification is empty, so there are no groups to read")
        files = iter(open_files(spec.files(mapping)))
        chunk_files = [[next(files) for _ in chunk.files] for chunk in chunks]
        columns = batch_columns(spec, with_group=with_group, extra_columns=extra_columns, oov_policy=oov_policy)
        if not needs_labels:
            columns = _without_needed_labels(columns, chunks)
        columns = _without_served(columns, chunks, is_served=not needs_labels)
        fields = [column.field for column in columns]
        self._lacks_labels = fields.count("labels") < len(spec.labels)
        self._lacks_weights = "weights" not in fields
        held = {column.name for column in columns}
        self._served = [
            (slot, feature.serve) for slot, feature in enumerate(spec.training_only) if feature.name not in held
        ]
        assigned = _assign(columns, chunks, chunk_files, mapping)
        self._groups = [ColumnGroup(*group) for group in zip(chunk_files, assigned, strict=True)]
        _check_columns(self._groups)
        self._extra_dtypes = _extra_dtypes(self._groups, len(extra_columns))
        self._vector_dtype = _vector_dtype(self._groups)
        self.rows = _common_rows(self._groups, mapping)
        # The coarsest division: finer row groups of the others mostly fall within one of them, and are read once.
        coarsest = min(self._groups, key=lambda group: len(group.starts))
        self.row_group_rows, self._row_group_starts = coarsest.sizes, coarsest.starts
        self.identity = _identity(chunk_files, self.rows)

    @cached_property
    def _bytes_by_list(self) -> dict[str, int]:
        """Bytes per row of each feature with lists, in the row group with the most of them per row.

        The ids and the weights of a multi-hot feature are taken together.
        """
        lists = ((group, column) for group in self._groups for column in group.columns if column.longest is not None)
        own = {column.name: math.ceil(ITEM_BYTES * group.values_per_row(column)) for group, column in lists}
        lists_of = {feature.name: [feature.name] for feature in self._spec.id_lists + self._spec.sequence_numbers}
        for feature, weights in zip(self._spec.weighted, self._spec.list_weights, strict=True):
            lists_of[feature.name].append(weights.name)
        return {name: sum(own[each] for each in names) for name, names in lists_of.items()}

    @property
    def list_bytes(self) -> int:
        """Bytes per row of the values of all lists, in the row groups that have the most of them per row."""
        return sum(self._bytes_by_list.values())

    @property
    def row_bytes(self) -> int:
        """Bytes per row of a batch for the model: of its arrays, of lengths of lists, and `list_bytes`."""
        fixed = bytes_per_row(self._spec, with_group=self._with_group, extra_dtypes=self._extra_dtypes)
        return fixed + self.list_bytes

    @property
    def buffer_row_bytes(self) -> int:
        """The same as `row_bytes`, for what `allocate` returns."""
        narrower = np.dtype(np.float32).itemsize - np.dtype(self._vector_dtype).itemsize
        return self.row_bytes - narrower * vector_columns(self._spec)

    @property
    def widest_list(self) -> tuple[str, int]:
        """Name of the feature with the largest lists, with its weights, and its part of `list_bytes`, or ("", 0)."""
        return max(self._bytes_by_list.items(), key=lambda entry: entry[1], default=("", 0))

    @property
    def longest_row_group(self) -> tuple[Location, int]:
        """Location of the longest row group, and its number of rows."""
        group = max(self._groups, key=lambda group: int(group.sizes.max()))
        longest = int(np.argmax(group.sizes))
        return group.location(int(group.starts[longest])), int(group.sizes[longest])

    @property
    def row_group_bytes(self) -> int:
        """Bytes that decoding the longest row group takes: its matrices, and one column after the other."""
        matrices = column_bytes_per_row(self._spec) * int(self.row_group_rows.max())
        # A column is dropped when the next one has been read.
        return matrices + 2 * max(group.widest_column_bytes() for group in self._groups)

    @property
    def remote_bytes(self) -> int:
        """Bytes that `fetch` downloads of the longest row groups; 0 if all files are local."""
        return sum(group.stored_bytes() for group in self._groups if group.columns)

    def fetch(self, row_group: int, start: int, stop: int) -> None:
        """Download what `decode` needs into the local cache, unless the files are local.

        Raises:
            DataError: if the limit of the cache is less than a row group.
            LostInputError: if an object is gone, unreadable, or has changed since its footer was read.
        """
        begin, end = (int(self._row_group_starts[row_group]) + row for row in (start, stop))
        for group in self._groups:
            if group.columns:
                group.fetch(begin, end)

    def allocate(self, rows: int) -> Batch:
        """Allocate a buffer of `rows` rows with undefined contents for `decode`, whose vectors may be float16."""
        return self._empty(rows, self._vector_dtype)

    def allocate_batch(self, rows: int) -> Batch:
        """Allocate a batch of `rows` rows with undefined contents for the model; see `Batch`."""
        return self._empty(rows, np.float32)

    def _empty(self, rows: int, vector_dtype: type[np.floating]) -> Batch:
        group, extra = self._with_group, self._extra_dtypes
        return empty_batch(self._spec, rows, with_group=group, extra_dtypes=extra, vector_dtype=vector_dtype)

    def decode(self, row_group: int, start: int, stop: int, out: Batch) -> Decoded:
        """Decode the rows [start, stop) of a row group into `out`.

        Args:
            row_group: index into `row_group_rows`.
            start: first row within the row group.
            stop: end of the rows within the row group.
            out: batch of stop - start rows to write everything but lists to.

        Returns:
            The lists, which of them were cut, and the ids that were replaced, with row numbers relative to `out`.

        Raises:
            DataError: if a file is damaged, a value is out of range, a list has more or fewer ids than weights or the
                lists of a sequence differ in length, naming file, row group, row and column.
        """
        begin, end = (int(self._row_group_starts[row_group]) + row for row in (start, stop))
        out.rows[:] = np.arange(begin, end)
        if self._lacks_weights:
            out.weights[:] = 1
        columns = by_column(out)
        if self._lacks_labels:
            columns.labels[:] = np.nan
        for slot, value in self._served:
            columns.training_only[:, slot] = value
        lists: dict[str, list[DecodedLists]] = {}
        replaced: dict[str, np.ndarray] = {}
        for column, rows, decoded, bad_rows in self._decoded(begin, end, columns):
            if decoded is not None:
                lists.setdefault(column.name, []).append(decoded)
            if len(bad_rows):
                earlier = replaced.get(column.name, bad_rows[:0])
                replaced[column.name] = np.concatenate([earlier, bad_rows + rows.start - begin])
        copy_columns(columns, out)
        if self._oov_policy == "drop":
            # After all column groups, since decoding the one with the weights overwrites them.
            for bad_rows in replaced.values():
                out.weights[bad_rows] = 0
        whole = {name: np.concatenate([part.lengths for part in parts]) for name, parts in lists.items()}
        self._check_lengths(begin, whole)
        ids, numbers = (
            [join_rows([part.lists for part in lists[feature.name]]) for feature in features]
            for features in (self._spec.id_lists, self._spec.number_lists)
        )
        # Numbers are cut with their ids.
        cut = {feature.name: sum(part.cut for part in lists[feature.name]) for feature in self._spec.id_lists}
        return Decoded(ids, numbers, cut, replaced)

    def _decoded(
        self, begin: int, end: int, out: Batch
    ) -> Iterator[tuple[BatchColumn, range, DecodedLists | None, np.ndarray]]:
        """Decode the rows [begin, end) of the dataset; yield what `decode_column` returns, of which column and rows."""
        for group in self._groups:
            for rows, stored in group.read(begin, end) if group.columns else ():
                location, part = group.location(rows.start), slice_rows(out, rows.start - begin, rows.stop - begin)
                for name, array in stored:
                    for column in group.columns_of[name]:
                        # One thread at a time: several threads of short NumPy calls would contend for the interpreter
                        # lock. Arrow releases it, so reading parquet (`stored`) stays parallel.
                        with self._converting:
                            decoded = decode_column(column, array, location, part)
                        yield column, rows, *decoded

    def _check_lengths(self, begin: int, lengths: Mapping[str, np.ndarray]) -> None:
        """Raise a DataError if lists that belong together differ in length, before the cut; rows count from `begin`."""
        for column in (stored.feature for group in self._groups for stored in group.columns):
            if column is None or column.kind not in ALIGNMENTS or column.aligned_with is None:
                continue
            name, other, words = column.name, column.aligned_with.name, ALIGNMENTS[column.kind]
            if np.array_equal(lengths[name], lengths[other]):
                continue
            wrong = np.flatnonzero(lengths[name] != lengths[other])
            first, row = int(wrong[0]), begin + int(wrong[0])
            there, here = self.location(other, row), self.location(name, row)
            elsewhere = "" if here == there else f" in row {here.first_row} of {here.path}"
            raise DataError(
                f"{there.path}, row group {there.row_group}: {len(wrong)} rows have {words.what}, the first of them "
                f"row {there.first_row} of the file: {lengths[other][first]} {words.others} in column {other!r}, "
                f"{lengths[name][first]} {words.items} in column {name!r}{elsewhere}; expected {words.expected}: write "
                "both lists again. check_dataset.py lists all such rows."
            )

    def location(self, column: str, row: int) -> Location:
        """Return the file, row group and row within the file that store a decoded column at a row of the dataset."""
        return next(
            group.location(row) for group in self._groups if any(stored.name == column for stored in group.columns)
        )


def _assign(
    columns: Sequence[BatchColumn], chunks: Sequence[Chunk], chunk_files: list[list[ParquetFile]], mapping: str
) -> list[list[BatchColumn]]:
    """Assign each column to the chunk that stores it; an extra column need not be in the specification."""
    assigned: list[list[BatchColumn]] = [[] for _ in chunks]
    owners = {name: index for index, chunk in reversed(list(enumerate(chunks))) for name in chunk.features}
    for column in columns:
        owner = owners.get(column.name)
        if owner is None and column.field == "extra":
            found = (index for index, files in enumerate(chunk_files) if files and column.name in files[0].schema.names)
            owner = next(found, None)
        if owner is None:
            fix = "add it to the features of a chunk"
            if column.field == "extra":  # of the files, whether or not they are features
                held = list(dict.fromkeys(name for files in chunk_files if files for name in files[0].schema.names))
                near = nearest(column.name, held)
                fix = f"did you mean {near!r}?" if near else f"it has {', '.join(held)}"
            raise DataError(f"mapping {mapping!r} has no column {column.name!r}; {fix}")
        assigned[owner].append(column)
    return assigned


def _without_needed_labels(columns: Sequence[BatchColumn], chunks: Sequence[Chunk]) -> list[BatchColumn]:
    """Drop the weights and the labels that the mapping lacks, and allow nulls in the labels that it has."""
    held = {name for chunk in chunks for name in chunk.features}
    kept = [column for column in columns if column.field not in ("labels", "weights")]
    labels = [column for column in columns if column.field == "labels" and column.name in held]
    return kept + [replace(label, domain=replace(label.domain, may_miss=True)) for label in labels]


def _without_served(columns: Sequence[BatchColumn], chunks: Sequence[Chunk], *, is_served: bool) -> list[BatchColumn]:
    """Drop the features known only in training if the rows are served, or the mapping lacks them."""
    held = set() if is_served else {name for chunk in chunks for name in chunk.features}
    return [column for column in columns if column.field != "training_only" or column.name in held]


def _check_columns(groups: list[ColumnGroup]) -> None:
    problems = [problem for group in groups for file in group.files for problem in column_problems(file, group.columns)]
    if len(problems) > PROBLEMS_SHOWN:
        problems[PROBLEMS_SHOWN:] = [f"... and {len(problems) - PROBLEMS_SHOWN} more"]
    if problems:
        raise DataError("\n".join(problems))


def _extra_dtypes(groups: list[ColumnGroup], count: int) -> list[np.dtype]:
    dtypes: list[np.dtype] = [np.dtype(object)] * count
    for column, files in ((column, group.files) for group in groups for column in group.columns):
        if column.field != "extra":
            continue
        stored = {file.schema.field(column.name).type: file.path for file in files}
        if len(stored) > 1:
            found = ", ".join(f"{kind} in {path}" for kind, path in stored.items())
            raise DataError(f"column {column.name!r} has several types ({found}); it must have one")
        dtypes[column.slot] = extra_dtype(next(iter(stored)))
    return dtypes


def _vector_dtype(groups: list[ColumnGroup]) -> type[np.floating]:
    """Return the narrowest type that holds the vectors of all files: float16 if all are stored so, else float32."""
    stored = {
        file.schema.field(column.name).type.value_type
        for group in groups
        for column in group.columns
        for file in (group.files if column.field == "vectors" else ())
    }
    return np.float16 if stored == {pa.float16()} else np.float32


def _common_rows(groups: list[ColumnGroup], mapping: str) -> int:
    rows = [group.rows for group in groups]
    if len(set(rows)) > 1:
        found = ", ".join(
            f"{group.rows} in chunk {index} ({group.files[0].path}{', ...' if len(group.files) > 1 else ''})"
            for index, group in enumerate(groups)
        )
        raise DataError(
            f"the chunks of mapping {mapping!r} must have equally many rows, found {found}; write them again"
        )
    if rows[0] == 0:
        raise DataError(f"mapping {mapping!r} has no rows: all its files are empty")
    return rows[0]


def _identity(chunk_files: list[list[ParquetFile]], rows: int) -> DataIdentity:
    newest = max(file.stamp[1] for files in chunk_files for file in files)
    described = [[(file.row_group_rows(), file.sha256) for file in files] for files in chunk_files]
    return DataIdentity.of(described, newest, rows)


class StoredColumns:
    """Reads columns unchanged, without decoding or checking values.

    Args:
        spec: feature specification of the dataset.
        mapping: name of the mapping to read.
        names: distinct names of features in the mapping's chunks.

    Attributes:
        schema: Arrow schema of the columns, in the order of `names`.

    Raises:
        DataError: if the mapping has no such feature, or its files lack it or store it in different types.
    """

    def __init__(self, spec: FeatureSpec, mapping: str, names: Sequence[str]):
        chunks = spec.chunks(mapping)
        held = [name for chunk in chunks for name in chunk.features]
        unknown = [name for name in names if name not in held]
        if unknown:
            near = [found for name in unknown if (found := nearest(name, held))]
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise DataError(f"mapping {mapping!r} has no column {', '.join(unknown)}; it has {', '.join(held)}{hint}")
        self._names = list(names)
        self._groups = []
        fields: dict[str, pa.Field] = {}
        for chunk in chunks:
            wanted = [name for name in names if name in chunk.features]
            if wanted:
                files = open_files([spec.path(file) for file in chunk.files])
                fields |= {name: pa.field(name, _stored_type(files, name)) for name in wanted}
                self._groups.append(ColumnGroup(files, [BatchColumn(name, "extra") for name in wanted]))
        self.schema = pa.schema([fields[name] for name in names])

    def stream(self) -> "ColumnStream":
        """Return a new stream over the columns, starting at the first row."""
        tables = [(pa.table(dict(columns)) for _, columns in group.read(0, group.rows)) for group in self._groups]
        return ColumnStream(tables, self._names)


class ColumnStream:
    """A forward-only stream over columns that reads each row group once.

    Args:
        groups: tables of each column group, in row order.
        names: names of the columns, in the order that `take` returns them.
    """

    def __init__(self, groups: Sequence[Iterator[pa.Table]], names: Sequence[str]):
        self._groups, self._names = list(groups), list(names)
        self._left: list[pa.Table | None] = [None for _ in groups]

    def take(self, rows: int) -> list[pa.ChunkedArray]:
        """Return the next `rows` rows of each column.

        Raises:
            DataError: if a file is damaged.
            LostInputError: if a file is gone, unreadable, or has changed since it was opened.
        """
        columns: dict[str, pa.ChunkedArray] = {}
        for index in range(len(self._groups)):
            table = self._take(index, rows)
            columns |= {name: table.column(name) for name in table.column_names}
        return [columns[name] for name in self._names]

    def _take(self, index: int, rows: int) -> pa.Table:
        parts = []
        # Column groups differ in their row groups, so the unread rest of the current one is kept for each group.
        while True:
            left = self._left[index]
            if left is None:
                left = next(self._groups[index])
            parts.append(left.slice(0, rows))
            rows -= len(parts[-1])
            rest = left.slice(len(parts[-1]))
            self._left[index] = rest if len(rest) else None
            if not rows:
                return pa.concat_tables(parts)


def _stored_type(files: Sequence[ParquetFile], name: str) -> pa.DataType:
    types: dict[pa.DataType, ParquetFile] = {}
    for file in files:
        if file.schema.names.count(name) != 1:
            raise DataError(
                f"{file.path}: column {name!r} must occur once; the file has {', '.join(file.schema.names)}"
            )
        types.setdefault(file.schema.field(name).type, file)
    if len(types) > 1:
        found = ", ".join(f"{kind} in {file.path}" for kind, file in types.items())
        raise DataError(f"column {name!r} is stored as {found}; a kept column must have one type: rewrite the files")
    return next(iter(types))
