"""Handling of SIGTERM and SIGUSR1: the first requests a stop after the next step, a second one exits immediately."""

import os
import signal
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

from trainer.lifecycle.errors import STOPPED
from trainer.lifecycle.records import STOPPED_EARLY, WorkerRecord

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
ONE_REQUEST_SECONDS = 1.0
"""Signals within this many seconds of the first belong to the same request: timeout(1) sends SIGTERM twice."""


class StopSignals:
    """Groups the signals that a process receives into requests.

    Attributes:
        requests: signal number of each request, in order. Signals within ONE_REQUEST_SECONDS of the first one are part
            of the first request.
    """

    def __init__(self) -> None:
        self.requests: list[int] = []
        self._first_at = 0.0

    def add(self, number: int) -> None:
        """Record a received signal."""
        now = time.monotonic()
        if not self.requests:
            self._first_at = now
        elif now < self._first_at + ONE_REQUEST_SECONDS:
            return
        self.requests.append(number)


class StopRequest:
    """Context manager that records whether a signal has requested a stop.

    A separate thread reads the signals, so that they take effect even while the main thread is blocked in TensorFlow.
    Before training begins there is nothing to save and the first signal ends the process. A second request (see
    `StopSignals`) ends it as well. Outside the main thread, where Python cannot install signal handlers, no stop is
    ever requested.

    Args:
        record: this worker's record; None leaves the signal handlers unchanged.

    Attributes:
        requested: whether a stop has been requested.
        has_begun: set by the caller once training has begun and it checks `requested`.
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
        # Python runs signal handlers only between bytecodes of the main thread. The wakeup descriptor is written by the
        # C-level handler right away; the Python handlers do nothing but keep the default action from happening.
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
        os.close(self._pipe[1])  # the thread reads to end of file and then closes its own end

    def _read(self, descriptor: int) -> None:
        """Read signal numbers from the pipe, one byte each, until it is closed."""
        with suppress(OSError):
            while numbers := os.read(descriptor, 1):
                if numbers[0] not in STOP_SIGNALS:
                    continue
                if self._record is not None and not self.has_begun:
                    self._record.leave(STOPPED, f"{STOPPED_EARLY}, by signal {numbers[0]}; nothing is lost")
                self._signals.add(numbers[0])
                if self._record is not None and len(self._signals.requests) > 1:
                    self._record.leave(128 + numbers[0], f"a second signal {numbers[0]}")
                self.requested = True
        os.close(descriptor)
