"""The per-step agreement between workers on whether to stop and whether to save."""

import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from trainer.comm import Comm
from trainer.config import Interval
from trainer.lifecycle.signals import StopRequest
from trainer.lifecycle.watchdog import Watchdog

# A failed save is retried after this many seconds, unless the next regular save is due sooner.
RETRY_SECONDS = 60.0


class Decision(NamedTuple):
    """What all workers do after a step.

    Attributes:
        stop: whether to stop training.
        save: whether to write a checkpoint.
    """

    stop: bool = False
    save: bool = False


class StepControl:
    """Coordinates stops and saves across workers, and reports progress to the watchdog.

    A signal may reach only one worker, and only rank 0's clock decides when a timed save is due. Every worker therefore
    raises flags before a step, the step sums them over all workers, and all workers act on the same sums afterwards.

    Args:
        comm: communicator of the workers.
        stop: stop request set by signals.
        watchdog: this worker's watchdog.
        every: interval between saves, in addition to those after each epoch.

    Attributes:
        beat: the watchdog's `beat`, to be called whenever the worker has made progress.
    """

    def __init__(self, comm: Comm, stop: StopRequest, watchdog: Watchdog, every: Interval):
        self._comm, self._stop, self._watchdog, self._every = comm, stop, watchdog, every
        self._due = time.monotonic() + every.seconds
        self.beat = watchdog.beat

    def control_flags(self) -> tf.Tensor:
        """Return this worker's flags [2] float32: stop requested, timed save due."""
        is_due = bool(self._every.seconds) and self._comm.rank == 0 and time.monotonic() >= self._due
        return tf.constant([float(self._stop.requested), float(is_due)])

    def decide(self, flags: np.ndarray, step: int) -> Decision:
        """Decide what to do after a step.

        Args:
            flags: [2], the control flags of before the step, summed over workers.
            step: number of completed steps.
        """
        by_count = bool(self._every.steps) and step % self._every.steps == 0
        return Decision(stop=bool(flags[0] > 0), save=bool(flags[1] > 0) or by_count)

    def any_stop_requested(self) -> bool:
        """Return whether any worker has received a stop request. A collective, for use between steps."""
        return bool(self._comm.sum_array(np.array([float(self._stop.requested)]))[0] > 0)

    def saved(self) -> None:
        """Record that a save has begun; the next timed save is due one interval from now."""
        self._due = time.monotonic() + self._every.seconds

    def failed(self) -> None:
        """Record that a save has failed, and schedule a retry."""
        self._due = min(self._due, time.monotonic() + RETRY_SECONDS)
