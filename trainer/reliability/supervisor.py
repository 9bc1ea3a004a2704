"""The supervisor: starts a job, monitors it, and restarts it from its last checkpoint until it is done."""

import json
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from datetime import datetime

from data.errors import DataError
from trainer.checkpoints import Checkpoint, CheckpointStore, NoCheckpointError
from trainer.flags.places import place_in
from trainer.reliability.exit_codes import FAILURE, HANG, STOPPED
from trainer.reliability.job import Job, kill_last_job
from trainer.reliability.outcome import FINAL, Outcome, Restarts
from trainer.reliability.run_lock import RESULTS_DIR, FolderInUse, RunLock
from trainer.reliability.signals import StopSignals

TIMELINE = "supervise.jsonl"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
POLL = 0.1
_LINE_START = b'{"time": "'
# Seconds that the launcher may take to exit by itself after a worker has failed, and after all workers are done.
PATIENCE_WITH_BROKEN, PATIENCE_WITH_DONE = 5.0, 60.0
# Seconds to wait for a killed supervisor's job to disappear.
PATIENCE_WITH_LEFT = 20.0


def say(text: str) -> None:
    """Prints a line on stderr. Errors are ignored: a closed stderr must not end the supervision of the job."""
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
        self.results_dir = place_in(command, "results_dir").absolute()
        self.store = CheckpointStore(place_in(command, "model_dir").absolute(), warn=lambda message: None)
        self.grace_seconds = grace_seconds
        self._restarts = Restarts(max_restarts)
        self._signals = StopSignals()
        self._lock: int | None = None
        self._passed_on_at: float | None = None
        self._died_at: float | None = None

    def run(self) -> int:
        """Supervises the job until it ends, and returns the exit code.

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
        """Locks the results folder and kills what the job of a killed supervisor has left running.

        The lock of a killed supervisor is held by its job's keeper until no process of the job is left.

        Returns:
            The file descriptor of the lock; None if there is no lock.

        Raises:
            FolderInUse: if another supervisor is using the folder.
        """
        try:
            lock = until_the_end.enter_context(RunLock(self.results_dir, say, PATIENCE_WITH_LEFT, RESULTS_DIR))
        except DataError as error:
            say(f"nothing keeps another supervisor out: {error}")
            return None
        if lock.descriptor is not None and (left := kill_last_job(self.results_dir)):
            say(f"these processes of an earlier supervisor would not die: {left}")
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
        """Runs the command until it ends or has to be ended, and kills all its remaining processes on this host."""
        command = self._command_from(has_new)
        job = Job(command, self.results_dir, self._lock)
        try:
            if not job.has_records:
                say(f"{self.results_dir} cannot be written: only the exit code of the command tells how workers end")
            self._note("started", restart=self._restarts.made, step=_step(start), command=command)
            self._look_after(job)
            return job.finish()
        finally:
            if left := job.kill():
                say(f"these processes would not die: {left}")

    def _command_from(self, has_new: bool) -> list[str]:
        """Returns the command with the flags needed to resume.

        Adds --use_checkpoint if there are checkpoints. Once this supervisor has seen a new checkpoint appear, it also
        adds `--checkpoint last`, which overrides the checkpoint that the original command started from.
        """
        more = []
        if "--use_checkpoint" not in self.command and any(self.store.folder.glob("step-*")):
            more.append("--use_checkpoint")
        return [*self.command, *more, *(["--checkpoint", "last"] if has_new else [])]

    def _look_after(self, job: Job) -> None:
        """Monitors the job until the launcher has exited, or has failed to exit within its time limit."""
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
        """Forwards the first signal to a worker; ends the job at the second one or when the grace period is over."""
        if len(self._requests) > 1:
            raise Interrupted(128 + self._requests[1], "a second signal ended the job at once")
        if self._requests and self._passed_on_at is None:
            self._passed_on_at = now
            name = signal.Signals(self._requests[0]).name
            if not job.workers:
                raise Interrupted(STOPPED, f"{name} ended the job at once, as no worker had begun")
            rank = job.ask_to_stop()
            if rank is None:
                say(f"{name}: no worker runs on this host that could be told to stop; waiting for the job's end")
            else:
                say(
                    f"{name}: told worker {rank} to stop; all workers agree on a step and save. Again ends them at once"
                )
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
            return self.store.open("last", verify=False)
        except NoCheckpointError:
            return None

    def _note(self, event: str, **facts: object) -> None:
        """Appends an event to the timeline file. Errors are ignored: a full disk must not end the supervision."""
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
    """Returns whether a checkpoint was saved between two observations of the newest checkpoint."""
    return (one and one.sequence) != (other and other.sequence)
