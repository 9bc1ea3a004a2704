"""The MMoE paper's synthetic experiment: test loss of three models of one size, by the correlation of the tasks.

    python -m benchmarks.synthetic_tasks [--work DIR] [--seeds 5] [--correlations 1 0.5 0]
    python -m benchmarks.synthetic_tasks [--work DIR] --figure FILE.svg

The first trains every model on one pass over a million fresh rows, a seed being data, tasks and initial weights, and
adds one JSON line per run to WORK/results.jsonl, skipping runs that are already there. The second prints the table of
docs/multitask.md and draws it. The loss is the mean squared error over the variance of the label, mean of both tasks;
noise alone makes it the square of 0.1 over that variance.
"""

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.harness import RunsFile
from data.synthetic_tasks.prepare import LABELS, prepare
from main import main as run_main

ROWS = 1_000_000
# One layer of experts and towers of 8 as in the paper (section 3.2), and widths that bring the models to one size.
MODELS = {"shared_bottom": 126, "omoe": 17, "mmoe": 16}
TRAINING = (
    "--tower_hidden_units 8 --num_experts 8 --deep_dropout 0 --global_batch_size 256 --eval_batch_size 16384 "
    "--num_epochs 1 --deep_learning_rate 0.01 --deep_schedule steps --log_every 1000 --cpu --recipe published"
)


def run(data: Path, folder: Path, model: str, seed: int) -> dict[str, Any]:
    """Train a model; return its losses on the test rows."""
    flags = ["--dataset_path", data, "--model_dir", folder / "model", "--results_dir", folder / "results"]
    flags += ["--model", model, "--expert_hidden_units", MODELS[model], "--seed", seed, *TRAINING.split()]
    if run_main([str(flag) for flag in flags]):
        raise SystemExit(f"{model} has failed")
    metrics = json.loads((folder / "results" / "metrics.json").read_text())
    test = pq.read_table(data / "test_0.parquet", columns=list(LABELS))
    losses = {name: metrics[f"loss_val/{name}"] / float(np.var(test.column(name).to_numpy())) for name in LABELS}
    shutil.rmtree(folder)
    return losses | {"loss": statistics.fmean(losses.values())}


def table(results: list[dict[str, Any]]) -> str:
    """Format as Markdown: a row per correlation, mean ± deviation over seeds by model, and how often mmoe wins."""
    lines = [f"| correlation | {' | '.join(MODELS)} | mmoe below shared_bottom | mmoe below omoe |"]
    lines.append("|" + " --- |" * (len(MODELS) + 3))
    for correlation in sorted({result["correlation"] for result in results}, reverse=True):
        by_model = {model: losses_of(results, correlation, model) for model in MODELS}
        cells = [f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}" for values in by_model.values()]
        wins = [
            f"{sum(a < b for a, b in zip(by_model['mmoe'], by_model[other], strict=True))} of {len(by_model[other])}"
            for other in ("shared_bottom", "omoe")
        ]
        lines.append(f"| {correlation} | {' | '.join([*cells, *wins])} |")
    return "\n".join(lines)


def losses_of(results: list[dict[str, Any]], correlation: float, model: str) -> list[float]:
    """Return the final losses by seed."""
    chosen = [result for result in results if (result["correlation"], result["model"]) == (correlation, model)]
    return [result["loss"] for result in sorted(chosen, key=lambda result: result["seed"])]


def draw(results: list[dict[str, Any]], file: Path) -> None:
    """Draw a panel per correlation: a dot per seed and the mean of each model."""
    import matplotlib

    from trainer.report.plots import COLORS, STYLE

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    correlations = sorted({result["correlation"] for result in results}, reverse=True)
    with matplotlib.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(correlations), figsize=(9.5, 3.6), sharey=True, layout="constrained")
        for axis, correlation in zip(axes, correlations, strict=True):
            for position, (model, color) in enumerate(zip(MODELS, COLORS, strict=False)):
                values = losses_of(results, correlation, model)
                axis.plot(position + np.linspace(-0.15, 0.15, len(values)), values, "o", color=color, alpha=0.6)
                axis.plot([position - 0.3, position + 0.3], [np.mean(values)] * 2, color=color, linewidth=2.5)
            axis.set_title(f"correlation {correlation:g}")
            axis.set_xticks(range(len(MODELS)), MODELS)
            axis.set_ylim(bottom=0)
        axes[0].set_ylabel("test MSE / variance of the label")
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file)


def main() -> None:
    """Run what is missing, or print and draw what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("synthetic_tasks"), help="dataset, runs and results.jsonl")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--correlations", nargs="+", type=float, default=[1.0, 0.5, 0.0])
    parser.add_argument("--figure", type=Path, help="print the table of what has been run, and draw it into a file")
    arguments = parser.parse_args()
    results = RunsFile(arguments.work / "results.jsonl")
    if arguments.figure:
        print(table(results.runs))
        draw(results.runs, arguments.figure)
        return
    for seed in range(arguments.seeds):
        for correlation in arguments.correlations:
            missing = [model for model in MODELS if not results.has(correlation=correlation, model=model, seed=seed)]
            data = arguments.work / "data"
            shutil.rmtree(data, ignore_errors=True)
            if missing:
                prepare(data, correlation=correlation, rows=ROWS, seed=seed)
            for model in missing:
                about = {"correlation": correlation, "model": model, "seed": seed}
                results.add(about | run(data, arguments.work / "run", model, seed))
    shutil.rmtree(arguments.work / "data", ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
