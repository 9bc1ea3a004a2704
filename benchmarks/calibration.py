"""How well probabilities are calibrated after negatives were left out, and by an isotonic calibrator.

    python -m benchmarks.calibration
    python -m data.movielens.prepare --raw ml-1m --output movielens --labels liked --validation_fraction 0.1
    python -m benchmarks.calibration --movielens movielens

Without --movielens, rows with a planted signal and rare clicks are generated (--rows) and split in half. Wide & Deep is
trained at the defaults on all rows, and on all positive and a tenth of the negative ones with either correction
(--negatives); untouched test rows give the mean prediction over the mean label, and the AUC. `base_rates`, the weighted
mean label of the training rows over that of the test rows, is the part of the former that no model can know. With
--movielens, `liked` is learned with and without a positive_weight of 5, and its test rows give the expected calibration
error before and after --calibrate isotonic. Each result is a JSON line.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import ROOT, Line, report
from data.loading.loader import ParquetLoader
from data.spec.feature_spec import FeatureSpec

KEPT = 0.1
RAW_SPEC = """
feature_spec:
  click: {dtype: float32}
  item: {dtype: int64, encode: {vocabulary: {min_count: 1}}}
  user: {dtype: int64, encode: {vocabulary: {min_count: 1}}}
  price: {}
source_spec:
  logs:
    - {type: parquet, files: [logs.parquet]}
split: {from: logs, random: {test: 0.5}}
channel_spec:
  onehot_categorical: [item, user]
  numerical: [price]
  label: [click]
"""
FLAGS = ["--cpu", "--affinity", "disabled"]  # everything else at the defaults
FIGURES = ("calibration", "calibration_error", "auc_roc", "loss_val")


def main() -> int:
    """Measure and print the results; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--movielens", type=Path, help="prepared MovieLens with the label liked and a mapping valid")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows to generate")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        results = (
            kept_negatives(folder, arguments.rows, arguments.seed)
            if arguments.movielens is None
            else calibrated(folder, arguments.movielens, arguments.seed)
        )
        for result in results:
            report(result)
    return 0


def kept_negatives(folder: Path, rows: int, seed: int) -> Iterator[Line]:
    """Yield the figures of training on all rows, and on a tenth of the negatives with either correction."""
    raw = folder / "raw"
    raw.mkdir()
    pq.write_table(clicks(rows, seed), raw / "logs.parquet")
    for name, spec in (("all", RAW_SPEC), ("kept", f"{RAW_SPEC}keep_negatives: {KEPT}\n")):
        (raw / f"{name}.yaml").write_text(spec)
        _run("preprocess.py", "--input", raw, "--output", folder / name, "--feature_spec_in", raw / f"{name}.yaml")
    for data, negatives in (("all", "weights"), ("kept", "weights"), ("kept", "logit")):
        run = folder / f"{data}_{negatives}"
        figures = trained(folder / data, run, ["--negatives", negatives, "--seed", str(seed)])
        line = {"benchmark": "kept_negatives", "rows": rows, "trained_on": data, "negatives": negatives}
        yield line | figures | {"base_rates": base_rate(folder / data, "train") / base_rate(folder / data, "test")}


def clicks(rows: int, seed: int) -> pa.Table:
    """Generate rows of which about 2 % are positive, with effects of item, user and price on the log-odds."""
    random = np.random.default_rng(seed)
    item, user, price = random.integers(0, 500, rows), random.integers(0, 200, rows), random.normal(size=rows)
    logits = -4.9 + random.normal(size=500)[item] + 0.7 * random.normal(size=200)[user] + 0.8 * price
    click = random.random(rows) < 1 / (1 + np.exp(-logits))
    return pa.table({"click": click, "item": item, "user": user, "price": price})


def base_rate(data: Path, mapping: str) -> float:
    """Return the weighted mean label of a mapping."""
    spec = FeatureSpec.read(data / "feature_spec.yaml")
    loader = ParquetLoader(spec, mapping, global_batch_size=65_536, shuffle=False)
    sums = sum(np.array([batch.weights @ batch.labels[:, 0], batch.weights.sum()]) for batch in loader.epoch(0))
    return float(sums[0] / sums[1])


def calibrated(folder: Path, data: Path, seed: int) -> Iterator[Line]:
    """Yield the figures before and after isotonic calibration, with and without a positive_weight."""
    spec = FeatureSpec.read(data / "feature_spec.yaml")
    for weight in (1.0, 5.0):
        file = f"positive_weight_{weight:g}.yaml"
        label = replace(spec.features["liked"], positive_weight=weight)
        files = {name: [path.absolute() for path in spec.files(name)] for name in spec.sources}
        sources = {
            name: tuple(replace(chunk, files=tuple(map(str, files[name]))) for chunk in chunks)
            for name, chunks in spec.sources.items()
        }
        document = replace(spec, features=spec.features | {"liked": label}, sources=sources).to_yaml()
        dataset = folder / file.removesuffix(".yaml")
        dataset.mkdir()
        (dataset / "feature_spec.yaml").write_text(document)
        flags = ["--allow_outside_paths", "--seed", str(seed)]
        run = folder / f"run_{weight:g}"
        line = {"benchmark": "isotonic", "positive_weight": weight}
        yield line | {"calibrated": False} | trained(dataset, run, flags)
        # A complete run trains no more, and fits the calibrators.
        again = [*flags, "--use_checkpoint", "--calibrate", "isotonic"]
        yield line | {"calibrated": True} | trained(dataset, run, again)


def trained(data: Path, run: Path, flags: Sequence[str]) -> Line:
    """Train, and return the figures of the test rows."""
    places = ["--dataset_path", data, "--model_dir", run / "models", "--results_dir", run / "results"]
    _run("main.py", *places, *FLAGS, *flags)
    inherited = [flag for flag in flags if flag == "--allow_outside_paths"]
    _run("main.py", *places, *FLAGS, *inherited, "--evaluate")
    found = json.loads((run / "results" / "metrics.json").read_text())
    return {name: found[name] for name in FIGURES}


def _run(program: str, *arguments: object) -> None:
    command = [sys.executable, program, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{program} failed with exit code {done.returncode}:\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    sys.exit(main())
