"""The memory of a training process over what it cannot do without: one JSON line.

    python -m benchmarks.memory [--batch 16384] [--batches 8] [--flags FLAG ...]

A process of its own runs main.py on Outbrain's 29 features: two epochs of --batches steps of the default Wide & Deep,
each with a checkpoint and an evaluation, then the model folder. Its peak resident set size, as Linux counts it,
stands over

    needed = weights + optimizer state + activations + 1.2 GB for TensorFlow

    weights          4 bytes * (sum over tables of cardinality * width + sum over dense layers of (inputs + 1) * outputs
                     + wide part: sum of cardinalities + numerical features + 1)
    optimizer state  the deep part's RMSprop has one slot per weight, the wide part's FTRL two, and every table the
                     step at which each of its rows was last touched: 4 bytes each
    activations      4 bytes * batch * (ids' rows: sum of hotness * width; the input of the first layer; one value per
                     hidden unit, after relu and dropout), what the backward pass of a float32 step reads

Not in the formula, and so in what the ratio allows for: gradients, the loader's buffers, what evaluation and checkpoint
hold, and what the allocator keeps.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.harness import ROOT, parser_of, report
from benchmarks.synthetic_rows import write_rows
from data.spec.embedding_sizes import embedding_dims
from data.spec.feature_spec import FeatureSpec
from trainer.cli import parse
from trainer.layout import InputSchema, input_schema

TENSORFLOW_GB = 1.2


def needed_gb(layout: InputSchema, batch: int, hidden: tuple[int, ...]) -> dict[str, float]:
    """The parts of the formula above, in GB."""
    tables = sum(table.rows * table.width for table in layout.tables)
    table_rows = sum(table.rows for table in layout.tables)
    widths = (layout.width, *hidden, 1)
    dense = float(np.dot(np.array(widths[:-1]) + 1, widths[1:]))
    wide = sum(table.rows for table in layout.wide_tables(1)) + len(layout.numerical) + 1
    looked_up = sum(columns.hotness * columns.width for columns in layout.categorical)
    values = {
        "weights_gb": tables + dense + wide,
        "optimizer_gb": tables + dense + table_rows + 2 * wide,
        "activations_gb": batch * (looked_up + widths[0] + sum(hidden)),
    }
    return {name: 4e-9 * count for name, count in values.items()} | {"tensorflow_gb": TENSORFLOW_GB}


def peak_gb(folder: Path, flags: list[str]) -> float:
    """Peak resident set size of main.py on the dataset in a folder."""
    paths = [
        "--dataset_path",
        str(folder),
        "--model_dir",
        str(folder / "model"),
        "--results_dir",
        str(folder / "results"),
        "--recipe",
        "published",
    ]
    process = subprocess.Popen(
        [sys.executable, "main.py", *paths, *flags],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    errors = process.stderr.read() if process.stderr else ""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"main.py ended with {process.returncode}: {errors[-2000:]}")
    return usage.ru_maxrss * 1024 / 1e9


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    batch = arguments.batch
    sizes = ["--global_batch_size", str(batch), "--eval_batch_size", str(batch), "--num_epochs", "2"]
    flags = [*sizes, *arguments.flags]
    spec: FeatureSpec = write_rows(folder, batch * arguments.batches)
    layout = input_schema(spec, embedding_dims(spec, None))
    needed = needed_gb(layout, batch, parse([*flags, "--recipe", "published"], 1).model.deep_hidden_units)
    peak = peak_gb(folder, flags)
    return {
        "benchmark": "memory of training",
        "batch": batch,
        "peak_gb": round(peak, 3),
        "needed_gb": round(sum(needed.values()), 3),
        **{name: round(value, 3) for name, value in needed.items()},
        "ratio": round(peak / sum(needed.values()), 3),
    }


def main(argv: list[str] | None = None) -> int:
    parser = parser_of(__doc__, takes_flags=True)
    parser.add_argument("--batches", type=int, default=8, help="steps")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        report(measure(Path(folder), arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
