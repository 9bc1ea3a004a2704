"""Where the steps of a training spend their time."""

import time
from collections.abc import Iterator

from data.loading.batch import Batch


def timed(stream: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch with the seconds that were spent waiting for it."""
    started = time.perf_counter()
    for batch in stream:
        yield batch, time.perf_counter() - started
        started = time.perf_counter()


class StepTimes:
    """Sums up what this worker's steps take between two records of the log."""

    def __init__(self) -> None:
        self._has_compiled = False
        self._steps, self._whole, self._data, self._collectives = 0, 0.0, 0.0, 0.0

    def wait(self, seconds: float) -> None:
        """Takes the time that a step has waited for its batch."""
        self._data += seconds

    def add(self, seconds: float, in_collectives: float) -> None:
        """Takes a step: all its seconds, the wait for the batch among them, and those in collectives."""
        self._steps, self._whole = self._steps + 1, self._whole + seconds
        self._collectives += in_collectives

    def take(self) -> dict[str, float]:
        """Means of the steps since the last call, in milliseconds: step_ms, and of it wait_for_data_ms, communicate_ms.

        The first call gives nothing: functions are compiled in its steps.
        """
        sums = {"step_ms": self._whole, "wait_for_data_ms": self._data, "communicate_ms": self._collectives}
        means = {key: 1000 * seconds / max(1, self._steps) for key, seconds in sums.items()}
        told = means if self._has_compiled and self._steps else {}
        self._has_compiled = True
        self._steps, self._whole, self._data, self._collectives = 0, 0.0, 0.0, 0.0
        return told
