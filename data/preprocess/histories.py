"""Columns that are computed from earlier rows of the log: histories and point-in-time counts.

For a row with the values `by` and `order`, only rows of any mapping with the same `by` and a strictly smaller `order`
enter, so that rows of the same time never see each other:

- a history is the list of their `of` values, at most the `last` ones, the most recent last. Rows of equal order follow
  in the order of the files (mapping by mapping). A row without an `of` value does not enter.
- a count is the number of these rows with the same `of` (all of them without `of`) and, with a `window`, with at least
  `order - window`.

With `where`, only the rows that satisfy it enter; every row has a history. It is empty where `by` is null, and a count
is 0 where `by` or `of` is null.

Memory is bounded by a budget: rows are distributed over files by a hash of `by`, these are read one at a time (if a
file is too large, by ranges of `order`), and the results are collected in the order of the rows. Neither the budget nor
the blocks of the staged files change the result.

The state is what new rows need to continue, as a parquet file per column. Going on from it gives the same values as
computing everything at once, if no new row is earlier than the latest row of the same `by` (of the same `by` and `of`
for a count). Otherwise some rows are missing from a history or count, but never is one in it that is not earlier.

history.NAME.parquet    by, of, order of the rows that entered last
count.NAME.parquet      by, of (if the count has it), order, count: number of rows, those before the window aggregated
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.errors import DataError
from data.files.parquet import arrow_file
from data.preprocess.hashing import hash_values, mix
from data.preprocess.splits import ranges
from data.spec.raw_spec import Condition, Count, History
from data.storage.files import reading

# Memory to compute one row of a file, in addition to its values: ranks, permutations and sums of 8 bytes each.
BYTES_PER_ROW = 200
MAX_FILES = 256
# Items of the lists in a batch of the computed columns.
ITEMS_PER_BATCH = 2**20
ROWS_PER_BATCH = 2**16
ROWS_PER_STATE_GROUP = 2**20
ORDERS_SAMPLED = 100_000
BEFORE_ALL_ROWS = -1

POSITION, BY, OF, ORDER, ROWS = "position", "by", "of", "order", "count"
COMPARISONS = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


def add_computed(
    computed: Mapping[str, History | Count],
    staged: Mapping[str, Sequence[Path]],
    folder: Path,
    *,
    memory: int,
    state: Path | None = None,
    new_state: Path | None = None,
    locate: Callable[[Path, int], str] = lambda path, row: f"{path}, row {row}",
) -> dict[str, list[Path]]:
    """Compute histories and counts of staged rows.

    Args:
        computed: {name of the column: what it holds}.
        staged: Arrow IPC files of each mapping, at least one in all, in the order of the rows, with the columns that
            `computed` names. Strings may be dictionary-encoded. Timestamps are integers.
        folder: existing folder to write the computed columns to.
        memory: bytes to use, approximately.
        state: folder with the state of earlier rows, or None.
        new_state: existing folder to write the state after these rows to, or None.
        locate: describes where a row of a staged file came from, for messages.

    Returns:
        Arrow IPC files of each mapping, one for each staged file, with as many rows and the computed columns:
        list<type of `of`> (string where `of` is dictionary-encoded) or int64, never null.

    Raises:
        DataError: if an `order` is null, naming the row, a column holds lists, or the state does not fit the rows.
    """
    files = [_StagedFile.open(path) for paths in staged.values() for path in paths]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        columns = []
        for number, (name, rule) in enumerate(computed.items()):
            parts = Path(scratch) / str(number)
            parts.mkdir()
            column = _Column(name, rule, parts, memory, locate)
            columns.append(column.compute(files, state, new_state))
        written, first = iter([folder / f"computed-{index:06}.arrow" for index in range(len(files))]), 0
        results = {mapping: [next(written) for _ in paths] for mapping, paths in staged.items()}
        for file, path in zip(files, [path for paths in results.values() for path in paths], strict=True):
            _write_columns(columns, first, file.rows, path)
            first += file.rows
    return results


@dataclass(frozen=True)
class _StagedFile:
    """A memory-mapped file of staged rows."""

    path: Path
    batches: pa.RecordBatchFileReader
    rows: int

    @classmethod
    def open(cls, path: Path) -> "_StagedFile":
        batches = pa.ipc.open_file(pa.memory_map(str(path)))
        return cls(path, batches, sum(batches.get_batch(i).num_rows for i in range(batches.num_record_batches)))

    def blocks(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield the batches, at least one, with the number of their first row."""
        first, schema = 0, self.batches.schema
        if not self.rows:
            yield 0, pa.record_batch([pa.nulls(0, field.type) for field in schema], schema=schema)
        for index in range(self.batches.num_record_batches):
            batch = self.batches.get_batch(index)
            yield first, batch
            first += batch.num_rows


@dataclass(frozen=True)
class _Results:
    """The computed values of some rows, memory-mapped.

    Attributes:
        positions: [rows] int64 ascending numbers of the rows over all staged files.
        counts: [rows] int64 counts, or lengths of the histories.
        starts: [rows] int64 index of a history's first item in `items`, for a history.
        items: values that entered, sorted by `by` and `order`, for a history.
    """

    positions: np.ndarray
    counts: np.ndarray
    starts: np.ndarray | None
    items: pa.Array | None


class _Column:
    """One history or count.

    Args:
        name: name of the column.
        rule: what it holds.
        folder: empty folder for temporary files.
        memory: bytes to use, approximately.
        locate: describes a row of a staged file.
    """

    def __init__(
        self, name: str, rule: History | Count, folder: Path, memory: int, locate: Callable[[Path, int], str]
    ) -> None:
        self.rule = rule
        self.name = name
        self._folder, self._memory, self._locate = folder, memory, locate
        self._kind = "history" if isinstance(rule, History) else "count"
        self._item_type = pa.int64()
        self._rows_at_once = 1
        self._results: list[_Results] = []

    @property
    def type(self) -> pa.DataType:
        """Type of the column."""
        return pa.list_(self._item_type) if isinstance(self.rule, History) else pa.int64()

    def compute(self, files: Sequence[_StagedFile], state: Path | None, new_state: Path | None) -> "_Column":
        """Compute the values of all rows, and write the state after them."""
        if files and self.rule.of is not None:
            of = files[0].batches.schema.field(self.rule.of).type
            self._item_type = of.value_type if pa.types.is_dictionary(of) else of
        saved = None if state is None else state / self._state_file
        last_rows = []
        for part in self._distribute(files, saved):
            last_rows.append(_mapped(self._compute_part(part), part.with_suffix(".state.arrow")))
            part.unlink()
        if new_state is not None and last_rows:
            _write_state(pa.concat_tables(last_rows), new_state / self._state_file)
        return self

    def values(self, first: int, rows: int) -> pa.Array:
        """Return the values of the rows from position `first` on."""
        return self._lists(first, rows) if isinstance(self.rule, History) else pa.array(self._counts(first, rows)[0])

    @property
    def _state_file(self) -> str:
        return f"{self._kind}.{self.name}.parquet"

    def _distribute(self, files: Sequence[_StagedFile], state: Path | None) -> list[Path]:
        """Write the rows to files by ranges of the hash of `by`."""
        blocks = self._blocks(files, state)
        block = next(blocks, None)
        if block is None:
            return []
        rows = sum(file.rows for file in files) + (pq.read_metadata(state).num_rows if state else 0)
        bytes_per_row = BYTES_PER_ROW + block.nbytes // max(block.num_rows, 1)
        self._rows_at_once = max(1, self._memory // bytes_per_row)
        # Hashes do not spread rows evenly: a quarter more files than needed.
        number = min(MAX_FILES, -(-rows * 5 // (self._rows_at_once * 4)) or 1)
        paths = [self._folder / f"rows-{index:04}.arrow" for index in range(number)]
        writers = [pa.ipc.new_file(str(path), block.schema) for path in paths]
        while block is not None:
            for index, part in _split(block, number):
                writers[index].write_table(part)
            block = next(blocks, None)
        for writer in writers:
            writer.close()
        return paths

    def _blocks(self, files: Sequence[_StagedFile], state: Path | None) -> Iterator[pa.Table]:
        """Yield the rows that enter or need a value: position, by, of, order and count (0 if a row does not enter)."""
        first, schema = 0, None
        for file in files:
            for row, batch in file.blocks():
                rows = self._read(file.path, row, batch, first + row)
                if schema is None:
                    schema = rows.schema
                    yield from self._saved(state, schema)
                yield rows
            first += file.rows

    def _saved(self, path: Path | None, schema: pa.Schema) -> Iterator[pa.Table]:
        """Yield the rows of the state."""
        if path is None:
            return
        fix = "preprocess the earlier rows again with this specification"
        what = f"{path}: is no state of {self._kind} {self.name!r}"
        try:
            with reading(path, fix) as file:
                for batch in pq.ParquetFile(arrow_file(file), page_checksum_verification=True).iter_batches():
                    rows = pa.table(batch).append_column(POSITION, _repeated(BEFORE_ALL_ROWS, batch.num_rows))
                    if isinstance(self.rule, History):
                        rows = rows.append_column(ROWS, _repeated(1, batch.num_rows))
                    if not rows.select(schema.names).schema.equals(schema):
                        raise DataError(f"{what}: it has {_described(rows.schema)}, not {_described(schema)}; {fix}")
                    yield rows.select(schema.names)
        except (pa.ArrowException, KeyError) as error:
            raise DataError(f"{what}: {error}; {fix}") from error

    def _read(self, path: Path, row: int, batch: pa.RecordBatch, first: int) -> pa.Table:
        rule = self.rule
        enters = pa.array(np.ones(batch.num_rows, bool)) if rule.where is None else satisfies(batch, rule.where)
        order = _plain(batch.column(rule.order))
        missing = pc.is_null(order, nan_is_null=True)
        if pc.any(missing).as_py():
            where = self._locate(path, row + pc.index(missing, True).as_py())
            raise DataError(
                f"{where}: {rule.order!r} is empty, which gives {self.name!r} ({self._kind}) its order; fill it, or "
                f"leave such rows out with `where`"
            )
        columns = {POSITION: pa.array(np.arange(first, first + batch.num_rows)), BY: _plain(batch.column(rule.by))}
        known = columns[BY].is_valid()
        if rule.of is not None:
            columns[OF] = _plain(batch.column(rule.of))
            has_item = columns[OF].is_valid()
            enters = pc.and_(enters, has_item)
            known = known if isinstance(rule, History) else pc.and_(known, has_item)
        rows = pa.table(columns | {ORDER: order, ROWS: enters.cast(pa.int64())})
        return rows if pc.all(known).as_py() else rows.filter(known)

    def _compute_part(self, path: Path) -> pa.Table:
        """Compute the values of the rows in a file, range by range of `order`; return the state after them."""
        part = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        last_rows = part.slice(0, 0)
        for rows in _by_order(part, self._rows_at_once):
            last_rows = self._compute_rows(pa.concat_tables([last_rows, rows]))
        return last_rows.drop_columns([POSITION, *([ROWS] if isinstance(self.rule, History) else [])])

    def _compute_rows(self, rows: pa.Table) -> pa.Table:
        """Compute the values of rows, preceded by the state of earlier ones, and return the state after them."""
        positions = rows.column(POSITION).to_numpy()
        starts = items = None
        if isinstance(self.rule, History):
            ordered = _Ordered.of(rows, [BY])
            starts, counts, entered = _histories(ordered, self.rule.last)
            items = rows.column(OF).take(pa.array(ordered.permutation[entered]))
            last_rows = rows.take(pa.array(ordered.permutation[entered[_last(ordered, entered, self.rule.last)]]))
        else:
            ordered = _Ordered.of(rows, [BY] if self.rule.of is None else [BY, OF])
            counts = _counts(ordered, self.rule.window)
            last_rows = _last_counts(rows, ordered, self.rule.window)
        self._save(positions, counts, starts, items)
        before = _repeated(BEFORE_ALL_ROWS, last_rows.num_rows)
        return last_rows.set_column(last_rows.column_names.index(POSITION), POSITION, before)

    def _save(
        self, positions: np.ndarray, counts: np.ndarray, starts: np.ndarray | None, items: pa.ChunkedArray | None
    ) -> None:
        """Keep the values of rows in a memory-mapped file."""
        new = positions >= 0
        stem = self._folder / f"results-{len(self._results):06}"
        columns = {POSITION: positions, ROWS: counts} | ({} if starts is None else {"start": starts})
        saved = _mapped(pa.table({name: values[new] for name, values in columns.items()}), Path(f"{stem}.arrow"))
        arrays = {name: _one_array(saved.column(name)).to_numpy() for name in columns}
        if items is not None:
            items = _one_array(_mapped(pa.table({OF: items}), Path(f"{stem}.items.arrow")).column(OF))
        self._results.append(_Results(arrays[POSITION], arrays[ROWS], arrays.get("start"), items))

    def _counts(self, first: int, rows: int) -> tuple[np.ndarray, list[tuple[_Results, slice, np.ndarray]]]:
        """Return the counts of rows, and the part of each result that they are from, with its rows."""
        counts, parts = np.zeros(rows, np.int64), []
        for results in self._results:
            begin, end = np.searchsorted(results.positions, [first, first + rows]).tolist()
            if begin < end:
                within = results.positions[begin:end] - first
                counts[within] = results.counts[begin:end]
                parts.append((results, slice(begin, end), within))
        return counts, parts

    def _lists(self, first: int, rows: int) -> pa.ListArray:
        lengths, parts = self._counts(first, rows)
        starts, total, items = np.zeros(rows, np.int64), 0, []
        for results, part, within in parts:
            if results.starts is None or results.items is None:
                continue
            ends = total + np.cumsum(results.counts[part])
            starts[within] = ends - results.counts[part]
            total = int(ends[-1])
            items.append(results.items.take(pa.array(_ranges(results.starts[part], results.counts[part]))))
        values = pa.concat_arrays(items) if items else pa.array([], self._item_type)
        if len(items) > 1:
            values = values.take(pa.array(_ranges(starts, lengths)))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), values.cast(self._item_type))


@dataclass(frozen=True)
class _Ordered:
    """Rows sorted by key, order, and their sequence in the table.

    Attributes:
        permutation: [rows] indices into the table.
        keys: [rows] rank of the key, by hash and value, so that it does not depend on the other rows.
        moments: [rows] rank of the order.
        orders: distinct orders, ascending.
        counts: [rows] number of entering rows that each row stands for.
    """

    permutation: np.ndarray
    keys: np.ndarray
    moments: np.ndarray
    orders: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, rows: pa.Table, key: Sequence[str]) -> "_Ordered":
        keys, size = _ranks(rows.column(key[0]))
        if len(key) > 1:
            others, size = _ranks(rows.column(key[1]))
            keys = np.unique(keys * max(size, 1) + others, return_inverse=True)[1]
        orders, moments = np.unique(rows.column(ORDER).to_numpy(), return_inverse=True)
        permutation = np.argsort(keys * len(orders) + moments, kind="stable")
        counts = rows.column(ROWS).to_numpy()[permutation]
        return cls(permutation, keys[permutation], moments[permutation], orders, counts)

    @property
    def both(self) -> np.ndarray:
        """[rows] ascending numbers, equal for rows of equal key and order."""
        return self.keys * len(self.orders) + self.moments

    def in_table(self, values: np.ndarray) -> np.ndarray:
        """Return values of the sorted rows in the sequence of the table."""
        result = np.empty_like(values)
        result[self.permutation] = values
        return result


def _histories(ordered: _Ordered, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return starts and lengths of the rows' histories, and the sorted rows that enter, which these refer to."""
    enters = ordered.counts > 0
    before = np.concatenate([[0], np.cumsum(enters)])
    ends = before[_first_of_group(ordered.both)]
    starts = np.maximum(before[_first_of_group(ordered.keys)], ends - last)
    return ordered.in_table(starts), ordered.in_table(ends - starts), np.flatnonzero(enters)


def _last(ordered: _Ordered, entered: np.ndarray, last: int) -> np.ndarray:
    """Return which of the rows that entered are needed by later rows, or by rows of the latest order of their key."""
    keys, both = ordered.keys[entered], ordered.both[entered]
    ends = _end_of_group(keys)
    latest = _first_of_group(both)[ends - 1]
    index = np.arange(len(entered))
    return (index >= ends - last) | ((index < latest) & (index >= latest - last))


def _counts(ordered: _Ordered, window: int | None) -> np.ndarray:
    """Return the rows' counts."""
    before = np.concatenate([[0], np.cumsum(ordered.counts)])
    first = _first_of_group(ordered.keys)
    if window is not None:
        wanted = ordered.keys * len(ordered.orders) + _windows(ordered.orders, window)[ordered.moments]
        first = np.searchsorted(ordered.both, wanted)
    return ordered.in_table(before[_first_of_group(ordered.both)] - before[first])


def _last_counts(rows: pa.Table, ordered: _Ordered, window: int | None) -> pa.Table:
    """Return one row per key and order, with their number, for the orders that later rows need."""
    entered = np.flatnonzero(ordered.counts > 0)
    keys, moments, both = ordered.keys[entered], ordered.moments[entered], ordered.both[entered]
    latest = moments[_end_of_group(keys) - 1]
    if window is None:  # all but the latest order of a key as one row, with the order before the latest
        both = keys * 2 + (moments == latest)
    ends = np.unique(_end_of_group(both)) - 1
    counts = np.diff(np.cumsum(ordered.counts[entered])[ends], prepend=0)
    if window is not None:
        kept = moments[ends] >= _windows(ordered.orders, window)[latest[ends]]
        ends, counts = ends[kept], counts[kept]
    last_rows = rows.take(pa.array(ordered.permutation[entered[ends]]))
    return last_rows.set_column(last_rows.column_names.index(ROWS), ROWS, pa.array(counts))


def _windows(orders: np.ndarray, window: int) -> np.ndarray:
    """Return for every order the index of the first order in its window, [orders] int64."""
    if orders.dtype == np.int64:  # without overflow
        begin = np.maximum(orders, np.iinfo(np.int64).min + window) - window
    else:
        begin = orders - window
    return np.searchsorted(orders, begin)


def satisfies(rows: pa.RecordBatch | pa.Table, condition: Condition) -> pa.Array:
    """Return which rows satisfy a condition, [rows] bool without nulls."""
    compare: Any = COMPARISONS[condition.comparison]
    return compare(_plain(rows.column(condition.reading)), pa.scalar(condition.value)).fill_null(False)


def _plain(values: pa.Array) -> pa.Array:
    """Return values as large_string, int64 or float64."""
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return values.cast(pa.large_string())
    if pa.types.is_nested(kind):
        raise DataError(f"histories and counts need one value per row, and not {kind}; name another column")
    return values.cast(pa.float64() if pa.types.is_floating(kind) else pa.int64())


def _hashes(values: pa.Array) -> np.ndarray:
    """Return [n] uint64 hashes of strings or numbers."""
    if pa.types.is_floating(values.type):
        return mix((values.to_numpy() + 0.0).view(np.uint64))
    return hash_values(values.to_numpy(zero_copy_only=False))


def _split(rows: pa.Table, number: int) -> Iterator[tuple[int, pa.Table]]:
    """Yield the rows of each of `number` ranges of the hash of `by`, in their sequence."""
    if number == 1:
        yield 0, rows
        return
    distinct = _one_array(rows.column(BY).dictionary_encode())
    parts = ranges(_hashes(distinct.dictionary), number)[distinct.indices.to_numpy()].astype(np.int16)
    rows = rows.take(pa.array(np.argsort(parts, kind="stable")))
    ends = np.cumsum(np.bincount(parts, minlength=number))
    for index in np.unique(parts).tolist():
        begin = int(ends[index - 1]) if index else 0
        yield index, rows.slice(begin, int(ends[index]) - begin)


def _by_order(rows: pa.Table, rows_at_once: int) -> Iterator[pa.Table]:
    """Yield rows by ranges of `order`, with about `rows_at_once` rows unless more of them have the same order."""
    number = -(-rows.num_rows // rows_at_once)
    if number <= 1:
        yield rows
        return
    sampled = np.linspace(0, rows.num_rows - 1, min(rows.num_rows, ORDERS_SAMPLED), dtype=np.int64)
    sample = np.sort(rows.column(ORDER).take(pa.array(sampled)).to_numpy())
    bounds = np.unique(sample[np.arange(1, number) * len(sample) // number])
    range_of_row = np.searchsorted(bounds, rows.column(ORDER).to_numpy(), side="right")
    for index in range(len(bounds) + 1):
        yield rows.filter(pa.array(range_of_row == index))


def _ranks(values: pa.ChunkedArray) -> tuple[np.ndarray, int]:
    """Return [n] int64 ranks of values by hash and value, and the number of distinct values."""
    encoded = _one_array(values.dictionary_encode())
    distinct = pa.table({"hash": _hashes(encoded.dictionary), "value": encoded.dictionary})
    in_order = pc.sort_indices(distinct, sort_keys=[("hash", "ascending"), ("value", "ascending")]).to_numpy()
    ranks = np.empty(len(in_order), np.int64)
    ranks[in_order] = np.arange(len(in_order))
    return ranks[encoded.indices.to_numpy()], len(ranks)


def _group_starts(ascending: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1]])[: len(ascending)])


def _first_of_group(ascending: np.ndarray) -> np.ndarray:
    """Return for every value the index of the first equal one."""
    starts = _group_starts(ascending)
    return np.repeat(starts, np.diff(starts, append=len(ascending)))


def _end_of_group(ascending: np.ndarray) -> np.ndarray:
    """Return for every value the index after the last equal one."""
    starts = _group_starts(ascending)
    ends = np.append(starts[1:], len(ascending))[: len(starts)]
    return np.repeat(ends, ends - starts)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the indices start, ..., start + length - 1 of all ranges, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


def _repeated(value: int, rows: int) -> pa.Array:
    return pa.repeat(pa.scalar(value, pa.int64()), rows)


def _described(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema if field.name not in (POSITION, ROWS))


def _one_array(values: pa.ChunkedArray) -> pa.Array:
    """Return the values as one array, without a copy if they are."""
    if values.num_chunks == 0:
        return pa.nulls(0, values.type)
    return values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()


def _mapped(table: pa.Table, path: Path) -> pa.Table:
    """Write a table to a file and return it memory-mapped, in one piece."""
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _write_state(last_rows: pa.Table, path: Path) -> None:
    """Write a state as parquet, with the same bytes for the same rows."""
    with pq.ParquetWriter(path, last_rows.schema, write_page_checksum=True) as writer:
        for begin in range(0, max(last_rows.num_rows, 1), ROWS_PER_STATE_GROUP):
            writer.write_table(last_rows.slice(begin, ROWS_PER_STATE_GROUP).combine_chunks())


def _write_columns(columns: Sequence[_Column], first: int, rows: int, path: Path) -> None:
    """Write the computed columns of consecutive rows."""
    names = [column.name for column in columns]
    items = sum(column.rule.last for column in columns if isinstance(column.rule, History))
    rows_per_batch = max(1, min(ROWS_PER_BATCH, ITEMS_PER_BATCH // max(items, 1)))
    schema = pa.schema(list(zip(names, [column.type for column in columns], strict=True)))
    with pa.ipc.new_file(str(path), schema) as writer:
        for begin in range(first, first + rows, rows_per_batch):
            number = min(rows_per_batch, first + rows - begin)
            values = [column.values(begin, number) for column in columns]
            writer.write_batch(pa.record_batch(values, schema=schema))
