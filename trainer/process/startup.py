"""The start of a program: the import of TensorFlow, and standard streams that never fail."""

import gc
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

_GREETING = re.compile(
    rb"I\d{4} .*|WARNING: All log messages before absl::InitializeLog\(\) is called.*|To enable the following instr.*"
)
# Packages that Keras imports for data frames and plots if they are installed: a fifth of TensorFlow's import.
_OPTIONAL_FOR_KERAS = ("matplotlib", "pandas")


@contextmanager
def quick_imports() -> Iterator[None]:
    """Make the first import of TensorFlow a third faster. For the start of a program, before it has other threads.

    Keras is imported as if matplotlib and pandas were not installed, unless they are already imported. Both can be
    imported after the context. All objects that exist at its end are exempt from garbage collection from then on, which
    makes building graphs faster, too. The context does nothing if TensorFlow is already imported.
    """
    if "tensorflow" in sys.modules:
        yield
        return
    absent: dict[str, Any] = dict.fromkeys(name for name in _OPTIONAL_FOR_KERAS if name not in sys.modules)
    sys.modules.update(absent)  # None: importing the module fails as if it were not installed
    gc.disable()  # modules consist of many objects and hardly any garbage
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        for name in absent:
            del sys.modules[name]


def import_tensorflow() -> None:
    """Import TensorFlow; warnings, errors and tracebacks of the import are still printed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            caught.seek(0)
            for line in caught.read().splitlines(keepends=True):
                if not _GREETING.match(line):
                    os.write(2, line)


def robust_stdio() -> None:
    """Replace sys.stdout and sys.stderr by streams that never raise, and reopen closed standard descriptors.

    Output that cannot be written is dropped: the reader of a pipe has exited, the disk is full, or the stream was
    closed at start. Characters that the encoding does not support are escaped. Closed descriptors are opened as
    /dev/null; otherwise a checkpoint file could get their number and receive the output of libraries.

    Call this first in a program, and never in a library.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # open() returns the lowest free descriptor, which is this one, as all lower ones are open.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout, sys.stderr = _steady(1, sys.stdout), _steady(2, sys.stderr)


class _Lossy(io.FileIO):
    """A raw file that reports every write as complete, whether or not the data could be written."""

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        try:
            written = super().write(data)
        except OSError:
            return size
        return size if written is None else written


def _steady(descriptor: int, stream: TextIO | None) -> TextIO:
    """Wrap a descriptor in a stream that never raises.

    Args:
        descriptor: the descriptor to write to.
        stream: the original stream, whose encoding is kept; None if its descriptor was closed at start.
    """
    buffer = io.BufferedWriter(_Lossy(descriptor, "wb", closefd=False))
    return io.TextIOWrapper(
        buffer,
        encoding="utf-8" if stream is None else stream.encoding,
        errors="backslashreplace",
        line_buffering=buffer.isatty() or descriptor == 2,
    )
