"""Several workers in threads of one process, for tests that need no real processes."""

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf


class _Rendezvous:
    """Exchanges one value per worker."""

    def __init__(self, size: int):
        self.barrier = threading.Barrier(size, timeout=60)
        self.values: list[Any] = [None] * size


class LocalWorker:
    """Collectives among threads, for eager execution only (see `Comm`)."""

    def __init__(self, rank: int, size: int, rendezvous: _Rendezvous):
        self.rank, self.size, self.local_rank = rank, size, rank
        self._rendezvous = rendezvous

    def _all(self, mine: Any) -> list[Any]:
        self._rendezvous.values[self.rank] = mine
        self._rendezvous.barrier.wait()
        everything = list(self._rendezvous.values)
        self._rendezvous.barrier.wait()
        return everything

    def sum_array(self, array: np.ndarray) -> np.ndarray:
        return np.sum(self._all(array), axis=0)

    def gather_rows(self, rows: np.ndarray) -> np.ndarray:
        return np.concatenate(self._all(rows))

    def exchange_rows(self, rows: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        pieces = self._all(np.split(rows, np.cumsum(counts)[:-1]))
        return np.concatenate([theirs[self.rank] for theirs in pieces])

    def broadcast_bytes(self, data: bytes | None) -> bytes:
        return self._all(data)[0] or b""

    def broadcast_variables(self, variables: Iterable[tf.Variable]) -> None:
        for variable in variables:
            variable.assign(self._all(variable.numpy())[0])

    def sum_tensors(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        return [tf.add_n(same) for same in zip(*self._all(tensors), strict=True)]

    def gather_tensors(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        return [tf.concat(same, axis=0) for same in zip(*self._all(tensors), strict=True)]

    def exchange_values(self, values: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
        return tf.constant(self.exchange_rows(values.numpy(), counts.numpy().tolist()))


def run_workers(size: int, work: Callable[[LocalWorker], Any]) -> list[Any]:
    """Returns what `work` returns on each of `size` workers; raises the first exception of any."""
    rendezvous = _Rendezvous(size)
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def target(rank: int) -> None:
        try:
            results[rank] = work(LocalWorker(rank, size, rendezvous))
        except BaseException as error:
            errors.append(error)
            rendezvous.barrier.abort()

    threads = [threading.Thread(target=target, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    real = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
    if errors:
        raise (real or errors)[0]
    return results
