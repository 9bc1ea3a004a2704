"""What each worker sends in a training step, over what a dense all-reduce would send: one JSON line.

    horovodrun -np 2 python -m benchmarks.exchange_bytes [--rows 1000000] [--batch 16384] [--width_divisor 8]

Wide & Deep on Outbrain's 29 features, all tables with --rows rows, --batch rows of each worker per step. Bytes are
counted where the training step calls its collectives, as what a ring sends with n workers:

    sum_*       all-reduce:  2 (n - 1) / n * bytes of the tensors
    gather_*    all-gather:  (n - 1) * bytes of this worker's tensors
    exchange_*  all-to-all:  (n - 1) / n * bytes of this worker's tensors, which go to all workers in equal parts
    broadcast_* :            bytes of the tensors

    ratio = bytes counted / (2 (n - 1) / n * bytes of all trained weights, tables and dense layers)

Widths are the published ones divided by --width_divisor, for the sake of memory; wider rows make the ratio smaller,
because an id of 4 bytes is sent with each row.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import measure_and_report, parser_of
from benchmarks.synthetic_rows import write_rows
from trainer.process.worker_env import read_worker_env

if TYPE_CHECKING:
    from trainer.comm import Comm

STEPS = 2


class CountingComm:
    """Workers that count what this one sends: a Comm around a Comm, whatever collectives that one has.

    Args:
        inner: exchanges what is counted.

    Attributes:
        sent: kind of collective -> bytes so far, a float64 variable, which counts in compiled steps too.
    """

    def __init__(self, inner: Any):
        import tensorflow as tf

        n = inner.size
        self._inner = inner
        self._factors = {"sum": 2 * (n - 1) / n, "gather": n - 1, "exchange": (n - 1) / n, "broadcast": 1.0}
        self.sent = {kind: tf.Variable(0.0, dtype=tf.float64, trainable=False) for kind in self._factors}

    def __getattr__(self, name: str) -> Any:
        """Return the inner one's attribute; its collectives count what they are handed."""
        attribute = getattr(self._inner, name)
        kind = name.partition("_")[0]
        if not callable(attribute):
            return attribute
        if kind not in self._factors:
            raise AttributeError(f"what a worker sends in {name} is not known: add {kind!r} to CountingComm's factors")
        return self._counted(kind, attribute)

    def _counted(self, kind: str, collective: Callable[..., Any]) -> Callable[..., Any]:
        import tensorflow as tf

        def call(values: Any, *others: Any, **options: Any) -> Any:
            for tensor in tf.nest.flatten(values):
                # Shapes of gathered rows are known when the step runs, not before.
                size = tf.size(tensor, tf.int64) * tf.as_dtype(tensor.dtype).size
                self.sent[kind].assign_add(self._factors[kind] * tf.cast(size, tf.float64))
            return collective(values, *others, **options)

        return call

    def total(self) -> dict[str, float]:
        """Return the bytes so far by kind, without those of which there are none."""
        return {kind: float(sent.numpy()) for kind, sent in self.sent.items() if sent.numpy()}


def measure(folder: Path, arguments: argparse.Namespace) -> list[dict[str, object]]:
    from benchmarks.training_run import TrainingRun

    rows, batch, workers = arguments.rows, arguments.batch, read_worker_env(os.environ).size
    counters: list[CountingComm] = []

    def counted(comm: "Comm") -> Any:
        counters.append(CountingComm(comm))
        return counters[0]

    # Every worker writes the same rows into a folder of its own.
    write_rows(folder, 4 * batch * workers, cardinality=rows, width_divisor=arguments.width_divisor)
    global_batch = ["--global_batch_size", str(batch * workers)]
    run = TrainingRun(folder, *global_batch, *arguments.flags, around=counted)
    run.seconds(STEPS)
    sent = counters[0].total()
    # Of all rows of the tables, whichever worker holds them.
    dense = 2 * (run.trainer.comm.size - 1) / run.trainer.comm.size * 4 * run.trainer.model.parameters
    per_step = {kind: value / STEPS for kind, value in sent.items()}
    result = {
        "benchmark": "bytes sent over a dense all-reduce",
        "workers": run.trainer.comm.size,
        "table_rows": rows,
        "batch_per_worker": batch,
        "width_divisor": arguments.width_divisor,
        "sent_mb": round(sum(per_step.values()) / 1e6, 2),
        "sent_mb_by_collective": {kind: round(value / 1e6, 2) for kind, value in per_step.items()},
        "dense_mb": round(dense / 1e6, 2),
        "ratio": round(sum(per_step.values()) / dense, 4),
    }
    return [result]


def main(argv: list[str] | None = None) -> int:
    parser = parser_of(__doc__, takes_flags=True)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of each table")
    parser.add_argument("--width_divisor", type=int, default=8, help="of the published embedding widths")
    arguments = parser.parse_args(argv)
    if read_worker_env(os.environ).size == 1:
        parser.error("one worker sends nothing: start this with horovodrun -np 2")
    return measure_and_report(measure, arguments)


if __name__ == "__main__":
    sys.exit(main())
