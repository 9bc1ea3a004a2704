"""What metrics and predictions ask of the group of workers."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

_SAMPLES_PER_WORKER_PAIR = 16


class Collectives(Protocol):
    """The NumPy half of `trainer.distributed.Comm`, so that metrics need neither TensorFlow nor Horovod.

    Every method is called by all workers in the same order. Arrays are int32, int64, float32 or float64.
    """

    @property
    def rank(self) -> int:
        """This worker's number, from 0."""

    @property
    def size(self) -> int:
        """Number of workers."""

    def sum_array(self, array: np.ndarray) -> np.ndarray:
        """Element-wise sum over workers; one shape and dtype everywhere."""

    def gather_rows(self, rows: np.ndarray) -> np.ndarray:
        """All workers' rows in rank order; they may hold unequal numbers."""

    def exchange_rows(self, rows: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        """Sends the first counts[0] rows to worker 0, the next to worker 1, ...; returns what came, in rank order."""

    def broadcast_bytes(self, data: bytes | None) -> bytes:
        """Rank 0's bytes on every worker."""


def exchange_columns(columns: Sequence[np.ndarray], counts: Sequence[int], comm: Collectives) -> tuple[np.ndarray, ...]:
    """Sends rows that are kept as columns.

    Args:
        columns: arrays of equal length, their rows sorted by the worker that gets them.
        counts: how many rows each worker gets.
        comm: this worker's view of the group.

    Returns:
        The columns of what came here, in rank order of the senders.
    """
    return tuple(comm.exchange_rows(column, counts) for column in columns)


def splitters(
    columns: Sequence[np.ndarray], order: Callable[..., np.ndarray], comm: Collectives
) -> tuple[np.ndarray, ...]:
    """Where to cut sorted rows so that every worker gets about equally many, from a sample. A collective.

    Args:
        columns: what this worker's rows are sorted by, arrays of equal length.
        order: positions that sort such columns.
        comm: this worker's view of the group.

    Returns:
        The same columns, each [workers - 1]: worker w gets the rows from splitter w - 1 on, before splitter w.
    """
    total = int(comm.sum_array(np.array([len(columns[0])], np.int64))[0])
    if total == 0:
        return tuple(np.zeros(comm.size - 1, column.dtype) for column in columns)
    stride = max(1, total // (_SAMPLES_PER_WORKER_PAIR * comm.size**2))
    samples = [comm.gather_rows(column[::stride]) for column in columns]
    places = order(*samples)[np.arange(1, comm.size) * len(samples[0]) // comm.size]
    return tuple(column[places] for column in samples)
