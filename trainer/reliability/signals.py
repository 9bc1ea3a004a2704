"""SIGTERM and SIGUSR1: a request to stop after the next step; a second one means at once."""

import os
import signal
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

from trainer.reliability.exit_codes import STOPPED
from trainer.reliability.records import STOPPED_EARLY, WorkerRecord

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
ONE_REQUEST_SECONDS = 1.0
"""Signals this soon after the first belong to the same request: timeout(1), for one, sends SIGTERM twice."""


class StopSignals:
    """Counts the requests in the signals that one process receives.

    Attributes:
        requests: the signal of each request, in order. Signals within ONE_REQUEST_SECONDS of the first one are part of
            the first request.
    """

    def __init__(self) -> None:
        self.requests: list[int] = []
        self._first_at = 0.0

    def add(self, number: int) -> None:
        """Takes a signal."""
        now = time.monotonic()
        if not self.requests:
            self._first_at = now
        elif now < self._first_at + ONE_REQUEST_SECONDS:
            return
        self.requests.append(number)


class StopRequest:
    """Remembers, inside its block, that a signal asked for a stop.

    A thread of its own reads the signals, so that they are obeyed even while the main thread waits inside TensorFlow.
    Before training has begun there is nothing to save, and the first signal ends the process. A second request, which
    cannot come within a second of the first (see StopSignals), ends it too. Outside the main thread,
    where Python sets no handlers, nothing is asked for, ever.

    Args:
        record: of this worker; None leaves the signals as they are.

    Attributes:
        requested: whether a signal has come.
        has_begun: whether there is somebody to see that.
    """

    def __init__(self, record: WorkerRecord | None):
        self._record = record
        self._signals = StopSignals()
        self.requested = self.has_begun = False
        self._handlers: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._wakeup_before = -1

    def __enter__(self) -> "StopRequest":
        if self._record is None or threading.current_thread() is not threading.main_thread():
            return self
        reading, writing = self._pipe = os.pipe()
        os.set_blocking(writing, False)
        self._wakeup_before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in STOP_SIGNALS}
        threading.Thread(target=self._read, args=(reading,), name="stop-signals", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pipe is None:
            return
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._pipe[1])  # the thread reads to the end, and closes its own

    def _read(self, descriptor: int) -> None:
        """Takes the numbers of signals that arrive, one byte each."""
        with suppress(OSError):
            while numbers := os.read(descriptor, 1):
                if numbers[0] not in STOP_SIGNALS:
                    continue
                if self._record is not None and not self.has_begun:
                    self._record.leave(STOPPED, f"{STOPPED_EARLY}, by signal {numbers[0]}; nothing is lost")
                self._signals.add(numbers[0])
                if self._record is not None and len(self._signals.requests) > 1:
                    self._record.leave(128 + numbers[0], f"signal {numbers[0]} came a second time")
                self.requested = True
        os.close(descriptor)
