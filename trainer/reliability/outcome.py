"""Derives how a job ended from its workers' records, and decides whether to restart it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from trainer.reliability.exit_codes import DONE, FAILURE, HANG, NO_CHECKPOINT, STOPPED, WRONG_INPUT
from trainer.reliability.records import PEER_GONE, STOPPED_EARLY, WorkerState

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
    """Determines the outcome of a job from its workers' records.

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
        return Outcome(FAILURE, f"{names} ended without a word (killed, or crashed)")
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
    told = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return Outcome(code if code in FINAL or code == HANG else FAILURE, f"the command {told}")


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
        """Decides what to do after a failure.

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
