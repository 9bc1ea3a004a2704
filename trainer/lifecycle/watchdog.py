"""A watchdog that ends a worker which no longer makes progress."""

import faulthandler
import sys
import threading
import time
from contextlib import suppress
from types import TracebackType

from trainer.lifecycle.errors import HANG
from trainer.lifecycle.records import WorkerRecord

# Time limit until the first step, and whenever something is compiled or written for the first time.
SLOW_SECONDS = 1800.0
# Default limit: this many times the longest interval between beats so far, but at least LEAST_SECONDS.
STEPS_OF_PATIENCE = 20
LEAST_SECONDS = 300.0
# Delay before exiting. Workers hang together, as steps are synchronous: this lets the others print their stacks, too.
GRACE_SECONDS = 2.0


class Watchdog:
    """Context manager that expects regular calls of `beat`; if they stop, it prints all stacks and exits the process.

    The watchdog runs in a thread, so it detects a main thread that is blocked on other workers, a disk or a lock. It
    cannot act while its own process is stopped; the other workers' watchdogs then do.

    Args:
        limit: maximum seconds between two beats; None uses 20 times the longest interval so far, at least 300 s.
        record: this worker's record; None disables the watchdog.
    """

    def __init__(self, limit: float | None, record: WorkerRecord | None):
        self._given, self._record = limit, record
        self._longest = 0.0
        self._beaten, self._allowed = time.monotonic(), SLOW_SECONDS
        self._is_closed = threading.Event()

    def __enter__(self) -> "Watchdog":
        self._beaten = time.monotonic()
        if self._record is not None:
            threading.Thread(target=self._watch, args=(self._record,), name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_closed.set()

    @property
    def limit(self) -> float:
        """Maximum seconds between two beats."""
        return self._given or max(LEAST_SECONDS, STEPS_OF_PATIENCE * self._longest)

    def beat(self, allow: float = 0.0) -> None:
        """Report that the worker has made progress.

        Args:
            allow: seconds that the next beat may take if that is longer than the limit.
        """
        now = time.monotonic()
        # Intervals with an allowance (compiling, saving) are not typical and do not raise the limit.
        if not self._allowed:
            self._longest = max(self._longest, now - self._beaten)
        self._beaten, self._allowed = now, allow

    def _watch(self, record: WorkerRecord) -> None:
        while not self._is_closed.wait(min(0.5, self.limit / 10)):
            silent, limit = time.monotonic() - self._beaten, max(self.limit, self._allowed)
            if silent > limit:
                self._abort(record, silent)

    def _abort(self, record: WorkerRecord, silent: float) -> None:
        cause = f"no progress for {silent:.1f} s: no step has ended, no batch was evaluated, nothing was saved"
        print(f"watchdog: {cause}. The stacks of this worker:", file=sys.stderr, flush=True)
        with suppress(OSError, ValueError, AttributeError):  # a closed stderr must not keep the worker alive
            faulthandler.dump_traceback(all_threads=True)
        last_beat = self._beaten
        # The worker may have recovered while its stacks were printed.
        if not self._is_closed.wait(GRACE_SECONDS) and self._beaten == last_beat:
            record.leave(HANG, cause)
