"""Decides whether a new model replaces the previous one. `compare_models.py --help` lists the arguments."""

import argparse
import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script is run with its own folder on the path

from data.command_line import Parser, run_tool
from data.errors import DataError
from data.storage.files import write_whole
from trainer.process.startup import robust_stdio
from trainer.tasks.evaluation import metric_of

DESCRIPTION = """\
Compares a metric of two models that were evaluated on the same rows, for scripts/daily.sh. Writes a JSON file with the
entries metric, previous, new, tolerance and kept. Without a previous model, the new one is kept."""


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0 for a decision, 1 for a failure, 2 for wrong input."""
    args = _parser().parse(argv)

    def job() -> int:
        decision = decide(args.metric, args.tolerance, args.new, args.previous)
        write_whole(args.output, json.dumps(decision, indent=2) + "\n")
        return 0

    return run_tool("compare_models.py", job)


def decide(metric: str, tolerance: float, new: Path, previous: Path | None) -> dict[str, str | float | bool | None]:
    """Return the decision: the new model is kept if its metric is worse by at most `tolerance`.

    Args:
        metric: key of the metric in both files.
        tolerance: difference of the metric; for ratios such as calibration, of their distance from 1.
        new, previous: `metrics.json` of each model; None for no previous one.

    Raises:
        DataError: a file cannot be read, or does not have the metric.
    """
    try:
        direction = metric_of(metric).direction
    except ValueError as error:
        raise DataError(f"--metric {error}") from error
    values = [None if file is None else _read(file, metric) for file in (previous, new)]
    old, own = (math.nan if value is None else value for value in values)
    kept = previous is None or direction.is_no_worse(own, old, tolerance)
    return {"metric": metric, "previous": values[0], "new": values[1], "tolerance": tolerance, "kept": kept}


def _read(file: Path, metric: str) -> float | None:
    """Return a metric of an evaluation; None if it is undefined."""
    try:
        metrics = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as the metrics of an evaluation: {error}") from error
    if not isinstance(metrics, dict) or metric not in metrics:
        known = ", ".join(metrics) if isinstance(metrics, dict) else "none"
        raise DataError(f"{file}: has no metric {metric!r}; --metric takes one of: {known}")
    value = metrics[metric]
    if value is not None and not isinstance(value, int | float):
        raise DataError(f"{file}: {metric!r} is {value!r}, expected a number")
    return value


def _parser() -> Parser:
    parser = Parser("compare_models.py", DESCRIPTION, argparse.RawTextHelpFormatter)
    parser.add_argument("--new", type=Path, required=True, metavar="FILE", help="metrics.json of the new model")
    parser.add_argument("--previous", type=Path, metavar="FILE", help="metrics.json of the previous model, if any")
    parser.add_argument("--metric", required=True, metavar="KEY", help="key of the metric in both files")
    parser.add_argument("--tolerance", type=float, default=0.0, help="by how much it may be worse (default: 0)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="file of the decision")
    return parser


if __name__ == "__main__":
    robust_stdio()
    sys.exit(main())
