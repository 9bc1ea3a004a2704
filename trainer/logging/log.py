"""The log of a run in the format of the dllogger package: lines of `DLLL ` followed by JSON."""

import errno
import importlib
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from data.errors import DataError
from data.storage.files import is_out_of_room, open_regular

PREFIX = "DLLL "
PARAMETER = "PARAMETER"

Step = int | str | tuple[int, ...] | list[int]


def print_warning(message: str) -> None:
    """Prints a warning as one line on stderr."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


class Sink(Protocol):
    """Writes log records. A record is in the file when the call returns; otherwise it raises OSError or ValueError."""

    def log(self, step: Any, data: dict[str, Any]) -> None:
        """Writes a LOG record."""

    def metadata(self, metric: str, metadata: dict[str, Any]) -> None:
        """Writes a METADATA record."""

    def close(self) -> None:
        """Flushes pending records."""


class RunLog:
    """Writes a run's log, through dllogger if it is installed. Numbers keep their full precision.

    NaN and infinities are written as null, so that every line is valid JSON. A full disk or a removed file does not
    stop training: the first failure is reported on stderr, and every later record is attempted again.

    Args:
        path: path of the log file; its folder is created.
        append: whether to append to an existing log, as a resumed run does. Otherwise an existing log is renamed with
            the suffix `.previous`.

    Raises:
        DataError: if the log cannot be written for any reason but a full disk.
    """

    def __init__(self, path: Path, append: bool) -> None:
        self._path = Path(path)
        self._warned = False
        self._sink: Sink = JsonLines(self._path)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _prepare(self._path, append)
            self._sink = _open_sink(self._path)
        except OSError as error:
            if is_out_of_room(error):
                self._warn(error)
                return
            raise DataError(
                f"the log {self._path} cannot be written: {error.strerror}. Give a --results_dir that you may write to."
            ) from error

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Logs the arguments of the run."""
        self.log(PARAMETER, values)

    def metadata(self, metric: str, metadata: Mapping[str, Any]) -> None:
        """Logs metadata of a metric, such as its unit."""
        self._write(lambda: self._sink.metadata(metric, to_plain(metadata)))

    def log(self, step: Step, data: Mapping[str, Any]) -> None:
        """Logs values.

        Args:
            step: (step, total steps) in training, (step,) for an evaluation, () for the final metrics.
            data: values by key.
        """
        self._write(lambda: self._sink.log(to_plain(step), to_plain(data)))

    def close(self) -> None:
        """Flushes pending records. Later records are still accepted."""
        self._write(self._sink.close)

    def _write(self, write: Callable[[], None]) -> None:
        try:
            write()
        except (OSError, ValueError) as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            print(f"warning: the log {self._path} is incomplete: {error}", file=sys.stderr, flush=True)


class NullLog:
    """The log of workers other than rank 0, which discards all records."""

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Does nothing."""

    def metadata(self, metric: str, metadata: Mapping[str, Any]) -> None:
        """Does nothing."""

    def log(self, step: Step, data: Mapping[str, Any]) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class JsonLines:
    """Writes dllogger's format without the dllogger package.

    The file is opened for each record, so that a removed file is recreated along with its folder, and other machines
    see the record immediately on a shared file system.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._started = datetime.now()

    def log(self, step: Any, data: dict[str, Any]) -> None:
        """Writes a LOG record."""
        timestamp, moment, elapsed = self._times()
        head = {"timestamp": timestamp, "datetime": moment, "elapsedtime": elapsed}
        self._append(head | {"type": "LOG", "step": step, "data": data})

    def metadata(self, metric: str, metadata: dict[str, Any]) -> None:
        """Writes a METADATA record."""
        timestamp, moment, elapsed = self._times()
        head = {"timestamp": timestamp, "elapsedtime": elapsed, "datetime": moment}
        self._append(head | {"type": "METADATA", "metric": metric, "metadata": metadata})

    def close(self) -> None:
        """Does nothing, as records are not buffered."""

    def _times(self) -> tuple[str, str, str]:
        """Returns seconds since the Unix epoch, date and time, and seconds since the start, as dllogger's strings."""
        now = datetime.now()
        return str(now.timestamp()), str(now), str((now - self._started).total_seconds())

    def _append(self, record: dict[str, Any]) -> None:
        line = f"{PREFIX}{json.dumps(record, allow_nan=False)}\n".encode()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a+b", buffering=0) as file:
            if is_torn(file):
                line = b"\n" + line
            written = file.write(line)  # one unbuffered write, which a full disk may cut short
        if written < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))


class Dllogger:
    """Writes through the dllogger package, which buffers lines unless it is flushed."""

    def __init__(self, dllogger: Any, path: Path) -> None:
        self._path = path
        backend = dllogger.JSONStreamBackend(dllogger.Verbosity.VERBOSE, str(path), append=True)
        self._logger = dllogger.Logger([backend])

    def log(self, step: Any, data: dict[str, Any]) -> None:
        """Writes a LOG record."""
        self._logger.log(step=step, data=data, verbosity=1)
        self._flush()

    def metadata(self, metric: str, metadata: dict[str, Any]) -> None:
        """Writes a METADATA record."""
        self._logger.metadata(metric, metadata)
        self._flush()

    def close(self) -> None:
        """Flushes pending records; dllogger itself closes the file when the process ends."""
        self._flush()

    def _flush(self) -> None:
        self._logger.flush()
        # dllogger keeps the file open, so writing to a removed file would not fail.
        if not self._path.exists():
            raise FileNotFoundError(errno.ENOENT, "it was removed while it was written", str(self._path))


def to_plain(value: Any) -> Any:
    """Converts a value to strict JSON types: NumPy to Python numbers, NaN and infinities to None, others to strings."""
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (np.generic, np.ndarray)):
        return to_plain(value.tolist())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Reads the records of a log in order, skipping truncated lines and lines of other programs.

    Raises:
        DataError: if the log does not exist or cannot be read.
    """
    try:
        with open_regular(path, "a log of main.py") as file:
            text = file.read().decode(errors="replace")
    except OSError as error:
        raise DataError(f"the log {path} cannot be read: {error.strerror}") from error
    records = (_parsed(line) for line in text.split("\n"))
    return [record for record in records if record is not None]


def _parsed(line: str) -> dict[str, Any] | None:
    if not line.startswith(PREFIX):
        return None
    try:
        record = json.loads(line.removeprefix(PREFIX))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _prepare(path: Path, append: bool) -> None:
    """Ensures that the log can be written and is either empty or ends with a complete line."""
    if not append and path.exists() and path.stat().st_size:
        os.replace(path, previous(path))
    with open(path, "a+b", buffering=0) as file:
        if is_torn(file):
            file.write(b"\n")


def previous(path: Path) -> Path:
    """Returns the path to which a log is moved when another run starts a new log under the same name."""
    return path.with_name(path.name + ".previous")


def is_torn(file: BinaryIO | RawIOBase) -> bool:
    """Returns whether a file ends with an incomplete line, as after a full disk; seeks to the end of the file."""
    if not file.seek(0, os.SEEK_END):
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def _open_sink(path: Path) -> Sink:
    try:
        dllogger = importlib.import_module("dllogger")
        return Dllogger(dllogger, path)
    except (ImportError, AttributeError, TypeError):
        # Not installed, or an old version that cannot append. The format is the same either way.
        return JsonLines(path)
