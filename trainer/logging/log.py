"""The log of a run in the format of the dllogger package: lines of `DLLL ` followed by JSON."""

import errno
import importlib
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
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


def warn(message: str) -> None:
    """Print a warning as one line on stderr."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


class Board(Protocol):
    """Receives the numbers of a log's steps: TensorBoard, or an experiment tracker."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of a step, by key."""

    def close(self) -> None:
        """Complete what has been added."""


class RunLog:
    """Writes a run's log, through the dllogger package if it is installed. Numbers keep their full precision.

    NaN and infinities are written as null, so that every line is valid JSON. A full disk or a removed file does not
    stop training: the first failure is reported on stderr, and every later record is attempted again.

    Args:
        path: path of the log file, whose folder is created; None discards all records, as on workers other than rank 0.
        append: whether to append to an existing log, as a resumed run does. Otherwise an existing log is renamed with
            the suffix `.previous`.
        boards: receivers of the numbers of each step.

    Raises:
        DataError: if the log cannot be written for any reason but a full disk.
    """

    def __init__(self, path: Path | None, append: bool = False, boards: Sequence[Board] = ()) -> None:
        self._path, self._boards, self._has_warned = path, boards, False
        if path is None:
            return
        self._writer: Any = JsonLines(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _prepare(path, append)
            self._writer = _open_writer(path)
        except OSError as error:
            if not is_out_of_room(error):
                raise DataError(
                    f"the log {path} cannot be written: {error.strerror}. Choose a writable --results_dir."
                ) from error
            self._warn_once(error)

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Log the arguments of the run."""
        self.log(PARAMETER, values)

    def metadata(self, metric: str, metadata: Mapping[str, Any]) -> None:
        """Log metadata of a metric, such as its unit."""
        self._write(lambda: self._writer.metadata(metric, to_plain(metadata)))

    def log(self, step: Step, data: Mapping[str, Any]) -> None:
        """Log values.

        Args:
            step: (step, total steps) in training, (step,) for an evaluation, () for the final metrics.
            data: values by key.
        """
        self._write(lambda: self._writer.log(to_plain(step), to_plain(data)))
        if step and isinstance(step, (list, tuple)):
            for board in self._boards:
                board.scalars(step[0], {key: value for key, value in data.items() if _is_number(value)})

    def close(self) -> None:
        """Flush pending records and close the boards. Later records are still accepted."""
        self._write(lambda: None)
        for board in self._boards:
            board.close()

    def _write(self, write: Callable[[], None]) -> None:
        if self._path is None:
            return
        try:
            write()
            self._writer.flush()
            # dllogger keeps the file open, so that writing to a removed file does not fail.
            if not self._path.exists():
                raise FileNotFoundError(errno.ENOENT, "it was removed while it was written", str(self._path))
        except (OSError, ValueError) as error:
            self._warn_once(error)

    def _warn_once(self, error: Exception) -> None:
        if not self._has_warned:
            self._has_warned = True
            warn(f"the log {self._path} is incomplete: {error}")


class JsonLines:
    """Writes the lines of `dllogger.Logger`, whose methods it has, without the package.

    The file is opened for each record, so that a removed file is recreated along with its folder, and other machines
    see the record immediately on a shared file system.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._started = datetime.now()

    def log(self, step: Any, data: dict[str, Any]) -> None:
        """Write a LOG record."""
        self._append(("timestamp", "datetime", "elapsedtime"), {"type": "LOG", "step": step, "data": data})

    def metadata(self, metric: str, metadata: dict[str, Any]) -> None:
        """Write a METADATA record."""
        record = {"type": "METADATA", "metric": metric, "metadata": metadata}
        self._append(("timestamp", "elapsedtime", "datetime"), record)

    def flush(self) -> None:
        """Do nothing, as records are not buffered."""

    def _append(self, times: tuple[str, ...], record: dict[str, Any]) -> None:
        """Append a record after its times, which are strings in the order in which dllogger writes them."""
        now = datetime.now()
        elapsed = (now - self._started).total_seconds()
        values = {"timestamp": str(now.timestamp()), "datetime": str(now), "elapsedtime": str(elapsed)}
        line = f"{PREFIX}{json.dumps({key: values[key] for key in times} | record, allow_nan=False)}\n".encode()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a+b", buffering=0) as file:
            if _is_torn(file):
                line = b"\n" + line
            written = file.write(line)  # one unbuffered write, which a full disk may cut short
        if written < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))


def to_plain(value: Any) -> Any:
    """Convert a value to strict JSON types: NumPy to Python numbers, NaN and infinities to None, others to strings."""
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
    """Read the records of a log in order, skipping truncated lines and lines of other programs.

    Raises:
        DataError: if the log does not exist or cannot be read.
    """
    try:
        with open_regular(path, "a log of main.py") as file:
            text = file.read().decode(errors="replace")
    except OSError as error:
        raise DataError(f"the log {path} cannot be read: {error.strerror}") from error
    records = (_parse(line) for line in text.split("\n"))
    return [record for record in records if record is not None]


def previous(path: Path) -> Path:
    """Return the path to which a log is moved when another run starts a new log under the same name."""
    return path.with_name(path.name + ".previous")


def _parse(line: str) -> dict[str, Any] | None:
    if not line.startswith(PREFIX):
        return None
    try:
        record = json.loads(line.removeprefix(PREFIX))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _prepare(path: Path, append: bool) -> None:
    """Ensure that the log can be written and is either empty or ends with a complete line."""
    if not append and path.exists() and path.stat().st_size:
        os.replace(path, previous(path))
    with open(path, "a+b", buffering=0) as file:
        if _is_torn(file):
            file.write(b"\n")


def _is_torn(file: BinaryIO | RawIOBase) -> bool:
    """Return whether a file ends with an incomplete line, as after a full disk; seek to the end of the file."""
    if not file.seek(0, os.SEEK_END):
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def _open_writer(path: Path) -> Any:
    """Return a dllogger.Logger that appends to the file, or a JsonLines, which writes the same lines."""
    try:
        dllogger = importlib.import_module("dllogger")
        backend = dllogger.JSONStreamBackend(dllogger.Verbosity.VERBOSE, str(path), append=True)
        return dllogger.Logger([backend])
    except (ImportError, AttributeError, TypeError):  # not installed, or an old version that cannot append
        return JsonLines(path)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
