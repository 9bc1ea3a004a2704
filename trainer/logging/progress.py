"""Progress display of a run: tqdm's bar on a terminal, plain lines elsewhere."""

import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from tqdm import tqdm

from data.progress import Advance, Bar, progress_bar
from trainer.process.worker_env import read_worker_env

LINES_INTERVAL_SECONDS = 5.0
BAR = "{percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
LINE = BAR.replace("|{bar:24}|", "")


class Progress:
    """Displays completed steps, elapsed and remaining time, loss and throughput.

    On a terminal tqdm redraws a bar. Elsewhere the first and the last line are printed, and others at most every
    LINES_INTERVAL_SECONDS. A closed or broken stream ends the display, not training.

    Args:
        total_steps: number of steps of the whole run, at least 1.
        stream: output stream; None for stderr.
        enabled: whether to display anything, which only rank 0 should.
    """

    def __init__(self, total_steps: int, stream: TextIO | None = None, *, enabled: bool = True) -> None:
        self._total = total_steps
        self._stream = sys.stderr if stream is None else stream
        # Python sets a standard stream to None if the process was started with it closed.
        self._enabled = enabled and self._stream is not None and not self._stream.closed
        self._bar: Bar | None = None
        self._step, self._loss, self._rate, self._postfix = 0, "", "", ""
        self._first: tuple[int, float] | None = None  # step and time of the first update
        self._printed: tuple[int, str] | None = None  # step and postfix of the last line
        self._printed_at = 0.0

    def update(self, step: int | None, loss: float | None = None, rate: float | None = None, note: str = "") -> None:
        """Update the display.

        Args:
            step: number of completed steps; None if unchanged, as during an evaluation.
            loss: loss of this step; None keeps the last one.
            rate: samples per second; None keeps the last one.
            note: additional text to show.
        """
        if not self._enabled:
            return
        self._step = self._step if step is None else step
        self._loss = self._loss if loss is None else f"loss {loss:.5f}"
        self._rate = self._rate if rate is None else f"{format_count(rate)} samples/s"
        self._postfix = ", ".join(filter(None, (self._loss, self._rate, note)))
        if self._first is None:
            # Remaining time is estimated from the first step on, which excludes compilation and resuming.
            self._first = (self._step, time.monotonic())
        try:
            if self._stream.isatty():
                self._draw()
            elif (
                self._printed is None
                or self._step >= self._total > self._printed[0]
                or time.monotonic() - self._printed_at >= LINES_INTERVAL_SECONDS
            ):
                self._print_line()
        except (OSError, ValueError):
            self._give_up()

    def message(self, text: str) -> None:
        """Print a separate line above the bar."""
        if not self._enabled:
            return
        try:
            tqdm.write(text, file=self._stream)
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def close(self) -> None:
        """Show the final state and end the line."""
        try:
            if self._bar is not None:
                self._bar.close()
            elif self._first is not None and self._enabled:
                self._print_line()
        except (OSError, ValueError):
            self._give_up()

    def _draw(self) -> None:
        if self._bar is None:
            self._bar = Bar(
                total=self._total,
                initial=self._step,
                file=self._stream,
                bar_format=BAR,
                dynamic_ncols=True,
                miniters=0,
                smoothing=0,  # the remaining time follows from the mean speed
            )
        self._bar.set_postfix_str(self._postfix, refresh=False)
        self._bar.update(self._step - self._bar.n)

    def _print_line(self) -> None:
        now, (first_step, started) = time.monotonic(), self._first or (0, 0.0)
        if self._printed != (self._step, self._postfix):
            line = tqdm.format_meter(
                self._step, self._total, now - started, initial=first_step, bar_format=LINE, postfix=self._postfix
            )
            print(line, file=self._stream, flush=True)
        self._printed, self._printed_at = (self._step, self._postfix), now

    def _give_up(self) -> None:
        self._enabled = False
        if self._bar is not None:
            self._bar.disable = True  # otherwise its destructor writes again


def format_count(number: float) -> str:
    """Format a number with three digits and a unit: 999, 12.3k, 1.64M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        # Numbers that round up to the unit use the unit: 999.6 is 1k, not 1e+03.
        if 0.9995 * limit <= abs(number) < math.inf:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.3g}"


@contextmanager
def byte_progress(what: str, total: int) -> Iterator[Advance]:
    """Show, on the first worker, the progress of work on `total` bytes once it has taken five seconds.

    Yields:
        The function to call with each number of bytes done, by any thread.
    """
    lock, is_shown = threading.Lock(), read_worker_env(os.environ).rank == 0
    with progress_bar(what, total, "B", _print_line, unit_scale=True, disable=not is_shown) as bar:

        def advance(count: int) -> None:
            with lock:
                bar.update(count)

        yield advance


def _print_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
