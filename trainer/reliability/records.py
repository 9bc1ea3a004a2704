"""What each worker leaves of itself in `<results_dir>/workers/worker-R.json`: who it is, and how it ended.

A launcher passes on one worker's exit code at best, and a killed worker leaves none, so that supervise.py reads these.
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

from data.atomic import write_whole
from data.files import open_regular
from data.typed_json import read_typed
from trainer.process.launcher import Launch
from trainer.reliability.exit_codes import DONE, FAILURE
from trainer.reliability.processes import start_time

FOLDER = "workers"
JOB_FILE = "job"
JOB_VARIABLE = "RECIPE_JOB"
"""Set by supervise.py to another value at each start: whose worker a process is."""
PEER_GONE = "another worker is gone"
"""How the cause begins where a worker ended only because another one had."""
STOPPED_EARLY = "stopped before training had begun"
"""How the cause begins where a signal ended a worker that could not yet agree on it with the others."""

LONGEST_CAUSE = 500
LONGEST_JOB = 64


@dataclass(frozen=True)
class WorkerState:
    """What a worker's file holds.

    Attributes:
        rank, size: the worker among its workers.
        host, pid: where it runs.
        started: of the process, in clock ticks since the host's boot.
        job: what JOB_VARIABLE was; None without a supervisor.
        code: its exit code, None as long as it has not ended (or was killed).
        cause: of the end, in one line.
        ended: seconds since the epoch.
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
        """Whether it runs on this host."""
        return self.host == socket.gethostname()

    def is_alive(self) -> bool:
        """Whether its process lives: not another one that has got its number. Of another host's, nobody knows: True."""
        return not self.is_here or start_time(self.pid) == self.started


class WorkerRecord:
    """A worker's own file. Where it cannot be written, the worker goes on without: no method raises for that.

    As a context manager it records the exception that leaves the block.

    Args:
        results_dir: of the run.
        launch: which worker this is.
    """

    def __init__(self, results_dir: Path, launch: Launch):
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
        """Says who this is, in a folder that is made. The first worker removes what larger jobs have left."""
        with suppress(OSError, ValueError):
            self._folder.mkdir(parents=True, exist_ok=True)
            if self._state.rank == 0:
                for path in _files(self._folder):
                    if int(path.stem.rpartition("-")[2]) >= self._state.size:
                        path.unlink(missing_ok=True)
        self._write(self._state)

    def end(self, code: int, cause: str = "") -> None:
        """Says how this worker ends. The first call counts; any thread may make it.

        Before `begin`, which makes the folder, only a folder that stands is written into: a mistyped command
        leaves nothing behind, but a supervisor, which has made the folder, learns why it was refused.

        Args:
            code: what the process is about to exit with.
            cause: why; lines become one.
        """
        if self._first_end.acquire(blocking=False):
            line = " ".join(cause.split())[:LONGEST_CAUSE]
            self._write(dataclasses.replace(self._state, code=code, cause=line, ended=time.time()))

    def leave(self, code: int, cause: str) -> typing.NoReturn:
        """Ends the process at once, from any thread, as `end` says."""
        self.end(code, cause)
        os._exit(code)

    def __enter__(self) -> typing.Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: types.TracebackType | None
    ) -> None:
        """Records an exception that nobody has caught; argparse's --help leaves by one as well."""
        if isinstance(error, SystemExit) and error.code in (None, DONE):
            self.end(DONE)
        elif error is not None:
            self.end(FAILURE, f"{type(error).__name__}: {error}")

    def _write(self, state: WorkerState) -> None:
        path = self._folder / f"worker-{state.rank}.json"
        with suppress(OSError, ValueError):  # ValueError: a name that no file can have
            if not os.path.lexists(path) or _is_record(path):
                write_whole(path, json.dumps(dataclasses.asdict(state)) + "\n")


def prepare_records(results_dir: Path, job: str) -> None:
    """Makes an empty folder for the records of a job, and notes whose it is.

    Raises:
        OSError: it cannot be made.
    """
    folder = results_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for path in _files(folder):
        path.unlink(missing_ok=True)
    path = folder / JOB_FILE
    if not os.path.lexists(path) or last_job(results_dir):
        write_whole(path, job + "\n")


def last_job(results_dir: Path) -> str | None:
    """The job for which the folder was prepared last; None where there was none."""
    try:
        with open_regular(results_dir / FOLDER / JOB_FILE) as file:
            text = file.read(LONGEST_JOB + 1).decode().removesuffix("\n")
    except (OSError, ValueError):
        return None
    return text if re.fullmatch(f"[0-9a-f]{{1,{LONGEST_JOB}}}", text) else None


def read_records(results_dir: Path, job: str) -> dict[int, WorkerState]:
    """What the workers of a job have written so far, by rank; what others have left there is passed over."""
    states = {}
    for path in _files(results_dir / FOLDER):
        with suppress(OSError, ValueError, RecursionError):
            with open_regular(path) as file:
                state: WorkerState = read_typed(WorkerState, json.loads(file.read()), path.name)
            if state.job == job:
                states[state.rank] = state
    return states


def _files(folder: Path) -> list[Path]:
    """The records in a folder; other files under such names are left alone."""
    named = [path for path in folder.glob("worker-*.json") if path.stem.rpartition("-")[2].isdecimal()]
    return [path for path in named if _is_record(path)]


def _is_record(path: Path) -> bool:
    """Whether a file is a worker's record, or empty."""
    if path.is_symlink() or not path.is_file():
        return False
    try:
        with open_regular(path) as file:
            text = file.read().decode()
        return not text or json.loads(text).keys() == {item.name for item in dataclasses.fields(WorkerState)}
    except (OSError, ValueError, AttributeError, RecursionError):
        return False
