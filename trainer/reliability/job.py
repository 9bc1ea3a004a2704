"""One run of the launcher command: its processes on this host and the records that its workers write."""

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
    """A running launcher command and its workers.

    The command runs in its own session, so that signals from a terminal do not reach it. A random token in its
    environment identifies all processes that it starts, whatever session or process group they move to.

    A job never outlives the process that created it: a keeper process (`processes.py` run as a program) waits on a pipe
    and kills what is left of the job when this process dies, even from kill -9. The launcher and the workers could not
    watch such a pipe themselves, because horovodrun closes inherited file descriptors.

    Args:
        command: the launcher with its arguments.
        results_dir: absolute path of the workers' results folder.
        lock: file descriptor of a lock that the keeper inherits, so that the lock is released only when no process of
            the job is left.

    Attributes:
        workers: latest record of each worker that has started, by rank. A record that disappears or is overwritten by
            another job keeps its last known value.
        gone: ranks of workers that died without recording how they ended.
        has_records: whether worker records are available; if not, only the launcher can be monitored.

    Raises:
        OSError: if the command does not exist or cannot be started.
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
        """Whether the launcher has exited."""
        return self._launcher.poll() is not None

    @property
    def has_begun(self) -> bool:
        """Whether all workers have started."""
        return any(len(self.workers) == state.size for state in self.workers.values())

    @property
    def is_broken(self) -> bool:
        """Whether a worker has died or failed; the remaining workers cannot continue without it."""
        return bool(self.gone) or any(state.code not in (None, DONE) for state in self.workers.values())

    @property
    def is_done(self) -> bool:
        """Whether all workers have recorded success."""
        return self.has_begun and all(state.code == DONE for state in self.workers.values())

    def look(self) -> None:
        """Reads the records and checks whether unfinished workers on this host are still alive."""
        # A worker writes its record before it exits. Looking for dead processes before reading the records ensures
        # that a worker counts as gone only if its record has no exit code.
        dead = {rank for rank, state in self.workers.items() if state.code is None and not state.is_alive()}
        self.workers |= read_records(self._results_dir, self._job)
        self.gone |= {rank for rank in dead if self.workers[rank].code is None}

    def ask_to_stop(self) -> int | None:
        """Sends SIGTERM to one worker on this host, which then agrees with the others on a stop.

        Returns:
            The rank of that worker, or None if no worker runs on this host.
        """
        for rank, state in sorted(self.workers.items()):
            if state.code is None and state.is_here and state.is_alive() and carries(state.pid, self._mark):
                with suppress(ProcessLookupError):
                    os.kill(state.pid, signal.SIGTERM)
                    return rank
        return None

    def finish(self) -> Outcome:
        """Kills what is left of the job on this host and returns how the job ended."""
        self.look()
        launcher_code = self._launcher.poll()
        self.kill()
        # Workers may have recorded their end in the meantime; those killed just now must not count as gone.
        self.workers |= read_records(self._results_dir, self._job)
        return outcome_of(self.workers, self.gone, launcher_code)

    def kill(self) -> list[int]:
        """Kills every process of the job on this host and returns the ids of those that survived."""
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
    """Kills the remaining processes of an earlier supervisor's job on this host.

    Usually there are none, as the job's keeper has killed them. The caller must hold the lock on `results_dir`.

    Returns:
        The ids of the processes that survived.
    """
    job = last_job(results_dir)
    return [] if job is None else kill_marked(_mark_of(job))


def _mark_of(job: str) -> str:
    return f"{JOB_VARIABLE}={job}"


def _start_keeper(mark: str, lock: int | None) -> "subprocess.Popen[bytes]":
    # Isolated mode without site-packages: the keeper starts fast and does not depend on the environment.
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(processes.__file__), mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=() if lock is None else (lock,),
        start_new_session=True,
    )
