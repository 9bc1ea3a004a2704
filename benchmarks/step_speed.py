"""How near a training step comes to the matrix products it cannot do without: one JSON line.

    python -m benchmarks.step_speed [--amp] [--xla] [--batch 16384] [--hidden 1024 1024 1024 1024 1024] [--turns 5]

A whole step of the default Wide & Deep on Outbrain's 29 features (loader, forward and backward pass, updates) takes
turns with bare tf.matmul at the shapes and in the compute dtype of the step's own products: for every dense kernel of
the deep part the forward product, the input gradient and the weight gradient. Each shape is timed twice per turn; the
faster counts, as often as the model has the shape. The head is float32, as in main.py.

    FLOPs of a step = 6 * batch * sum over kernels of inputs * outputs
    ratio           = (FLOPs / seconds of a step) / (FLOPs / seconds of the bare products), the median over the turns

`ratio_spread` is its smallest and largest value over the turns. The last four fields say where the time of a step goes
when it is taken apart, as main.py --benchmark does.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.harness import measure_and_report, parser_of
from benchmarks.synthetic_rows import write_rows

BATCHES = 16  # of the dataset, which training repeats
PARTS_STEPS = 2


def step_flops(batch: int, widths: Sequence[int]) -> float:
    """Return the FLOPs of a step's matrix products, for the widths of the input, the hidden layers and the logit."""
    return 6.0 * batch * float(np.dot(widths[:-1], widths[1:]))


def bare_seconds(batch: int, widths: Sequence[int], dtype: str) -> float:
    """Measure the seconds of the products of one step.

    Args:
        batch: rows.
        widths: of the deep part's input, its hidden layers and its logit.
        dtype: of all products but the head's.
    """
    import tensorflow as tf

    total = 0.0
    head = (widths[-2], widths[-1])
    for (inputs, outputs), count in Counter(zip(widths[:-1], widths[1:], strict=True)).items():
        used = "float32" if (inputs, outputs) == head else dtype
        x, w, g = (
            tf.cast(tf.random.normal(shape), used) for shape in ((batch, inputs), (inputs, outputs), (batch, outputs))
        )
        seconds = []
        for _ in range(2):
            tf.test.experimental.sync_devices()
            started = time.perf_counter()
            tf.linalg.matmul(x, w)
            tf.linalg.matmul(g, w, transpose_b=True)
            tf.linalg.matmul(x, g, transpose_a=True)
            tf.test.experimental.sync_devices()
            seconds.append(time.perf_counter() - started)
        total += count * min(seconds)
    return total


def measure(folder: Path, arguments: argparse.Namespace) -> list[dict[str, object]]:
    from benchmarks.training_run import TrainingRun

    batch = arguments.batch
    write_rows(folder, BATCHES * batch)
    flags = [flag for flag in ("amp", "xla") if getattr(arguments, flag)]
    hidden = ["--deep_hidden_units", *map(str, arguments.hidden)]
    run = TrainingRun(folder, "--global_batch_size", str(batch), *hidden, *(f"--{flag}" for flag in flags))
    layout = run.trainer.data.layout
    widths = [layout.width, *arguments.hidden, 1]
    gflop = 1e-9 * step_flops(batch, widths)
    run.seconds(arguments.warmup)
    bare_seconds(batch, widths, run.compute_dtype)
    steps, bares = [], []
    for _ in range(arguments.turns):
        steps.append(run.seconds(1))
        bares.append(bare_seconds(batch, widths, run.compute_dtype))
    ratios = np.array(bares) / np.array(steps)
    result = {
        "benchmark": "training step over bare products",
        "variant": " ".join([run.compute_dtype, *(flag for flag in flags if flag != "amp")]),
        "batch": batch,
        "hidden": arguments.hidden,
        "samples_per_second": round(batch / np.median(steps)),
        "step_gflop_per_second": round(gflop / np.median(steps), 1),
        "bare_gflop_per_second": round(gflop / np.median(bares), 1),
        "ratio": round(float(np.median(ratios)), 3),
        "ratio_spread": np.round([ratios.min(), ratios.max()], 3).tolist(),
    } | run.parts(PARTS_STEPS)
    return [result]


def main(argv: list[str] | None = None) -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--amp", action="store_true", help="as main.py --amp")
    parser.add_argument("--xla", action="store_true", help="as main.py --xla")
    parser.add_argument("--hidden", type=int, nargs="+", default=[1024] * 5, help="hidden layers of the deep part")
    parser.add_argument("--warmup", type=int, default=2, help="steps before the first turn")
    parser.add_argument("--turns", type=int, default=5, help="steps that count")
    arguments = parser.parse_args(argv)
    return measure_and_report(measure, arguments)


if __name__ == "__main__":
    sys.exit(main())
