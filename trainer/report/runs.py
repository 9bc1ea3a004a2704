"""Reading the files of a run: its log, its arguments and its last metrics."""

import json
import math
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data.errors import DataError, printable
from data.files import NotRegularError, open_regular
from trainer.health.keys import is_health
from trainer.metrics.calibration_curve import CURVE, CalibrationCurve
from trainer.observation.log import PARAMETER, read_log

NAN = float("nan")
MEASURED = "batch_samplesps"
HUGE = 1e290  # below it no sum and no quotient of a chart leaves float64
LAST_STEP = 2**53  # beyond it float64, in which charts are drawn, knows no whole numbers


@dataclass(frozen=True)
class Point:
    """Values at a step of a run.

    Attributes:
        step: None for the final metrics of a run that trained nothing.
        epoch: where the record has one.
        values: the numbers of the record.
        at: when it was written, in seconds since 1970; None where the log does not say.
    """

    step: int | None
    epoch: float | None
    values: dict[str, float]
    at: float | None = None


@dataclass
class Run:
    """One run, as far as its log goes.

    Attributes:
        name: what it is called in tables and legends.
        parameters: its arguments.
        training: loss, learning rate and samples per second, in the order of steps.
        evaluations: metrics, in the order of steps.
        health: of the gates and experts, in the order of steps.
        measured: samples per second of the steps of a benchmark.
        calibration: of the last evaluation, by task, or by "" where there is one: weight, prediction and label of each
            bin.
        final: the last metrics.
    """

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    training: list[Point] = field(default_factory=list)
    evaluations: list[Point] = field(default_factory=list)
    health: list[Point] = field(default_factory=list)
    measured: list[Point] = field(default_factory=list)
    calibration: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    final: dict[str, float] = field(default_factory=dict)


def read_run(results_dir: Path, name: str, log_filename: str = "log.json") -> Run:
    """Reads a run from its results folder; args.json and metrics.json add to the log where they are there.

    Raises:
        DataError: there is no log, or nothing in it to report.
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
        point = Point(step[0], epoch if 0 <= epoch <= LAST_STEP else None, values, _time(record))
        if len(step) == 2 and "loss" in values:
            _add_point(run.training, point, step[0])
        elif len(step) == 2 and MEASURED in values:
            _add_point(run.measured, replace(point, step=step[1]), step[1])
        elif len(step) == 1 and any(map(is_health, values)):
            _add_point(run.health, point, step[0])
        elif len(step) == 1 and values:
            _add_point(run.evaluations, point, step[0])


def _is_step(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LAST_STEP


def on_one_line(name: str) -> str:
    """A name from a file or a path without what controls a terminal or what no encoding can write."""
    return printable(name).replace("\n", "\\n")


def _add_point(points: list[Point], point: Point, step: int) -> None:
    """Adds a point in place of those of a life that was cut short: a resumed run repeats steps."""
    while points and (points[-1].step or 0) >= step:
        points.pop()
    points.append(point)


def _numbers(data: dict[str, Any]) -> dict[str, float]:
    """The numbers among the values, their keys on one line; null stands for a number that is none."""
    return {on_one_line(key): _number(value) for key, value in data.items() if value is None or _is_number(value)}


def _number(value: float | None) -> float:
    """As float64, NaN of what no chart can show: JSON has numbers of any length."""
    return NAN if value is None or not abs(value) < HUGE else float(value)


def _curves(data: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """The calibration curves among the values, by task; what is no curve is passed over."""
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
    """A list of numbers as it should be; of anything else nothing."""
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
    """The keys of all evaluations in the order of their first appearance, without those that are NaN throughout."""
    keys: dict[str, None] = {}
    for run in runs:
        for point in run.evaluations:
            keys |= {key: None for key, value in point.values.items() if not math.isnan(value)}
    return list(keys)


def training_loss(run: Run) -> dict[int, float]:
    """The mean of the logged training losses since the evaluation before, per evaluation step."""
    means, points, first = {}, run.training, 0
    for evaluation in run.evaluations:
        if evaluation.step is None:
            continue
        last = bisect_right(points, evaluation.step, key=lambda point: point.step or 0)
        losses = [point.values["loss"] for point in points[first:last]]
        means[evaluation.step] = sum(losses) / len(losses) if losses else NAN
        first = last
    return means
