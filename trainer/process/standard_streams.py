"""Standard streams that cannot end a run."""

import io
import os
import sys
from typing import Any, TextIO


def steady_streams() -> None:
    """Makes sure that printing never fails, and never writes where it should not.

    What cannot be shown is dropped: the reader of a pipe is gone, the disk under a redirection is full, the stream was
    closed from the start. A character that a stream's encoding lacks is escaped. A descriptor that was closed becomes
    /dev/null; otherwise a checkpoint's file would get its number, and with it what libraries print.

    A program calls it first of all, a library never: it replaces sys.stdout and sys.stderr.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest that is free is this very one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout, sys.stderr = _steady(1, sys.stdout), _steady(2, sys.stderr)


class _Lossy(io.FileIO):
    """Takes what it is given, whether or not it can be written."""

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        try:
            written = super().write(data)
        except OSError:
            return size
        return size if written is None else written


def _steady(descriptor: int, stream: TextIO | None) -> TextIO:
    """`stream` may be None: Python's sign that its descriptor was closed."""
    buffer = io.BufferedWriter(_Lossy(descriptor, "wb", closefd=False))
    return io.TextIOWrapper(
        buffer,
        encoding="utf-8" if stream is None else stream.encoding,
        errors="backslashreplace",
        line_buffering=buffer.isatty() or descriptor == 2,
    )
