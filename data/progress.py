"""Progress of work that may take more than a few seconds: tqdm's bar on a terminal, lines elsewhere."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 5.0

# Called with the amount of work, such as bytes, that has been done since the last call.
Advance = Callable[[int], None]


class Bar(tqdm):
    """A bar that releases tqdm's lock even if its stream fails.

    tqdm 4 keeps the lock in that case, and the bars of other threads then wait for it forever.
    """

    def refresh(self, nolock: bool = False, lock_args: tuple[Any, ...] | None = None) -> Any:
        """Draw the bar, as `tqdm.refresh` does."""
        with nullcontext() if nolock else self.get_lock():
            return super().refresh(nolock=True)


def unseen(amount: int) -> None:
    """Ignore the progress."""


def progress_bar(name: str, total: int, unit: str, report: Callable[[str], None], **options: Any) -> Bar:
    """Create a bar that is removed at the end. Elsewhere than on a terminal, it reports a line every five seconds.

    Args:
        name: what is being done.
        total: amount of work.
        unit: unit of this amount.
        report: called with each line.
        options: further arguments of tqdm.
    """
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    seconds = 0.1 if is_terminal else SECONDS_BETWEEN_LINES
    stream: Any = sys.stderr if is_terminal else _ReportedLines(report)
    return Bar(
        total=total, desc=name, unit=unit, file=stream, mininterval=seconds, delay=seconds, leave=False, **options
    )


class _ReportedLines:
    """A stream for tqdm that reports what it draws line by line, for outputs that are no terminals.

    Args:
        report: called with each line.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report

    def write(self, text: str) -> None:
        """Report a drawn bar; the texts that only move the cursor or clear the line are dropped."""
        if line := text.strip():
            self._report(line)

    def flush(self) -> None:
        """Do nothing: lines are reported at once."""
