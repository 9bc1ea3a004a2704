"""Test AUC and log loss of this project's defaults and of public programs, on the same rows and features.

    python -m benchmarks.quality --setup       # once: makes the peers' environment, with pip
    python -m benchmarks.quality [--seeds 3] [--datasets ml-1m ml-100k census adult criteo] [--models NAME ...]
    python -m benchmarks.quality --table       # of the runs so far

It reads the published datasets in the folder RECIPE_TEST_DATA, prepares each with this project's own commands, and
hands the encoded train, valid and test rows to every side: MovieLens (label `liked`; of each user's ratings a fifth
for test and 4 % for valid), Census-Income (the single task `income`, with the features of feature_specs/
census_group1_raw.yaml), Adult, and a sample of Criteo that is too small to tell models apart.

The models are MODELS: Wide & Deep of main.py without flags but paths and seed, with flags, and with other forms of
regularization (see dense_l2.py); FuxiCTR 2.3.10's Wide & Deep in four settings and its DCN-V2, LightGBM, and logistic
regression (quality_peer_worker.py says how). FuxiCTR's second setting is that of BARS, its public benchmark, for
MovieLens; the others differ in what matters most there.
All sides use `valid` for early stopping; nothing is chosen by test rows, of which only predictions are made. Log loss
is of probabilities within [1e-7, 1 - 1e-7].

Every run is a line of WORK/runs.jsonl, and a stopped benchmark continues. Two tables follow: test metrics as mean ±
sample deviation over the seeds, and the advantage of our defaults over the best of FuxiCTR's four settings. Which one
that is, the mean of `valid` over the seeds decides, for AUC and log loss separately. `standard errors` is the advantage
over sqrt(s1^2 / n1 + s2^2 / n2), with the sample deviations and numbers of runs of both sides.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

from benchmarks.harness import ROOT, Line, RunsFile, machine, versions
from benchmarks.quality_tables import comparison_table, results_table
from benchmarks.side_process import make_environment, python_of
from data.spec.feature_spec import FeatureSpec
from data.spec.features import LABEL_COLUMN, PREDICTION_COLUMN
from data.spec.yaml_reader import read_yaml

ENVIRONMENT = ROOT / ".quality_peers"
PACKAGES = (
    "torch==2.13.0",
    "fuxictr==2.3.10",
    "lightgbm==4.7.0",
    "scikit-learn==1.9.1",
    "pyarrow==26.0.1",
)
WORKER = ROOT / "benchmarks" / "quality_peer_worker.py"
SPECIFICATIONS = ROOT / "feature_specs"
# Name -> folder of the publisher's files.
DATASETS = {"ml-1m": "ml-1m", "ml-100k": "ml-100k", "census": "census-income", "adult": "adult", "criteo": "criteo"}
EVALUATED = ("valid", "test")
LEAST_PROBABILITY = 1e-7
# FuxiCTR's batch is the usual one of its public settings. On fewer rows than these, an epoch would be a few steps.
PEER_BATCH, SMALL_PEER_BATCH, MANY_ROWS = 4096, 256, 100_000


@dataclass(frozen=True)
class Model:
    """A model to train.

    Attributes:
        kind: "ours", or what quality_peer_worker.py calls it.
        settings: of a peer.
        flags: of main.py.
        program: what trains with these flags.
        is_random: whether seeds give different models.
    """

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    flags: str = ""
    program: tuple[str, ...] = ("main.py",)
    is_random: bool = True


def fuxictr(
    network: str, dim: int, units: list[int], regularizer: float, dropout: float, *, norm: bool = True, **more: Any
) -> Model:
    return Model(
        "fuxictr",
        {
            "network": network,
            "embedding_dim": dim,
            "hidden_units": units,
            "embedding_regularizer": regularizer,
            "net_dropout": dropout,
            "batch_norm": norm,
            "learning_rate": 1e-3,
            "epochs": 100,
            **more,
        },
    )


DEFAULTS = "ours, defaults"
WIDE_DEEPS = {
    "FuxiCTR Wide & Deep 1": fuxictr("wide_deep", 10, [400, 400, 400], 0.05, 0.2),
    "FuxiCTR Wide & Deep 2": fuxictr("wide_deep", 10, [400, 400, 400], 0.01, 0.1),
    "FuxiCTR Wide & Deep 3": fuxictr("wide_deep", 10, [64, 32], 1e-3, 0.2),
    "FuxiCTR Wide & Deep 4": fuxictr("wide_deep", 16, [400, 400, 400], 1e-5, 0.0, norm=False),
}
MODELS = {
    DEFAULTS: Model("ours"),
    "ours, 64-32": Model("ours", flags="--deep_hidden_units 64 32"),
    "ours, published recipe, 64-32": Model(
        "ours", flags="--recipe published --global_batch_size 1024 --num_epochs 8 --deep_hidden_units 64 32"
    ),
    "ours, L2 of all rows in every step": Model("ours", program=("-m", "benchmarks.dense_l2")),
    **{
        f"ours, decoupled decay {decay}": Model(
            "ours", flags=f"--optimizer adamw --weight_decay {decay} --l2_reg_embedding 0"
        )
        for decay in (0.03, 0.3, 3.0)
    },
    **WIDE_DEEPS,
    "FuxiCTR DCN-V2": fuxictr("dcn_v2", 10, [400, 400, 400], 0.01, 0.1, num_cross_layers=3),
    "LightGBM": Model(
        "lightgbm",
        {
            "rounds": 2000,
            "patience": 50,
            "parameters": {
                "learning_rate": 0.05,
                "num_leaves": 63,
                "feature_fraction": 0.8,
                "bagging_fraction": 0.8,
                "bagging_freq": 1,
            },
        },
    ),
    "logistic regression": Model("logistic_regression", is_random=False),
}


def prepared(name: str, raw: Path, work: Path) -> Path:
    """Return the folder of a dataset, preparing it if it does not exist."""
    folder = work / name
    files, output = str(raw / DATASETS[name]), str(folder)
    if name.startswith("ml-"):
        command = ["-m", "data.movielens.prepare", "--raw", files, "--output", output, "--validation_fraction", "0.04"]
    else:
        specification = census_income(work) if name == "census" else SPECIFICATIONS / f"{name}_raw.yaml"
        command = ["preprocess.py", "--input", files, "--feature_spec_in", str(specification), "--output", output]
    if not (folder / "feature_spec.yaml").exists():
        call(*command)
    return folder


def census_income(work: Path) -> Path:
    """Write the specification of Census-Income with the single task income."""
    document = read_yaml(SPECIFICATIONS / "census_group1_raw.yaml")
    document["channel_spec"]["label"] = ["income"]
    del document["feature_spec"]["never_married"]
    file = work / "census_income_raw.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    return file


def call(*arguments: str) -> None:
    """Run a program of this project, with its output on stderr."""
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=sys.stderr)


def run_ours(dataset: Path, model: Model, seed: int, output: Path) -> Line:
    """Train with main.py and write predictions; return what the run's line says of it."""
    places = ["--dataset_path", str(dataset), "--model_dir", str(output / "model"), "--results_dir", str(output)]
    call(*model.program, *places, "--seed", str(seed), *model.flags.split())
    for mapping in EVALUATED:
        call("main.py", *places, "--predict", str(output / f"{mapping}.parquet"), "--eval_mapping", mapping)
    return {"flags": model.flags, "versions": versions()}


def run_peer(dataset: Path, model: Model, seed: int, output: Path, environment: Path) -> Line:
    """Let another program train and write predictions; return what the run's line says of it."""
    description, settings = describe(dataset), dict(model.settings)
    if model.kind == "fuxictr":
        rows = sum(pq.read_metadata(file).num_rows for file in description["files"]["train"])
        settings["batch_size"] = PEER_BATCH if rows >= MANY_ROWS else SMALL_PEER_BATCH
    file = output / "dataset.json"
    file.write_text(json.dumps(description))
    program = [str(python_of(environment)), str(WORKER), model.kind, str(file), json.dumps(settings), str(seed)]
    done = subprocess.run([*program, str(output)], check=True, stdout=subprocess.PIPE, text=True)
    return {"settings": settings, **json.loads(done.stdout)}


def describe(dataset: Path) -> dict[str, Any]:
    """Return the description of a dataset that quality_peer_worker.py reads."""
    spec = FeatureSpec.read(dataset / "feature_spec.yaml")
    (label,) = spec.labels
    return {
        "files": {mapping: list(map(str, spec.files(mapping))) for mapping in ("train", *EVALUATED)},
        "onehot": {feature.name: feature.cardinality for feature in spec.onehot},
        "multihot": {feature.name: [feature.cardinality, feature.max_hotness] for feature in spec.multihot},
        "numerical": [feature.name for feature in spec.numerical],
        "label": label.name,
    }


def run(name: str, dataset: Path, model: str, seed: int, arguments: argparse.Namespace) -> Line:
    """Train a model and measure its predictions; return the line of the run."""
    about = {"dataset": name, "model": model, "seed": seed}
    print(f"quality: {about}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        output, begin = Path(folder), time.perf_counter()
        if MODELS[model].kind == "ours":
            details = run_ours(dataset, MODELS[model], seed, output)
        else:
            details = run_peer(dataset, MODELS[model], seed, output, arguments.environment)
        seconds = round(time.perf_counter() - begin, 1)
        measured = {mapping: measure(dataset, mapping, output / f"{mapping}.parquet") for mapping in EVALUATED}
    return about | measured | {"seconds": seconds, "machine": machine()} | details


def measure(dataset: Path, mapping: str, predictions: Path) -> dict[str, float]:
    """Return AUC and log loss of predictions, which must be of the rows of the mapping, in their order."""
    spec = FeatureSpec.read(dataset / "feature_spec.yaml")
    (label,) = spec.labels
    labels = np.concatenate(
        [pq.read_table(file, columns=[label.name])[label.name].to_numpy() for file in spec.files(mapping)]
    )
    table = pq.read_table(predictions)
    if not np.array_equal(table[f"{LABEL_COLUMN}{label.name}"].to_numpy(), labels):
        raise SystemExit(f"{predictions} has other labels than mapping {mapping} of {dataset}")
    scores = table[f"{PREDICTION_COLUMN}{label.name}"].to_numpy().astype(np.float64)
    return {"auc": roc_auc(labels, scores), "log_loss": log_loss(labels, scores)}


def roc_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the share of pairs of a positive and a negative row in the right order; ties count half."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]  # from 1, the mean of tied ones
    positive = labels == 1
    positives, negatives = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def log_loss(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the mean negative log likelihood of probabilities, in nats."""
    clipped = np.clip(scores, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    return float(-np.mean(np.where(labels == 1, np.log(clipped), np.log1p(-clipped))))


def print_tables(runs: list[Line]) -> None:
    print(results_table(runs, list(DATASETS), list(MODELS)))
    print()
    print(comparison_table(runs, list(DATASETS), DEFAULTS, list(WIDE_DEEPS)))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--setup", action="store_true", help="make the environment and measure nothing")
    add("--table", action="store_true", help="print the tables of the runs so far and run nothing")
    add("--environment", type=Path, default=ENVIRONMENT, help="folder of the peers' environment")
    add("--work", type=Path, default=ROOT / "quality", help="folder of the datasets and of runs.jsonl")
    add("--seeds", type=int, default=3, help="number of seeds, from 0")
    add("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    add("--models", nargs="+", choices=MODELS, default=list(MODELS))
    arguments = parser.parse_args(argv)
    if arguments.setup:
        make_environment(arguments.environment, PACKAGES)
        return 0
    arguments.work = arguments.work.resolve()
    done = RunsFile(arguments.work / "runs.jsonl")
    if not arguments.table:
        has_peers = any(MODELS[model].kind != "ours" for model in arguments.models)
        if has_peers and not python_of(arguments.environment).exists():
            parser.error(f"{arguments.environment} is missing: make it with python -m benchmarks.quality --setup")
        run_missing(done, arguments)
    print_tables(done.runs)
    return 0


def run_missing(done: RunsFile, arguments: argparse.Namespace) -> None:
    """Run what has not been run, seed by seed."""
    raw = Path(os.environ.get("RECIPE_TEST_DATA", ROOT.parent / "shared" / "data")).resolve()
    for seed in range(arguments.seeds):
        for dataset in arguments.datasets:
            for model in arguments.models:
                is_needed = seed == 0 or MODELS[model].is_random
                if is_needed and not done.has(dataset=dataset, model=model, seed=seed):
                    folder = prepared(dataset, raw, arguments.work)
                    done.add(run(dataset, folder, model, seed, arguments))


if __name__ == "__main__":
    sys.exit(main())
