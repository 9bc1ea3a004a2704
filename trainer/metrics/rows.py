"""The rows that metrics are computed from."""

from typing import NamedTuple

import numpy as np

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
        """Return the rows where `mask` ([rows] bool) is true."""
        if mask.all():
            return self
        group = None if self.group is None else self.group[mask]
        return Rows(self.logits[mask], self.labels[mask], self.weights[mask], group)


def as_logits(values: np.ndarray) -> np.ndarray:
    """Convert float64 values to finite logits, [...] float32; values beyond its range are clipped."""
    largest = np.finfo(np.float32).max
    return np.clip(values, -largest, largest).astype(np.float32)


class GrowingArray:
    """An array that rows can be appended to; its capacity doubles when it is full.

    Memory: the bytes of the rows; unused capacity is not backed by memory on Linux. While it grows, the old and the new
    array exist side by side.
    """

    def __init__(self, dtype: type[np.generic], width: int | None = None) -> None:
        """Create an empty array. `width` is the length of a row, None for scalars."""
        self._room = np.empty((0,) if width is None else (0, width), dtype)
        self._size = 0

    def append(self, rows: np.ndarray) -> None:
        """Append [rows, ...]; values are cast to this array's dtype."""
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
        """Return the number of rows."""
        return self._size
