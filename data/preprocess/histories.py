"""Columns that are computed from earlier rows of the log: histories and point-in-time counts.

For a row with the values `by` and `order`, only rows of any mapping with the same `by` and a strictly smaller `order`
enter, so that rows of the same time never see each other:

- a history is the list of their `of` values, at most the `last` ones, the most recent last. Rows of equal order follow
  mapping by mapping (train, valid, test, others by name) and in the order of the files. A row whose `of` is null does
  not enter. The histories of a sequence are those of the same rows: a row enters all of them, or none if the `of` of
  the sequence's first history is null; other values may be null.
- a count is the number of these rows that have the same `of` (all of them without `of`) and, with a `window`, an order
  of at least `order - window`.

With `where`, only the rows that satisfy it enter; every row has a history and a count. A history is empty where `by` is
null, and a count is 0 where `by` or `of` is null.

Memory is bounded by a budget: rows are distributed over files by a hash of `by`, which are computed one at a time (by
ranges of `order`, if a file is too large), and the results are merged in the order of the rows. Neither the budget nor
the blocks of the staged files change the result.

The state is what new rows need to continue, as a parquet file per column. Going on from it gives the same values as
computing everything at once if no new row is earlier than the latest row of the same `by` (for a count, of the same
`by` and `of`). An earlier one misses rows that are no longer in the state; it never sees a later row.

history.NAME.parquet    by, of, order: rows that entered last
count.NAME.parquet      by, of (if the count has it), order, count: number of rows; rows before the window are left out,
                        or added to the latest of them if there is no window
"""

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.encoding.splits import MAPPINGS, ranges
from data.errors import DataError
from data.files.parquet import arrow_file
from data.preprocess.earlier_rows import (
    BY,
    OF,
    ORDER,
    ROWS,
    OrderedRows,
    find_counts,
    find_histories,
    joined_ranges,
    last_counts,
    last_items,
    value_hashes,
)
from data.preprocess.staging import RowFiles, read_arrow
from data.raw.cells import combined, is_text
from data.raw.rows import satisfies
from data.spec.raw.spec import Count, History, RawSpec
from data.storage.files import reading

POSITION, VALUE = "position", "value"
# Memory to compute one row, in addition to its values: ranks, permutations and sums of 8 bytes each.
BYTES_PER_ROW = 200
MAX_FILES = 256
# Memory of an item of a history while results are merged, for columns with many.
BYTES_PER_ITEM = 256
ROWS_PER_BATCH, ITEMS_PER_BATCH = 2**13, 2**19
ROWS_PER_STATE_GROUP = 2**20
ORDERS_SAMPLED = 100_000
# Position of the rows of a state.
EARLIER = -1


def add_computed(
    spec: RawSpec,
    staged: Mapping[str, Sequence[Path]],
    folder: Path,
    *,
    memory: int,
    state: Path | None = None,
    continued: Collection[str] | None = None,
    new_state: Path | None = None,
    locate: Callable[[Path, int], str] = lambda path, row: f"{path}, row {row + 1}",
) -> dict[str, list[Path]]:
    """Compute the histories and counts of staged rows.

    Args:
        spec: the specification; its features say what to compute.
        staged: Arrow IPC files of each mapping, at least one in all, in the order of the rows, with a column per
            reading. Strings may be dictionary-encoded; timestamps are integers. A file may lack the column of a
            `where`, as rows to predict lack a label: none of its rows enters.
        folder: existing folder to write the computed columns to.
        memory: bytes to use, approximately.
        state: folder with the state of earlier rows, or None.
        continued: readings that continue from the state, or None for all; the others begin with these rows.
        new_state: existing folder to write the state after these rows to, or None.
        locate: describes where a row of a staged file came from, for messages.

    Returns:
        Arrow IPC files of each mapping, one for each staged file, with as many rows and the computed columns by name of
        their reading: list<type of `of`> (string where `of` is dictionary-encoded) or int64, never null.

    Raises:
        DataError: if an `order` is null, naming the row, or the state does not fit the rows.
    """
    mappings = sorted(staged, key=lambda name: (MAPPINGS.index(name) if name in MAPPINGS else len(MAPPINGS), name))
    files = [StagedFile.open(path) for mapping in mappings for path in staged[mapping]]
    written = {file.path: folder / f"computed-{number:06}.arrow" for number, file in enumerate(files)}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        columns: list[_Column] = []
        computed = {raw.reading: raw.computed for raw in spec.features.values() if raw.reading and raw.computed}
        for name, rule in computed.items():
            parts = Path(scratch) / str(len(columns))
            parts.mkdir()
            columns.append(_Column(name, rule, files, parts, memory, locate))
            columns[-1].compute(state if continued is None or name in continued else None, new_state)
        first = 0
        for file in files:
            _write_columns(columns, first, file.rows, written[file.path])
            first += file.rows
    return {mapping: [written[path] for path in paths] for mapping, paths in staged.items()}


@dataclass(frozen=True)
class StagedFile:
    """An Arrow IPC file of staged rows.

    Attributes:
        path: its path.
        schema: its columns.
        rows: number of its rows.
    """

    path: Path
    schema: pa.Schema
    rows: int

    @classmethod
    def open(cls, path: Path) -> "StagedFile":
        """Return the description of a file."""
        table = read_arrow(path)
        return cls(path, table.schema, table.num_rows)

    def blocks(self, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield some columns, batch by batch (at least one), with the number of its first row."""
        first, indices = 0, sorted({self.schema.get_field_index(name) for name in columns})
        if not self.rows:
            schema = pa.schema([self.schema.field(index) for index in indices])
            yield 0, pa.record_batch([pa.nulls(0, field.type) for field in schema], schema=schema)
        options = pa.ipc.IpcReadOptions(included_fields=indices)
        # Not memory-mapped, so that what was read is freed.
        with pa.OSFile(str(self.path)) as source, pa.ipc.open_file(source, options=options) as file:
            for index in range(file.num_record_batches):
                batch = file.get_batch(index)
                yield first, batch
                first += batch.num_rows


class _Column:
    """One history or count.

    Args:
        name: name of the column.
        rule: what it holds.
        files: the staged files.
        folder: empty folder for temporary files.
        memory: bytes to use, approximately.
        locate: describes a row of a staged file.
    """

    def __init__(
        self,
        name: str,
        rule: History | Count,
        files: Sequence[StagedFile],
        folder: Path,
        memory: int,
        locate: Callable[[Path, int], str],
    ) -> None:
        self.name, self.rule = name, rule
        self._files, self._folder, self._memory, self._locate = files, folder, memory, locate
        self._kind = "history" if isinstance(rule, History) else "count"
        self._state_file = f"{self._kind}.{name}.parquet"
        self._rows_at_once = self._items_at_once = 1
        self._results: list[_Results] = []

    @property
    def type(self) -> pa.DataType:
        """Type of the column."""
        return pa.list_(self._item_type) if isinstance(self.rule, History) else pa.int64()

    def compute(self, state: Path | None, new_state: Path | None) -> None:
        """Compute the values of all rows, and write the state after them."""
        last_rows = []
        for part in self._distribute(None if state is None else state / self._state_file):
            last_rows.append(part.with_suffix(".state"))
            _write_table(self._compute_part(part), last_rows[-1])
            part.unlink()
        if new_state is not None:
            leave_out = [POSITION, ROWS] if isinstance(self.rule, History) else [POSITION]
            _write_state(last_rows, new_state / self._state_file, leave_out)

    def values(self, first: int, rows: int) -> pa.Array:
        """Return the values of the rows from position `first` on; must be called for all rows in order."""
        found = pa.concat_tables([table for results in self._results for table in results.until(first + rows)])
        index = np.full(rows, -1)
        index[found.column(POSITION).to_numpy() - first] = np.arange(found.num_rows)
        values = combined(found.column(VALUE))
        if found.num_rows < rows or (index != np.arange(rows)).any():
            values = values.take(pa.array(index, mask=index < 0))
        if not isinstance(self.rule, History):
            return values.fill_null(0)
        offsets = np.concatenate([[0], np.cumsum(pc.list_value_length(values).fill_null(0).to_numpy())])
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values.flatten())

    @property
    def _item_type(self) -> pa.DataType:
        of = self._files[0].schema.field(self.rule.of).type
        return of.value_type if pa.types.is_dictionary(of) else of

    def _distribute(self, state: Path | None) -> list[Path]:
        """Write the rows to files by ranges of the hash of `by`."""
        blocks = self._blocks(state)
        block = next(blocks)
        rows = sum(file.rows for file in self._files) + (pq.read_metadata(state).num_rows if state else 0)
        self._rows_at_once = max(1, self._memory // (BYTES_PER_ROW + block.nbytes // max(block.num_rows, 1)))
        # Hashes do not spread rows evenly: a quarter more files than needed.
        number = min(MAX_FILES, 1 if rows <= self._rows_at_once else -(-rows * 5 // (self._rows_at_once * 4)))
        # A batch of each part is in memory when results are merged.
        self._items_at_once = min(ITEMS_PER_BATCH, self._memory // (BYTES_PER_ITEM * number))
        with RowFiles([self._folder / f"rows-{index:04}" for index in range(number)], block.schema) as parts:
            parts.write(block, _hash_ranges(block, number))
            for block in blocks:
                parts.write(block, _hash_ranges(block, number))
        return parts.paths

    def _blocks(self, state: Path | None) -> Iterator[pa.Table]:
        """Yield the rows that enter or need a value, those of the state first: POSITION, BY, OF, ORDER and ROWS."""
        first, schema, rule = 0, None, self.rule
        needed = [rule.by, rule.order, *([rule.of] if rule.of else []), *([steps] if (steps := _steps(rule)) else [])]
        for file in self._files:
            where = rule.where if rule.where and rule.where.reading in file.schema.names else None
            for row, batch in file.blocks(needed + ([where.reading] if where else [])):
                if rule.where is None:
                    enters = pa.repeat(pa.scalar(True), batch.num_rows)
                elif where is None:
                    enters = pa.repeat(pa.scalar(False), batch.num_rows)
                else:
                    enters = pa.array(satisfies(where, pa.table(batch)))
                rows = self._read(file.path, row, batch, first + row, enters)
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
                    rows = pa.table(batch).append_column(POSITION, _repeated(EARLIER, batch.num_rows))
                    if isinstance(self.rule, History):
                        rows = rows.append_column(ROWS, _repeated(1, batch.num_rows))
                    if not rows.select(schema.names).schema.equals(schema):
                        raise DataError(f"{what}: it has {_described(rows.schema)}, not {_described(schema)}; {fix}")
                    yield rows.select(schema.names)
        except (pa.ArrowException, KeyError) as error:
            raise DataError(f"{what}: {error}; {fix}") from error

    def _read(self, path: Path, row: int, batch: pa.RecordBatch, first: int, enters: pa.Array) -> pa.Table:
        """Return the rows of a batch that enter or need a value.

        Args:
            path: the staged file.
            row: number of the first row in the file.
            batch: the rows.
            first: position of the first row.
            enters: [rows] bool, whether each row enters.
        """
        rule, order = self.rule, _plain(batch.column(self.rule.order))
        if order.null_count:
            where = self._locate(path, row + pc.index(order.is_null(), True).as_py())
            raise DataError(
                f"{where}: {rule.order!r} is empty, which orders the rows of {self._kind} {self.name!r}; fill it, or "
                "leave such rows out with `where`"
            )
        columns = {POSITION: pa.array(np.arange(first, first + batch.num_rows)), BY: _plain(batch.column(rule.by))}
        known = columns[BY].is_valid()
        if rule.of is not None:
            columns[OF] = _plain(batch.column(rule.of))
            has_item = _plain(batch.column(_steps(rule) or rule.of)).is_valid()
            enters = pc.and_(enters, has_item)
            known = known if isinstance(rule, History) else pc.and_(known, has_item)
        rows = pa.table(columns | {ORDER: order, ROWS: enters.cast(pa.int64())})
        return rows if pc.all(known).as_py() else rows.filter(known)

    def _compute_part(self, path: Path) -> pa.Table:
        """Compute the values of the rows in a file; return the state after them."""
        number = min(MAX_FILES, -(-read_arrow(path).num_rows // self._rows_at_once))
        if number <= 1:
            return self._compute_rows(_read_table(path))
        last_rows = None
        for part in _by_order(path, number):
            rows = _read_table(part)
            rows = rows if last_rows is None else pa.concat_tables([last_rows, rows])
            last_rows = self._compute_rows(rows)
            part.unlink()
        return last_rows

    def _compute_rows(self, rows: pa.Table) -> pa.Table:
        """Compute the values of rows, preceded by the state of earlier ones, and return the state after them."""
        rule = self.rule
        results = _Results(self._folder / f"results-{len(self._results):06}", self.type)
        positions = rows.column(POSITION).to_numpy()
        new = positions != EARLIER
        if isinstance(rule, History):
            ordered = OrderedRows.of(rows, [BY])
            starts, lengths = find_histories(ordered, rule.last)
            items = combined(rows.column(OF).take(pa.array(ordered.permutation[ordered.entering])))
            rows_per_batch = max(1, min(ROWS_PER_BATCH, self._items_at_once // rule.last))
            results.write(positions[new], _lists(items, starts[new], lengths[new], self.type, rows_per_batch))
            last_rows = rows.take(pa.array(last_items(ordered, rule.last)))
        else:
            ordered = OrderedRows.of(rows, [BY] if rule.of is None else [BY, OF])
            counts = find_counts(ordered, rule.window)[new]
            firsts = range(0, len(counts), ROWS_PER_BATCH)
            results.write(positions[new], (pa.array(counts[first : first + ROWS_PER_BATCH]) for first in firsts))
            indices, numbers = last_counts(ordered, rule.window)
            last_rows = _replaced(rows.take(pa.array(indices)), ROWS, pa.array(numbers))
        self._results.append(results)
        return _replaced(last_rows, POSITION, _repeated(EARLIER, last_rows.num_rows))


class _Results:
    """Values of rows in ascending order of their positions, written to a file and read back once, batch by batch.

    Args:
        path: the file.
        kind: type of the values.
    """

    def __init__(self, path: Path, kind: pa.DataType) -> None:
        self._path = path
        self._schema = pa.schema({POSITION: pa.int64(), VALUE: kind})
        self._offsets: list[int] = []
        self._rest = self._schema.empty_table()

    def write(self, positions: np.ndarray, values: Iterable[pa.Array]) -> None:
        """Write the values of rows, which come in blocks."""
        first = 0
        with pa.OSFile(str(self._path), "wb") as file:
            for block in values:
                self._offsets.append(file.tell())
                number = pa.array(positions[first : first + len(block)])
                file.write(pa.record_batch([number, block], schema=self._schema).serialize())
                first += len(block)
        self._offsets.reverse()

    def until(self, end: int) -> list[pa.Table]:
        """Return the rows before position `end` that have not been returned yet."""
        found = [self._before(end)]
        while not self._rest.num_rows and self._offsets:
            # Opened for each batch: there may be more results than a process may have open files.
            with pa.OSFile(str(self._path)) as file:
                file.seek(self._offsets.pop())
                self._rest = pa.table(pa.ipc.read_record_batch(pa.ipc.read_message(file), self._schema))
            found.append(self._before(end))
        return found

    def _before(self, end: int) -> pa.Table:
        number = int(np.searchsorted(self._rest.column(POSITION).to_numpy(), end))
        found, self._rest = self._rest.slice(0, number), self._rest.slice(number)
        return found


def _steps(rule: History | Count) -> str | None:
    """Return the reading without which a row does not enter a history of a sequence; None for other columns."""
    return rule.steps if isinstance(rule, History) else None


def _plain(values: pa.Array) -> pa.Array:
    """Return values as large_string, int64 or float64, with null for NaN and 0.0 for -0.0."""
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if is_text(kind):
        return values.cast(pa.large_string())
    if not pa.types.is_floating(kind):
        return values.cast(pa.int64())
    numbers = pc.add(values.cast(pa.float64()), 0.0)
    return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)


def _hash_ranges(rows: pa.Table, number: int) -> np.ndarray:
    """Return which of `number` ranges the hash of `by` is in, [rows] int16."""
    distinct = combined(rows.column(BY).dictionary_encode())
    return ranges(value_hashes(distinct.dictionary), number).astype(np.int16)[distinct.indices.to_numpy()]


def _by_order(path: Path, number: int) -> list[Path]:
    """Distribute the rows of a file over about `number` files by ranges of `order`, rows of equal order in one."""
    step = -(-read_arrow(path).num_rows // ORDERS_SAMPLED)
    sample = np.sort(np.concatenate([rows.column(ORDER).to_numpy()[::step] for rows in _read_batches(path)]))
    bounds = np.unique(sample[np.arange(1, number) * len(sample) // number])
    paths = [path.with_suffix(f".{index:05}") for index in range(len(bounds) + 1)]
    with pa.OSFile(str(path)) as source:
        schema = pa.ipc.open_file(source).schema
    with RowFiles(paths, schema) as parts:
        for rows in _read_batches(path):
            parts.write(rows, np.searchsorted(bounds, rows.column(ORDER).to_numpy(), side="right").astype(np.int16))
    return paths


def _lists(
    items: pa.Array, starts: np.ndarray, lengths: np.ndarray, kind: pa.DataType, rows: int
) -> Iterator[pa.ListArray]:
    """Yield the parts of `items` that begin at `starts` as lists, in blocks of `rows`."""
    for first in range(0, len(starts), rows):
        block = slice(first, first + rows)
        values = items.take(pa.array(joined_ranges(starts[block], lengths[block]))).cast(kind.value_type)
        offsets = np.concatenate([[0], np.cumsum(lengths[block])]).astype(np.int32)
        yield pa.ListArray.from_arrays(pa.array(offsets), values)


def _read_batches(path: Path) -> Iterator[pa.Table]:
    with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as file:
        for index in range(file.num_record_batches):
            yield pa.table(file.get_batch(index))


def _read_table(path: Path) -> pa.Table:
    with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as file:
        return file.read_all()


def _write_table(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def _write_state(last_rows: Sequence[Path], path: Path, leave_out: Sequence[str]) -> None:
    """Write a state as parquet, with the same bytes for the same rows."""
    rows = pa.concat_tables([pa.ipc.open_file(pa.memory_map(str(part))).read_all() for part in last_rows])
    rows = rows.drop_columns(list(leave_out))
    with pq.ParquetWriter(path, rows.schema, write_page_checksum=True) as writer:
        for begin in range(0, max(rows.num_rows, 1), ROWS_PER_STATE_GROUP):
            writer.write_table(rows.slice(begin, ROWS_PER_STATE_GROUP).combine_chunks())


def _replaced(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def _repeated(value: int, rows: int) -> pa.Array:
    return pa.repeat(pa.scalar(value, pa.int64()), rows)


def _described(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema if field.name not in (POSITION, ROWS))


def _write_columns(columns: Sequence[_Column], first: int, rows: int, path: Path) -> None:
    """Write the computed columns of consecutive rows."""
    names = [column.name for column in columns]
    items = sum(column.rule.last for column in columns if isinstance(column.rule, History))
    rows_per_batch = max(1, min(ROWS_PER_BATCH, ITEMS_PER_BATCH // max(items, 1)))
    schema = pa.schema(list(zip(names, [column.type for column in columns], strict=True)))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for begin in range(first, first + rows, rows_per_batch):
            number = min(rows_per_batch, first + rows - begin)
            values = [column.values(begin, number) for column in columns]
            writer.write_batch(pa.record_batch(values, schema=schema))
