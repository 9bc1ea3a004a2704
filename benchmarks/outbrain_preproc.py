"""Time and peak memory of Outbrain's preprocessing at growing sizes and one memory limit: JSON lines.

    python -m benchmarks.outbrain_preproc [--displays 200000 400000 800000] [--memory_limit 1GB] [FLAGS OF preproc]

Each size is made by data.outbrain.synthesize and prepared by `python -m data.outbrain.preproc` in a process of its
own; with --repeats N the fastest of N counts. `seconds` is the whole command, the import of
NVTabular included; `working_seconds` is from its first stage on. `peak_mib` is the largest sum of the proportional
memory (PSS) of the process and its children, sampled ten times a second. The last lines have, from each size to the
next, the exponent of time over rows (of working_seconds) and the growth of memory per doubling of the rows.
"""

import argparse
import json
import re
import sys
import tempfile
from itertools import pairwise
from math import log, log2
from pathlib import Path

from benchmarks.watched import run_watched
from data.outbrain.synthesize import synthesize


def prepare(raw: Path, output: Path, flags: list[str]) -> dict[str, float]:
    """Run the command once, and measure it."""
    command = [sys.executable, "-m", "data.outbrain.preproc", "--data_path", str(raw), "--metadata_path", str(output)]
    run = run_watched([*command, *flags])
    moments = [float(moment) for moment in re.findall(r"outbrain: +([0-9.]+) s", run.log)]
    return {"seconds": run.seconds, "working_seconds": moments[-1] - moments[1], "peak_mib": run.peak_mib}


def measure(displays: int, repeats: int, flags: list[str]) -> dict[str, float]:
    """Measure the fastest of several runs at one size, and the most memory of any."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        synthesize(raw, displays, seed=1)
        rows = json.loads((raw / "synthetic.json").read_text())["rows"]
        runs = [prepare(raw, Path(folder) / f"out{number}", flags) for number in range(repeats)]
    fastest = min(runs, key=lambda run: run["working_seconds"])
    result = {"displays": displays, "rows": rows, **fastest, "peak_mib": max(run["peak_mib"] for run in runs)}
    return result | {"rows_per_second": rows / fastest["seconds"]}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--displays", type=int, nargs="+", default=[200_000, 400_000, 800_000])
    parser.add_argument("--memory_limit", default="1GB")
    parser.add_argument("--repeats", type=int, default=1)
    args, flags = parser.parse_known_args(argv)
    flags += ["--memory_limit", args.memory_limit]
    results = []
    for displays in args.displays:
        results.append(measure(displays, args.repeats, flags))
        rounded = {name: round(value, 1) for name, value in results[-1].items()}
        print(json.dumps({"benchmark": "outbrain preproc", "flags": flags, **rounded}), flush=True)
    for smaller, larger in pairwise(results):
        times, rows = larger["working_seconds"] / smaller["working_seconds"], larger["rows"] / smaller["rows"]
        growth = (larger["peak_mib"] / smaller["peak_mib"]) ** (1 / log2(rows)) - 1
        line = {
            "from": smaller["displays"],
            "to": larger["displays"],
            "time_exponent": round(log(times) / log(rows), 3),
        }
        line |= {"memory_growth_per_doubling": round(growth, 3)}
        print(json.dumps({"benchmark": "outbrain preproc, growth", **line}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
