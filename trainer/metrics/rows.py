"""Storage of an evaluation's rows on each worker."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trainer.tasks import Task, logit_columns

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
