"""Progress display: a bar on a terminal, plain lines elsewhere."""

import math
import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

TERMINAL_INTERVAL_SECONDS = 0.2
LINES_INTERVAL_SECONDS = 5.0
BAR_WIDTH = 24
DEFAULT_COLUMNS = 80


class Progress:
    """Displays completed steps, loss, throughput and remaining time.

    On a terminal a single line is redrawn in place, cut to the terminal's width. Elsewhere the first and the last line
    are printed, and others at most every `interval_seconds`. A closed or broken stream ends the display, not training.

    Args:
        total_steps: number of steps of the whole run, at least 1.
        stream: output stream; None for stderr.
        interval_seconds: minimum seconds between two lines or two redraws of the bar; None for the default.
        clock: monotonic clock in seconds.
    """

    def __init__(
        self,
        total_steps: int,
        stream: TextIO | None = None,
        interval_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total_steps
        self._stream = sys.stderr if stream is None else stream
        self._broken = False
        self._on_terminal = self._is_terminal()
        usual = TERMINAL_INTERVAL_SECONDS if self._on_terminal else LINES_INTERVAL_SECONDS
        self._interval = usual if interval_seconds is None else interval_seconds
        self._clock = clock
        self._first: tuple[int, float] | None = None
        self._shown_at: float | None = None
        self._shown = ""
        self._step = 0
        self._loss: float | None = None
        self._rate: float | None = None
        self._note = ""

    def update(self, step: int | None, loss: float | None = None, rate: float | None = None, note: str = "") -> None:
        """Updates the display.

        Args:
            step: number of completed steps; None if unchanged, as during an evaluation.
            loss: loss of this step; None keeps the last one.
            rate: samples per second; None keeps the last one.
            note: additional text to show.
        """
        now = self._clock()
        if step is not None:
            self._step = step
            # Remaining time is estimated from the first step on, which excludes compilation and resuming.
            self._first = self._first or (step, now)
        self._loss = self._loss if loss is None else loss
        self._rate = self._rate if rate is None else rate
        self._note = note
        last = step is not None and step >= self._total
        if self._shown_at is None or now - self._shown_at >= self._interval or last:
            self._shown_at = now
            self._show(self._line(now))

    def message(self, text: str) -> None:
        """Prints a separate line above the bar."""
        shown = self._shown
        self._clear()
        self._write(f"{text}\n")
        if shown:
            self._show(shown)

    def close(self) -> None:
        """Shows the final state and ends the line."""
        if self._shown_at is None:
            return
        line = self._line(self._clock())
        if self._on_terminal:
            self._show(line)
            self._write("\n")
        elif line != self._shown:
            self._show(line)
        self._shown, self._shown_at = "", None

    def _line(self, now: float) -> str:
        share = min(1.0, self._step / max(1, self._total))
        filled = int(BAR_WIDTH * share)
        bar = f" [{'#' * filled}{'-' * (BAR_WIDTH - filled)}]" if self._on_terminal else ""
        parts = [f"{int(100 * share):3d}%{bar}", f"{self._step}/{self._total}"]
        if self._loss is not None:
            parts.append(f"loss {self._loss:.5f}")
        if self._rate is not None:
            parts.append(f"{format_count(self._rate)} samples/s")
        left = self._seconds_left(now)
        if left is not None:
            parts.append(f"{format_seconds(left)} left")
        return "  ".join([*parts, self._note] if self._note else parts)

    def _seconds_left(self, now: float) -> float | None:
        if self._first is None or self._step <= self._first[0]:
            return None
        first_step, started = self._first
        return (now - started) / (self._step - first_step) * max(0, self._total - self._step)

    def _show(self, line: str) -> None:
        if not self._on_terminal:
            self._shown = line
            self._write(f"{line}\n")
            return
        line = line[: self._columns() - 1]
        self._write("\r" + line.ljust(len(self._shown)))
        self._shown = line

    def _clear(self) -> None:
        if self._on_terminal and self._shown:
            self._write("\r" + " " * len(self._shown) + "\r")
        self._shown = ""

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or DEFAULT_COLUMNS
        except (OSError, ValueError):
            return DEFAULT_COLUMNS

    def _is_terminal(self) -> bool:
        try:
            return self._stream.isatty()
        except (AttributeError, OSError, ValueError):
            # Python sets a standard stream to None if the process was started with it closed.
            return False

    def _write(self, text: str) -> None:
        if self._broken:
            return
        try:
            encoding = self._stream.encoding or "utf-8"
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._stream.flush()
        except (AttributeError, OSError, ValueError):
            self._broken = True


class NullProgress:
    """The progress display of workers other than rank 0, which shows nothing."""

    def update(self, step: int | None, loss: float | None = None, rate: float | None = None, note: str = "") -> None:
        """Does nothing."""

    def message(self, text: str) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def format_seconds(seconds: float) -> str:
    """Formats a duration rounded down to whole seconds: 45s, 3m05s, 1h02m, 2d03h."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02d}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def format_count(number: float) -> str:
    """Formats a number with three digits and a unit: 999, 12.3k, 1.64M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        # Numbers that round up to the unit use the unit: 999.6 is 1k, not 1e+03.
        if 0.9995 * limit <= abs(number) < math.inf:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.3g}"
