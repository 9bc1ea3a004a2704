"""Who asks for a stop or a save, and what all workers make of it."""

import time

import numpy as np
import pytest

from data.errors import DataError
from tests.trainer.local_workers import run_workers
from trainer.comm import SingleWorker
from trainer.config import Interval, parse_interval
from trainer.lifecycle.signals import StopRequest
from trainer.lifecycle.step_control import RETRY_SECONDS, StepControl
from trainer.lifecycle.watchdog import Watchdog


def guard(comm=None, every: Interval | None = None) -> tuple[StepControl, StopRequest]:  # type: ignore[no-untyped-def]
    stop = StopRequest(None)
    return StepControl(comm or SingleWorker(), stop, Watchdog(None, None), every or Interval()), stop


@pytest.mark.parametrize("asked", [0, 2])
def test_one_workers_signal_stops_all_after_the_same_step(asked):
    def work(comm):  # type: ignore[no-untyped-def]
        own, stop = guard(comm)
        decisions = []
        for step in range(1, 5):
            votes = comm.sum_tensors([own.votes()])[0].numpy()
            stop.requested |= comm.rank == asked and step == 2  # arrives while step 2 is under way
            decisions.append(own.decide(votes, step).stop)
        return decisions, own.asks_to_stop()

    assert run_workers(3, work) == [([False, False, True, True], True)] * 3


def test_saves_by_count_are_at_multiples():
    own, _ = guard(every=Interval(steps=3))
    assert [step for step in range(1, 10) if own.decide(np.zeros(2), step).save] == [3, 6, 9]


def test_saves_by_time_follow_the_first_workers_clock(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    own, _ = guard(every=Interval(seconds=600))
    other = StepControl(_Second(), StopRequest(None), Watchdog(None, None), Interval(seconds=600))

    def is_due(one: StepControl) -> bool:
        return bool(one.votes().numpy()[1])

    assert not is_due(own)
    clock[0] = 701.0
    assert is_due(own) and not is_due(other)
    own.saved()
    assert not is_due(own)
    own.failed()  # tried again soon
    clock[0] += RETRY_SECONDS
    assert is_due(own)


class _Second(SingleWorker):
    rank, size = 1, 2


def test_no_interval_means_no_saves_within_epochs():
    own, _ = guard()
    assert not own.votes().numpy().any() and not own.decide(np.zeros(2), 100).save


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("500", Interval(steps=500)),
        ("0", Interval()),
        ("90s", Interval(seconds=90)),
        ("10m", Interval(seconds=600)),
        ("2h", Interval(seconds=7200)),
        ("0m", Interval()),
    ],
)
def test_intervals_are_steps_or_times(text, interval):
    assert parse_interval("checkpoint_every", text) == interval


@pytest.mark.parametrize("text", ["", "m", "-5", "1.5m", "10 m", "10d", "ten", "9" * 12, "10m\n", "１０"])
def test_anything_else_is_refused_with_the_flag(text):
    with pytest.raises(DataError, match="--checkpoint_every takes a number of steps, or seconds"):
        parse_interval("checkpoint_every", text)
