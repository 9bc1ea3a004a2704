"""Measured peaks of memory over the estimate that main.py prints at its start: a JSON line per configuration.

    python -m benchmarks.memory [NAME ...]

Each configuration is a run of main.py in a process of its own on random rows: two epochs of a few steps, each with a
checkpoint and an evaluation, then the model folder; or the evaluation of a checkpoint. They differ in what takes most
of the memory. `peak_gb` is the peak resident set size as Linux counts it, of several workers that of the largest one;
`estimated_gb` the sum of `trainer.memory_needed` for the same flags, `parts_gb` what it consists of, and `ratio` the
peak over the estimate. The last line has the largest deviation of a ratio from 1.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import Line, report
from benchmarks.side_process import peak_bytes
from benchmarks.synthetic_rows import write_dataset, write_rows, write_sequences
from data.spec.feature_spec import FeatureSpec
from trainer.cli import parse
from trainer.inputs import open_inputs
from trainer.process.worker_env import WorkerEnv

SHORT = ["--recipe", "published", "--cpu", "--num_epochs", "2"]


class Case(NamedTuple):
    """A configuration.

    Attributes:
        write: writes its dataset into a folder.
        flags: flags of main.py.
        workers: number of workers.
        evaluates: whether the evaluation of its checkpoint is measured, not the training.
    """

    write: Callable[[Path], FeatureSpec]
    flags: str
    workers: int = 1
    evaluates: bool = False


def _batches(rows: int) -> str:
    return f"--global_batch_size {rows} --eval_batch_size {rows}"


def write_features(
    folder: Path, rows: int, features: dict[str, Any], labels: tuple[str, ...], test_rows: int = 0
) -> FeatureSpec:
    """Write a dataset of categorical features; with `test_rows` the mapping test is another one, with groups."""
    described: dict[str, Any] = {name: {"dtype": "float32"} for name in labels}
    described |= {name: {"dtype": "int32"} | own for name, own in features.items()}
    lists = [name for name, own in features.items() if "max_hotness" in own]
    channels = {
        "onehot_categorical": [name for name in features if name not in lists],
        "multihot_categorical": lists,
        "label": list(labels),
    }
    train = {"type": "csv", "features": list(described), "files": ["rows.csv"]}
    test = dict(train)
    if test_rows:
        described["group"], channels["map"] = {"dtype": "int64"}, ["group"]
        test["features"] = list(described)
    sources = {"train": [train], "test": [test]}
    document = {"feature_spec": described, "channel_spec": channels, "source_spec": sources}
    return write_dataset(FeatureSpec.from_dict(document, folder), rows, test_rows)


def _named(count: int, **feature: int) -> dict[str, Any]:
    return {f"c{number}": feature for number in range(count)}


CASES = {
    "published model": Case(lambda folder: write_rows(folder, 4 * 16_384), _batches(16_384)),
    "large tables": Case(
        lambda folder: write_rows(folder, 8 * 8192, growth=2), f"{_batches(8192)} --deep_hidden_units 128 64"
    ),
    "large batch": Case(
        lambda folder: write_rows(folder, 3 * 65_536, cardinality=1000, width_divisor=4),
        f"{_batches(65_536)} --deep_hidden_units 1024 512 512",
    ),
    "MMoE, three tasks": Case(
        lambda folder: write_features(
            folder, 4 * 32_768, _named(16, cardinality=10_000, embedding_dim=16), ("click", "buy", "like")
        ),
        f"{_batches(32_768)} --model mmoe",
    ),
    "DIN over 50 steps": Case(
        lambda folder: write_sequences(folder, 4 * 4096, 25), f"{_batches(4096)} --deep_hidden_units 256 128"
    ),
    "20 lists of 10 ids": Case(
        lambda folder: write_features(
            folder, 6 * 16_384, _named(20, cardinality=50_000, max_hotness=10, embedding_dim=32), ("click",)
        ),
        f"{_batches(16_384)} --deep_hidden_units 256 128",
    ),
    "sharded tables, two workers": Case(
        lambda folder: write_rows(folder, 4 * 16_384, growth=3),
        f"{_batches(16_384)} --deep_hidden_units 128 64 --shard_embeddings on",
        workers=2,
    ),
    "evaluation only": Case(
        lambda folder: write_features(
            folder, 4096, _named(4, cardinality=100_000, embedding_dim=16), ("click",), test_rows=4_000_000
        ),
        "--global_batch_size 4096 --eval_batch_size 65536 --deep_hidden_units 64 32",
        evaluates=True,
    ),
}


def estimated(flags: list[str], workers: int) -> dict[str, int]:
    """Return what main.py prints at its start: bytes of each part of a worker's memory."""
    data = open_inputs(parse(flags, workers), WorkerEnv(size=workers, local_size=workers))
    if data.memory is None:
        raise RuntimeError("the first worker knows the model")
    return {part.name: part.bytes for part in data.memory.parts}


def peak(flags: list[str], workers: int) -> int:
    """Measure the peak resident set size of main.py in bytes, of several workers that of the largest one."""
    command = [sys.executable, "main.py", *flags]
    if workers > 1:
        command = [str(Path(sys.executable).with_name("horovodrun")), "-np", str(workers), *command]
    return peak_bytes(command)


def measure(name: str, folder: Path) -> Line:
    """Measure a configuration on a dataset that is written to a folder."""
    case = CASES[name]
    case.write(folder)
    paths = ["--dataset_path", folder, "--model_dir", folder / "model", "--results_dir", folder / "results"]
    flags = [*map(str, paths), *SHORT, *case.flags.split()]
    if case.evaluates:
        # The training only has to leave a checkpoint, so it evaluates the small mapping.
        peak([*flags, "--eval_mapping", "train"], case.workers)
        flags += ["--evaluate"]
    parts = estimated(flags, case.workers)
    measured, expected = peak(flags, case.workers), sum(parts.values())
    return {
        "benchmark": "memory over its estimate",
        "variant": name,
        "workers": case.workers,
        "flags": case.flags,
        "peak_gb": round(measured / 1e9, 3),
        "estimated_gb": round(expected / 1e9, 3),
        "ratio": round(measured / expected, 3),
        "parts_gb": {part: round(size / 1e9, 3) for part, size in parts.items()},
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)}; all without any")
    names = parser.parse_args(argv).names or list(CASES)
    lines = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            lines.append(measure(name, Path(folder)))
            report(lines[-1])
    largest = max(abs(line["ratio"] - 1) for line in lines)
    report(
        {
            "benchmark": "memory over its estimate, all",
            "configurations": len(lines),
            "largest_deviation": round(largest, 3),
        }
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
