"""A training step whose cost lies in its embedding tables, against FBGEMM's fused tables: one JSON line per case.

    python -m benchmarks.embedding_step --setup       # once: makes FBGEMM's environment, with pip
    python -m benchmarks.embedding_step [--cases criteo lists] [--turns 9] [--steps 8]

FBGEMM is the engine of TorchRec and TorchEasyRec. Both sides train a Wide & Deep with hidden layers of 256 and 128 and
no dropout on the same rows, on all cores; ids are floor(cardinality * uniform ** 3). Ours updates with RMSprop and,
in the wide part, FTRL, its defaults; FBGEMM with row-wise Adagrad, whose state is one number per row, and Adam in the
dense layers (fbgemm_worker.py). Batches are in hand on both sides: ours as the loader's thread hands them to the step,
which takes it `prepare_ms` per batch.

    criteo   26 one-hot features, cardinalities 10 to 1 million in geometric steps, width 32, 13 numbers, batch 8192
    lists    20 multi-hot features of 8 ids each, cardinality 50,000, width 16, no numbers, batch 4096: ours with
             max_hotness 8 and 100, which must not matter, as lists are not padded

Each side is a process of its own; all take turns of --steps steps, of which the fastest counts. `ratio` is samples
per second over FBGEMM's, the median over the turns; entries that end in `_spread` hold the smallest and largest value.
`over_max_hotness_8` compares the step's time at max_hotness 100. `peak_gb` is the peak resident set of a process.

`share_of_limit` of a step without lists is the least time that it could take over what it takes:

    share = (seconds of the bare products + bytes / copied bytes per second) / seconds of the step
    bytes = 4 * (n + 2 * n * (width + 1) + rows * (width + 1) + rows * (width + 3))

The products are those of step_speed. The bytes are those of n ids, of the deep and wide rows that they look up, of the
gradients of these, and of the distinct rows and their optimizer state (RMSprop: one value per weight and one per row;
FTRL: two per weight), all as 4-byte numbers that are read and written once. Every turn measures the products and a copy
of 256 MB on all cores.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.harness import ROOT, Line, measure_and_report
from benchmarks.side_process import SideProcess, make_environment, python_of
from benchmarks.step_speed import bare_seconds, step_flops

ENVIRONMENT = ROOT / ".fbgemm"
PACKAGES = ("torch==2.13.0", "fbgemm-gpu-cpu==1.8.0")
HIDDEN = (256, 128)
BATCHES = 6  # that the steps repeat
WARMUP = 3  # steps
COPIED = 2**28  # bytes


@dataclass(frozen=True)
class Case:
    """A model and its rows.

    Attributes:
        cardinalities: rows of the table of each feature.
        width: width of the embeddings.
        ids_per_feature: number of ids in each feature of a row.
        numbers: number of numerical features.
        batch: rows per step.
        max_hotness: the bounds on `ids_per_feature` with which ours is measured; 1 for one-hot features.
    """

    cardinalities: tuple[int, ...]
    width: int
    ids_per_feature: int
    numbers: int
    batch: int
    max_hotness: tuple[int, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the deep part's input, its hidden layers and its logit."""
        return len(self.cardinalities) * self.width + self.numbers, *HIDDEN, 1


CASES = {
    "criteo": Case(tuple(np.geomspace(10, 1_000_000, 26).astype(int).tolist()), 32, 1, 13, 8192, (1,)),
    "lists": Case((50_000,) * 20, 16, 8, 0, 4096, (8, 100)),
}


def write_case(case: Case, folder: Path) -> tuple[Path, Path]:
    """Write the rows and the shape of the model, as fbgemm_worker.py wants them; return the files."""
    rng = np.random.default_rng(0)
    shape = (BATCHES, case.batch)
    uniform = rng.random((*shape, len(case.cardinalities), case.ids_per_feature))
    ids = (np.array(case.cardinalities)[:, np.newaxis] * uniform**3).astype(np.int32)
    numbers = rng.standard_normal((*shape, case.numbers), np.float32)
    labels = (rng.random(shape) < 0.25).astype(np.float32)
    rows_file, shape_file = folder / "rows.npz", folder / "shape.json"
    np.savez(rows_file, ids=ids, numbers=numbers, labels=labels)
    shape_file.write_text(json.dumps({"cardinalities": case.cardinalities, "width": case.width, "hidden": HIDDEN}))
    return rows_file, shape_file


def limit_bytes(ids: np.ndarray, width: int) -> int:
    """Return the bytes of the formula above for ids [batch, features, ids per feature]."""
    distinct = sum(len(np.unique(ids[:, feature])) for feature in range(ids.shape[1]))
    return 4 * (ids.size + 2 * ids.size * (width + 1) + distinct * (width + 1) + distinct * (width + 3))


def copied_bytes_per_second() -> float:
    """Return the speed of a copy between two arrays larger than the caches, on all cores."""
    cores = len(os.sched_getaffinity(0))
    source, target = np.ones(COPIED, np.uint8), np.zeros(COPIED, np.uint8)
    parts = np.array_split(target, cores), np.array_split(source, cores)
    seconds = []
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(3):
            started = time.perf_counter()
            list(pool.map(np.copyto, *parts))
            seconds.append(time.perf_counter() - started)
    return COPIED / min(seconds)


def take_turns(
    sides: Sequence[SideProcess], case: Case, arguments: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray]:
    """Return the seconds of a step [turns, sides], and of the bare products and of a copied byte [turns, 2]."""
    for side in sides:
        side.ask(steps=WARMUP)
    bare_seconds(case.batch, case.widths, "float32")
    steps, limits = [], []
    for _ in range(arguments.turns):
        steps.append([min(side.ask(steps=arguments.steps)["seconds"]) for side in sides])
        limits.append([bare_seconds(case.batch, case.widths, "float32"), 1 / copied_bytes_per_second()])
    return np.array(steps), np.array(limits)


def measure_case(name: str, folder: Path, arguments: argparse.Namespace) -> list[Line]:
    """Return a line for each bound on the number of ids with which ours is measured."""
    case = CASES[name]
    rows, shape = map(str, write_case(case, folder))
    fbgemm = [str(python_of(arguments.environment)), str(ROOT / "benchmarks" / "fbgemm_worker.py")]
    own = [sys.executable, "-m", "benchmarks.embedding_worker", rows, shape]
    with ExitStack() as stack:
        ours = [stack.enter_context(SideProcess("embedding_worker", [*own, str(bound)])) for bound in case.max_hotness]
        threads = str(len(os.sched_getaffinity(0)))
        theirs = stack.enter_context(SideProcess("fbgemm_worker", [*fbgemm, rows, shape, threads]))
        steps, limits = take_turns([*ours, theirs], case, arguments)
        peaks, their_peak = [side.peak_gb() for side in ours], theirs.peak_gb()
    lines: list[Line] = []
    for index, bound in enumerate(case.max_hotness):
        line = {
            "benchmark": "embedding step",
            "variant": name if case.max_hotness == (1,) else f"{name}, max_hotness {bound}",
            "batch": case.batch,
            "step_ms": milliseconds(steps[:, index]),
            "samples_per_second": round(case.batch / np.median(steps[:, index])),
            "prepare_ms": ours[index].ready["prepare_ms"],
            "peak_gb": round(peaks[index], 2),
            "fbgemm_versions": theirs.ready["versions"],
            "fbgemm_step_ms": milliseconds(steps[:, -1]),
            "fbgemm_samples_per_second": round(case.batch / np.median(steps[:, -1])),
            "fbgemm_peak_gb": round(their_peak, 2),
            **over_turns("ratio", steps[:, -1] / steps[:, index]),
        }
        if index:
            line |= over_turns(f"over_max_hotness_{case.max_hotness[0]}", steps[:, index] / steps[:, 0])
        lines.append(line)
    if case.max_hotness == (1,):
        moved = limit_bytes(np.load(rows)["ids"][0], case.width)
        lines[0] |= limit_of(case, moved, steps[:, 0], limits)
    return lines


def limit_of(case: Case, moved: int, steps: np.ndarray, limits: np.ndarray) -> Line:
    """Return the entries about the share of the limit, and what it consists of."""
    least = limits @ [1, moved]
    return {
        "bare_ms": milliseconds(limits[:, 0]),
        "bare_gflop_per_second": round(1e-9 * step_flops(case.batch, case.widths) / np.median(limits[:, 0]), 1),
        "moved_mb": round(moved / 1e6, 1),
        "moved_ms": milliseconds(moved * limits[:, 1]),
        "copied_gb_per_second": round(1e-9 / np.median(limits[:, 1]), 2),
        **over_turns("share_of_limit", least / steps),
    }


def milliseconds(seconds: np.ndarray) -> float:
    return round(1000 * float(np.median(seconds)), 1)


def over_turns(name: str, values: np.ndarray) -> Line:
    """Return the median over the turns, and the smallest and largest value."""
    return {
        name: round(float(np.median(values)), 2),
        f"{name}_spread": np.round([values.min(), values.max()], 2).tolist(),
    }


def measure(folder: Path, arguments: argparse.Namespace) -> list[Line]:
    return [line for name in arguments.cases for line in measure_case(name, folder, arguments)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", action="store_true", help="make the environment and measure nothing")
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT, help="folder of FBGEMM's environment")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--turns", type=int, default=9, help="turns of each side")
    parser.add_argument("--steps", type=int, default=8, help="steps in a turn")
    arguments = parser.parse_args(argv)
    if arguments.setup:
        make_environment(arguments.environment, PACKAGES)
        return 0
    if not python_of(arguments.environment).exists():
        parser.error(
            f"{arguments.environment} holds no environment: make it with python -m benchmarks.embedding_step --setup"
        )
    return measure_and_report(measure, arguments)


if __name__ == "__main__":
    sys.exit(main())
