"""Measures what docs/performance.md says: runs the benchmarks, keeps their lines, makes the page's tables of them.

    python -m benchmarks.performance [NAME ...]     # all benchmarks, about an hour on two cores, or those named
    python -m benchmarks.performance --tables       # only the tables, of the lines that there are

docs/performance.jsonl holds every line that the benchmarks have printed. Those of a command on this machine replace
the earlier ones; a benchmark that fails leaves them as they are. docs/gpu.jsonl holds the lines of benchmarks/gpu.sh,
if a GPU has been measured. The page's text is written by hand, but for what stands between `<!-- table: NAME -->` and
`<!-- end -->`.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness import ROOT, Line, about, fill, machine, read_lines, write_lines
from benchmarks.performance_tables import all_tables

PAGE, LINES = ROOT / "docs" / "performance.md", ROOT / "docs" / "performance.jsonl"
GPU_LINES = ROOT / "docs" / "gpu.jsonl"
COMMANDS = {
    "step_speed": "python -m benchmarks.step_speed",
    "step_speed_amp": "python -m benchmarks.step_speed --amp --turns 3",
    "dense_layer": "python -m benchmarks.dense_layer --repeats 5",
    "mmoe_step": "python -m benchmarks.mmoe_step",
    "peers": "python -m benchmarks.peers",
    "table_growth": "python -m benchmarks.table_growth",
    "embedding_step": "python -m benchmarks.embedding_step",
    "sequences": "python -m benchmarks.sequences speed",
    "planted_sequences": "python -m benchmarks.sequences planted",
    "exchange_bytes": "horovodrun -np 2 python -m benchmarks.exchange_bytes",
    "sharding_off": "horovodrun -np 2 python -m benchmarks.sharding",
    "sharding_on": "horovodrun -np 2 python -m benchmarks.sharding --shard_embeddings",
    "loader_speed": "python -m benchmarks.loader_speed --merlin",
    "loader_speed_large": "python -m benchmarks.loader_speed --rows 3000000",
    "loader_sequences": "python -m benchmarks.loader_speed --sequences 50 --rows 200000 --batch 8192",
    "evaluation_speed": "python -m benchmarks.evaluation_speed",
    "memory": "python -m benchmarks.memory",
    "reliability_overhead": "python -m benchmarks.reliability_overhead",
    "raw_preprocessing": (
        "python -m benchmarks.raw_preprocessing --rows 5000000 --turns 1 --growth 1000000 2000000 4000000 8000000"
    ),
}


def in_order(lines: list[Line]) -> list[Line]:
    """Return the lines that there are, one benchmark below the other in the order of COMMANDS."""
    order = list(COMMANDS.values())
    return sorted((line for line in lines if line["command"] in order), key=lambda line: order.index(line["command"]))


def lines_shown() -> list[Line]:
    """Return the lines that the page's tables show."""
    return read_lines(LINES) + read_lines(GPU_LINES)


def run(command: str) -> list[Line]:
    """Run a benchmark; return the lines that it prints, each with machine, versions and command.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    first, *others = shlex.split(command)
    beside = Path(sys.executable)
    programs = {"python": str(beside), "horovodrun": str(beside.with_name("horovodrun"))}
    arguments = [programs.get(word, word) for word in (first, *others)]
    printed = subprocess.run(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    # horovodrun puts the worker's number before a line.
    return [about(command) | json.loads(line[line.index("{") :]) for line in printed.splitlines() if "{" in line]


def measure(names: list[str]) -> int:
    """Run benchmarks and keep their lines; return how many failed."""
    failed = 0
    for name in names:
        command, started = COMMANDS[name], time.monotonic()
        try:
            new = run(command)
        except subprocess.CalledProcessError as error:
            print(f"{name}: {error}; its earlier lines stay", file=sys.stderr, flush=True)
            failed += 1
            continue
        print(f"{name}: {len(new)} line(s) in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        here = {line["machine"] for line in new} | {machine()}
        kept = [line for line in read_lines(LINES) if line["command"] != command or line["machine"] not in here]
        write_lines(LINES, in_order(kept + new))
    return failed


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(COMMANDS)}; all without any")
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.names) - COMMANDS.keys():
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(COMMANDS)}")
    failed = 0 if arguments.tables else measure(arguments.names or list(COMMANDS))
    PAGE.write_text(fill(PAGE.read_text(), all_tables(lines_shown())))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
