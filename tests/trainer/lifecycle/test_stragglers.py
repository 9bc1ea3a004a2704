"""Which workers are reported as slow, and when."""

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
        ([0.1, 1.0], []),  # ten times as long, but negligible
    ],
)
def test_slow_workers_take_half_as_long_again(milliseconds, slow):
    assert slow_workers(np.array(milliseconds) / 1000) == slow


def compare(own: list[float], steps: int = 10, windows: int = 1) -> list[list[tuple[dict, list[str]]]]:
    """Returns what each worker gets per window, where a step takes a second and worker w needs own[w] of it."""

    def work(comm):  # type: ignore[no-untyped-def]
        stragglers, found = Stragglers(comm), []
        for _ in range(windows):
            for _ in range(steps):
                stragglers.add(1.0, 1.0 - own[comm.rank])
            found.append(stragglers.compare())
        return found

    return run_workers(len(own), work)


def test_slow_worker_is_reported_once_on_all_workers():
    results = compare([0.1, 0.1, 0.4], windows=2)
    for first, second in results:
        assert first[0]["slowest_worker"] == 2
        assert first[0]["slowest_worker_ratio"] == pytest.approx(4)
        assert len(first[1]) == 1
        warning = first[1][0]
        assert warning.startswith("worker 2 on ")
        assert "its own part of a step takes 400 ms, that of the others 100 ms" in warning
        assert second[0] == first[0] and second[1] == []


def test_similar_workers_give_no_warning():
    assert [found[0][1] for found in compare([0.1, 0.12])] == [[], []]


def test_nothing_after_few_steps_or_for_one_worker():
    assert compare([0.1, 0.9], steps=4) == [[({}, [])], [({}, [])]]
    alone = Stragglers(SingleWorker())
    for _ in range(10):
        alone.add(1.0, 0.0)
    assert alone.compare() == ({}, [])
