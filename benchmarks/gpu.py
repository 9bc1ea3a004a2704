"""What a GPU does with the recipe, measured in eight minutes and checked against the CPU. JSON lines, one per part.

    bash benchmarks/gpu.sh [--output docs/gpu.jsonl] [--small]

The default model trains on generated rows of Outbrain's 29 features at the published widths and batch size in five
precisions, whose losses of the first steps are compared with those of the CPU: `loss_difference` is the largest
|loss - CPU's loss| / CPU's loss, and `limit` what it may be at most. gpu_training.py says what else is measured of each
precision. Further parts: exports are loaded on the GPU (gpu_serving.py), tables 16 times as large (table_growth.py),
MMoE (mmoe_step.py), a sequence (sequences.py), and preprocessing with cuDF (gpu_preprocessing.py).

A line has the `variant`, the `part`, its `seconds`, and one of

    the results   and `passed`, which is false if a comparison exceeds its limit
    `skipped`     why the part was not measured: something is not installed, or the time was used up (`--seconds`)
    `error`       how it failed

Parts run in processes of their own, in the order of their importance. One that fails or hangs costs its own line alone:
another process measures the parts after it. Exits 1 if a part failed or did not pass. `--small` takes a few seconds per
part and no GPU: for trying this script. The tables of docs/performance.md are made of docs/gpu.jsonl by
`python -m benchmarks.performance --tables`.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import ROOT, Line, about, command
from benchmarks.synthetic_rows import write_rows
from data.spec.feature_spec import FeatureSpec

BENCHMARK = "gpu"
REFERENCE = "cpu float32"
SECONDS, LEAST_SECONDS = 480, 10
TRAINING_PARTS = ("memory", "losses", "training", "step", "evaluation", "profile")
# cuBLAS and cuDNN then multiply float32 as it is; TensorFlow asks them for TF32 on GPUs that have it.
WITHOUT_TF32 = {"NVIDIA_TF32_OVERRIDE": "0"}


class Variant(NamedTuple):
    """A precision.

    Attributes:
        flags: of main.py.
        limit: by how much a loss may differ from the CPU's in float32: by the order of sums; by TF32, which has 10 bits
            of mantissa; or by the rounding of activations to float16 or bfloat16.
        environment: variables of the process.
    """

    flags: tuple[str, ...]
    limit: float
    environment: Mapping[str, str] = {}


VARIANTS = {
    "amp xla": Variant(("--amp", "--xla"), 2e-2),
    "float32": Variant((), 1e-3, WITHOUT_TF32),
    "tf32": Variant((), 2e-3),
    "tf32 xla": Variant(("--xla",), 2e-3),
    "amp": Variant(("--amp",), 2e-2),
}


@dataclass(frozen=True)
class Size:
    """How much work the parts do.

    Attributes:
        batch: rows of a step.
        file_batches: batches in the training file.
        files: how many files with these rows the dataset has.
        width_divisor: of the published embedding widths.
        flags: of main.py, for the model of all precisions.
        checked: steps whose losses are compared with the CPU's.
        curve: steps whose losses are shown.
        steps: steps that are timed.
        served_batch: rows of a step of the model that is exported, and of its comparison.
        growth, mmoe, sequences, displays: arguments of table_growth, mmoe_step, sequences and gpu_preprocessing.
        process_seconds: a process is ended after so many at the latest.
    """

    batch: int
    file_batches: int
    files: int
    width_divisor: int
    flags: str
    checked: int
    curve: int
    steps: int
    served_batch: int
    growth: str
    mmoe: str
    sequences: str
    displays: int
    process_seconds: int


PUBLISHED = Size(
    batch=131_072,
    file_batches=8,
    files=8,
    width_divisor=1,
    flags="",
    checked=8,
    curve=48,
    steps=60,
    served_batch=16_384,
    growth="--growth 1 16 --batch 131072 --turns 5 --flags --amp --xla",
    mmoe="--batch 131072 --repeats 7 --amp",
    sequences="--batch 8192 --length 50 --amp --repeats 15",
    displays=20_000,
    process_seconds=150,
)
SMALL = Size(
    batch=512,
    file_batches=2,
    files=2,
    width_divisor=16,
    flags="--deep_hidden_units 32 16",
    checked=3,
    curve=4,
    steps=4,
    served_batch=512,
    growth="--growth 1 2 --batch 256 --width_divisor 64 --turns 1 --flags --deep_hidden_units 16",
    mmoe="--batch 128 --experts 1 --repeats 1",
    sequences="--batch 64 --length 3 --repeats 1",
    displays=200,
    process_seconds=1200,
)


@dataclass(frozen=True)
class Job:
    """Parts that a process can measure one after the other.

    Attributes:
        variant: what they are about.
        module: the module that runs, of benchmarks/.
        arguments: its arguments, which `--flags` and what follows may end.
        parts: the parts. Without any, the module is a benchmark of its own, and the lines that it prints are the
            `results` of one part, called "step".
        environment: variables of the process.
    """

    variant: str
    module: str
    arguments: tuple[str, ...]
    parts: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, parts: list[str], seconds: float) -> tuple[list[Line], str]:
        """Run a process that measures some of the parts; return their lines, and how it ended if some are missing."""
        chosen = ["--parts", *parts] if self.parts else []
        program = [sys.executable, "-m", f"benchmarks.{self.module}", *chosen, *self.arguments]
        started = time.perf_counter()
        ended = run_group(program, self.environment, seconds)
        taken = round(time.perf_counter() - started, 1)
        printed = self._lines(ended.stdout)
        if self.parts:
            return printed, ended.how
        return [{"part": "step", "seconds": taken, "results": printed}] if ended.code == 0 else [], ended.how

    def _lines(self, printed: bytes) -> list[Line]:
        """Return the lines that a process has printed, without what the line of gpu.py says of machine and versions."""
        lines = [json.loads(line) for line in printed.splitlines() if line.startswith(b"{")]
        known = ("machine", "versions", "command")
        return [{key: value for key, value in line.items() if key not in known} for line in lines]


class Ended(NamedTuple):
    """A process that has ended.

    Attributes:
        stdout: what it printed.
        code: its exit code; None if it was ended.
        how: how it ended, in words.
    """

    stdout: bytes
    code: int | None
    how: str


def run_group(program: list[str], environment: Mapping[str, str], seconds: float) -> Ended:
    """Run a program; end it after so many seconds, and everything that it has started, which may hold the GPU."""
    variables = os.environ | environment
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(program, cwd=ROOT, env=variables, start_new_session=True, **pipes) as process:
        try:
            stdout, stderr = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return Ended(process.communicate()[0], None, f"stopped after {seconds:.0f} s")
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    last = " | ".join(stderr.decode(errors="replace").strip().splitlines()[-3:])
    return Ended(stdout, process.returncode, f"exit code {process.returncode}: {last}")


class Budget:
    """The time that all parts have together, in seconds from now on."""

    def __init__(self, seconds: float):
        self.seconds, self._started = seconds, time.monotonic()

    @property
    def left(self) -> float:
        """The seconds that are left."""
        return self.seconds - (time.monotonic() - self._started)


def jobs(dataset: Path, served: Path, size: Size) -> Iterator[Job]:
    """Yield the processes in the order of their importance, the CPU's first: all others are compared with it.

    Args:
        dataset: the dataset of all precisions.
        served: an existing folder with a dataset in `data`, for the model that is exported.
        size: how much work they do.
    """
    whole = ("--dataset", str(dataset), "--batch", str(size.batch), "--steps", str(size.steps))
    model = ("--flags", *size.flags.split())
    checked, curve = ("--curve", str(size.checked)), ("--curve", str(size.curve))
    yield Job(REFERENCE, "gpu_training", (*whole, *checked, *model, "--cpu"), ("losses",))
    for name, own in VARIANTS.items():
        arguments = (*whole, *curve, *model, *own.flags)
        yield Job(name, "gpu_training", arguments, TRAINING_PARTS, own.environment)
    serving = ("--dataset", str(served / "data"), "--folder", str(served), "--batch", str(size.served_batch), *model)
    yield Job("exports", "gpu_serving", serving, ("predict", "savedmodel", "onnx"), WITHOUT_TF32)
    yield Job("tables x16", "table_growth", tuple(size.growth.split()))
    yield Job("mmoe", "mmoe_step", tuple(size.mmoe.split()))
    yield Job("sequence", "sequences", ("speed", "--alone", *size.sequences.split()))
    yield Job("preprocessing", "gpu_preprocessing", ("--displays", str(size.displays)), ("cudf",))


def lines_of(job: Job, budget: Budget, seconds: float) -> Iterator[Line]:
    """Yield a line per part of a job: what was measured, or why it was not.

    Args:
        job: the job.
        budget: the time of all jobs.
        seconds: the time of a process at most.
    """
    parts = list(job.parts or ("step",))
    while parts:
        if budget.left < LEAST_SECONDS:
            reason = f"the {budget.seconds:.0f} s of all parts are used up"
            yield from ({"part": part, "seconds": 0.0, "skipped": reason} for part in parts)
            return
        started = time.perf_counter()
        measured, how_it_ended = job.run(parts, min(budget.left, seconds))
        yield from ({"passed": True} | line if "skipped" not in line else line for line in measured)
        parts = parts[len(measured) :]
        if parts and budget.left >= LEAST_SECONDS:
            taken = time.perf_counter() - started - sum(line["seconds"] for line in measured)
            yield {"part": parts.pop(0), "seconds": round(taken, 1), "error": how_it_ended, "passed": False}


def results(folder: Path, size: Size, budget: Budget) -> Iterator[Line]:
    """Yield a line per part, with its variant."""
    dataset, served = folder / "data", folder / "served"
    (served / "data").mkdir(parents=True)
    dataset.mkdir()
    write_dataset(dataset, size)
    write_rows(served / "data", 4 * size.served_batch, test_rows=size.served_batch, width_divisor=16)
    reference: list[float] = []
    for job in jobs(dataset, served, size):
        for line in lines_of(job, budget, size.process_seconds):
            if job.variant == REFERENCE:
                reference = line.get("losses", [])
            elif "losses" in line:
                line = line | compared(line["losses"], reference, VARIANTS[job.variant].limit)
            yield {"variant": job.variant, **line}


def compared(losses: list[float], reference: list[float], limit: float) -> Line:
    """Return the entries that say how far the first losses are from the CPU's."""
    off_by = largest_difference(losses[: len(reference)], reference)
    return {"loss_difference": off_by, "limit": limit, "passed": off_by <= limit}


def largest_difference(losses: list[float], reference: list[float]) -> float:
    """Return the largest relative difference of losses; infinite without any, or if one is missing or not finite."""
    if not reference or len(losses) != len(reference):
        return float("inf")
    differences = [abs(loss - expected) / abs(expected) for loss, expected in zip(losses, reference, strict=True)]
    return max(off_by if off_by >= 0 else float("inf") for off_by in differences)  # NaN is not


def write_dataset(folder: Path, size: Size) -> None:
    """Write a dataset whose training files have the same rows, so that an epoch is long and soon written."""
    rows = size.file_batches * size.batch
    spec = write_rows(folder, rows, test_rows=rows, width_divisor=size.width_divisor)
    document = spec.to_dict()
    (chunk,) = document["source_spec"]["train"]
    (file,) = chunk["files"]
    chunk["files"] = [file, *(f"again_{number}.parquet" for number in range(1, size.files))]
    for name in chunk["files"][1:]:
        os.link(folder / file, folder / name)
    FeatureSpec.from_dict(document, folder).write(folder / "feature_spec.yaml")


def main(argv: list[str] | None = None) -> int:
    """Measure, print each line and append it to --output as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu.jsonl"), help="file the lines are written to")
    parser.add_argument("--small", action="store_true", help="a small model and batch, for trying this script")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time of all parts together")
    arguments = parser.parse_args(argv)
    budget, devices = Budget(arguments.seconds), gpus()
    common = about(command()) | {"benchmark": BENCHMARK, "small": arguments.small}
    common["machine"] = ", ".join([common["machine"], *devices])
    passed = True
    with tempfile.TemporaryDirectory() as folder, arguments.output.open("w") as output:
        for result in results(Path(folder), SMALL if arguments.small else PUBLISHED, budget):
            line = json.dumps(common | result)
            print(line, flush=True)
            print(line, file=output, flush=True)
            passed = passed and result.get("passed", True)
    return 0 if passed else 1


def gpus() -> list[str]:
    """Return the names of the GPUs that the driver lists; none where there is no driver."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []


if __name__ == "__main__":
    sys.exit(main())
