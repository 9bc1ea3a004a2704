"""Detection of workers that slow down all others."""

import socket

import numpy as np

from trainer.comm import Comm

# A worker counts as slow if it takes more than RATIO times the others' median, and over MIN_SECONDS longer per step.
RATIO, MIN_SECONDS = 1.5, 0.002
MIN_STEPS = 5
_NAME_BYTES = 64


class Stragglers:
    """Compares the workers' own time per step, that is, the step time without the time spent in collectives.

    All workers finish a step together, so the total step time does not identify a slow worker: it is the one that never
    waits in collectives. On GPUs only the first collective of a step is timed, in which workers wait for a late one.

    Args:
        comm: communicator of the workers.
    """

    def __init__(self, comm: Comm):
        self._comm = comm
        # Host names are gathered as rows of fixed width, [workers, _NAME_BYTES] uint8.
        name = socket.gethostname().encode()[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0")
        names = comm.gather_rows(np.frombuffer(name, np.uint8)[np.newaxis])
        self._hosts = [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in names]
        self._reported: set[int] = set()
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0

    def add(self, seconds: float, waited: float) -> None:
        """Add a step: its total seconds, and the seconds of these spent in collectives."""
        self._steps, self._seconds, self._waited = self._steps + 1, self._seconds + seconds, self._waited + waited

    def compare(self) -> tuple[dict[str, float], list[str]]:
        """Compare workers over the steps since the last call. A collective.

        Returns:
            Values for the log that name the slowest worker, and a warning for each slow worker that was not slow at the
            last comparison. Both are empty with a single worker or after fewer than MIN_STEPS steps.
        """
        steps, own = self._steps, max(0.0, self._seconds - self._waited) / max(1, self._steps)
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0
        if self._comm.size == 1 or steps < MIN_STEPS:
            return {}, []
        seconds = self._comm.gather_rows(np.array([own]))  # [workers]
        slowest = int(np.argmax(seconds))
        values = {"slowest_worker": slowest, "slowest_worker_ratio": float(_ratios(seconds)[slowest])}
        slow = set(slow_workers(seconds))
        new, self._reported = sorted(slow - self._reported), slow
        return values, [self._describe(worker, seconds) for worker in new]

    def _describe(self, worker: int, seconds: np.ndarray) -> str:
        others = np.median(np.delete(seconds, worker))
        return (
            f"worker {worker} on {self._hosts[worker]} keeps the others waiting: its own part of a step takes "
            f"{1000 * seconds[worker]:.0f} ms, that of the others {1000 * others:.0f} ms"
        )


def slow_workers(seconds: np.ndarray) -> list[int]:
    """Return the workers whose own time exceeds the others' median by the factor RATIO and by MIN_SECONDS.

    Args:
        seconds: [workers], own seconds per step of each worker.
    """
    over = seconds - seconds / _ratios(seconds)
    return np.flatnonzero((_ratios(seconds) > RATIO) & (over > MIN_SECONDS)).tolist()


def _ratios(seconds: np.ndarray) -> np.ndarray:
    """Return each worker's seconds divided by the median of the other workers' seconds, [workers]."""
    others = [np.median(np.delete(seconds, worker)) for worker in range(len(seconds))]
    return np.maximum(seconds, 1e-9) / np.maximum(others, 1e-9)
