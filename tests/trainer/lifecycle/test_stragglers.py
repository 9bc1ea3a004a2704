"""Which workers are told of, and when."""

import numpy as np
import pytest

from tests.trainer.local_workers import run_workers
from trainer.comm import SingleWorker
from trainer.lifecycle.stragglers import Stragglers, slow_workers


@pytest.mark.parametrize(
    ("milliseconds", "slow"),
    [
        ([10, 10], []),
        ([10, 14], []),
        ([10, 16], [1]),
        ([50, 10, 11, 9], [0]),
        ([10, 30, 31, 10, 10], [1, 2]),
        ([0.1, 1.0], []),  # ten times as long, and less than anybody notices
    ],
)
def test_slow_is_half_as_long_again_as_the_others(milliseconds, slow):
    assert slow_workers(np.array(milliseconds) / 1000) == slow


def look(own: list[float], steps: int = 10, windows: int = 1) -> list[list[tuple[dict, list[str]]]]:
    """What each worker gets, window by window, where a step takes a second and worker w needs own[w] of it."""

    def work(comm):  # type: ignore[no-untyped-def]
        stragglers, found = Stragglers(comm), []
        for _ in range(windows):
            for _ in range(steps):
                stragglers.add(1.0, 1.0 - own[comm.rank])
            found.append(stragglers.look())
        return found

    return run_workers(len(own), work)


def test_the_slowest_worker_is_named_once_on_all_workers():
    results = look([0.1, 0.1, 0.4], windows=2)
    for first, second in results:
        assert first[0]["slowest_worker"] == 2
        assert first[0]["slowest_worker_ratio"] == pytest.approx(4)
        assert len(first[1]) == 1
        assert (
            first[1][0].startswith("worker 2 on ") and "400 ms of its own for a step, the others 100 ms" in first[1][0]
        )
        assert second[0] == first[0] and second[1] == []


def test_workers_that_are_alike_give_no_warning():
    assert [found[0][1] for found in look([0.1, 0.12])] == [[], []]


def test_few_steps_and_lone_workers_tell_nothing():
    assert look([0.1, 0.9], steps=4) == [[({}, [])], [({}, [])]]
    alone = Stragglers(SingleWorker())
    for _ in range(10):
        alone.add(1.0, 0.0)
    assert alone.look() == ({}, [])
