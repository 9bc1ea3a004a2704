"""The supervisor: starts a job, monitors it, and restarts it from its last checkpoint until it is done."""

import json
import math
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from data.errors import DataError
from trainer.checkpoint.store import Checkpoint, CheckpointStore, NoCheckpointError
from trainer.default_paths import path_in, set_cache
from trainer.lifecycle import processes
from trainer.lifecycle.errors import DONE, FAILURE, HANG, NO_CHECKPOINT, STOPPED, WRONG_INPUT
from trainer.lifecycle.processes import carries, kill_marked
from trainer.lifecycle.records import (
    JOB_VARIABLE,
    PEER_GONE,
    STOPPED_EARLY,
    WorkerState,
    last_job,
    prepare_records,
    read_records,
)
from trainer.lifecycle.run_lock import RESULTS_DIR, FolderInUse, RunLock
from trainer.lifecycle.signals import StopSignals

FINAL = (DONE, WRONG_INPUT, NO_CHECKPOINT, STOPPED)
"""Exit codes after which a job is not restarted: it would end the same way again, or it is meant to stop."""
ENOUGH_REPEATS = 3
LONGEST_WAIT = 60.0


@dataclass(frozen=True)
class Outcome:
    """The exit code of a job as a whole, and its cause in one line."""

    code: int
    cause: str


def outcome_of(workers: Mapping[int, WorkerState], gone: Collection[int], launcher_code: int | None) -> Outcome:
    """Determine the outcome of a job from its workers' records.

    When one worker ends, the others fail as a consequence, so the root cause has to be separated from what followed.
    In order of precedence: rejected input or an agreed stop, a worker's own failure, a death without a record, and
    failures caused by a missing peer. A stop before training began is not an agreed stop: if a worker failed or died
    first, the launcher sent that signal to the others.

    Args:
        workers: last record of each worker, by rank.
        gone: ranks that died without recording an end, before anything was killed on purpose.
        launcher_code: the launcher's return code as in subprocess (negative for a signal); None if it had to be killed.
    """
    ends = sorted((state for state in workers.values() if state.code is not None), key=lambda state: state.ended)
    for code in (WRONG_INPUT, NO_CHECKPOINT, STOPPED):
        for state in ends:
            if state.code == code and not state.cause.startswith(STOPPED_EARLY):
                return Outcome(code, _told(state))
    # With a dead worker, a recorded stop is the launcher's signal to the survivors, not the cause.
    failures = [state for state in ends if state.code != DONE and not (gone and state.code == STOPPED)]
    for state in failures:
        if not state.cause.startswith(PEER_GONE):
            return Outcome(state.code if state.code in (HANG, STOPPED) else FAILURE, _told(state))
    if gone:
        names = ", ".join(f"worker {rank}" for rank in sorted(gone))
        return Outcome(FAILURE, f"{names} ended without a record (killed, or crashed)")
    if failures:
        return Outcome(FAILURE, _told(failures[0]))
    if ends and len(ends) == ends[0].size:
        return Outcome(DONE, "all workers are done")
    return _of_launcher(launcher_code)


def _told(state: WorkerState) -> str:
    return f"worker {state.rank}: {state.cause or f'exit code {state.code}'}"


def _of_launcher(code: int | None) -> Outcome:
    if code is None:
        return Outcome(FAILURE, "the command had to be killed")
    end = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return Outcome(code if code in FINAL or code == HANG else FAILURE, f"the command {end}")


class Restarts:
    """Decides whether and when a failed job is restarted.

    Args:
        most: maximum number of restarts in total.
    """

    def __init__(self, most: int):
        self.most, self.made = most, 0
        self._fruitless = self._repeats = 0
        self._last_cause = ""

    def after(self, cause: str, progressed: bool) -> tuple[float | None, str]:
        """Decide what to do after a failure.

        Args:
            cause: cause of this failure, in one line.
            progressed: whether the failed attempt wrote a new checkpoint.

        Returns:
            Seconds to wait before the restart (None for no restart), and the decision in words.
        """
        self._fruitless = 0 if progressed else self._fruitless + 1
        self._repeats = self._repeats + 1 if cause == self._last_cause and not progressed else 1
        self._last_cause = cause
        if self._repeats >= ENOUGH_REPEATS and not progressed:
            return None, f"no restart: the same cause {self._repeats} times, and no new checkpoint in between"
        if self.made >= self.most:
            return None, f"no restart: {self.made} of {self.most} made"
        self.made += 1
        # Exponential backoff, only while attempts make no progress.
        wait = min(LONGEST_WAIT, 2.0 ** (self._fruitless - 1)) if self._fruitless else 0.0
        pause = f" in {wait:g} s, as there is no new checkpoint" if wait else ""
        return wait, f"restart {self.made} of {self.most}{pause}"


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
        output: file for what the command prints; None for the output of this process.

    Attributes:
        workers: latest record of each worker that has started, by rank. A record that disappears or is overwritten by
            another job keeps its last known value.
        gone: ranks of workers that died without recording how they ended.
        has_records: whether worker records are available; if not, only the launcher can be monitored.

    Raises:
        OSError: if the command does not exist or cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        results_dir: Path,
        lock: int | None = None,
        output: BinaryIO | None = None,
    ):
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
                stdout=output,
                stderr=output,
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
        """Read the records and check whether unfinished workers on this host are still alive."""
        # A worker writes its record before it exits. Looking for dead processes before reading the records ensures
        # that a worker counts as gone only if its record has no exit code.
        dead = {rank for rank, state in self.workers.items() if state.code is None and not state.is_alive()}
        self.workers |= read_records(self._results_dir, self._job)
        self.gone |= {rank for rank in dead if self.workers[rank].code is None}

    def ask_to_stop(self) -> int | None:
        """Send SIGTERM to one worker on this host, which then agrees with the others on a stop.

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
        """Kill what is left of the job on this host and return how the job ended."""
        self.look()
        launcher_code = self._launcher.poll()
        self.kill()
        # Workers may have recorded their end in the meantime; those killed just now must not count as gone.
        self.workers |= read_records(self._results_dir, self._job)
        return outcome_of(self.workers, self.gone, launcher_code)

    def kill(self) -> list[int]:
        """Kill every process of the job on this host and return the ids of those that survived."""
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
    """Kill the remaining processes of an earlier supervisor's job on this host.

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


TIMELINE = "supervise.jsonl"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
POLL = 0.1
_LINE_START = b'{"time": "'
# Seconds that the launcher may take to exit by itself after a worker has failed, and after all workers are done.
PATIENCE_WITH_BROKEN, PATIENCE_WITH_DONE = 5.0, 60.0
# Seconds to wait for a killed supervisor's job to disappear.
PATIENCE_WITH_LEFT = 20.0


def say(text: str) -> None:
    """Print a line on stderr. Errors are ignored: a closed stderr must not end the supervision of the job."""
    with suppress(OSError):
        print(f"supervise.py: {text}", file=sys.stderr, flush=True)


class Interrupted(Exception):
    """The job was ended immediately because of a signal.

    Attributes:
        code: the supervisor's exit code.
    """

    def __init__(self, code: int, why: str):
        super().__init__(why)
        self.code = code


class Supervisor:
    """Runs a job until it is done, restarting it after failures.

    Args:
        command: the launcher command, ending with main.py's flags.
        max_restarts: maximum number of restarts in total.
        grace_seconds: seconds from the first signal until the job is killed; None waits as long as saving takes.
    """

    def __init__(self, command: Sequence[str], *, max_restarts: int, grace_seconds: float | None = None):
        self.command = list(command)
        self.results_dir = path_in(command, "results_dir").absolute()
        with suppress(DataError):  # which main.py reports
            set_cache(command)
        self.store = CheckpointStore(path_in(command, "model_dir").absolute(), warn=lambda message: None)
        self.grace_seconds = grace_seconds
        self._restarts = Restarts(max_restarts)
        self._signals = StopSignals()
        self._lock: int | None = None
        self._passed_on_at: float | None = None
        self._died_at: float | None = None

    def run(self) -> int:
        """Supervise the job until it ends, and return the exit code.

        Raises:
            OSError: if the command cannot be started.
        """
        before = {number: signal.getsignal(number) for number in SIGNALS}
        with ExitStack() as until_the_end:
            try:
                self._lock = self._take_lock(until_the_end)
            except FolderInUse as error:
                say(str(error))
                return FAILURE
            try:
                for number in SIGNALS:
                    if before[number] is not signal.SIG_IGN:  # respect nohup, which ignores SIGHUP
                        signal.signal(number, lambda received, _: self._signals.add(received))
                code = self._supervise()
            except Interrupted as interrupted:
                say(str(interrupted))
                code = interrupted.code
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)
            self._note("finished", code=code)
            return code

    def _take_lock(self, until_the_end: ExitStack) -> int | None:
        """Lock the results folder and kill what the job of a killed supervisor has left running.

        The lock of a killed supervisor is held by its job's keeper until no process of the job is left.

        Returns:
            The file descriptor of the lock; None if there is no lock.

        Raises:
            FolderInUse: if another supervisor is using the folder.
        """
        try:
            lock = until_the_end.enter_context(RunLock(self.results_dir, say, PATIENCE_WITH_LEFT, RESULTS_DIR))
        except DataError as error:
            say(f"cannot keep another supervisor out: {error}")
            return None
        if lock.descriptor is not None and (left := kill_last_job(self.results_dir)):
            say(f"these processes of an earlier supervisor could not be killed: {left}")
        return lock.descriptor

    def _supervise(self) -> int:
        first = self._newest()
        while True:
            start = self._newest()
            outcome = self._run_once(start, has_new=_differ(start, first))
            if outcome.code in FINAL:
                say(outcome.cause)
                return outcome.code
            newest = self._newest()
            self._note("died", cause=outcome.cause, code=outcome.code, step=_step(newest))
            if self._requests:
                raise Interrupted(128 + self._requests[0], f"{outcome.cause}, after a signal and before it had saved")
            wait, decision = self._restarts.after(outcome.cause, _differ(newest, start))
            say(f"{outcome.cause}; {decision}" + ("" if wait is None else f", from step {_step(newest)}"))
            if wait is None:
                return HANG if outcome.code == HANG else FAILURE
            self._pause(wait)

    def _run_once(self, start: Checkpoint | None, has_new: bool) -> Outcome:
        """Run the command until it ends or has to be ended, and kill all its remaining processes on this host."""
        command = self._command_from(has_new)
        job = Job(command, self.results_dir, self._lock)
        try:
            if not job.has_records:
                say(f"{self.results_dir} cannot be written: only the exit code of the command shows how workers end")
            self._note("started", restart=self._restarts.made, step=_step(start), command=command)
            self._look_after(job)
            return job.finish()
        finally:
            if left := job.kill():
                say(f"these processes could not be killed: {left}")

    def _command_from(self, has_new: bool) -> list[str]:
        """Return the command with the flags needed to resume.

        Add --use_checkpoint if there are checkpoints. Once this supervisor has seen a new checkpoint appear, it also
        adds `--checkpoint last`, which overrides the checkpoint that the original command started from.
        """
        more = []
        if "--use_checkpoint" not in self.command and not self.store.is_empty:
            more.append("--use_checkpoint")
        return [*self.command, *more, *(["--checkpoint", "last"] if has_new else [])]

    def _look_after(self, job: Job) -> None:
        """Monitor the job until the launcher has exited, or has failed to exit within its time limit."""
        begun, over_since = False, None
        while True:
            # Queried before the records are read: once the launcher has exited, that read sees everything written.
            has_ended = job.has_ended
            job.look()
            now = time.monotonic()
            if job.has_begun and not begun:
                begun = True
                pause = None if self._died_at is None else round(now - self._died_at, 1)
                self._note("registered", workers=len(job.workers), seconds_without_training=pause)
            if over_since is None and (job.is_broken or job.is_done or has_ended):
                over_since = self._died_at = now
            if has_ended:
                return
            patience = PATIENCE_WITH_DONE if job.is_done else PATIENCE_WITH_BROKEN
            if over_since is not None and now > over_since + patience:
                return
            self._obey(job, now)
            time.sleep(POLL)

    def _obey(self, job: Job, now: float) -> None:
        """Forward the first signal to a worker; end the job at the second one or when the grace period is over."""
        if len(self._requests) > 1:
            raise Interrupted(128 + self._requests[1], "a second signal ended the job at once")
        if self._requests and self._passed_on_at is None:
            self._passed_on_at = now
            name = signal.Signals(self._requests[0]).name
            if not job.workers:
                raise Interrupted(STOPPED, f"{name} ended the job at once, as no worker had started")
            rank = job.ask_to_stop()
            if rank is None:
                say(f"{name}: no worker runs on this host that could be asked to stop; waiting for the job's end")
            else:
                say(f"{name}: asked worker {rank} to stop; all workers save at one step. A second signal kills them")
        if self._passed_on_at is not None and now > self._passed_on_at + (self.grace_seconds or math.inf):
            raise Interrupted(128 + self._requests[0], "the job had not ended within --grace_seconds of the signal")

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._requests and time.monotonic() < until:
            time.sleep(POLL)
        if self._requests:
            raise Interrupted(STOPPED, "stopped by a signal between two starts; all that was saved is there")

    @property
    def _requests(self) -> list[int]:
        return self._signals.requests

    def _newest(self) -> Checkpoint | None:
        try:
            self.store.refresh()
        except DataError as error:
            say(f"{error}; going by what is known of the checkpoints")
        try:
            return self.store.open("last", verify=False)
        except NoCheckpointError:
            return None

    def _note(self, event: str, **facts: object) -> None:
        """Append an event to the timeline file. Errors are ignored: a full disk must not end the supervision."""
        line = json.dumps({"time": datetime.now().astimezone().isoformat(), "event": event} | facts)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with suppress(OSError):
            descriptor = os.open(self.results_dir / TIMELINE, flags, 0o666)
            try:
                if os.pread(descriptor, len(_LINE_START), 0) in (b"", _LINE_START):  # never append to an unrelated file
                    os.write(descriptor, f"{line}\n".encode())
            finally:
                os.close(descriptor)


def _step(checkpoint: Checkpoint | None) -> int:
    return 0 if checkpoint is None else checkpoint.step


def _differ(one: Checkpoint | None, other: Checkpoint | None) -> bool:
    """Return whether a checkpoint was saved between two observations of the newest checkpoint."""
    return (one and one.sequence) != (other and other.sequence)
