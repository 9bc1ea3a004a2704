"""What --shard_embeddings saves in memory and costs in time. One JSON line; start it without and with the flag.

    horovodrun -np 2 python -m benchmarks.sharding [--shard_embeddings] [--growth 4] [--batch 16384] [--steps 3]

The default Wide & Deep on Outbrain's 29 features with cardinalities `growth` times the published ones: tables hold
nearly all of it. `peak_gb` is the largest peak resident set of any worker, `step_ms` the median of whole steps, the
loader included; the workers share the cores of one machine.
"""

import argparse
import os
import resource
import sys
from pathlib import Path

import numpy as np

from benchmarks.harness import measure_and_report, parser_of
from benchmarks.synthetic_rows import write_rows
from trainer.process.worker_env import read_worker_env


def measure(folder: Path, arguments: argparse.Namespace) -> list[dict[str, object]]:
    from benchmarks.training_run import TrainingRun

    workers = read_worker_env(os.environ).size
    write_rows(folder, 4 * arguments.batch * workers, growth=arguments.growth)
    flags = ["--global_batch_size", str(arguments.batch * workers)]
    run = TrainingRun(folder, *flags, "--shard_embeddings", "on" if arguments.shard_embeddings else "off")
    run.seconds(2)
    seconds = [run.seconds(1) for _ in range(arguments.steps)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    result = {
        "benchmark": "sharded tables",
        "workers": workers,
        "sharded": "yes" if arguments.shard_embeddings else "no",
        "growth": arguments.growth,
        "parameters": run.trainer.model.parameters,
        "peak_gb": round(float(run.trainer.comm.gather_rows(np.array([peak])).max()), 2),
        "step_ms": round(1000 * float(np.median(seconds))),
    }
    return [result]


def main(argv: list[str] | None = None) -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--shard_embeddings", action="store_true", help="as main.py --shard_embeddings")
    parser.add_argument("--growth", type=int, default=4, help="factor of all cardinalities")
    parser.add_argument("--steps", type=int, default=3, help="steps that count")
    arguments = parser.parse_args(argv)
    return measure_and_report(measure, arguments)


if __name__ == "__main__":
    sys.exit(main())
