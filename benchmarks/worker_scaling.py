"""Two workers with a thread each against one worker with two threads, on the same machine. JSON lines.

    python -m benchmarks.worker_scaling [--global_batch_size 8192 65536] [--turns 3] [--steps 20]

A Criteo-like Wide & Deep: 26 tables of up to a million rows, width 32, 13 numbers, hidden layers of 256 and 128. Each
turn trains it by one worker, then by two workers with every choice of `--shard_embeddings`, all with the same global
batch. `ratio` is the samples per second of two workers over those of one: the median over the turns.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.criteo_like import CARDINALITIES, LABEL, NUMBERS, TEXTS
from benchmarks.harness import ROOT, report
from benchmarks.synthetic_rows import write_mapping
from data.spec.feature_spec import FeatureSpec

CHOICES = ("off", "on", "auto")
WIDTH = 32
MODEL_FLAGS = ("--deep_hidden_units", "256", "128")


def write_dataset(folder: Path, rows: int) -> None:
    """Write random rows of the features as a dataset whose two mappings are the same file."""
    categorical = {
        name: {"dtype": "int32", "cardinality": size, "embedding_dim": WIDTH}
        for name, size in zip(TEXTS, CARDINALITIES, strict=True)
    }
    features = [LABEL, *NUMBERS, *TEXTS]
    chunk = {"type": "parquet", "features": features, "files": ["train_0.parquet"]}
    document = {
        "feature_spec": {name: {"dtype": "float32"} for name in (LABEL, *NUMBERS)} | categorical,
        "source_spec": {"train": [chunk], "test": [chunk]},
        "channel_spec": {"onehot_categorical": TEXTS, "numerical": NUMBERS, "label": [LABEL]},
    }
    spec = FeatureSpec.from_dict(document, folder)
    stored = write_mapping(spec, "train", rows)
    spec.with_sources({mapping: (stored,) for mapping in ("train", "test")}, folder).write(folder / "feature_spec.yaml")


def samples_per_second(folder: Path, workers: int, *flags: str, steps: int) -> float:
    """Train in processes of their own and return their speed after some steps to warm up."""
    launcher = [str(Path(sys.executable).with_name("horovodrun")), "-np", str(workers)] if workers > 1 else []
    command = [*launcher, sys.executable, "-m", "benchmarks.worker_scaling", "--worker", str(steps), str(folder)]
    done = subprocess.run([*command, *flags], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    (line,) = (line for line in done.stdout.splitlines() if "{" in line)
    return float(json.loads(line[line.index("{") :])["samples_per_s"])


def work(steps: int, folder: Path, flags: list[str]) -> None:
    """Train as one of the workers; the first one prints the speed."""
    from trainer.process.startup import import_tensorflow

    import_tensorflow()
    from benchmarks.training_run import TrainingRun

    run = TrainingRun(folder, *MODEL_FLAGS, *flags)
    run.seconds(5)
    seconds = run.seconds(steps)
    if run.trainer.comm.rank == 0:
        rows = steps * run.trainer.config.training.global_batch_size
        print(json.dumps({"samples_per_s": rows / seconds}), flush=True)


def measure(arguments: argparse.Namespace) -> None:
    """Measure every batch size and report a line for each choice."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dataset(folder, 8 * max(arguments.global_batch_size))
        for batch in arguments.global_batch_size:
            flags = "--global_batch_size", str(batch)
            one: list[float] = []
            two: dict[str, list[float]] = {choice: [] for choice in CHOICES}
            for _ in range(arguments.turns):
                one.append(samples_per_second(folder, 1, *flags, steps=arguments.steps))
                for choice, speeds in two.items():
                    own = *flags, "--shard_embeddings", choice
                    speeds.append(samples_per_second(folder, 2, *own, steps=arguments.steps))
            for choice, speeds in two.items():
                result = {
                    "benchmark": "workers on one machine",
                    "global_batch": batch,
                    "shard_embeddings": choice,
                    "one_worker_samples_per_s": round(median(one)),
                    "two_workers_samples_per_s": round(median(speeds)),
                    "ratio": round(median(own / base for own, base in zip(speeds, one, strict=True)), 3),
                }
                report(result)


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["--worker"]:
        work(int(words[1]), Path(words[2]), words[3:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--global_batch_size", type=int, nargs="+", default=[8192, 65_536], help="rows per step")
    parser.add_argument("--turns", type=int, default=3, help="times that everything is measured")
    parser.add_argument("--steps", type=int, default=20, help="steps that count")
    measure(parser.parse_args(words))
    return 0


if __name__ == "__main__":
    sys.exit(main())
