"""Checks that replicated variables are bitwise identical on all workers, and that all values are finite."""

from collections import Counter

import numpy as np
import tensorflow as tf

from trainer.checkpoint.state import ChosenRows, TrainState
from trainer.lifecycle.errors import NotFinite, WorkersDiffer, how_to_stay_finite

# Multiplier that chains the fingerprints of a variable's blocks. It is odd, hence invertible modulo 2**64: no bit of
# the preceding blocks is lost.
_CHAIN = 0x9E3779B97F4A7C15
_INTEGER = {1: tf.uint8, 2: tf.int16, 4: tf.int32, 8: tf.int64}


def check_state(state: TrainState, step: int, chosen: ChosenRows | None = None) -> None:
    """Compare replicated variables bitwise across workers and look for non-finite values. A collective.

    Each variable is reduced to a 64-bit sum in which every bit pattern is weighted by an odd factor that depends on its
    index. A single changed value therefore always changes the sum, and the position-dependent factors detect swapped
    values as well. Sharded tables, whose rows each live on one worker only, are checked for non-finite values only.

    Args:
        state: the run's state.
        step: number of completed steps, for messages.
        chosen: the rows to check of each table, the same on all workers; None for all.

    Raises:
        WorkersDiffer: on all workers; names the first variable that differs and the workers concerned.
        NotFinite: on all workers; names the first variable that holds a NaN or an infinity.
    """
    names = list(state.variables)
    own = np.array([_fingerprint(state, name, chosen) for name in names], np.int64).reshape(-1, 2)  # [variables, 2]
    found = state.comm.gather_rows(own[np.newaxis])  # [workers, variables, 2]: fingerprint, non-finite count
    replicated = [index for index, name in enumerate(names) if name not in state.sharded]
    for index in replicated:
        if len(set(found[:, index, 0].tolist())) > 1:
            raise WorkersDiffer(_describe(found[:, index, 0].tolist(), names[index], step))
    broken = [name for index, name in enumerate(names) if found[:, index, 1].any() and name not in state.unknown]
    if broken:
        raise NotFinite(
            f"{len(broken)} variables have NaN or infinite values after step {step}, the first is {broken[0]}. They "
            f"are not saved; the last checkpoint is good. {how_to_stay_finite()}"
        )


def _fingerprint(state: TrainState, name: str, chosen: ChosenRows | None) -> tuple[int, int]:
    """Return the fingerprint of a variable and the number of its non-finite values."""
    chained, broken = 0, 0
    for tensor in state.tensors(name, chosen):
        total, count = _sum_bits(tensor).numpy().tolist()
        chained, broken = (chained * _CHAIN + total) % 2**64, broken + count
    return chained - 2**63, broken  # shifted into the range of int64


@tf.function(reduce_retracing=True, autograph=False)
def _sum_bits(values: tf.Tensor) -> tf.Tensor:
    """Return [2] int64: the sum of bit patterns times 1, 3, 5, ... modulo 2**64, and the count of non-finite values.

    Args:
        values: a block of a variable, of any shape.
    """
    flat = tf.reshape(values, [-1])
    # int64 arithmetic wraps around, which is the reduction modulo 2**64. An odd factor is invertible there.
    bits = tf.cast(tf.bitcast(flat, _INTEGER[flat.dtype.size]), tf.int64)
    factors = 2 * tf.range(tf.size(flat, tf.int64), dtype=tf.int64) + 1
    is_number = tf.math.is_finite(flat) if flat.dtype.is_floating else tf.ones_like(flat, tf.bool)
    return tf.stack([tf.reduce_sum(bits * factors), tf.math.count_nonzero(~is_number)])


def _describe(fingerprints: list[int], name: str, step: int) -> str:
    common, count = Counter(fingerprints).most_common(1)[0]
    different = [worker for worker, value in enumerate(fingerprints) if value != common]
    if 2 * count > len(fingerprints):
        who = f"of worker(s) {', '.join(map(str, different))} differs from that of the other {count}"
    else:
        who = f"differs between the {len(fingerprints)} workers"
    return (
        f"after step {step} {name} {who}, and must be the same on all. Failing memory or devices can cause this, or "
        "workers with different software versions or device types. The last checkpoint was compared when it was saved: "
        "resume from it with --use_checkpoint, without the faulty host."
    )
