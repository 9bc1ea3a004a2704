"""Worker records in `<results_dir>/workers/worker-R.json`: the identity of each worker and how it ended.

A launcher reports at most one worker's exit code, and a killed worker has none, so supervise.py reads these records.
"""

import dataclasses
import json
import os
import re
import socket
import threading
import time
import types
import typing
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from data.storage.files import open_regular, write_whole
from data.storage.typed_json import read_typed
from trainer.lifecycle.errors import DONE, FAILURE
from trainer.lifecycle.processes import start_time
from trainer.process.worker_env import WorkerEnv

FOLDER = "workers"
JOB_FILE = "job"
JOB_VARIABLE = "RECIPE_JOB"
"""Environment variable that identifies the job of a process; supervise.py sets a new value at each start."""
PEER_GONE = "another worker is gone"
"""Prefix of the cause if a worker ended only because another worker had ended."""
STOPPED_EARLY = "stopped before training had begun"
"""Prefix of the cause if a signal ended a worker before it could agree on a stop with the others."""

LONGEST_CAUSE = 500
LONGEST_JOB = 64


@dataclass(frozen=True)
class WorkerState:
    """The content of a worker's record.

    Attributes:
        rank: rank of the worker.
        size: number of workers.
        host: name of the host that the worker runs on.
        pid: process id of the worker.
        started: start time of the process in clock ticks since boot.
        job: value of JOB_VARIABLE; None without a supervisor.
        code: exit code; None while the worker runs or if it was killed.
        cause: why the worker ended, in one line.
        ended: end time in seconds since the Unix epoch; 0 while the worker runs.
    """

    rank: int
    size: int
    host: str
    pid: int
    started: int | None
    job: str | None
    code: int | None = None
    cause: str = ""
    ended: float = 0.0

    @property
    def is_here(self) -> bool:
        """Whether the worker runs on this host."""
        return self.host == socket.gethostname()

    def is_alive(self) -> bool:
        """Return whether the worker's process is alive, not counting a later process with the same id.

        A process on another host cannot be checked and counts as alive.
        """
        return not self.is_here or start_time(self.pid) == self.started


class WorkerRecord:
    """Writes this worker's record. Failures to write are ignored, as they must not stop the worker.

    Used as a context manager, it records an exception that leaves the block.

    Args:
        results_dir: results folder of the run.
        launch: rank and size of this worker.
    """

    def __init__(self, results_dir: Path, launch: WorkerEnv):
        self._folder = results_dir.absolute() / FOLDER
        self._first_end = threading.Lock()
        self._state = WorkerState(
            rank=launch.rank,
            size=launch.size,
            host=socket.gethostname(),
            pid=os.getpid(),
            started=start_time(os.getpid()),
            job=os.environ.get(JOB_VARIABLE),
        )

    def begin(self) -> None:
        """Create the folder and write this worker's identity; rank 0 removes records left by larger jobs."""
        with suppress(OSError, ValueError):
            self._folder.mkdir(parents=True, exist_ok=True)
            if self._state.rank == 0:
                for path in _files(self._folder):
                    if int(path.stem.rpartition("-")[2]) >= self._state.size:
                        path.unlink(missing_ok=True)
        self._write(self._state)

    def end(self, code: int, cause: str = "") -> None:
        """Record how this worker ends. May be called from any thread; only the first call counts.

        This method never creates the folder; `begin` does. A mistyped command therefore leaves nothing behind, while a
        supervisor, which has created the folder beforehand, learns why the command was rejected.

        Args:
            code: exit code of the process.
            cause: why the worker ends; line breaks are replaced by spaces.
        """
        if self._first_end.acquire(blocking=False):
            line = " ".join(cause.split())[:LONGEST_CAUSE]
            self._write(dataclasses.replace(self._state, code=code, cause=line, ended=time.time()))

    def leave(self, code: int, cause: str) -> typing.NoReturn:
        """Record the end and exit the process immediately, from any thread."""
        self.end(code, cause)
        os._exit(code)  # sys.exit in a thread would end only that thread

    def __enter__(self) -> typing.Self:
        """Return this record."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: types.TracebackType | None
    ) -> None:
        """Record an uncaught exception; a successful SystemExit, as raised by argparse's --help, counts as done."""
        if isinstance(error, SystemExit) and error.code in (None, DONE):
            self.end(DONE)
        elif error is not None:
            self.end(FAILURE, f"{type(error).__name__}: {error}")

    def _write(self, state: WorkerState) -> None:
        path = self._folder / f"worker-{state.rank}.json"
        with suppress(OSError, ValueError):  # ValueError: a path that contains a null byte
            if not os.path.lexists(path) or _is_record(path):
                write_whole(path, json.dumps(dataclasses.asdict(state)) + "\n")


def prepare_records(results_dir: Path, job: str) -> None:
    """Create the records folder, remove old records and store the job's token.

    Args:
        results_dir: results folder of the run.
        job: token of the job, the value of JOB_VARIABLE in its workers.

    Raises:
        OSError: if the folder cannot be created or written.
    """
    folder = results_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for path in _files(folder):
        path.unlink(missing_ok=True)
    path = folder / JOB_FILE
    # Replace only a file with a valid token: any other file under this name is not ours.
    if not os.path.lexists(path) or last_job(results_dir):
        write_whole(path, job + "\n")


def last_job(results_dir: Path) -> str | None:
    """Return the token of the job for which the folder was last prepared, or None if there is none."""
    try:
        with open_regular(results_dir / FOLDER / JOB_FILE) as file:
            text = file.read(LONGEST_JOB + 1).decode().removesuffix("\n")
    except (OSError, ValueError):
        return None
    return text if re.fullmatch(f"[0-9a-f]{{1,{LONGEST_JOB}}}", text) else None


def read_records(results_dir: Path, job: str) -> dict[int, WorkerState]:
    """Read the records of a job's workers, by rank. Records of other jobs and other files are ignored."""
    states = {}
    for path in _files(results_dir / FOLDER):
        with suppress(OSError, ValueError, RecursionError):
            with open_regular(path) as file:
                state: WorkerState = read_typed(WorkerState, json.loads(file.read()), path.name)
            if state.job == job:
                states[state.rank] = state
    return states


def _files(folder: Path) -> list[Path]:
    """Return the paths of worker records in a folder; other files with similar names are not included."""
    named = [path for path in folder.glob("worker-*.json") if path.stem.rpartition("-")[2].isdecimal()]
    return [path for path in named if _is_record(path)]


def _is_record(path: Path) -> bool:
    """Return whether a file is a worker record or empty."""
    if path.is_symlink() or not path.is_file():
        return False
    try:
        with open_regular(path) as file:
            text = file.read().decode()
        return not text or json.loads(text).keys() == {item.name for item in dataclasses.fields(WorkerState)}
    except (OSError, ValueError, AttributeError, RecursionError):
        return False
