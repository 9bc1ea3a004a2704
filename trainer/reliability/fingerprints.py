"""Whether all workers still hold the same values, and whether these are numbers."""

from collections import Counter

import numpy as np
import tensorflow as tf

from trainer.reliability.errors import NotFinite, WorkersDiffer, how_to_stay_finite
from trainer.state import RunState

# Blocks of one variable are chained by it; odd, so that no bit of what came before is lost.
_CHAIN = 0x9E3779B97F4A7C15
_INTEGER = {1: tf.uint8, 2: tf.int16, 4: tf.int32, 8: tf.int64}


def check_state(state: RunState, step: int) -> None:
    """Compares the workers' replicated variables bit by bit, and looks for values that are no numbers. A collective.

    Sums of 64 bits stand for the values: each bit pattern counts with an odd factor of its place, so that another value
    in one place always shows, and values that have changed places do too. Sharded tables, of which each row is on one
    worker alone, are only looked through for what is no number.

    Args:
        state: of the run.
        step: the number of steps done, for messages.

    Raises:
        WorkersDiffer: on all workers, naming the first variable that differs and the workers.
        NotFinite: on all workers, naming the first variable with a NaN or an infinity.
    """
    names = list(state.variables)
    own = np.array([_summary(state, name) for name in names], np.int64).reshape(-1, 2)
    found = state.comm.gather_rows(own[np.newaxis])
    replicated = [index for index, name in enumerate(names) if name not in state.sharded]
    for index in replicated:
        if len(set(found[:, index, 0].tolist())) > 1:
            raise WorkersDiffer(_told(found[:, index, 0].tolist(), names[index], step))
    broken = [name for index, name in enumerate(names) if found[:, index, 1].any() and name not in state.unknown]
    if broken:
        raise NotFinite(
            f"{len(broken)} variables hold NaN or infinities after step {step}, the first of them {broken[0]}. They "
            f"are not saved; the last checkpoint is good. {how_to_stay_finite()}"
        )


def _summary(state: RunState, name: str) -> tuple[int, int]:
    """Fingerprint of a variable, and how many of its values are no numbers."""
    chained, broken = 0, 0
    for tensor in state.tensors(name):
        total, count = _summed(tensor).numpy().tolist()
        chained, broken = (chained * _CHAIN + total) % 2**64, broken + count
    return chained - 2**63, broken


@tf.function(reduce_retracing=True)
def _summed(values: tf.Tensor) -> tf.Tensor:
    """Sum of bit patterns times 1, 3, 5, ... modulo 2**64, and the count of what is not finite: [2] int64."""
    flat = tf.reshape(values, [-1])
    bits = tf.cast(tf.bitcast(flat, _INTEGER[flat.dtype.size]), tf.int64)
    factors = 2 * tf.range(tf.size(flat, tf.int64), dtype=tf.int64) + 1
    is_number = tf.math.is_finite(flat) if flat.dtype.is_floating else tf.ones_like(flat, tf.bool)
    return tf.stack([tf.reduce_sum(bits * factors), tf.math.count_nonzero(~is_number)])


def _told(fingerprints: list[int], name: str, step: int) -> str:
    common, count = Counter(fingerprints).most_common(1)[0]
    odd = [worker for worker, value in enumerate(fingerprints) if value != common]
    if 2 * count > len(fingerprints):
        who = f"of worker(s) {', '.join(map(str, odd))} is not what the other {count} hold"
    else:
        who = f"is not the same on the {len(fingerprints)} workers"
    return (
        f"after step {step} {name} {who}, and all must hold the same. A device or memory that fails can do that, or "
        "workers with different versions or kinds of devices. The last checkpoint was compared when it was saved: go "
        "on from it with --use_checkpoint, without the host that is to blame."
    )
