"""What regularization of all table rows costs in a training step: one JSON line per size of the tables.

    python -m benchmarks.regularization_cost [--growth 1 16] [--batch 16384] [--width_divisor 2] [--turns 20]

The models train on Outbrain's 29 features, whose cardinalities are multiplied by a factor, with Adam. With and without
--l2_reg_embedding, they are in memory side by side and take steps in turn; `ratio` is the median over the turns of the
seconds with it over those without, `ratio_spread` its quartiles.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from benchmarks.harness import measure_and_report, parser_of
from benchmarks.synthetic_rows import write_rows

BATCHES = 8  # of the dataset, which training repeats
L2 = "0.001"


def measure(folder: Path, arguments: argparse.Namespace) -> list[dict[str, object]]:
    from benchmarks.training_run import TrainingRun

    results: list[dict[str, object]] = []
    for growth in arguments.growth:
        rows = folder / str(growth)
        rows.mkdir()
        write_rows(rows, BATCHES * arguments.batch, growth=growth, width_divisor=arguments.width_divisor)
        flags = ["--global_batch_size", str(arguments.batch), "--optimizer", "adam", *arguments.flags]
        runs = [TrainingRun(rows, *flags, "--l2_reg_embedding", l2) for l2 in ("0", L2)]
        for run in runs:
            run.seconds(arguments.warmup)
        seconds = np.array([[run.seconds(1) for run in runs] for _ in range(arguments.turns)])
        ratios = seconds[:, 1] / seconds[:, 0]
        results.append(
            {
                "benchmark": "step with regularized rows",
                "growth": growth,
                "batch": arguments.batch,
                "width_divisor": arguments.width_divisor,
                "step_ms": round(1000 * float(np.median(seconds[:, 0]))),
                "ratio": round(float(np.median(ratios)), 3),
                "ratio_spread": np.round(np.quantile(ratios, [0.25, 0.75]), 3).tolist(),
            }
        )
    return results


def main(argv: list[str] | None = None) -> int:
    parser = parser_of(__doc__, takes_flags=True)
    parser.add_argument("--growth", type=int, nargs="+", default=[1, 16], help="factors of all cardinalities")
    parser.add_argument("--width_divisor", type=int, default=2, help="of the published embedding widths")
    parser.add_argument("--warmup", type=int, default=3, help="steps of each model before the first turn")
    parser.add_argument("--turns", type=int, default=20, help="steps of each model that count")
    arguments = parser.parse_args(argv)
    return measure_and_report(measure, arguments)


if __name__ == "__main__":
    sys.exit(main())
