from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from data.storage import arrays
from tests.trainer.local_workers import run_workers
from trainer.checkpoint.background_writer import Handover
from trainer.checkpoint.state import TrainState
from trainer.checkpoint.store import CheckpointStore
from trainer.embeddings.shards import Shards
from trainer.variables import TableRows

ROWS = (1, 5, 23)
WIDTHS = (2, 1, 3)


def requested_rows(rng: np.random.Generator, rows: int, workers: int) -> np.ndarray:
    """None, one or many distinct rows, sorted by the worker that holds them."""
    drawn = rng.permutation(rows)[: int(rng.integers(0, 6))]
    return drawn[np.argsort(drawn % workers, kind="stable")]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_fetch_and_deliver_equal_whole_tables(workers, seed):
    rng = np.random.default_rng(seed)
    whole = [rng.normal(size=(rows, width)).astype(np.float32) for rows, width in zip(ROWS, WIDTHS, strict=True)]
    ids = [[requested_rows(rng, rows, workers) for rows in ROWS] for _ in range(workers)]
    gradients = [
        [rng.normal(size=(len(own), width)).astype(np.float32) for own, width in zip(of_worker, WIDTHS, strict=True)]
        for of_worker in ids
    ]

    def work(comm):
        shards = Shards(comm.rank, comm.size, comm.exchange_values)
        own = [tf.constant(table[comm.rank :: comm.size]) for table in whole]
        mine = dict(enumerate(ids[comm.rank]))
        per_holder = {n: np.bincount(own % workers, minlength=workers) for n, own in mine.items()}
        routes = shards.routes(
            {n: tf.constant(own) for n, own in mine.items()},
            {n: tf.constant(counts, tf.int32) for n, counts in per_holder.items()},
        )
        fetched = shards.fetch([(n, tf.gather(table, routes.rows[n])) for n, table in enumerate(own)], routes)
        delivered = shards.deliver(list(enumerate(map(tf.constant, gradients[comm.rank]))), routes)
        pairs = zip(routes.rows.values(), delivered, strict=True)
        return [rows.numpy() for rows in fetched], [(rows.numpy(), values.numpy()) for rows, values in pairs]

    results = run_workers(workers, work)
    for table, (rows, width) in enumerate(zip(ROWS, WIDTHS, strict=True)):
        summed, expected = np.zeros((rows, width)), np.zeros((rows, width))
        for worker, (fetched, delivered) in enumerate(results):
            np.testing.assert_array_equal(fetched[table], whole[table][ids[worker][table]])
            numbers, values = delivered[table]
            np.add.at(summed, numbers * workers + worker, values)
            np.add.at(expected, ids[worker][table], gradients[worker][table])
        np.testing.assert_allclose(summed, expected, atol=1e-5)


def test_no_sharded_table_needs_no_exchange():
    def never(values, counts):
        raise AssertionError("there is nothing to exchange")

    shards = Shards(0, 2, never)
    routes = shards.routes({}, {})
    assert routes.rows == {} and shards.fetch([], routes) == [] and shards.deliver([], routes) == []
    assert not shards.holds_part_of(shards.smallest - 1) and shards.holds_part_of(shards.smallest)
    assert not Shards(0, 1, never).holds_part_of(10**9)


@pytest.mark.parametrize(("saved_by", "restored_by"), [(1, 3), (3, 1), (2, 3), (3, 3)])
def test_checkpoints_do_not_depend_on_the_workers(tmp_path, monkeypatch, saved_by, restored_by):
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 4 * 2 * 4)  # blocks of four rows
    # Two tables of 16 and 7 rows in one variable.
    table = np.arange(46, dtype=np.float32).reshape(23, 2)
    last_step, common = np.arange(23, dtype=np.float32), np.float32([7, 8])
    ranges = {"first": (0, 16), "second": (16, 7)}

    def state_of(comm, table, last_step, common):
        variables = {
            "": tf.Variable(table[comm.rank :: comm.size]),
            ".last_step": tf.Variable(last_step[comm.rank :: comm.size]),
        }
        rows = {
            name + suffix: TableRows(variable, *range_, comm.rank, comm.size)
            for suffix, variable in variables.items()
            for name, range_ in ranges.items()
        }
        return TrainState(rows | {"common": tf.Variable(common)}, comm)

    def save(comm):
        state = state_of(comm, table, last_step, common)
        if comm.rank != 0:
            state.take_part_in_save()
            return
        handover = Handover(state.sources(), collective=state.sharded)
        with ThreadPoolExecutor(1) as pool:
            saved = pool.submit(handover.save, lambda arrays: CheckpointStore(tmp_path).save(1, arrays, {}))
            handover.fill()
            saved.result()

    def restore(comm):
        state = state_of(comm, 0 * table, 0 * last_step, 0 * common)
        state.restore(CheckpointStore(tmp_path).open("last") if comm.rank == 0 else None)
        return {
            name: (rows.variable if isinstance(rows, TableRows) else rows).numpy()
            for name, rows in state.variables.items()
        }

    run_workers(saved_by, save)
    checkpoint = CheckpointStore(tmp_path).open("last")
    np.testing.assert_array_equal(checkpoint.read("common"), common)
    for name, (first, rows) in ranges.items():
        np.testing.assert_array_equal(checkpoint.read(name), table[first : first + rows])
        np.testing.assert_array_equal(checkpoint.read(f"{name}.last_step"), last_step[first : first + rows])
    for worker, values in enumerate(run_workers(restored_by, restore)):
        for name in ranges:
            np.testing.assert_array_equal(values[name], table[worker::restored_by])
            np.testing.assert_array_equal(values[f"{name}.last_step"], last_step[worker::restored_by])
        np.testing.assert_array_equal(values["common"], common)
