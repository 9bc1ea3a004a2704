"""Several workers in one process: a Comm whose collectives exchange data between threads."""

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_DTYPES = (np.int32, np.int64, np.float32, np.float64)


class PeerLost(RuntimeError):
    """A worker waits in a collective that another one never entered."""


class _Rendezvous:
    """Passes the values of each collective between the workers."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._changed = threading.Condition()
        self._rounds: dict[int, dict[int, tuple[str, Any]]] = defaultdict(dict)
        self._gone: set[int] = set()

    def exchange(self, rank: int, number: int, collective: str, value: Any) -> list[Any]:
        """Returns all workers' values by rank. All workers must call the same collective under the same number."""
        with self._changed:
            values = self._rounds[number]
            values[rank] = (collective, value)
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(values) == self.size or self._gone - values.keys(), timeout=60)
            if len(values) < self.size:
                raise PeerLost(f"worker {rank} waits in {collective}")
            self._rounds.pop(number - 1, None)  # every worker that gets here has read the last round
        called = {name for name, _ in values.values()}
        if len(called) != 1:
            raise RuntimeError(f"the workers are in different collectives: {sorted(called)}")
        return [values[worker][1] for worker in range(self.size)]

    def leave(self, rank: int) -> None:
        """Ends every wait for this worker."""
        with self._changed:
            self._gone.add(rank)
            self._changed.notify_all()


class ThreadWorker:
    """One of the workers: the NumPy part of trainer.comm.Comm, with strict checks of its arguments."""

    def __init__(self, rank: int, rendezvous: _Rendezvous) -> None:
        self.rank, self.size, self.local_rank = rank, rendezvous.size, rank
        self._rendezvous = rendezvous
        self._collectives = 0
        self.largest_receipt = 0  # rows, over all gathers and exchanges

    def sum_array(self, array: np.ndarray) -> np.ndarray:
        arrays = self._exchange("sum_array", _checked(array).copy())
        if len({(a.shape, a.dtype) for a in arrays}) != 1:
            raise ValueError(f"summed arrays differ: {[(a.shape, a.dtype) for a in arrays]}")
        return np.sum(arrays, axis=0, dtype=array.dtype)

    def gather_rows(self, rows: np.ndarray) -> np.ndarray:
        return self._joined(self._exchange("gather_rows", _checked(rows).copy()))

    def exchange_rows(self, rows: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        if len(counts) != self.size or sum(counts) != len(rows) or min(counts) < 0:
            raise ValueError(f"{len(rows)} rows cannot be sent to {self.size} workers as {counts}")
        parts = np.split(_checked(rows).copy(), np.cumsum(counts)[:-1])
        return self._joined([sent[self.rank] for sent in self._exchange("exchange_rows", parts)])

    def broadcast_bytes(self, data: bytes | None) -> bytes:
        return self._exchange("broadcast_bytes", data)[0] or b""

    def _exchange(self, collective: str, value: Any) -> list[Any]:
        self._collectives += 1
        return self._rendezvous.exchange(self.rank, self._collectives, collective, value)

    def _joined(self, parts: list[np.ndarray]) -> np.ndarray:
        if len({(part.shape[1:], part.dtype) for part in parts}) != 1:
            raise ValueError(f"the workers' rows differ: {[(part.shape, part.dtype) for part in parts]}")
        joined = np.concatenate(parts)
        self.largest_receipt = max(self.largest_receipt, len(joined))
        return joined


def _checked(array: np.ndarray) -> np.ndarray:
    if array.dtype not in _DTYPES or array.ndim == 0:
        raise TypeError(f"a collective takes arrays of {_DTYPES}, got {array.dtype} of shape {array.shape}")
    return array


class LocalWorkers:
    """Runs one function as several workers."""

    def __init__(self, size: int) -> None:
        self.size = size

    def run(self, work: Callable[[ThreadWorker], Any]) -> list[Any]:
        """Returns the results of `work` by rank.

        Raises the error of the lowest rank that failed; those that only lost a peer come last.
        """
        outcomes = self.outcomes(work)
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        causes = [error for error in errors if not isinstance(error, PeerLost)]
        for error in causes + errors:
            raise error
        return outcomes

    def outcomes(self, work: Callable[[ThreadWorker], Any]) -> list[Any]:
        """Returns what `work` returned or raised on each worker, by rank."""
        rendezvous = _Rendezvous(self.size)
        outcomes: list[Any] = [None] * self.size

        def run(rank: int) -> None:
            try:
                outcomes[rank] = work(ThreadWorker(rank, rendezvous))
            except BaseException as error:
                outcomes[rank] = error
            finally:
                rendezvous.leave(rank)

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return outcomes
