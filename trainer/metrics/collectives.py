"""Collectives that metrics and predictions need."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

_SAMPLES_PER_WORKER_PAIR = 16


class Collectives(Protocol):
    """The NumPy half of `trainer.distributed.Comm`, so that metrics need neither TensorFlow nor Horovod.

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
