"""Trains several runs in one group of workers, so that TensorFlow starts once: what benchmarks.stability launches.

    horovodrun -np N python -m benchmarks.stability_runs RUNS.json RESULTS.jsonl

RUNS.json is a list of {"about": {...}, "folder": ..., "arguments": [flags of main.py]}. Each run adds `about` and the
metrics of its last evaluation to RESULTS.jsonl; its folder is removed then.
"""

import json
import os
import shutil
import sys
from pathlib import Path

from benchmarks.harness import RunsFile
from main import main as run_main
from trainer.process.worker_env import read_worker_env


def main(runs_file: Path, results_file: Path) -> None:
    is_first = read_worker_env(os.environ).rank == 0
    for run in json.loads(runs_file.read_text()):
        folder = Path(run["folder"])
        paths = ["--model_dir", str(folder / "model"), "--results_dir", str(folder / "results")]
        if code := run_main([*run["arguments"], *paths]):
            raise SystemExit(f"{run['about']} has failed with exit code {code}")
        if is_first:
            metrics = json.loads((folder / "results" / "metrics.json").read_text())
            RunsFile(results_file).add(run["about"] | metrics)
            shutil.rmtree(folder)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
