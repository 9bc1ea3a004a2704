"""Multi-task models of equal size on Census-Income: test AUC of each, mean and deviation over seeds.

    python -m benchmarks.census_models --raw DIR [--work DIR] [--seeds 3] [--setups group1 ...] [--models mmoe ...]
    python -m benchmarks.census_models --work DIR --table

The first trains and adds one JSON line per run to WORK/results.jsonl, skipping runs that are already there; the second
prints the table of docs/multitask.md. All models have the embeddings, towers and settings in common; the width of
their experts is the one that brings their parameters nearest to those of mmoe. A run is stopped and its best epoch
chosen by the mean AUC of the validation half; the test half is looked at once.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.harness import ROOT, RunsFile
from trainer.models.multitask import ExpertOptions

MODELS = ("shared_bottom", "omoe", "mmoe", "cgc", "ple")
# Raw specification in feature_specs/ of each set-up.
SETUPS = {
    "group1": "census_group1_raw.yaml",
    "group1_paper": "census_group1_without_education_raw.yaml",
    "group2": "census_group2_raw.yaml",
}
EMBEDDING = 8
TOWER = (16,)
REFERENCE = ("mmoe", (64, 32))
TRAINING = (
    "--global_batch_size 1024 --eval_batch_size 16384 --num_epochs 10 --deep_learning_rate 0.002 --deep_dropout 0.3 "
    "--early_stopping_metric auc_roc/mean --early_stopping_patience 2 --keep_checkpoints 1 --cpu --recipe published"
)


def options_of(model: str, experts: tuple[int, int]) -> ExpertOptions:
    """Return the flags of a model with experts of these widths."""
    return ExpertOptions(model=model, expert_hidden_units=experts, tower_hidden_units=TOWER)


def dense_parameters(model: str, experts: tuple[int, int], inputs: int, tasks: int) -> int:
    """Return the number of weights of a model besides its tables, without building it."""
    from trainer.models.multitask import levels_of

    options, total, width = options_of(model, experts), 0, inputs
    for level in levels_of(options, tasks):
        gates, number = level.readable.shape
        widths = (width, *experts)
        total += number * sum((widths[layer] + 1) * units for layer, units in enumerate(experts))
        total += gates * width * number if number > 1 else 0
        width = experts[-1]
    return total + tasks * ((width + 1) * TOWER[0] + TOWER[0] + 1)


def widths_of(model: str, inputs: int, tasks: int) -> tuple[int, int]:
    """Return the units of the experts' layers, two to one, that bring a model nearest to the reference in size."""
    name, experts = REFERENCE
    wanted = dense_parameters(name, experts, inputs, tasks)
    halves = range(4, 1024)
    half = min(halves, key=lambda units: abs(dense_parameters(model, (2 * units, units), inputs, tasks) - wanted))
    return 2 * half, half


def prepared(raw: Path, work: Path, setup: str) -> Path:
    """Return the dataset of a set-up, prepared unless it exists, with embeddings of one width."""
    folder = work / setup
    if not folder.exists():
        flags = ["--input", str(raw), "--feature_spec_in", f"feature_specs/{SETUPS[setup]}", "--output", str(folder)]
        subprocess.run([sys.executable, "preprocess.py", *flags], cwd=ROOT, check=True)
    onehot = specification(folder)["channel_spec"]["onehot_categorical"]
    (work / "widths.json").write_text(json.dumps(dict.fromkeys(onehot, EMBEDDING)))
    return folder


def specification(folder: Path) -> Any:
    """Return the dataset's document."""
    return yaml.safe_load((folder / "feature_spec.yaml").read_text())


def run(folder: Path, work: Path, model: str, seed: int) -> dict[str, Any]:
    """Train, then evaluate the best epoch on the test half."""
    channels = specification(folder)["channel_spec"]
    inputs = EMBEDDING * len(channels["onehot_categorical"]) + len(channels["numerical"])
    experts, output = widths_of(model, inputs, len(channels["label"])), work / f"{folder.name}_{model}_{seed}"
    flags = ["--dataset_path", folder, "--model_dir", output / "model", "--results_dir", output / "results"]
    flags += ["--embedding_sizes_file", work / "widths.json", "--seed", seed, "--model", model, *TRAINING.split()]
    flags += ["--expert_hidden_units", *experts, "--tower_hidden_units", *TOWER]
    for more in ([], ["--evaluate", "--eval_mapping", "test"]):
        subprocess.run([sys.executable, "main.py", *map(str, [*flags, *more])], cwd=ROOT, check=True)
    metrics = json.loads((output / "results" / "metrics.json").read_text())
    return {
        "setup": folder.name,
        "model": model,
        "seed": seed,
        "expert_hidden_units": experts,
        "dense_parameters": dense_parameters(model, experts, inputs, len(channels["label"])),
        "auc": {key.split("/")[1]: value for key, value in metrics.items() if key.startswith("auc_roc/")},
    }


def table(results: list[dict[str, Any]]) -> str:
    """Format as Markdown: a row per set-up and model, AUC as mean ± deviation over seeds."""
    lines = ["| set-up | model | experts | dense weights | first task | never_married | seeds |", "|" + " --- |" * 7]
    for setup in SETUPS:
        for model in MODELS:
            runs = [result for result in results if (result["setup"], result["model"]) == (setup, model)]
            if not runs:
                continue
            first = next(task for task in runs[0]["auc"] if task not in ("never_married", "mean"))
            cells = [spread([result["auc"][task] for result in runs]) for task in (first, "never_married")]
            units = "-".join(map(str, runs[0]["expert_hidden_units"]))
            weights = f"{runs[0]['dense_parameters']:,}"
            lines.append(f"| {setup} | {model} | {units} | {weights} | {first} {cells[0]} | {cells[1]} | {len(runs)} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Format mean ± sample deviation."""
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{deviation}"


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, help="folder of the publisher's files")
    parser.add_argument("--work", type=Path, default=Path("census_models"), help="datasets, runs and results.jsonl")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--setups", nargs="+", choices=SETUPS, default=list(SETUPS))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--table", action="store_true", help="print the table of what has been run")
    arguments = parser.parse_args()
    results = RunsFile(arguments.work / "results.jsonl")
    if arguments.table:
        print(table(results.runs))
        return
    for seed in range(arguments.seeds):
        for setup in arguments.setups:
            for model in arguments.models:
                if not results.has(setup=setup, model=model, seed=seed):
                    folder = prepared(arguments.raw.resolve(), arguments.work.resolve(), setup)
                    results.add(run(folder, arguments.work.resolve(), model, seed))


if __name__ == "__main__":
    main()
