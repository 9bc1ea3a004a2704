"""Which workers keep the others waiting."""

import socket

import numpy as np

from trainer.distributed import Comm

# A worker is told of that takes so much longer than the median of the others, and at least so many seconds.
RATIO, LEAST_SECONDS = 1.5, 0.002
LEAST_STEPS = 5
_NAME_BYTES = 64


class Stragglers:
    """Compares the time that workers take for a step by themselves: the step's time without that in collectives.

    All workers end a step together, so the time of whole steps tells nothing: the slow worker is the one that never
    waits. On GPUs collectives count from their launch.

    Args:
        comm: the workers.
    """

    def __init__(self, comm: Comm):
        self._comm = comm
        name = socket.gethostname().encode()[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0")
        names = comm.gather_rows(np.frombuffer(name, np.uint8)[np.newaxis])
        self._hosts = [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in names]
        self._told: set[int] = set()
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0

    def add(self, seconds: float, waited: float) -> None:
        """Takes a step: all its seconds, and those in collectives."""
        self._steps, self._seconds, self._waited = self._steps + 1, self._seconds + seconds, self._waited + waited

    def look(self) -> tuple[dict[str, float], list[str]]:
        """The slowest worker for the log, and a warning for each slow one that was not told before. A collective.

        Of the steps since the last call; nothing where they are few, or there is one worker.
        """
        steps, own = self._steps, max(0.0, self._seconds - self._waited) / max(1, self._steps)
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0
        if self._comm.size == 1 or steps < LEAST_STEPS:
            return {}, []
        seconds = self._comm.gather_rows(np.array([own]))
        slowest = int(np.argmax(seconds))
        values = {"slowest_worker": slowest, "slowest_worker_ratio": float(_ratios(seconds)[slowest])}
        slow = set(slow_workers(seconds))
        news, self._told = sorted(slow - self._told), slow
        return values, [self._sentence(worker, seconds) for worker in news]

    def _sentence(self, worker: int, seconds: np.ndarray) -> str:
        others = np.median(np.delete(seconds, worker))
        return (
            f"worker {worker} on {self._hosts[worker]} keeps the others waiting: it takes {1000 * seconds[worker]:.0f} "
            f"ms of its own for a step, the others {1000 * others:.0f} ms"
        )


def slow_workers(seconds: np.ndarray) -> list[int]:
    """Of each worker's own seconds per step: which take RATIO times the others' median, and LEAST_SECONDS more."""
    over = seconds - seconds / _ratios(seconds)
    return np.flatnonzero((_ratios(seconds) > RATIO) & (over > LEAST_SECONDS)).tolist()


def _ratios(seconds: np.ndarray) -> np.ndarray:
    """Each worker's seconds over the median of the others'."""
    others = [np.median(np.delete(seconds, worker)) for worker in range(len(seconds))]
    return np.maximum(seconds, 1e-9) / np.maximum(others, 1e-9)
