"""What the processes that gpu.py starts have in common: each measures some parts and prints a JSON line of each."""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from benchmarks.harness import Line


class Skipped(Exception):
    """A part cannot be measured here; the message says why."""


def run_parts(measures: Mapping[str, Callable[[], Line]], wanted: list[str]) -> None:
    """Measure parts one after the other and print a line of each, with its name and its seconds.

    The seconds of the first part include the start of the process. A part that fails ends the process, since a GPU may
    not compute correctly after an error; gpu.py starts another process for the parts that are left.
    """
    last = psutil.Process().create_time()
    for part in wanted:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                result = measures[part]()
        except Skipped as reason:
            result = {"skipped": str(reason)}
        now = time.time()
        print(json.dumps({"part": part, "seconds": round(now - last, 1), **result}), flush=True)
        last = now


def parser_of_parts(description: str | None, parts: list[str]) -> argparse.ArgumentParser:
    """Return a parser of what all these processes take: a dataset, the parts, and flags of main.py."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, help="folder of a prepared dataset")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts, help="what to measure, in this order")
    parser.add_argument("--batch", type=int, default=131_072, help="rows per step")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="flags of main.py; must come last")
    return parser
