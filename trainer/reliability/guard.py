"""What workers ask each other at every step: whether to stop, and whether to save."""

import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from trainer.distributed import Comm
from trainer.reliability.intervals import Interval
from trainer.reliability.signals import StopRequest
from trainer.reliability.watchdog import Watchdog

# A save that failed is tried again after so many seconds, where that is sooner than the next one.
RETRY_SECONDS = 60.0


class Decision(NamedTuple):
    """What all workers do after a step, because one of them has asked for it."""

    stop: bool = False
    save: bool = False


class Guard:
    """One worker's voice in what all of them do together, and its sign of life.

    A signal reaches one worker and the clock that counts is the first worker's; so both are votes, which every worker
    casts before a step and which the step sums up: after it, all know the same.

    Args:
        comm: the workers.
        stop: set by signals.
        watchdog: of this worker.
        every: when to save besides after epochs.
    """

    def __init__(self, comm: Comm, stop: StopRequest, watchdog: Watchdog, every: Interval):
        self._comm, self._stop, self._watchdog, self._every = comm, stop, watchdog, every
        self._due = time.monotonic() + every.seconds
        self.beat = watchdog.beat

    def votes(self) -> tf.Tensor:
        """This worker's votes, [2] float32."""
        is_due = bool(self._every.seconds) and self._comm.rank == 0 and time.monotonic() >= self._due
        return tf.constant([float(self._stop.requested), float(is_due)])

    def decide(self, votes: np.ndarray, step: int) -> Decision:
        """What to do after a step, given the sums of the votes that were cast before it."""
        by_count = bool(self._every.steps) and step % self._every.steps == 0
        return Decision(stop=bool(votes[0] > 0), save=bool(votes[1] > 0) or by_count)

    def asks_to_stop(self) -> bool:
        """Whether any worker does. A collective, for times between steps."""
        return bool(self._comm.sum_array(np.array([float(self._stop.requested)]))[0] > 0)

    def saved(self) -> None:
        """Says that a save has begun: the next one is due an interval from now."""
        self._due = time.monotonic() + self._every.seconds

    def failed(self) -> None:
        """Says that a save has failed."""
        self._due = min(self._due, time.monotonic() + RETRY_SECONDS)
