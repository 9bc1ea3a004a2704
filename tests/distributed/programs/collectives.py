"""Run on every worker: each collective against what it must give, computed from the rank alone."""

import os

import numpy as np
import tensorflow as tf

from trainer.comm import connect
from trainer.process.worker_env import read_worker_env

comm = connect(read_worker_env(os.environ))
rank, size = comm.rank, comm.size
everyone = range(size)


def same(found, expected):  # type: ignore[no-untyped-def]
    np.testing.assert_array_equal(found, expected)


for dtype in ("int32", "int64", "float32", "float64"):
    same(comm.sum_array(np.full((2, 3), rank + 1, dtype)), np.full((2, 3), sum(r + 1 for r in everyone), dtype))
    same(comm.gather_rows(np.full(rank, rank, dtype)), np.repeat(list(everyone), list(everyone)).astype(dtype))
    # Worker r sends r + w rows to worker w.
    counts = [rank + worker for worker in everyone]
    sent = np.concatenate([np.full((count, 2), 10 * rank + w, dtype) for w, count in enumerate(counts)])
    came = np.concatenate([np.full((r + rank, 2), 10 * r + rank, dtype) for r in everyone])
    same(comm.exchange_rows(sent, counts), came)

assert comm.sum_array(np.array([2**53 + 1], np.int64)).dtype == np.int64
assert comm.broadcast_bytes(b"from zero \x00\xff" if rank == 0 else None) == b"from zero \x00\xff"
assert comm.broadcast_bytes(b"" if rank == 0 else b"ignored") == b""

variables = [tf.Variable([float(rank)] * 3), tf.Variable(rank), tf.Variable([[rank, 7]], dtype=tf.int64)]
comm.broadcast_variables(variables)
same(variables[0].numpy(), [0, 0, 0])
same(variables[1].numpy(), 0)
same(variables[2].numpy(), [[0, 7]])


@tf.function
def in_a_graph(value, rows):  # type: ignore[no-untyped-def]
    sums = comm.sum_tensors([value, 2 * value])
    return sums, comm.gather_tensors([rows, rows + 1.0])


for _ in range(3):
    (first, second), (all_rows, all_plus_one) = in_a_graph(tf.fill([4], float(rank)), tf.fill([rank, 2], float(rank)))
    same(first, np.full(4, sum(everyone)))
    same(second, np.full(4, 2 * sum(everyone)))
    same(all_rows, np.repeat(list(everyone), list(everyone))[:, None] * np.ones((1, 2)))
    same(all_plus_one, all_rows + 1)


@tf.function
def exchanged(values, counts):  # type: ignore[no-untyped-def]
    return comm.exchange_values(values, counts)


for dtype in ("int32", "float32"):
    counts = [rank + worker for worker in everyone]
    sent = np.concatenate([np.full(count, 10 * rank + w, dtype) for w, count in enumerate(counts)])
    came = np.concatenate([np.full(r + rank, 10 * r + rank, dtype) for r in everyone])
    same(exchanged(tf.constant(sent), tf.constant(counts)), came)
    same(exchanged(tf.zeros(0, dtype), tf.zeros(size, tf.int32)), np.zeros(0, dtype))

print(f"worker {rank} of {size} has seen all it should", flush=True)
