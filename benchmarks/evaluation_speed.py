"""How fast evaluation is over training: one JSON line.

    python -m benchmarks.evaluation_speed [--batch 16384] [--batches 8] [--turns 3] [--flags FLAG ...]

The default Wide & Deep on Outbrain's 29 features. A turn is some training steps, then one evaluation of all test rows
with its metrics (ROC AUC, MAP@12 and the others that main.py computes), loader included on both sides. `ratio` is the
median over the turns of samples per second over samples per second, `ratio_spread` its smallest and largest value.

The fields in milliseconds per batch say where the time of an evaluation goes: `wait_for_data_ms` the loader alone,
`forward_ms` the model alone on a batch in hand, `metrics_ms` collecting logits and computing the metrics.
`forward_ratio` is a training step's seconds over the model's alone: what the ratio could be at best.
"""

import argparse
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.harness import measure_and_report, parser_of
from benchmarks.synthetic_rows import write_rows

if TYPE_CHECKING:
    from trainer.evaluate import Evaluator

TRAINING_STEPS = 2  # of a turn


def seconds_of_parts(evaluator: "Evaluator") -> tuple[float, float, float]:
    """Measure the seconds of one evaluation's loader alone, model alone and metrics alone."""
    loader, evaluation = evaluator.loader, evaluator.evaluation
    started = time.perf_counter()
    with closing(loader.epoch(0)) as batches:
        for _ in batches:
            pass
    loaded = time.perf_counter()
    evaluation.reset()
    counting = 0.0
    for batch, logits in evaluator.predicted():
        begun = time.perf_counter()
        evaluator.count(batch, logits)
        counting += time.perf_counter() - begun
    predicted = time.perf_counter()
    evaluation.result(evaluator.comm)
    done = time.perf_counter()
    loading, metrics = loaded - started, counting + done - predicted
    return loading, predicted - loaded - counting - loading, metrics


def measure(folder: Path, arguments: argparse.Namespace) -> list[dict[str, object]]:
    from benchmarks.training_run import TrainingRun

    batch, rows = arguments.batch, arguments.batch * arguments.batches
    write_rows(folder, rows, test_rows=rows)
    sizes = ["--global_batch_size", str(batch), "--eval_batch_size", str(batch)]
    run = TrainingRun(folder, *sizes, *arguments.flags)
    evaluator = run.trainer.evaluator
    run.seconds(2)
    evaluator.run()
    training, evaluation, parts = [], [], []
    for _ in range(arguments.turns):
        training.append(run.seconds(TRAINING_STEPS) / (TRAINING_STEPS * batch))
        started = time.perf_counter()
        metrics = evaluator.run()
        evaluation.append((time.perf_counter() - started) / rows)
        parts.append(seconds_of_parts(evaluator))
    ratios = np.array(training) / np.array(evaluation)
    waiting, forward, counting = 1000 * np.median(parts, axis=0) / arguments.batches
    result = {
        "benchmark": "evaluation over training",
        "variant": run.compute_dtype,
        "metrics": sorted(metrics),
        "batch": batch,
        "training_samples_per_second": round(1 / np.median(training)),
        "evaluation_samples_per_second": round(1 / np.median(evaluation)),
        "ratio": round(float(np.median(ratios)), 2),
        "ratio_spread": np.round([ratios.min(), ratios.max()], 2).tolist(),
        "wait_for_data_ms": round(waiting, 1),
        "forward_ms": round(forward, 1),
        "metrics_ms": round(counting, 1),
        "forward_ratio": round(1000 * batch * float(np.median(training)) / forward, 2),
    }
    return [result]


def main(argv: list[str] | None = None) -> int:
    parser = parser_of(__doc__, takes_flags=True)
    parser.add_argument("--batches", type=int, default=8, help="of an evaluation")
    parser.add_argument("--turns", type=int, default=3, help="of each side")
    arguments = parser.parse_args(argv)
    return measure_and_report(measure, arguments)


if __name__ == "__main__":
    sys.exit(main())
