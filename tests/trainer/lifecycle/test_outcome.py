"""The outcome of a job, and whether it is restarted."""

import pytest

from trainer.lifecycle.errors import DONE, FAILURE, HANG, NO_CHECKPOINT, STOPPED, WRONG_INPUT
from trainer.lifecycle.records import PEER_GONE, STOPPED_EARLY, WorkerState
from trainer.supervisor import Outcome, Restarts, outcome_of


def workers(*ends: tuple[int | None, str]) -> dict[int, WorkerState]:
    """Records of workers that ended in the order of their ranks."""
    return {
        rank: WorkerState(rank, len(ends), "host", 1, 1, "job", code, cause, float(rank))
        for rank, (code, cause) in enumerate(ends)
    }


RUNNING = (None, "")
EARLY = (STOPPED, f"{STOPPED_EARLY}, by signal 15")
LEFT_ALONE = (FAILURE, f"{PEER_GONE} (shut down)")


@pytest.mark.parametrize(
    ("ends", "gone", "launcher", "expected"),
    [
        ([(DONE, ""), (DONE, "")], [], 0, Outcome(DONE, "all workers are done")),
        # The code of the launcher does not matter if every worker left a record.
        ([(DONE, ""), (DONE, "")], [], 1, Outcome(DONE, "all workers are done")),
        ([(DONE, ""), RUNNING], [], 0, Outcome(DONE, "the command ended with code 0")),
        ([(DONE, ""), RUNNING], [1], 0, Outcome(FAILURE, "worker 1 ended without a record (killed, or crashed)")),
        ([(FAILURE, "a"), (WRONG_INPUT, "b")], [], 1, Outcome(WRONG_INPUT, "worker 1: b")),
        ([(HANG, "a"), (NO_CHECKPOINT, "b")], [], 1, Outcome(NO_CHECKPOINT, "worker 1: b")),
        ([LEFT_ALONE, (STOPPED, "b")], [], 1, Outcome(STOPPED, "worker 1: b")),
        ([(FAILURE, "a"), (STOPPED, "b")], [], 1, Outcome(STOPPED, "worker 1: b")),
        ([(STOPPED, "a"), RUNNING], [1], 1, Outcome(STOPPED, "worker 0: a")),
        # Before training the launcher sends those that are left the signal that asks them to stop.
        ([EARLY, (FAILURE, "b")], [], 1, Outcome(STOPPED, f"worker 0: {STOPPED_EARLY}, by signal 15")),
        ([(FAILURE, "a"), EARLY], [], 1, Outcome(FAILURE, "worker 0: a")),
        ([RUNNING, EARLY], [0], 1, Outcome(FAILURE, "worker 0 ended without a record (killed, or crashed)")),
        # The first failure that is no consequence of another one.
        ([LEFT_ALONE, (FAILURE, "b"), (HANG, "c")], [], 1, Outcome(FAILURE, "worker 1: b")),
        ([LEFT_ALONE, (HANG, "b"), (FAILURE, "c")], [], 1, Outcome(HANG, "worker 1: b")),
        ([(FAILURE, "a"), RUNNING], [1], 1, Outcome(FAILURE, "worker 0: a")),
        ([LEFT_ALONE, RUNNING], [1], 1, Outcome(FAILURE, "worker 1 ended without a record (killed, or crashed)")),
        ([LEFT_ALONE, RUNNING], [], 1, Outcome(FAILURE, f"worker 0: {PEER_GONE} (shut down)")),
        ([(3, ""), RUNNING], [], 1, Outcome(FAILURE, "worker 0: exit code 3")),
        ([RUNNING, RUNNING], [], -9, Outcome(FAILURE, "the command was killed by signal 9")),
        ([RUNNING, RUNNING], [], None, Outcome(FAILURE, "the command had to be killed")),
        ([], [], 1, Outcome(FAILURE, "the command ended with code 1")),
        ([], [], 127, Outcome(FAILURE, "the command ended with code 127")),
        ([], [], HANG, Outcome(HANG, "the command ended with code 70")),
        ([], [], STOPPED, Outcome(STOPPED, "the command ended with code 75")),
    ],
)
def test_first_cause_is_separated_from_its_effects(ends, gone, launcher, expected):
    assert outcome_of(workers(*ends), gone, launcher) == expected


def test_waits_double_until_a_new_checkpoint_exists():
    restarts = Restarts(most=20)
    waits = [restarts.after(f"cause {number}", False)[0] for number in range(8)]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert restarts.after("cause", True)[0] == 0
    assert restarts.after("cause", False)[0] == 1


def test_restarts_are_limited():
    restarts = Restarts(most=2)
    assert [restarts.after("cause", True)[0] for _ in range(3)] == [0, 0, None]
    assert Restarts(most=0).after("cause", True) == (None, "no restart: 0 of 0 made")


def test_same_cause_three_times_ends_the_job():
    restarts = Restarts(most=20)
    assert [restarts.after("nan", progressed)[0] for progressed in (False, False, True, False)] == [1, 2, 0, 1]
    assert [restarts.after(cause, False)[0] for cause in ("other", "nan", "nan")] == [2, 4, 8]
    wait, message = restarts.after("nan", False)
    assert wait is None and "the same cause 3 times" in message
