"""What a training step costs when the tables grow: one JSON line per factor.

    python -m benchmarks.table_growth [--growth 1 4 16] [--batch 16384] [--width_divisor 2] [--turns 5]

All cardinalities of Outbrain's 29 features are multiplied by a factor, while the batch, the widths and the skew of the
ids (floor(cardinality * uniform ** 3)) stay the same, so that a batch names somewhat more distinct rows of a larger
table. The models are in memory side by side and take steps in turn; a ratio is the median over the turns of
seconds over the first factor's seconds, `ratio_spread` its smallest and largest value.

Widths are the published ones divided by --width_divisor: with 2, tables and optimizer state of the factors 1, 4 and 16
together take 7.4 GB (see `tables_gb`) and the process 10 GB, with 1 nearly twice as much.
"""

import argparse
import math
import sys
from pathlib import Path

import numpy as np

from benchmarks.harness import measure_and_report, parser_of
from benchmarks.synthetic_rows import write_rows

BATCHES = 8  # of the dataset, which training repeats


def measure(folder: Path, arguments: argparse.Namespace) -> list[dict[str, object]]:
    from benchmarks.training_run import TrainingRun

    runs = {}
    for growth in sorted(arguments.growth, reverse=True):  # making a table takes memory: the largest come first
        rows = folder / str(growth)
        rows.mkdir()
        write_rows(rows, BATCHES * arguments.batch, growth=growth, width_divisor=arguments.width_divisor)
        runs[growth] = TrainingRun(rows, "--global_batch_size", str(arguments.batch), *arguments.flags)
        runs[growth].seconds(arguments.warmup)
    seconds = np.array([[runs[growth].seconds(1) for growth in arguments.growth] for _ in range(arguments.turns)])
    results: list[dict[str, object]] = []
    for index, growth in enumerate(arguments.growth):
        ratios = seconds[:, index] / seconds[:, 0]
        held = runs[growth].trainer.training.state.tables.values()  # with their optimizer state
        results.append(
            {
                "benchmark": "step with larger tables",
                "growth": growth,
                "batch": arguments.batch,
                "width_divisor": arguments.width_divisor,
                "tables_gb": round(sum(math.prod(table.shape) * table.dtype.size for table in held) / 1e9, 2),
                "step_ms": round(1000 * float(np.median(seconds[:, index]))),
                "ratio": round(float(np.median(ratios)), 3),
                "ratio_spread": np.round([ratios.min(), ratios.max()], 3).tolist(),
            }
        )
    return results


def main(argv: list[str] | None = None) -> int:
    parser = parser_of(__doc__, takes_flags=True)
    parser.add_argument("--growth", type=int, nargs="+", default=[1, 4, 16], help="factors of all cardinalities")
    parser.add_argument("--width_divisor", type=int, default=2, help="of the published embedding widths")
    parser.add_argument("--warmup", type=int, default=2, help="steps of each model before the first turn")
    parser.add_argument("--turns", type=int, default=5, help="steps of each model that count")
    arguments = parser.parse_args(argv)
    return measure_and_report(measure, arguments)


if __name__ == "__main__":
    sys.exit(main())
