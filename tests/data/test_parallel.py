"""Work shared by threads."""

import os
import threading
import time

import pytest

from data.parallel import in_parallel


@pytest.fixture(params=[1, 3])
def threads(request, monkeypatch) -> int:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(request.param)))
    return request.param


def test_results_are_in_the_order_of_the_items(threads):
    assert in_parallel(lambda item: item * item, iter(range(50))) == [item * item for item in range(50)]
    assert in_parallel(str, []) == []


def test_as_many_threads_work_as_there_are_cores(threads):
    together = threading.Barrier(threads, timeout=60)
    in_parallel(lambda item: together.wait(), range(threads))  # would break if there were fewer


def test_the_first_error_is_raised_and_ends_the_work(threads):
    begun = []

    def fail_at_two(item: int) -> None:
        begun.append(item)
        if item == 2:
            raise ValueError(f"item {item}")
        time.sleep(0.01)  # all of them would take seconds; the error is seen long before

    with pytest.raises(ValueError, match="item 2"):
        in_parallel(fail_at_two, range(1000))
    assert len(begun) < 1000
