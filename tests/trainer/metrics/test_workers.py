"""The fake workers: they exchange data as real ones do, and detect what would hang or corrupt those."""

import numpy as np
import pytest

from tests.trainer.metrics.workers import LocalWorkers


def test_sums_gathers_and_broadcasts_reach_every_worker():
    def work(comm):
        mine = np.full((comm.rank, 2), comm.rank)
        return (
            comm.sum_array(np.array([comm.rank, 1])).tolist(),
            comm.gather_rows(mine).tolist(),
            comm.broadcast_bytes(b"first" if comm.rank == 0 else None),
        )

    assert LocalWorkers(3).run(work) == [([3, 3], [[1, 1], [2, 2], [2, 2]], b"first")] * 3


def test_exchanged_rows_arrive_in_rank_order():
    def work(comm):
        rows = np.array([10 * comm.rank + number for number in range(3)])
        return comm.exchange_rows(rows, [1, 2] if comm.rank == 0 else [0, 3]).tolist()

    assert LocalWorkers(2).run(work) == [[0], [1, 2, 10, 11, 12]]


def test_workers_in_different_collectives_are_found_out():
    with pytest.raises(RuntimeError, match="different collectives"):
        LocalWorkers(2).run(lambda comm: comm.sum_array(np.ones(1)) if comm.rank else comm.gather_rows(np.ones(1)))


def test_a_worker_that_leaves_others_waiting_ends_them():
    def work(comm):
        if comm.rank == 1:
            raise ValueError("left")
        comm.sum_array(np.ones(1))

    with pytest.raises(ValueError, match="left"):
        LocalWorkers(2).run(work)


@pytest.mark.parametrize("array", [np.ones(2, np.float16), np.ones(2, bool), np.float64(1)])
def test_unsupported_arrays_are_rejected(array):
    with pytest.raises(TypeError):
        LocalWorkers(1).run(lambda comm: comm.sum_array(array))


def test_counts_that_do_not_add_up_are_rejected():
    with pytest.raises(ValueError, match="cannot be sent"):
        LocalWorkers(2).run(lambda comm: comm.exchange_rows(np.ones(3), [1, 1]))


def test_workers_that_all_raise_the_same_raise_it_each():
    def work(comm):
        if comm.sum_array(np.ones(1)) == 3:
            raise ValueError("together")

    assert [type(outcome) for outcome in LocalWorkers(3).outcomes(work)] == [ValueError] * 3
