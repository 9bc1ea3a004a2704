"""What the benchmarks of training have in common as programs: a few flags, a folder for rows, who reports."""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.reporting import report
from trainer.process.startup import import_tensorflow
from trainer.process.worker_env import read_worker_env

Measure = Callable[[Path, argparse.Namespace], list[dict[str, Any]]]


def parser_of(description: str | None, *, takes_flags: bool = False) -> argparse.ArgumentParser:
    """A parser with --batch, and with --flags where flags of main.py can be handed on."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16_384, help="rows of a step on each worker")
    if takes_flags:
        parser.add_argument(
            "--flags", nargs=argparse.REMAINDER, default=[], help="more flags of main.py; the last argument"
        )
    return parser


def measure_and_report(measure: Measure, arguments: argparse.Namespace) -> int:
    """Measures with a folder that is removed afterwards; the first worker reports. Returns the exit code."""
    import_tensorflow()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), arguments)
    if read_worker_env(os.environ).rank == 0:
        for result in results:
            report(result)
    return 0
