"""The charts of a report, as data: which curves there are, and how they are grouped."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from trainer.logging.gate_records import LevelRecord
from trainer.report.runs import MEASURED, Point, Run, metric_keys
from trainer.report.table import best_of, is_quality
from trainer.tasks.evaluation import metrics_by_name

TITLES = {"loss": "Loss"} | {name: metric.title for name, metric in metrics_by_name().items()}
MEAN, ALL_TASKS = "mean", "all tasks"
CALIBRATED, UNCALIBRATED = "with the calibrator", "without it"
# Upper limits of what is drawn; tables contain everything.
MAX_CHARTS, MAX_TASKS, MAX_GATES, MAX_EXPERTS = 24, 24, 24, 64
# Training losses of the first tenth of the steps may be clipped at the top of a chart if they would otherwise squeeze
# all other values into a quarter of its height.
START, SQUEEZED = 0.1, 0.25


@dataclass(frozen=True)
class Curve:
    """A line of a chart.

    Attributes:
        run: name of the run.
        task: name of the task; "" for a run with a single task, or where tasks are not distinguished.
        is_training: whether the values are from training, drawn as a thin line, rather than from evaluations.
        x: coordinates of the points, ascending.
        y: values of the points; NaN leaves a gap.
    """

    run: str
    task: str
    is_training: bool
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Chart:
    """A chart with one or more curves.

    Attributes:
        title: title of the chart.
        curves: the curves, at least one with a finite value.
        x_label: label of the horizontal axis; "step" has integer ticks.
        x_max: largest x of the axis; None to fit the curves.
        y_max: largest value to show; training losses above it are clipped.
        note: text on the right of the title.
        is_rate: whether values are samples per second, on an axis from 0.
        is_calibration: whether both axes have the same range, with a dashed line where they are equal.
    """

    title: str
    curves: list[Curve]
    x_label: str = "step"
    x_max: float | None = None
    y_max: float = math.inf
    note: str = ""
    is_rate: bool = False
    is_calibration: bool = False


def learning_charts(runs: list[Run]) -> tuple[list[Chart], str]:
    """Return the charts of loss and metrics over steps, with all runs and tasks in each.

    The loss comes first. The mean over tasks is omitted where only one task has the metric.

    Returns:
        The charts, and a note on omitted metrics and tasks, empty if there are none.
    """
    by_metric: dict[str, list[Curve]] = {"loss": [curve for run in runs for curve in _training_losses(run)]}
    for key in filter(is_quality, metric_keys(runs)):
        metric, _, task = key.partition("/")
        curves = by_metric.setdefault("loss" if metric == "loss_val" else metric, [])
        curves += [_curve(run, task, run.evaluations, key) for run in runs]
    by_metric = {metric: _drawable(curves) for metric, curves in by_metric.items() if _drawable(curves)}

    every_curve = [curve for curves in by_metric.values() for curve in curves]
    tasks = list(dict.fromkeys(curve.task for curve in every_curve))
    tasks.sort(key=lambda task: task not in ("", MEAN))  # overall values and means before single tasks
    last_step = max((step for curve in every_curve for step in curve.x), default=0)
    charts = []
    for metric, curves in by_metric.items():
        if shown := [curve for curve in curves if curve.task in tasks[:MAX_TASKS]]:
            title, best = TITLES.get(metric, metric), _best(metric, shown)
            charts.append(Chart(title, shown, x_max=last_step, y_max=top_of(shown), note=best))
    notes = omitted(MAX_TASKS, len(tasks), "tasks"), omitted(MAX_CHARTS, len(by_metric), "metrics")
    return charts[:MAX_CHARTS], " ".join(filter(None, notes))


def split_by_task(charts: list[Chart]) -> list[Chart]:
    """Split charts into one per task, with the task in the title if there are several."""
    has_tasks = any(curve.task for chart in charts for curve in chart.curves)
    return [
        replace(
            chart,
            title=f"{chart.title} of {task or ALL_TASKS}" if has_tasks else chart.title,
            curves=[curve for curve in chart.curves if curve.task == task],
        )
        for chart in charts
        for task in dict.fromkeys(curve.task for curve in chart.curves)
    ]


def throughput_charts(runs: list[Run]) -> list[Chart]:
    """Return charts of samples per second, over the minutes of training or over the steps of a benchmark."""
    trained = [_over_time(run, run.training, "samples_per_second", is_training=True) for run in runs]
    evaluated = [_over_time(run, run.evaluations, "validation_throughput") for run in runs]
    measured = [_curve(run, "", run.measured, MEASURED) for run in runs]
    minutes = "minutes since the first record"
    charts = [
        Chart("Training, samples per second", _drawable(trained), minutes, is_rate=True),
        Chart("Evaluation, samples per second", _drawable(evaluated), minutes, is_rate=True),
        Chart("Benchmark, samples per second", _drawable(measured), is_rate=True),
    ]
    return [chart for chart in charts if chart.curves]


def calibration_charts(runs: list[Run]) -> tuple[list[Chart], str]:
    """Return charts of the mean label over the mean prediction, one per task, and a note on omitted tasks.

    If any run has calibrators, the curves are those of the "tasks" CALIBRATED and UNCALIBRATED.
    """
    tasks = list(dict.fromkeys(task for run in runs for task in run.calibration))
    charts = []
    for task in tasks[:MAX_CHARTS]:
        after = CALIBRATED if any(run.uncalibrated for run in runs) else ""
        kinds = [
            (run.name, of_run, kind)
            for run in runs
            for of_run, kind in ((run.calibration, after), (run.uncalibrated, UNCALIBRATED))
        ]
        curves = [
            Curve(run, kind, False, of_run[task]["prediction"], of_run[task]["label"])
            for run, of_run, kind in kinds
            if task in of_run
        ]
        title = f"Mean label of {task}" if task else "Mean label"
        charts.append(Chart(title, _drawable(curves), "mean prediction", is_calibration=True))
    return [chart for chart in charts if chart.curves], omitted(MAX_CHARTS, len(tasks), "tasks")


def drawn_members(level: LevelRecord) -> tuple[list[str], list[str], str]:
    """Return the gates and experts of a level that are drawn, and a note on omitted ones, empty if there are none."""
    gates, experts = level.gates[:MAX_GATES], level.experts[:MAX_EXPERTS]
    notes = omitted(MAX_GATES, len(level.gates), "gates"), omitted(MAX_EXPERTS, len(level.experts), "experts")
    return gates, experts, " ".join(filter(None, notes))


def omitted(limit: int, total: int, what: str) -> str:
    """Return a note that not everything is drawn, or an empty string if everything is."""
    return f"Only {limit:,} of {total:,} {what} are drawn; the log has all." if limit < total else ""


def top_of(curves: Sequence[Curve]) -> float:
    """Return the value at which a chart is clipped; infinite if the chart shows all values (see START, SQUEEZED)."""
    points = [(x, y, curve.is_training) for curve in curves for x, y in finite_points(curve)]
    start = START * max((step for step, _, _ in points), default=0)
    kept = [value for step, value, is_training in points if step > start or not is_training]
    if not kept:
        return math.inf
    low, high = min(value for _, value, _ in points), max(value for _, value, _ in points)
    return max(kept) if 0 < max(kept) - low < SQUEEZED * (high - low) else math.inf


def finite_points(curve: Curve) -> list[tuple[float, float]]:
    """Return the points of a curve whose coordinates are both finite."""
    return [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if math.isfinite(x) and math.isfinite(y)]


def _training_losses(run: Run) -> list[Curve]:
    """Return the curves of the total training loss and of the loss of each task."""
    keys = dict.fromkeys(key for point in run.training for key in point.values if key.partition("/")[0] == "loss")
    return [_curve(run, key.partition("/")[2], run.training, key, is_training=True) for key in keys]


def _drawable(curves: list[Curve]) -> list[Curve]:
    """Return the curves that have points, without the mean over tasks where only one task has the metric."""
    curves = list(filter(finite_points, curves))
    others = {curve.task for curve in curves} - {MEAN}
    return [curve for curve in curves if curve.task != MEAN or len(others) != 1]


def _curve(run: Run, task: str, points: list[Point], key: str, *, is_training: bool = False) -> Curve:
    """Return the values of a key over steps."""
    known = [(point.step, point.values[key]) for point in points if point.step is not None and key in point.values]
    return Curve(run.name, task, is_training, [step for step, _ in known], [value for _, value in known])


def _over_time(run: Run, points: list[Point], key: str, *, is_training: bool = False) -> Curve:
    """Return the values of a key over the minutes since the run's first record."""
    start = min((point.at for point in (*run.training, *run.evaluations) if point.at is not None), default=0.0)
    known = [(point.at, point.values[key]) for point in points if point.at is not None and key in point.values]
    return Curve(run.name, "", is_training, [(at - start) / 60 for at, _ in known], [value for _, value in known])


def _best(metric: str, curves: list[Curve]) -> str:
    """Return the best value of a chart with a single curve of evaluations."""
    evaluated = [curve for curve in curves if not curve.is_training]
    return f"best {best_of(metric, evaluated[0].y):.4f}" if len(evaluated) == 1 else ""
