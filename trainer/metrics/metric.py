"""Storage of an evaluation's rows on each worker."""

import math
from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

import numpy as np

from trainer.tasks.tasks import Task, logit_columns


class Direction(Enum):
    """Where a metric moves as a model gets better."""

    LARGER = "larger"
    SMALLER = "smaller"
    NEAREST_1 = "nearest to 1"  # for ratios: 2 and 1/2 are equally far from 1

    def is_better(self, new: float, old: float | None) -> bool:
        """Returns whether `new` is strictly better than `old`. NaN never is, but others beat NaN and None."""
        if math.isnan(new):
            return False
        return old is None or math.isnan(old) or self._badness(new) < self._badness(old)

    def _badness(self, value: float) -> float:
        if self is Direction.LARGER:
            return -value
        if self is Direction.SMALLER:
            return value
        return max(value, 1 / value) if value > 0 else math.inf


_SAMPLES_PER_WORKER_PAIR = 16


class Collectives(Protocol):
    """The NumPy half of `trainer.comm.Comm`, so that metrics need neither TensorFlow nor Horovod.

    All workers call every method in the same order. Arrays are int32, int64, float32 or float64.
    """

    @property
    def rank(self) -> int:
        """Rank of this worker, from 0."""

    @property
    def size(self) -> int:
        """Number of workers."""

    def sum_array(self, array: np.ndarray) -> np.ndarray:
        """Returns the element-wise sum over workers; shape and dtype must be equal on all of them."""

    def gather_rows(self, rows: np.ndarray) -> np.ndarray:
        """Returns all workers' rows in rank order; their numbers may differ."""

    def exchange_rows(self, rows: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        """Sends the first counts[0] rows to worker 0, the next to worker 1, ...; returns received rows by rank."""

    def broadcast_bytes(self, data: bytes | None) -> bytes:
        """Returns rank 0's bytes on every worker."""


def exchange_columns(columns: Sequence[np.ndarray], counts: Sequence[int], comm: Collectives) -> tuple[np.ndarray, ...]:
    """Exchanges rows that are stored as columns.

    Args:
        columns: arrays of equal length, with rows sorted by receiving worker.
        counts: number of rows for each worker.
        comm: collectives of the group of workers.

    Returns:
        The columns of the received rows, in rank order of the senders.
    """
    return tuple(comm.exchange_rows(column, counts) for column in columns)


def splitters(
    columns: Sequence[np.ndarray], order: Callable[..., np.ndarray], comm: Collectives
) -> tuple[np.ndarray, ...]:
    """Estimates from a sample where to cut sorted rows into about equal parts, one per worker. A collective.

    Args:
        columns: sort columns of this worker's rows, arrays of equal length.
        order: returns the positions that sort such columns.
        comm: collectives of the group of workers.

    Returns:
        The same columns, each [workers - 1]: worker w gets the rows from splitter w - 1 (included) up to splitter w.
    """
    total = int(comm.sum_array(np.array([len(columns[0])], np.int64))[0])
    if total == 0:
        return tuple(np.zeros(comm.size - 1, column.dtype) for column in columns)
    # About 16 samples per pair of workers, so that parts stay balanced as the number of workers grows.
    stride = max(1, total // (_SAMPLES_PER_WORKER_PAIR * comm.size**2))
    samples = [comm.gather_rows(column[::stride]) for column in columns]
    places = order(*samples)[np.arange(1, comm.size) * len(samples[0]) // comm.size]
    return tuple(column[places] for column in samples)


_FIRST_CAPACITY = 1024


class Rows(NamedTuple):
    """One worker's rows of one task, as columns of equal length.

    Attributes:
        logits: [rows] float32; for a multiclass task [rows, classes].
        labels: [rows] float32.
        weights: [rows] float32.
        group: [rows] int64, or None if rows have no group.
    """

    logits: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    group: np.ndarray | None

    def select(self, mask: np.ndarray) -> "Rows":
        """Returns the rows where `mask` ([rows] bool) is true."""
        if mask.all():
            return self
        group = None if self.group is None else self.group[mask]
        return Rows(self.logits[mask], self.labels[mask], self.weights[mask], group)


def as_logits(values: np.ndarray) -> np.ndarray:
    """Converts float64 values to finite logits, [...] float32; values beyond its range are clipped."""
    largest = np.finfo(np.float32).max
    return np.clip(values, -largest, largest).astype(np.float32)


class GrowingArray:
    """An array that rows can be appended to; its capacity doubles when it is full.

    Memory: the bytes of the rows; unused capacity is not backed by memory on Linux. While it grows, the old and the new
    array exist side by side.
    """

    def __init__(self, dtype: type[np.generic], width: int | None = None) -> None:
        """Creates an empty array. `width` is the length of a row, None for scalars."""
        self._room = np.empty((0,) if width is None else (0, width), dtype)
        self._size = 0

    def append(self, rows: np.ndarray) -> None:
        """Appends [rows, ...]; values are cast to this array's dtype."""
        size = self._size + len(rows)
        if size > len(self._room):
            capacity = max(size, 2 * len(self._room), _FIRST_CAPACITY)
            grown = np.empty((capacity, *self._room.shape[1:]), self._room.dtype)
            grown[: self._size] = self.rows
            self._room = grown
        self._room[self._size : size] = rows
        self._size = size

    @property
    def rows(self) -> np.ndarray:
        """All appended rows, without a copy."""
        return self._room[: self._size]

    def __len__(self) -> int:
        """Number of rows."""
        return self._size


class RowStore:
    """Logits, labels, weights and group IDs of all rows, stored once for all metrics of all tasks.

    Memory: 4 bytes per logit, label and weight of the rows with non-zero weight, and 8 per group ID (one task with one
    logit: 12 bytes per row, with groups 20).
    """

    def __init__(self, tasks: Sequence[Task], *, with_group: bool) -> None:
        """Creates an empty store."""
        self._columns = logit_columns(tasks)
        self._is_multiclass = [task.kind == "multiclass" for task in tasks]
        self._logits = GrowingArray(np.float32, sum(task.width for task in tasks))
        self._labels = GrowingArray(np.float32, len(tasks))
        self._weights = GrowingArray(np.float32)
        self._group = GrowingArray(np.int64) if with_group else None

    def append(self, logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, group: np.ndarray | None) -> None:
        """Adds the rows whose weight is not 0.

        Args:
            logits: [batch, sum of widths].
            labels: [batch, tasks].
            weights: [batch].
            group: [batch]; ignored by a store without groups.

        Raises:
            ValueError: the shapes disagree, or a store with groups got none.
        """
        columns = [(self._logits, logits), (self._labels, labels), (self._weights, weights)]
        if self._group is not None:
            if group is None:
                raise ValueError("these rows need a group id each, got None")
            columns.append((self._group, group))
        for store, values in columns:
            expected = (len(weights), *store.rows.shape[1:])
            if values.shape != expected:
                raise ValueError(f"expected rows of shape {expected}, got {values.shape}")
        counts = weights != 0
        for store, values in columns:
            store.append(values if counts.all() else values[counts])

    def task(self, index: int) -> Rows:
        """Returns the rows of one task, as views."""
        group = None if self._group is None else self._group.rows
        logits = self._logits.rows[:, self._columns[index]]
        if not self._is_multiclass[index]:
            logits = logits[:, 0]
        return Rows(logits, self._labels.rows[:, index], self._weights.rows, group)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._weights)
