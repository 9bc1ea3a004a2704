"""Time breakdown of training steps."""

import time
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


def timed(stream: Iterator[T]) -> Iterator[tuple[T, float]]:
    """Yield each batch with the seconds spent waiting for it."""
    started = time.perf_counter()
    for batch in stream:
        yield batch, time.perf_counter() - started
        started = time.perf_counter()


class StepTimes:
    """Accumulates the time of this worker's steps between two log records."""

    def __init__(self) -> None:
        self._has_compiled = False
        self._steps, self._whole, self._data, self._collectives = 0, 0.0, 0.0, 0.0

    def wait(self, seconds: float) -> None:
        """Add the seconds that a step has waited for its batch."""
        self._data += seconds

    def add(self, seconds: float, in_collectives: float) -> None:
        """Add a step.

        Args:
            seconds: total seconds of the step, including the wait for its batch.
            in_collectives: seconds of these spent in collectives.
        """
        self._steps, self._whole = self._steps + 1, self._whole + seconds
        self._collectives += in_collectives

    def take(self) -> dict[str, float]:
        """Return means over the steps since the last call, and reset them.

        Returns:
            Milliseconds: step_ms, and its parts wait_for_data_ms and communicate_ms. The first call returns nothing, as
            its steps include compilation.
        """
        sums = {"step_ms": self._whole, "wait_for_data_ms": self._data, "communicate_ms": self._collectives}
        means = {key: 1000 * seconds / max(1, self._steps) for key, seconds in sums.items()}
        result = means if self._has_compiled and self._steps else {}
        self._has_compiled = True
        self._steps, self._whole, self._data, self._collectives = 0, 0.0, 0.0, 0.0
        return result
