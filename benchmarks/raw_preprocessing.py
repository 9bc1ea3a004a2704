"""Preprocessing of a raw Criteo-like CSV file against public programs: JSON lines.

    python -m benchmarks.raw_preprocessing --setup       # once: makes the peers' environment, with pip
    python -m benchmarks.raw_preprocessing [--rows 5000000] [--turns 2] [--growth 1000000 2000000 4000000 8000000]

All sides read the same generated file (see criteo_like.py), give ids to the texts that occur twice or more,
standardize the numbers and write parquet; the benchmark checks that their vocabularies have the same sizes. They are
`preprocess.py` under each memory limit, polars as written by hand with everything in memory, NVTabular's own operators
in one process, and FuxiCTR 2.3.10 (raw_peer_worker.py says how). Each is a process of its own; all take turns.

`seconds` is the whole command, `working_seconds` what remains without imports (for preprocess.py from its first to its
last line of progress). `over_PEER` is a peer's seconds over ours, the median over the turns, and `over_PEER_spread` its
smallest and largest value; `working_over_PEER` compares working seconds. `peak_mib` is the largest proportional memory
of all processes of a side, and `peak_own_mib` the same without pages of mapped files.

The last line has the growth of preprocess.py's time and memory with the rows, under the smallest memory limit.
"""

import argparse
import json
import math
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.criteo_like import TEXTS, raw_specification, write_criteo_like
from benchmarks.harness import ROOT, Line, report
from benchmarks.side_process import make_environment, python_of
from benchmarks.watched import run_watched
from data.spec.feature_spec import FeatureSpec

ENVIRONMENT = ROOT / ".raw_peers"
PACKAGES = ("fuxictr==2.3.10", "polars==1.44.2", "ray[data]==2.60.0")
PEERS = ("polars", "nvtabular", "fuxictr")
WORKER = ROOT / "benchmarks" / "raw_peer_worker.py"
TEST_ROWS = 1000
RESERVED_IDS = 3  # padding, null, unseen
MOMENT = re.compile(r"^preprocess: +([0-9.]+) s", re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """One run of a side.

    Attributes:
        seconds, working_seconds: whole command, and without imports.
        peak_mib, peak_own_mib: see `benchmarks.watched`.
        vocabulary: number of texts with an id of their own, by column.
    """

    seconds: float
    working_seconds: float
    peak_mib: float
    peak_own_mib: float
    vocabulary: dict[str, int]


def write_raw(folder: Path, rows: int) -> None:
    """Write a raw dataset with a raw specification into an empty folder."""
    write_criteo_like(folder / "train.csv", rows)
    write_criteo_like(folder / "test.csv", TEST_ROWS, seed=1)
    (folder / "feature_spec.yaml").write_text(raw_specification())


def run_ours(raw: Path, memory_limit: str) -> Run:
    """Run preprocess.py once."""
    with tempfile.TemporaryDirectory(dir=raw.parent) as folder:
        output = Path(folder) / "dataset"
        places = ["--input", str(raw), "--output", str(output)]
        run = run_watched([sys.executable, "preprocess.py", *places, "--memory_limit", memory_limit], ROOT)
        features = FeatureSpec.read(output / "feature_spec.yaml").features
    vocabulary = {name: (features[name].cardinality or 0) - RESERVED_IDS for name in TEXTS}
    moments = [float(moment) for moment in MOMENT.findall(run.log)] or [0.0, run.seconds]
    return Run(run.seconds, moments[-1] - moments[0], run.peak_mib, run.peak_own_mib, vocabulary)


def run_peer(raw: Path, peer: str, environment: Path) -> Run:
    """Run another program once."""
    python = sys.executable if peer == "nvtabular" else str(python_of(environment))
    with tempfile.TemporaryDirectory(dir=raw.parent) as folder:
        run = run_watched([python, str(WORKER), peer, str(raw / "train.csv"), folder])
    answer = json.loads(run.output)
    return Run(run.seconds, answer["working_seconds"], run.peak_mib, run.peak_own_mib, answer["vocabulary"])


def compare(folder: Path, arguments: argparse.Namespace) -> list[Line]:
    """Let all sides take turns on one file; return a line per side, ours with their ratios."""
    raw = folder / "raw"
    raw.mkdir()
    write_raw(raw, arguments.rows)
    ours = {limit: f"preprocess.py, {limit}" for limit in arguments.memory_limits}
    runs: dict[str, list[Run]] = {side: [] for side in (*ours.values(), *arguments.peers)}
    for _ in range(arguments.turns):
        for limit, side in ours.items():
            runs[side].append(run_ours(raw, limit))
        for peer in arguments.peers:
            runs[peer].append(run_peer(raw, peer, arguments.environment))
    check_vocabularies({side: side_runs[0].vocabulary for side, side_runs in runs.items()})
    lines = [side_line(side, arguments.rows, side_runs) for side, side_runs in runs.items()]
    for line, side in zip(lines, ours.values(), strict=False):
        for peer in arguments.peers:
            line |= ratios(peer, runs[peer], runs[side])
    return lines


def check_vocabularies(vocabularies: dict[str, dict[str, int]]) -> None:
    """Raise SystemExit unless all sides found the same numbers of texts."""
    (first, expected), *others = vocabularies.items()
    for side, found in others:
        if wrong := {name: (expected[name], found.get(name)) for name in expected if expected[name] != found.get(name)}:
            raise SystemExit(f"{side} has vocabularies of other sizes than {first}: {wrong}")


def side_line(side: str, rows: int, runs: Sequence[Run]) -> Line:
    """Return the line of a side: medians over its runs, and its largest memory."""
    seconds = float(np.median([run.seconds for run in runs]))
    return {
        "benchmark": "raw preprocessing",
        "variant": side,
        "rows": rows,
        "seconds": round(seconds, 1),
        "working_seconds": round(float(np.median([run.working_seconds for run in runs])), 1),
        "rows_per_second": round(rows / seconds),
        "peak_mib": round(max(run.peak_mib for run in runs)),
        "peak_own_mib": round(max(run.peak_own_mib for run in runs)),
    }


def ratios(peer: str, theirs: Sequence[Run], ours: Sequence[Run]) -> Line:
    """Return the entries with a peer's time over ours, turn by turn: of whole commands, and without imports."""
    pairs = list(zip(theirs, ours, strict=True))
    whole = [their.seconds / own.seconds for their, own in pairs]
    working = [their.working_seconds / own.working_seconds for their, own in pairs]
    return {
        f"over_{peer}": round(float(np.median(whole)), 2),
        f"over_{peer}_spread": [round(min(whole), 2), round(max(whole), 2)],
        f"working_over_{peer}": round(float(np.median(working)), 2),
    }


def growth(folder: Path, arguments: argparse.Namespace) -> Line:
    """Run preprocess.py on files of growing size; return a line with its growth from the first to the last size."""
    limit = arguments.memory_limits[-1]
    runs = []
    for rows in arguments.growth:
        raw = folder / f"raw_{rows}"
        raw.mkdir()
        write_raw(raw, rows)
        runs.append(min((run_ours(raw, limit) for _ in range(arguments.turns)), key=lambda run: run.seconds))
        (raw / "train.csv").unlink()
    times = [run.working_seconds for run in runs]
    sizes = arguments.growth
    return {
        "benchmark": "raw preprocessing, growth",
        "variant": f"preprocess.py, {limit}",
        "rows": sizes,
        "seconds": [round(run.seconds, 1) for run in runs],
        "working_seconds": [round(seconds, 1) for seconds in times],
        "time_exponent": round(math.log(times[-1] / times[0]) / math.log(sizes[-1] / sizes[0]), 3),
        "peak_mib": [round(run.peak_mib) for run in runs],
        "peak_own_mib": [round(run.peak_own_mib) for run in runs],
        "largest_peak_gb": round(max(run.peak_mib for run in runs) * 2**20 / 1e9, 3),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--setup", action="store_true", help="make the environment and measure nothing")
    add("--environment", type=Path, default=ENVIRONMENT, help="folder of the peers' environment")
    add("--rows", type=int, default=5_000_000, help="rows of the file that all sides read")
    add("--turns", type=int, default=2, help="runs of each side")
    add("--memory_limits", nargs="+", default=["4GB", "1GB"], help="of preprocess.py, in descending order")
    add("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    add("--growth", type=int, nargs="*", default=[10**6, 2 * 10**6, 4 * 10**6, 8 * 10**6], help="ascending rows")
    add("--folder", type=Path, help="folder for temporary files, which take about 600 bytes per row")
    arguments = parser.parse_args(argv)
    if arguments.setup:
        make_environment(arguments.environment, PACKAGES)
        return 0
    if {"polars", "fuxictr"} & set(arguments.peers) and not python_of(arguments.environment).exists():
        parser.error(f"{arguments.environment} is missing: make it with python -m benchmarks.raw_preprocessing --setup")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for line in compare(Path(folder), arguments):
            report(line)
        if len(arguments.growth) > 1:
            report(growth(Path(folder), arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
