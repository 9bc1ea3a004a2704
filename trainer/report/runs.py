"""Reads the result files of a run: log, arguments and final metrics."""

import json
import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.errors import DataError, printable
from data.storage.files import NotRegularError, open_regular
from trainer.importance_file import FILE as IMPORTANCE_FILE
from trainer.importance_file import Importance, read_importance
from trainer.logging.gate_records import is_gate_key
from trainer.logging.log import PARAMETER, read_log
from trainer.metrics.calibration import CURVE, UNCALIBRATED_CURVE, CalibrationCurve
from trainer.slice_table import SLICES_KEY

MEASURED = "batch_samplesps"
HUGE = 1e290  # sums and quotients of smaller numbers in a chart stay within float64
LAST_STEP = 2**53  # larger integers are not exact in float64, which charts use
_SLICE_TEXTS, _SLICE_NUMBERS = ("column", "value", "task"), ("metrics", "standard_errors")


@dataclass(frozen=True)
class Point:
    """Values at a step of a run.

    Attributes:
        step: the step; None for the final metrics of a run that trained nothing.
        epoch: the epoch; None if the record has none.
        values: the numbers of the record by key; NaN for null and for numbers too large for a chart.
        at: time of the record in seconds since the Unix epoch; None if unknown.
    """

    step: int | None
    epoch: float | None
    values: dict[str, float]
    at: float | None = None


@dataclass
class Run:
    """The records of a run. Names and keys are single lines without control characters.

    Attributes:
        name: name of the run in tables and legends.
        parameters: command line arguments of the run by name.
        training: loss, learning rate and samples per second, in the order of steps.
        evaluations: metrics of evaluations, in the order of steps.
        gates: statistics of gates and experts, in the order of steps.
        measured: samples per second of a benchmark's steps.
        calibration: calibration curves of the last evaluation by task ("" for a single task), each with the weight,
            prediction and label of every bin.
        uncalibrated: the same without calibrators, of the tasks that have one.
        slices: metrics of the slices of the last evaluation, as in trainer.slice_table; texts are single lines, and
            only numbers are in "metrics" and "standard_errors".
        final: the final metrics.
        importance: permutation importance of the features; None if it was not measured into the results folder.
    """

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    training: list[Point] = field(default_factory=list)
    evaluations: list[Point] = field(default_factory=list)
    gates: list[Point] = field(default_factory=list)
    measured: list[Point] = field(default_factory=list)
    calibration: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    uncalibrated: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    slices: list[dict[str, Any]] = field(default_factory=list)
    final: dict[str, float] = field(default_factory=dict)
    importance: Importance | None = None


def read_run(results_dir: Path, name: str, log_filename: str = "log.json") -> Run:
    """Read a run from its results folder; args.json, metrics.json and importance.json complement the log.

    Args:
        results_dir: results folder of the run.
        name: name of the run in tables and legends.
        log_filename: file name of the log in the folder.

    Raises:
        DataError: if there is no log, nothing in it to report, or a file that cannot be read.
    """
    path = results_dir / log_filename
    if not path.exists():
        hint = "" if results_dir.is_dir() else f"; {results_dir} is not a folder"
        raise DataError(f"{path}: no such log. Pass the --results_dir of a run of main.py{hint}")
    run = Run(on_one_line(name))
    for record in read_log(path):
        data = record.get("data")
        if record.get("type") == "LOG" and isinstance(data, dict):
            _add_record(run, record.get("step"), data, record.get("timestamp"))
    run.parameters |= _read_json(results_dir / "args.json")
    run.final = run.final or _numbers(_read_json(results_dir / "metrics.json"))
    if (results_dir / IMPORTANCE_FILE).exists():
        run.importance = read_importance(results_dir / IMPORTANCE_FILE)
    if not run.evaluations and run.final:
        run.evaluations.append(Point(None, None, run.final))
    if not run.training and not run.evaluations:
        raise DataError(f"{path}: contains no loss and no metric. Has the run reached its first step?")
    return run


def metric_keys(runs: list[Run]) -> list[str]:
    """Return the keys of all evaluations in order of first appearance, without those that are always NaN."""
    values = [item for run in runs for point in run.evaluations for item in point.values.items()]
    return list(dict.fromkeys(key for key, value in values if not math.isnan(value)))


def training_loss(run: Run) -> dict[int, float]:
    """Return the mean of the training losses logged since the previous evaluation, by evaluation step."""
    means, first = {}, 0
    for step in (point.step for point in run.evaluations if point.step is not None):
        last = bisect_right(run.training, step, key=lambda point: point.step or 0)
        losses = [point.values["loss"] for point in run.training[first:last]]
        means[step] = sum(losses) / len(losses) if losses else math.nan
        first = last
    return means


def on_one_line(name: str) -> str:
    """Return a name from a file or path as a single line, without control characters or unencodable characters."""
    return printable(name).replace("\n", "\\n")


def _add_record(run: Run, step: object, data: dict[str, Any], timestamp: object) -> None:
    if step == PARAMETER:
        run.parameters |= data
    elif curves := _calibration_curves(data, CURVE):
        run.calibration, run.uncalibrated = curves, _calibration_curves(data, UNCALIBRATED_CURVE)
    elif SLICES_KEY in data:
        run.slices = _slices(data[SLICES_KEY])
    elif step in ([], ""):
        run.final = _numbers(data)
    elif isinstance(step, list) and step and all(map(_is_step, step)):
        values = _numbers(data)
        epoch = values.pop("epoch", math.nan)
        points = _points_for(run, len(step), values)
        # "step" is [step, total steps] in training, [1, step] in a benchmark, [step] for evaluations and gates.
        number = step[1] if points is run.measured else step[0]
        while points and (points[-1].step or 0) >= number:  # repeated by a resumed run
            points.pop()
        points.append(Point(number, epoch if 0 <= epoch <= LAST_STEP else None, values, _seconds(timestamp)))


def _points_for(run: Run, length: int, values: Mapping[str, float]) -> list[Point]:
    """Return the list that a record belongs to by the length of its step and by its keys; a new one if to none."""
    if length == 2:
        return run.training if "loss" in values else run.measured if MEASURED in values else []
    if length == 1 and values:
        return run.gates if any(map(is_gate_key, values)) else run.evaluations
    return []


def _calibration_curves(data: Mapping[str, Any], kind: str) -> dict[str, dict[str, list[float]]]:
    """Return the curves of a kind (CURVE or UNCALIBRATED_CURVE) among the values by task; other values are ignored."""
    curves = {}
    for key, curve in data.items():
        name, _, task = key.partition("/")
        if name == kind and isinstance(curve, dict):
            columns: Any = [curve.get(column) for column in CalibrationCurve._fields]
            if all(isinstance(column, list) and all(map(_is_number, column)) for column in columns):
                bins = list(zip(*columns, strict=False))
                columns = [list(map(_number, column)) for column in zip(*bins, strict=True)]
                if columns:
                    curves[on_one_line(task)] = dict(zip(CalibrationCurve._fields, columns, strict=True))
    return curves


def _slices(records: object) -> list[dict[str, Any]]:
    """Return the records of slices that are complete; others are ignored."""
    return [
        {
            **{key: on_one_line(record[key]) for key in _SLICE_TEXTS},
            **{key: record[key] for key in ("rows", "positives") if _is_step(record.get(key))},
            **{key: _numbers(record[key]) for key in _SLICE_NUMBERS},
        }
        for record in (records if isinstance(records, list) else [])
        if isinstance(record, dict)
        and all(isinstance(record.get(key), str) for key in _SLICE_TEXTS)
        and all(isinstance(record.get(key), dict) for key in _SLICE_NUMBERS)
    ]


def _numbers(data: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers among the values, with their keys on one line; null becomes NaN."""
    return {on_one_line(key): _number(value) for key, value in data.items() if value is None or _is_number(value)}


def _number(value: float | None) -> float:
    """Convert to float64; null and numbers too large for a chart become NaN, as JSON integers have any size."""
    return math.nan if value is None or not abs(value) < HUGE else float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_step(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LAST_STEP


def _seconds(timestamp: Any) -> float | None:
    try:
        seconds = float(timestamp)
    except (TypeError, ValueError):
        return None
    return seconds if math.isfinite(seconds) else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as file:
            document = json.loads(file.read())
    except FileNotFoundError:
        return {}
    except NotRegularError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}). Remove it, or restore the complete file") from error
    return document if isinstance(document, dict) else {}
