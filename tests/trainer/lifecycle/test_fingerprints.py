"""Detection of workers whose values differ or are not finite."""

import numpy as np
import pytest
import tensorflow as tf

from data.storage import arrays
from tests.trainer.local_workers import run_workers
from trainer.checkpoint.fingerprints import check_state
from trainer.checkpoint.state import TrainState
from trainer.comm import SingleWorker
from trainer.lifecycle.errors import NotFinite, WorkersDiffer
from trainer.variables import TableRows


def values() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "table": random.normal(size=(50, 3)).astype(np.float32),
        "table.slot": random.normal(size=50).astype(np.float32),
        "kernel": random.normal(size=(4, 5)).astype(np.float32),
        "scale": np.float32(2.0**15),
        "count": np.arange(7, dtype=np.int64),
        "nothing": np.zeros((0, 3), np.float32),
    }


def check(workers: int, corrupt, sharded: str = "") -> None:  # type: ignore[no-untyped-def]
    """Runs the check on every worker, on values that `corrupt(worker, values)` has changed."""

    def work(comm) -> None:  # type: ignore[no-untyped-def]
        own = values()
        corrupt(comm.rank, own)
        variables: dict[str, tf.Variable | TableRows] = {name: tf.Variable(value) for name, value in own.items()}
        if sharded:
            variables[sharded] = TableRows(tf.Variable(own[sharded]), 0, 100, comm.rank, comm.size)
        check_state(TrainState(variables, comm), step=70)

    run_workers(workers, work)


def test_equal_states_pass():
    check(3, lambda worker, own: None)
    check_state(TrainState({name: tf.Variable(value) for name, value in values().items()}, SingleWorker()), step=1)


@pytest.mark.parametrize("name", ["table", "table.slot", "kernel", "scale", "count"])
def test_one_flipped_bit_is_found_and_named(name, monkeypatch):
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 96)  # eight rows of the table at a time

    def corrupt(worker: int, own: dict[str, np.ndarray]) -> None:
        if worker == 1:
            flat = own[name].reshape(-1).copy()
            flat.view(np.uint8)[flat.nbytes * 2 // 3] ^= 1
            own[name] = flat.reshape(own[name].shape)

    with pytest.raises(WorkersDiffer, match=f"after step 70 {name} of worker.s. 1 differs from that of the other 2"):
        check(3, corrupt)


@pytest.mark.parametrize("rows", [(0, 1), (3, 40), (48, 49)])
def test_swapped_rows_are_found(rows, monkeypatch):
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 96)

    def corrupt(worker: int, own: dict[str, np.ndarray]) -> None:
        if worker == 0:
            own["table"][list(rows)] = own["table"][list(rows[::-1])]

    with pytest.raises(WorkersDiffer, match="table differs between the 2 workers"):
        check(2, corrupt)


def test_minus_zero_is_not_zero():
    def corrupt(worker: int, own: dict[str, np.ndarray]) -> None:
        own["kernel"][0, 0] = -0.0 if worker else 0.0

    with pytest.raises(WorkersDiffer, match="kernel"):
        check(2, corrupt)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_non_finite_value_is_found_on_all_workers(broken):
    def corrupt(worker: int, own: dict[str, np.ndarray]) -> None:
        own["table"][17, 1] = broken

    with pytest.raises(NotFinite, match="1 variables have NaN or infinite values after step 70, the first is table"):
        check(2, corrupt)


def test_sharded_tables_may_differ_but_must_be_finite():
    def differ(worker: int, own: dict[str, np.ndarray]) -> None:
        own["table"] = own["table"] + worker

    check(2, differ, sharded="table")

    def break_one(worker: int, own: dict[str, np.ndarray]) -> None:
        own["table"][0, 0] = np.nan if worker == 1 else 0

    with pytest.raises(NotFinite, match="table"):
        check(2, break_one, sharded="table")
