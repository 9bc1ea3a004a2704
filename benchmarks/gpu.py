"""The first figures on a GPU: the default model in four precisions, checked against the CPU. JSON lines.

    bash benchmarks/gpu.sh [--output gpu.jsonl] [--small]

Generated rows of Outbrain's 29 features at the published widths and batch size. The CPU trains an epoch of eight steps
in float32 without dropout; float32, --amp, --xla and --amp --xla then train the same epoch on the default device from
the same seed, evaluate it, and benchmark training (with dropout, as users train) and evaluation. One line each:

    losses            of each step, without dropout
    loss_difference   largest |loss - CPU's loss| / CPU's loss over the steps
    limit             what it may be at most; `passed` says whether it is
    test_loss, test_auc_roc             of the evaluation after the epoch
    train_samplesps, evaluation_samplesps, step_ms, compute_ms, communicate_ms, update_ms, wait_for_data_ms

Every run is a process of its own, so that one that fails costs its own line alone: the line then has `error`. Exits 1
if a run failed or a loss differs by more than its limit. `--small` takes seconds per run and no GPU: for trying this
script. The whole takes about five minutes on one GPU.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.harness import ROOT, about, command
from benchmarks.synthetic_rows import write_rows

T = TypeVar("T")

# Flags of main.py, and by how much a step's loss may differ from the CPU's in float32: by the order of sums, and on
# recent GPUs by TF32 (10 bits of mantissa); in --amp by float16's or bfloat16's rounding of activations.
VARIANTS = {
    "float32": ((), 2e-3),
    "amp": (("--amp",), 2e-2),
    "xla": (("--xla",), 2e-3),
    "amp xla": (("--amp", "--xla"), 2e-2),
}


@dataclass(frozen=True)
class Size:
    """How much work a run does.

    Attributes:
        batch: rows of a step.
        steps: of the epoch.
        measured_steps: of a benchmark, a third of them warm-up.
        seconds: a benchmark ends after so many at the latest.
        flags: more flags of main.py.
        width_divisor: of the published embedding widths.
    """

    batch: int
    steps: int
    measured_steps: int
    seconds: int
    flags: tuple[str, ...] = ()
    width_divisor: int = 1


PUBLISHED = Size(batch=131_072, steps=8, measured_steps=90, seconds=12)
SMALL = Size(
    batch=512,
    steps=4,
    measured_steps=6,
    seconds=2,
    flags=("--deep_hidden_units", "32", "16"),
    width_divisor=16,
)


class RunFailed(Exception):
    """A run of main.py ended with an error; the message holds its last lines."""


def run_main(dataset: Path, folder: Path, *flags: str) -> list[dict[str, Any]]:
    """Runs main.py in a process of its own.

    Args:
        dataset: a prepared dataset.
        folder: for checkpoints and results; emptied by nobody.
        flags: of main.py.

    Returns:
        The records of its log.

    Raises:
        RunFailed: it ended with an error.
    """
    paths = ["--dataset_path", dataset, "--model_dir", folder / "model", "--results_dir", folder / "results"]
    program = [sys.executable, str(ROOT / "main.py"), *map(str, paths), *flags]
    ended = subprocess.run(program, capture_output=True, text=True, cwd=ROOT)
    if ended.returncode:
        raise RunFailed(f"exit code {ended.returncode}: " + " | ".join(ended.stderr.strip().splitlines()[-3:]))
    lines = (folder / "results" / "log.json").read_text().splitlines()
    return [json.loads(line.removeprefix("DLLL ")) for line in lines]


def losses_of(records: list[dict[str, Any]]) -> list[float]:
    """The loss of each training step, in order."""
    steps = {record["step"][0]: record["data"]["loss"] for record in records if _is_step(record)}
    return [steps[number] for number in sorted(steps)]


def _is_step(record: dict[str, Any]) -> bool:
    return record["type"] == "LOG" and len(record["step"]) == 2 and "loss" in record["data"]


def last_values(records: list[dict[str, Any]]) -> dict[str, float]:
    """What a run concluded: the last value of each key that is logged without a step."""
    values: dict[str, float] = {}
    for record in records:
        if record["type"] == "LOG" and record["step"] in ([], ""):
            values |= record["data"]
    return values


def train(dataset: Path, folder: Path, size: Size, flags: tuple[str, ...]) -> list[dict[str, Any]]:
    """Trains an epoch without dropout, which differs between devices, and evaluates it; returns the log."""
    return run_main(
        dataset, folder, *batches(size), *flags, "--deep_dropout", "0", "--num_epochs", "1", "--log_every", "1"
    )


def batches(size: Size) -> list[str]:
    """Flags of the model and of its batches."""
    return [
        *size.flags,
        "--recipe",
        "published",
        "--global_batch_size",
        str(size.batch),
        "--eval_batch_size",
        str(size.batch),
    ]


def measure(dataset: Path, folder: Path, size: Size, flags: tuple[str, ...]) -> dict[str, Any]:
    """Trains and evaluates an epoch, then benchmarks training and evaluation.

    Raises:
        RunFailed: one of the runs ended with an error.
    """
    trained = train(dataset, folder, size, flags)
    plan = ["--benchmark", "--benchmark_warmup_steps", str(size.measured_steps // 3)]
    plan += ["--benchmark_steps", str(size.measured_steps), "--benchmark_seconds", str(size.seconds)]
    training = last_values(run_main(dataset, folder / "benchmark", *batches(size), *flags, *plan))
    # The model's own flags come from its checkpoint.
    evaluation = ["--evaluate", "--eval_batch_size", str(size.batch), *flags, *plan]
    evaluated = last_values(run_main(dataset, folder, *evaluation))
    ended = last_values(trained)
    parts = ("compute_ms", "communicate_ms", "update_ms", "wait_for_data_ms")
    return {
        "losses": losses_of(trained),
        "test_loss": ended["loss_val"],
        "test_auc_roc": ended["auc_roc"],
        "train_samplesps": training["train_throughput"],
        "step_ms": training["step_ms_p50"],
        **{part: training[part] for part in parts},
        "evaluation_samplesps": evaluated["validation_throughput"],
    }


def largest_difference(losses: list[float], reference: list[float]) -> float:
    """Largest relative difference of the losses; infinite where one is missing or not finite."""
    if len(losses) != len(reference) or None in (*losses, *reference):
        return float("inf")
    return max(abs(loss - expected) / abs(expected) for loss, expected in zip(losses, reference, strict=True))


def results(folder: Path, size: Size) -> Iterator[dict[str, Any]]:
    """Yields a result per variant, the CPU's first."""
    dataset = folder / "data"
    dataset.mkdir()
    write_rows(dataset, size.steps * size.batch, test_rows=4 * size.batch, width_divisor=size.width_divisor)
    reference, seconds = timed(lambda: losses_of(train(dataset, folder / "cpu", size, ("--cpu",))))
    yield {"variant": "cpu float32", "losses": reference, "passed": True, "seconds": seconds}
    for name, (flags, limit) in VARIANTS.items():
        result: dict[str, Any] = {"variant": name, "limit": limit}
        try:
            measured, seconds = timed(lambda flags=flags, name=name: measure(dataset, folder / name, size, flags))
        except RunFailed as error:
            yield result | {"error": str(error), "passed": False}
            continue
        off_by = largest_difference(measured["losses"], reference)
        yield result | measured | {"loss_difference": off_by, "passed": off_by <= limit, "seconds": seconds}


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What the work returns, and the seconds that it took."""
    started = time.perf_counter()
    return work(), round(time.perf_counter() - started, 1)


def main(argv: list[str] | None = None) -> int:
    """Measures, prints each result and appends it to --output as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu.jsonl"), help="file the lines are written to")
    parser.add_argument("--small", action="store_true", help="a small model and batch, for trying this script")
    arguments = parser.parse_args(argv)
    passed = True
    with tempfile.TemporaryDirectory() as folder, arguments.output.open("w") as output:
        for result in results(Path(folder), SMALL if arguments.small else PUBLISHED):
            line = json.dumps(about(command()) | {"benchmark": "gpu", "devices": gpus()} | result)
            print(line, flush=True)
            print(line, file=output, flush=True)
            passed = passed and result["passed"]
    return 0 if passed else 1


def gpus() -> list[str]:
    """Names of the GPUs that the driver lists; none where there is no driver."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []


if __name__ == "__main__":
    sys.exit(main())
