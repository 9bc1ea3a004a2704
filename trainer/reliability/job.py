"""One start of a command that starts workers: its processes on this host, and what its workers have recorded."""

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from trainer.reliability import processes
from trainer.reliability.exit_codes import DONE
from trainer.reliability.outcome import Outcome, outcome_of
from trainer.reliability.processes import carries, kill_marked
from trainer.reliability.records import JOB_VARIABLE, WorkerState, last_job, prepare_records, read_records


class Job:
    """A running command.

    It runs in a session of its own, so that a terminal's signals do not reach it, with a random value in its
    environment, by which all processes that it starts are found again, wherever they have moved to.

    It never outlives the process that made it: a keeper (`processes.py` as a program) waits at the other end of a pipe
    and kills what is left of the job when this process dies, even by kill -9. The launcher and the workers could not
    watch such a pipe themselves: horovodrun closes the descriptors that it inherits.

    Args:
        command: the launcher with its arguments.
        results_dir: of the workers, absolute.
        lock: descriptor that the keeper inherits: a lock is then free only when nothing is left of the job.

    Attributes:
        workers: the records of those that have begun, by rank. A record that vanishes or is replaced by another
            job's stays as it was.
        gone: ranks that died without a recorded end.
        has_records: whether the workers can be followed; otherwise only the launcher is.

    Raises:
        OSError: there is no such command, or it cannot be started.
    """

    def __init__(self, command: Sequence[str], results_dir: Path, lock: int | None = None):
        self._results_dir = results_dir
        self._job = secrets.token_hex(16)
        self.workers: dict[int, WorkerState] = {}
        self.gone: set[int] = set()
        self.has_records = True
        try:
            prepare_records(results_dir, self._job)
        except OSError:
            self.has_records = False
        self._keeper = _start_keeper(self._mark, lock)
        try:
            self._launcher = subprocess.Popen(
                command,
                env=os.environ | {JOB_VARIABLE: self._job},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            self._dismiss_keeper()
            raise

    @property
    def has_ended(self) -> bool:
        """Whether the launcher has."""
        return self._launcher.poll() is not None

    @property
    def has_begun(self) -> bool:
        """Whether all workers have."""
        return any(len(self.workers) == state.size for state in self.workers.values())

    @property
    def is_broken(self) -> bool:
        """Whether a worker is gone, or has ended otherwise than done: the others cannot go on without it."""
        return bool(self.gone) or any(state.code not in (None, DONE) for state in self.workers.values())

    @property
    def is_done(self) -> bool:
        """Whether all workers have recorded that they are done."""
        return self.has_begun and all(state.code == DONE for state in self.workers.values())

    def look(self) -> None:
        """Reads the records, and looks after those workers of this host that have not ended."""
        # Who ends writes first and dies then, so that a death counts only where the record read after it is silent.
        dead = {rank for rank, state in self.workers.items() if state.code is None and not state.is_alive()}
        self.workers |= read_records(self._results_dir, self._job)
        self.gone |= {rank for rank in dead if self.workers[rank].code is None}

    def ask_to_stop(self) -> int | None:
        """Sends SIGTERM to one worker of this host, which agrees with the others; its rank, None where none is here."""
        for rank, state in sorted(self.workers.items()):
            if state.code is None and state.is_here and state.is_alive() and carries(state.pid, self._mark):
                with suppress(ProcessLookupError):
                    os.kill(state.pid, signal.SIGTERM)
                    return rank
        return None

    def finish(self) -> Outcome:
        """Kills what is left of the job on this host, and tells how it ended."""
        self.look()
        launcher_code = self._launcher.poll()
        self.kill()
        self.workers |= read_records(self._results_dir, self._job)
        return outcome_of(self.workers, self.gone, launcher_code)

    def kill(self) -> list[int]:
        """Kills every process of the job on this host; returns those that would not die."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._launcher.pid, signal.SIGKILL)
        left = kill_marked(self._mark)
        with suppress(subprocess.TimeoutExpired):
            self._launcher.wait(timeout=1)
        self._dismiss_keeper()
        return left

    def _dismiss_keeper(self) -> None:
        if self._keeper.poll() is None:
            self._keeper.communicate()

    @property
    def _mark(self) -> str:
        return _mark_of(self._job)


def kill_last_job(results_dir: Path) -> list[int]:
    """Kills what an earlier supervisor's job has left on this host; returns the processes that would not die.

    Usually nothing: its keeper has done so. To be called with the lock on `results_dir` held.
    """
    job = last_job(results_dir)
    return [] if job is None else kill_marked(_mark_of(job))


def _mark_of(job: str) -> str:
    return f"{JOB_VARIABLE}={job}"


def _start_keeper(mark: str, lock: int | None) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(processes.__file__), mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=() if lock is None else (lock,),
        start_new_session=True,
    )
