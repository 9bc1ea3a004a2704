"""Reads the result files of a run: log, arguments and final metrics."""

import json
import math
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data.errors import DataError, printable
from data.storage.files import NotRegularError, open_regular
from trainer.logging.gate_records import is_gate_key
from trainer.logging.log import PARAMETER, read_log
from trainer.metrics.calibration import CURVE, CalibrationCurve

NAN = float("nan")
MEASURED = "batch_samplesps"
HUGE = 1e290  # sums and quotients of smaller numbers in a chart stay within float64
LAST_STEP = 2**53  # larger integers are not exact in float64, which charts use


@dataclass(frozen=True)
class Point:
    """Values at a step of a run.

    Attributes:
        step: the step; None for the final metrics of a run that trained nothing.
        epoch: the epoch; None if the record has none.
        values: the numbers of the record by key.
        at: time of the record in seconds since the Unix epoch; None if unknown.
    """

    step: int | None
    epoch: float | None
    values: dict[str, float]
    at: float | None = None


@dataclass
class Run:
    """The records of a run.

    Attributes:
        name: name of the run in tables and legends.
        parameters: command line arguments of the run by name.
        training: loss, learning rate and samples per second, in the order of steps.
        evaluations: metrics of evaluations, in the order of steps.
        gates: statistics of gates and experts, in the order of steps.
        measured: samples per second of a benchmark's steps.
        calibration: calibration curves of the last evaluation by task ("" for a single task), each with the weight,
            prediction and label of every bin.
        final: the final metrics.
    """

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    training: list[Point] = field(default_factory=list)
    evaluations: list[Point] = field(default_factory=list)
    gates: list[Point] = field(default_factory=list)
    measured: list[Point] = field(default_factory=list)
    calibration: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    final: dict[str, float] = field(default_factory=dict)


def read_run(results_dir: Path, name: str, log_filename: str = "log.json") -> Run:
    """Reads a run from its results folder; args.json and metrics.json complement the log if they exist.

    Args:
        results_dir: results folder of the run.
        name: name of the run in tables and legends.
        log_filename: file name of the log in the folder.

    Raises:
        DataError: if there is no log, or nothing in it to report.
    """
    path = results_dir / log_filename
    if not path.exists():
        raise DataError(
            f"{path}: there is no such log. Give the --results_dir of a run of main.py"
            + ("" if results_dir.is_dir() else f"; {results_dir} is no folder")
        )
    run = Run(on_one_line(name))
    for record in read_log(path):
        _add_record(run, record)
    run.parameters |= _read_json(results_dir / "args.json")
    run.final = run.final or _numbers(_read_json(results_dir / "metrics.json"))
    if not run.evaluations and run.final:
        run.evaluations.append(Point(None, None, run.final))
    if not run.training and not run.evaluations:
        raise DataError(f"{path}: holds no loss and no metric. Has the run come as far as its first step?")
    return run


def _add_record(run: Run, record: dict[str, Any]) -> None:
    data, step = record.get("data"), record.get("step")
    if record.get("type") != "LOG" or not isinstance(data, dict):
        return
    if step == PARAMETER:
        run.parameters |= data
        return
    if curves := _curves(data):
        run.calibration = curves
    elif step in ([], ""):
        run.final = _numbers(data)
    elif isinstance(step, list) and step and all(map(_is_step, step)):
        values = _numbers(data)
        epoch = values.pop("epoch", NAN)
        # "step" is [step, total steps] in training, [1, step] in a benchmark, [step] for evaluations and gates.
        point = Point(step[0], epoch if 0 <= epoch <= LAST_STEP else None, values, _time(record))
        if len(step) == 2 and "loss" in values:
            _add_point(run.training, point, step[0])
        elif len(step) == 2 and MEASURED in values:
            _add_point(run.measured, replace(point, step=step[1]), step[1])
        elif len(step) == 1 and any(map(is_gate_key, values)):
            _add_point(run.gates, point, step[0])
        elif len(step) == 1 and values:
            _add_point(run.evaluations, point, step[0])


def _is_step(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LAST_STEP


def on_one_line(name: str) -> str:
    """Returns a name from a file or path as a single line, without control characters or unencodable characters."""
    return printable(name).replace("\n", "\\n")


def _add_point(points: list[Point], point: Point, step: int) -> None:
    """Appends a point after removing points of the same or later steps, which a resumed run repeats."""
    while points and (points[-1].step or 0) >= step:
        points.pop()
    points.append(point)


def _numbers(data: dict[str, Any]) -> dict[str, float]:
    """Returns the numbers among the values, with their keys on one line; null becomes NaN."""
    return {on_one_line(key): _number(value) for key, value in data.items() if value is None or _is_number(value)}


def _number(value: float | None) -> float:
    """Converts to float64; null and numbers too large for a chart become NaN, as JSON integers have any size."""
    return NAN if value is None or not abs(value) < HUGE else float(value)


def _curves(data: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Returns the calibration curves among the values, by task; other values are ignored."""
    curves = {}
    for key, curve in data.items():
        name, _, task = key.partition("/")
        if name == CURVE and isinstance(curve, dict):
            columns = [_column(curve.get(column)) for column in CalibrationCurve._fields]
            lines = list(zip(*columns, strict=False))
            if lines:
                curves[on_one_line(task)] = dict(
                    zip(CalibrationCurve._fields, map(list, zip(*lines, strict=True)), strict=True)
                )
    return curves


def _column(values: object) -> list[float]:
    """Returns a list of numbers; empty for any other value."""
    if isinstance(values, list) and all(map(_is_number, values)):
        return [_number(value) for value in values]
    return []


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _time(record: dict[str, Any]) -> float | None:
    try:
        seconds = float(record.get("timestamp", ""))
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
        raise DataError(f"{path}: cannot be read as JSON ({error}). Remove it, or bring back the whole file") from error
    return document if isinstance(document, dict) else {}


def metric_keys(runs: list[Run]) -> list[str]:
    """Returns the keys of all evaluations in order of first appearance, without those that are always NaN."""
    keys: dict[str, None] = {}
    for run in runs:
        for point in run.evaluations:
            keys |= {key: None for key, value in point.values.items() if not math.isnan(value)}
    return list(keys)


def training_loss(run: Run) -> dict[int, float]:
    """Returns the mean of the training losses logged since the previous evaluation, by evaluation step."""
    means, points, first = {}, run.training, 0
    for evaluation in run.evaluations:
        if evaluation.step is None:
            continue
        last = bisect_right(points, evaluation.step, key=lambda point: point.step or 0)
        losses = [point.values["loss"] for point in points[first:last]]
        means[evaluation.step] = sum(losses) / len(losses) if losses else NAN
        first = last
    return means
