"""Which worker asks for a stop or a save, and what all workers do about it."""

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


def make(comm=None, every: Interval | None = None) -> tuple[StepControl, StopRequest]:  # type: ignore[no-untyped-def]
    stop = StopRequest(None)
    return StepControl(comm or SingleWorker(), stop, Watchdog(None, None), every or Interval()), stop


@pytest.mark.parametrize("signalled", [0, 2])
def test_signal_on_one_worker_stops_all_at_one_step(signalled):
    def work(comm):  # type: ignore[no-untyped-def]
        control, stop = make(comm)
        decisions = []
        for step in range(1, 5):
            flags = comm.sum_tensors([control.control_flags()])[0].numpy()
            stop.requested |= comm.rank == signalled and step == 2  # arrives during step 2
            decisions.append(control.decide(flags, step).stop)
        return decisions, control.any_stop_requested()

    assert run_workers(3, work) == [([False, False, True, True], True)] * 3


def test_saves_by_count_are_at_multiples():
    control, _ = make(every=Interval(steps=3))
    assert [step for step in range(1, 10) if control.decide(np.zeros(2), step).save] == [3, 6, 9]


def test_saves_by_time_follow_the_first_workers_clock(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    first, _ = make(every=Interval(seconds=600))
    second, _ = make(_Second(), every=Interval(seconds=600))

    def is_due(control: StepControl) -> bool:
        return bool(control.control_flags().numpy()[1])

    assert not is_due(first)
    clock[0] = 701.0
    assert is_due(first) and not is_due(second)
    first.saved()
    assert not is_due(first)
    first.failed()  # retried soon
    clock[0] += RETRY_SECONDS
    assert is_due(first)


class _Second(SingleWorker):
    rank, size = 1, 2


def test_no_interval_means_no_saves_between_epochs():
    control, _ = make()
    assert not control.control_flags().numpy().any() and not control.decide(np.zeros(2), 100).save


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
def test_other_intervals_are_rejected_with_the_flag(text):
    with pytest.raises(DataError, match="--checkpoint_every expects a number of steps, or a time"):
        parse_interval("checkpoint_every", text)
