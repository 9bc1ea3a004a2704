"""Ends a worker that no longer gets anywhere."""

import faulthandler
import sys
import threading
import time
from contextlib import suppress
from types import TracebackType

from trainer.reliability.exit_codes import HANG
from trainer.reliability.records import WorkerRecord

# Until the first step and whenever something is compiled or written for the first time.
SLOW_SECONDS = 1800.0
# Without a limit given: so many times the longest step so far, and at least so many seconds.
STEPS_OF_PATIENCE = 20
LEAST_SECONDS = 300.0
# The other workers print their stacks meanwhile: as steps end together, their watchdogs bark together.
FAREWELL_SECONDS = 2.0


class Watchdog:
    """Watches, inside its block, that `beat` is called again and again; where it is not, prints all stacks and leaves.

    It works in a thread, so it notices a main thread that waits for other workers, for a disk or for a lock. It does
    not notice anything while its own process is stopped: then the other workers' watchdogs do.

    Args:
        limit: seconds between two beats; None derives it from the longest so far (20 of them, at least 300 s).
        record: of this worker; None watches nothing.
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
        """Seconds that may pass between two beats."""
        return self._given or max(LEAST_SECONDS, STEPS_OF_PATIENCE * self._longest)

    def beat(self, allow: float = 0.0) -> None:
        """Says that the worker is alive.

        Args:
            allow: seconds that the next beat may take, if they are more than the limit.
        """
        now = time.monotonic()
        if not self._allowed:
            self._longest = max(self._longest, now - self._beaten)
        self._beaten, self._allowed = now, allow

    def _watch(self, record: WorkerRecord) -> None:
        while not self._is_closed.wait(min(0.5, self.limit / 10)):
            silent, limit = time.monotonic() - self._beaten, max(self.limit, self._allowed)
            if silent > limit:
                self._bark(record, silent)

    def _bark(self, record: WorkerRecord, silent: float) -> None:
        told = f"nothing has moved for {silent:.1f} s: no step has ended, no batch been evaluated, nothing been saved"
        print(f"watchdog: {told}. The stacks of this worker:", file=sys.stderr, flush=True)
        with suppress(OSError, ValueError, AttributeError):  # a closed stderr must not keep the worker alive
            faulthandler.dump_traceback(all_threads=True)
        last_beat = self._beaten
        if not self._is_closed.wait(FAREWELL_SECONDS) and self._beaten == last_beat:
            record.leave(HANG, told)
