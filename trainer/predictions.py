"""A parquet file with a line per row of an evaluation: its position, labels, predictions and group."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import DataError
from trainer.metrics.calibration import probability
from trainer.metrics.collectives import Collectives
from trainer.metrics.rows import GrowingArray

_BLOCK_ROWS = 1 << 18  # rows that travel and are written at once; also the file's row group


def check_predictions_path(path: Path) -> None:
    """Tells before hours of evaluation that the file could not be written at their end.

    Raises:
        DataError: `path` is a folder, or its folder does not exist or cannot be written.
    """
    if path.is_dir():
        raise DataError(f"{path}: this is a folder, and the predictions go to a file; write {path / 'out.parquet'}")
    if not path.parent.is_dir():
        raise DataError(f"{path}: there is no folder {path.parent}; create it with `mkdir -p {path.parent}`")
    if not os.access(path.parent, os.W_OK):
        raise DataError(f"{path}: the folder {path.parent} cannot be written; name another one")


class PredictionWriter:
    """Keeps this worker's rows, then writes all workers' rows in dataset order to one file.

    Columns: `row` (int64, 0-based position in the dataset), per task `label_TASK` (float32, null where
    missing) and `prediction_TASK` (float64: a probability, or the value of a regression), and the group
    under its own name (int64).
    Probabilities are those of the float32 logits in float64: equal logits stay equal, and their order
    stays, though from a logit of about 20 on neighbouring ones may become equal.

    Memory: 8 * tasks bytes per row of the worker, 8 more with a group, and a fixed amount while it writes.
    """

    def __init__(
        self,
        path: Path,
        task_names: Sequence[str],
        group_name: str | None = None,
        *,
        kinds: Sequence[str] | None = None,
    ) -> None:
        """Starts empty.

        Args:
            path: the file to write, replaced where it exists.
            task_names: one per column of labels and logits.
            group_name: the map feature; None without one.
            kinds: of each task, "binary" or "regression"; None where all are binary.

        Raises:
            DataError: two columns would have one name.
        """
        self._path = Path(path)
        self._task_names = tuple(task_names)
        self._group_name = group_name
        self._kinds = tuple(kinds or ("binary",) * len(self._task_names))
        self._values = GrowingArray(np.float32, 2 * len(self._task_names))  # labels, then logits
        self._group = GrowingArray(np.int64)
        self._first_row = 0
        names = self._schema().names
        if len(set(names)) < len(names):
            raise DataError(
                f"predictions would have two columns of one name ({', '.join(names)}); rename the map feature "
                f"{group_name!r} in the feature specification"
            )

    def add(self, rows: np.ndarray, labels: np.ndarray, logits: np.ndarray, group: np.ndarray | None = None) -> None:
        """Adds rows of the dataset, without pads.

        Args:
            rows: [batch] int positions; over all calls one unbroken range.
            labels: [batch, tasks] float, NaN where missing.
            logits: [batch, tasks] float.
            group: [batch] int; None without a map feature.

        Raises:
            ValueError: a row does not follow the one before it, or the groups are missing.
        """
        if len(rows) == 0:
            return
        if len(self._values) == 0:
            self._first_row = int(rows[0])
        expected = self._first_row + len(self._values)
        if not np.array_equal(rows, np.arange(expected, expected + len(rows))):
            raise ValueError(f"expected rows from {expected} on without a gap, got {rows[0]} to {rows[-1]}")
        if self._group_name is not None:
            if group is None:
                raise ValueError(f"predictions with {self._group_name!r} need a group id per row, got None")
            self._group.append(group)
        self._values.append(np.concatenate([labels, logits], axis=1, dtype=np.float32))

    def write(self, comm: Collectives) -> None:
        """Writes the file on the first worker. A collective.

        The file appears under its name when it is whole. Rows travel in blocks, so that no worker ever
        holds much more than its own.

        Raises:
            OSError: the file cannot be written. Raised on all workers alike.
            ValueError: the workers' rows are not, by rank, the whole dataset in order. On all workers.
        """
        ranges = comm.gather_rows(np.array([[self._first_row, len(self._values)]], np.int64))
        _check_ranges(ranges)
        blocks = self._blocks(ranges[:, 1].tolist(), comm)
        problem = ""
        if comm.rank == 0:
            try:
                self._write_file(blocks)
            except OSError as error:
                problem = f"{self._path}: the predictions cannot be written: {error}"
        for _ in blocks:  # other workers only send; and the first takes what they send even if it cannot write
            pass
        problem = comm.broadcast_bytes(problem.encode()).decode()
        if problem:
            raise OSError(problem)

    def _write_file(self, blocks: Iterator[list[np.ndarray]]) -> None:
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            with pq.ParquetWriter(temporary, self._schema(), write_page_checksum=True) as writer:
                row = 0
                for values, *group in blocks:
                    writer.write_table(self._table(row, values, group))
                    row += len(values)
            os.replace(temporary, self._path)
        finally:
            temporary.unlink(missing_ok=True)

    def _blocks(self, counts: Sequence[int], comm: Collectives) -> Iterator[list[np.ndarray]]:
        """All workers' values, and groups if any, in dataset order, at most _BLOCK_ROWS at once, on every worker."""
        columns = [self._values] if self._group_name is None else [self._values, self._group]
        for source, count in enumerate(counts):
            for start in range(0, count, _BLOCK_ROWS):
                mine = slice(start, start + _BLOCK_ROWS) if comm.rank == source else slice(0)
                yield [comm.gather_rows(column.rows[mine]) for column in columns]

    def _schema(self) -> pa.Schema:
        fields = [pa.field("row", pa.int64())]
        for task in self._task_names:
            fields += [pa.field(f"label_{task}", pa.float32()), pa.field(f"prediction_{task}", pa.float64())]
        if self._group_name is not None:
            fields.append(pa.field(self._group_name, pa.int64()))
        return pa.schema(fields)

    def _table(self, first_row: int, values: np.ndarray, group: list[np.ndarray]) -> pa.Table:
        columns = [pa.array(np.arange(first_row, first_row + len(values)))]
        for label, logit, kind in zip(*np.split(values.T, 2), self._kinds, strict=True):
            predicted = probability(logit) if kind == "binary" else logit.astype(np.float64)
            columns += [pa.array(label, mask=np.isnan(label)), pa.array(predicted)]
        columns += [pa.array(ids) for ids in group]
        return pa.Table.from_arrays(columns, schema=self._schema())


def _check_ranges(ranges: np.ndarray) -> None:
    """Raises unless the workers' [first row, rows] ([workers, 2] int64) follow each other from row 0."""
    expected = 0
    for worker, (first, count) in enumerate(ranges.tolist()):
        if count and first != expected:
            raise ValueError(
                f"worker {worker} has rows from {first} on, expected {expected}: the rows are not in order"
            )
        expected += count
