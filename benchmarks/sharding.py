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
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.reporting import report
from benchmarks.synthetic_rows import write_rows
from trainer.launcher import read_launch
from trainer.quiet_import import import_tensorflow


def measure(folder: Path, arguments: argparse.Namespace, workers: int) -> dict[str, object]:
    from benchmarks.training_run import TrainingRun

    write_rows(folder, 4 * arguments.batch * workers, growth=arguments.growth)
    flags = ["--global_batch_size", str(arguments.batch * workers)]
    run = TrainingRun(folder, *flags, *["--shard_embeddings"] * arguments.shard_embeddings)
    run.seconds(2)
    seconds = [run.seconds(1) for _ in range(arguments.steps)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "benchmark": "sharded tables",
        "workers": workers,
        "sharded": "yes" if arguments.shard_embeddings else "no",
        "growth": arguments.growth,
        "parameters": run.model.parameters,
        "peak_gb": round(float(run.comm.gather_rows(np.array([peak])).max()), 2),
        "step_ms": round(1000 * float(np.median(seconds))),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shard_embeddings", action="store_true", help="as main.py --shard_embeddings")
    parser.add_argument("--growth", type=int, default=4, help="factor of all cardinalities")
    parser.add_argument("--batch", type=int, default=16_384, help="rows of a step on each worker")
    parser.add_argument("--steps", type=int, default=3, help="steps that count")
    arguments = parser.parse_args(argv)
    launch = read_launch(os.environ)
    import_tensorflow()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), arguments, launch.size)
    if launch.rank == 0:
        report(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
