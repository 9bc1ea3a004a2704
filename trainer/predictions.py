"""The predictions file: position, labels, predictions and kept columns of each row of a mapping, as parquet or CSV."""

import csv
import io
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from data.errors import DataError
from data.loading.parquet import StoredColumns
from data.spec.features import LABEL_COLUMN, PREDICTION_COLUMN, ROW_COLUMN, SCORE
from data.storage.files import open_regular, replacing
from data.storage.remote import RemoteError, RemoteFile, put, read_range, url_of
from trainer.metrics.metric import Collectives
from trainer.metrics.rows import GrowingArray
from trainer.tasks.score import Score, predicted
from trainer.tasks.task import Task

_BLOCK_ROWS = 1 << 18  # rows exchanged and written at once; also the size of the file's row groups
CSV_SUFFIX = ".csv"
_LONGEST_HEADER = 1 << 20
_PARQUET_END = 8  # bytes after a parquet file's footer: its length, as 4 bytes, and "PAR1"


def is_predictions(path: Path) -> bool:
    """Return whether a file is a predictions file."""
    try:
        with open_regular(path) as file:
            return _has_predictions(file, is_csv=is_csv(path))
    except (OSError, ValueError):
        return False


def is_predictions_object(file: RemoteFile) -> bool:
    """Return whether an object is a predictions file, by its first bytes or, if it is parquet, by its last.

    Raises:
        RemoteError: the store cannot be read.
    """
    if is_csv(Path(file.url)):
        return _has_predictions(io.BytesIO(read_range(file, 0, min(file.size, _LONGEST_HEADER))), is_csv=True)
    end = read_range(file, max(0, file.size - _PARQUET_END), min(file.size, _PARQUET_END))
    footer = min(file.size, _PARQUET_END + int.from_bytes(end[:4], "little"))
    return _has_predictions(io.BytesIO(read_range(file, file.size - footer, footer)), is_csv=False)


def _has_predictions(file: BinaryIO, *, is_csv: bool) -> bool:
    try:
        names = _csv_names(file) if is_csv else pq.read_schema(file).names
    except (OSError, ValueError, csv.Error, pa.ArrowException):
        return False
    return names[:1] == [ROW_COLUMN] and any(name.startswith(PREDICTION_COLUMN) for name in names)


def is_csv(path: Path) -> bool:
    """Return whether a predictions file is CSV, by its name; otherwise it is parquet."""
    return path.suffix.lower() == CSV_SUFFIX


def _csv_names(file: BinaryIO) -> list[str]:
    """Return the column names of a CSV file; raise a ValueError or csv.Error if it is none."""
    start = file.read(_LONGEST_HEADER).decode(errors="replace")
    return next(csv.reader(io.StringIO(start), strict=True), [])


def check_column_names(kept: Sequence[str], labels: Sequence[str], more: Sequence[str] = ()) -> None:
    """Check that no kept column has the name of a column of the predictions file itself.

    Args:
        kept: names of the columns to copy into the file.
        labels: names of the labels.
        more: names of the file's columns that belong to no label.

    Raises:
        DataError: a kept column has such a name; the message names it.
    """
    written = [ROW_COLUMN, *(part + label for label in labels for part in (LABEL_COLUMN, PREDICTION_COLUMN)), *more]
    twice = [name for name in kept if name in written]
    if twice:
        raise DataError(
            f"the predictions would have two columns {', '.join(twice)}: the file has {', '.join(written)} of its own. "
            "Rename the feature in the files and in the specification, or do not --keep it"
        )


class PredictionWriter:
    """Collects this worker's rows, then writes the rows of all workers in dataset order to one file.

    Columns: `row` (int64, 0-based position in the dataset), per task `label_TASK` (float32, null where missing) if the
    dataset has it and `prediction_TASK`, `score` (float32) if there is one, then the kept columns as they are stored. A
    prediction is a probability or the value of a regression, float64, or the probabilities of all classes,
    list<double>. Probabilities are computed from the float32 logits in float64: equal logits give equal probabilities
    and their order is preserved, although neighbouring logits above about 20 may give equal ones.

    A CSV file has the same columns under a header: numbers in the shortest form that reads back equal, null as an empty
    cell, strings in quotes, lists as "[0.25, 0.75]".

    Memory: 4 bytes per task, per logit and per number that the score reads for each row of this worker, and a fixed
    amount while writing. Rank 0 reads the kept columns while it writes.

    Args:
        path: the file to write, replacing an earlier one: CSV if it ends in .csv, else parquet. The mirror of an object
            is uploaded as a whole when it is complete, and removed.
        tasks: the tasks, one per label, in the order of their logits.
        score: the score; None for none.
        labelled: names of the tasks whose labels are known; None for all.
        kept: stored columns of the same rows to copy into the file; None for none.
        kept_names: names of these columns in the file; None for those they are stored under.

    Attributes:
        undefined_scores: number of rows that `write` has written on rank 0 whose score is NaN.
    """

    def __init__(
        self,
        path: Path,
        tasks: Sequence[Task],
        *,
        score: Score | None = None,
        labelled: Collection[str] | None = None,
        kept: StoredColumns | None = None,
        kept_names: Sequence[str] | None = None,
    ) -> None:
        self._path = Path(path)
        self._tasks, self._score = tuple(tasks), score
        self._labelled = {task.name for task in tasks} if labelled is None else set(labelled)
        self._kept = kept
        kept_fields = () if kept is None else tuple(kept.schema)
        names = [field.name for field in kept_fields] if kept_names is None else kept_names
        self._kept_fields = [field.with_name(name) for field, name in zip(kept_fields, names, strict=kept is not None)]
        # [rows, tasks + sum of widths + numbers] float32: labels, logits, and the numbers that the score reads.
        self._ends = np.cumsum([len(self._tasks), sum(task.width for task in self._tasks)]).tolist()
        self._values = GrowingArray(np.float32, self._ends[-1] + (0 if score is None else len(score.numerical)))
        self._first_row = self.undefined_scores = 0

    def add(
        self, rows: np.ndarray, labels: np.ndarray, logits: np.ndarray, numerical: np.ndarray | None = None
    ) -> None:
        """Add rows of the dataset, without padding rows.

        Args:
            rows: positions of the rows, [batch] int; all calls together must give one contiguous range.
            labels: labels, [batch, tasks] float; NaN where missing.
            logits: logits, [batch, sum of the tasks' widths] float.
            numerical: numerical features, [batch, numerical] float32; not needed without a score.

        Raises:
            ValueError: a row does not directly follow the previous one.
        """
        if len(rows) == 0:
            return
        if len(self._values) == 0:
            self._first_row = int(rows[0])
        expected = self._first_row + len(self._values)
        if not np.array_equal(rows, np.arange(expected, expected + len(rows))):
            raise ValueError(f"expected rows from {expected} on without a gap, got {rows[0]} to {rows[-1]}")
        numbers = [] if self._score is None else [self._score.numbers(numerical)]
        self._values.append(np.concatenate([labels, logits, *numbers], axis=1, dtype=np.float32))

    def write(self, comm: Collectives) -> None:
        """Write the file on rank 0. A collective.

        The file appears under its name once it is complete. Rows are gathered in blocks, so no worker ever holds much
        more than its own.

        Args:
            comm: collectives over the workers.

        Raises:
            OSError: the file cannot be written, or the kept columns cannot be read; raised on all workers.
            ValueError: the workers' rows, by rank, are not the whole dataset in order; raised on all workers.
        """
        ranges = comm.gather_rows(np.array([[self._first_row, len(self._values)]], np.int64))
        _check_ranges(ranges)
        blocks = self._blocks(ranges[:, 1].tolist(), comm)
        problem = ""
        if comm.rank == 0:
            try:
                self._write_file(blocks)
                self._upload()
            except (OSError, DataError) as error:
                problem = f"{url_of(self._path) or self._path}: the predictions cannot be written: {error}"
        # The other workers only send. Rank 0 keeps receiving even if it cannot write: each block is a collective.
        for _ in blocks:
            pass
        problem = comm.broadcast_bytes(problem.encode()).decode()
        if problem:
            raise OSError(problem)

    def _write_file(self, blocks: Iterator[np.ndarray]) -> None:
        with replacing(self._path) as file, self._open_writer(file) as writer:
            row, kept = 0, self._kept.stream() if self._kept else None
            for values in blocks:
                columns = [*self._columns(row, values), *(kept.take(len(values)) if kept else ())]
                table = pa.Table.from_arrays(columns, schema=self._schema())
                writer.write_table(_as_cells(table) if is_csv(self._path) else table)
                row += len(values)

    def _upload(self) -> None:
        if (url := url_of(self._path)) is None:
            return
        try:
            put(self._path, url)
        except RemoteError as error:
            raise RemoteError(f"{error}; they are complete in {self._path}: upload that file, or run again") from error
        self._path.unlink()

    def _open_writer(self, file: BinaryIO) -> pq.ParquetWriter | pa_csv.CSVWriter:
        if is_csv(self._path):
            return pa_csv.CSVWriter(file, _as_cells(self._schema().empty_table()).schema)
        return pq.ParquetWriter(file, self._schema(), write_page_checksum=True)

    def _blocks(self, counts: Sequence[int], comm: Collectives) -> Iterator[np.ndarray]:
        """Yield all workers' values in dataset order on every worker, at most _BLOCK_ROWS rows at a time."""
        for source, count in enumerate(counts):
            for start in range(0, count, _BLOCK_ROWS):
                mine = slice(start, start + _BLOCK_ROWS) if comm.rank == source else slice(0)
                yield comm.gather_rows(self._values.rows[mine])

    def _schema(self) -> pa.Schema:
        fields = [pa.field(ROW_COLUMN, pa.int64())]
        for task in self._tasks:
            if task.name in self._labelled:
                fields.append(pa.field(LABEL_COLUMN + task.name, pa.float32()))
            kind = pa.list_(pa.float64()) if task.prediction_width > 1 else pa.float64()
            fields.append(pa.field(PREDICTION_COLUMN + task.name, kind))
        if self._score is not None:
            fields.append(pa.field(SCORE, pa.float32()))
        return pa.schema([*fields, *self._kept_fields])

    def _columns(self, first_row: int, values: np.ndarray) -> list[pa.Array]:
        """Return positions, labels, predictions and scores of a block of values."""
        labels, logits, numbers = np.split(values, self._ends, axis=1)
        found = predicted(self._tasks, self._score, logits, numbers)
        columns = [pa.array(np.arange(first_row, first_row + len(values)))]
        for task, label in zip(self._tasks, labels.T, strict=True):
            if task.name in self._labelled:
                columns.append(pa.array(label, mask=np.isnan(label)))
            columns.append(_as_column(found[task.name]))
        if self._score is not None:
            columns.append(_as_column(found[SCORE]))
            self.undefined_scores += int(np.isnan(found[SCORE]).sum())
        return columns


def _as_cells(table: pa.Table) -> pa.Table:
    """Return a table in which every column can be written as CSV: lists become text, such as "[1, 2]"."""
    for index, field in enumerate(table.schema):
        if pa.types.is_nested(field.type):
            cells = pa.chunked_array([_list_cells(chunk) for chunk in table.column(index).chunks], pa.string())
            table = table.set_column(index, field.name, cells)
        elif pa.types.is_dictionary(field.type):
            table = table.set_column(index, field.name, table.column(index).cast(field.type.value_type))
    return table


def _list_cells(lists: pa.Array) -> pa.Array:
    texts = lists.cast(pa.large_list(pa.string()))
    items = pa.LargeListArray.from_arrays(texts.offsets, texts.values.fill_null(""))
    cells = pc.binary_join_element_wise("[", pc.binary_join(items, ", ").cast(pa.string()), "]", "")
    return pc.if_else(lists.is_null(), pa.scalar(None, pa.string()), cells)


def _as_column(values: np.ndarray) -> pa.Array:
    """Return predictions, [rows, width], as numbers or, if they are several of each row, as lists."""
    rows, width = values.shape
    if width == 1:
        return pa.array(values[:, 0])
    return pa.ListArray.from_arrays(np.arange(0, values.size + 1, width, dtype=np.int32), values.reshape(-1))


def _check_ranges(ranges: np.ndarray) -> None:
    """Raise a ValueError unless the workers' (first row, number of rows), [workers, 2] int64, are contiguous from 0."""
    expected = 0
    for worker, (first, count) in enumerate(ranges.tolist()):
        if count and first != expected:
            raise ValueError(
                f"worker {worker} has rows from {first} on, expected {expected}: the rows are not in order"
            )
        expected += count
