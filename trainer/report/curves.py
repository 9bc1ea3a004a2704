"""Selection of the curves of runs, and their grouping into panels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.logging.gate_records import LevelRecord as LevelValues
from trainer.report.runs import Point, Run, metric_keys
from trainer.report.table import is_quality
from trainer.tasks.evaluation import metrics_by_name

TITLES = {"loss": "Loss"} | {name: metric.title for name, metric in metrics_by_name().items()}
MEAN = "mean"
# Upper limits of what is drawn; tables contain everything.
MOST_PANELS, MOST_TASKS, MOST_GATES, MOST_EXPERTS = 24, 24, 24, 64
# Training losses of the first tenth of the steps may be clipped at the top of a panel if they would otherwise squeeze
# all other values into a quarter of its height.
START, SQUEEZED = 0.1, 0.25


@dataclass(frozen=True)
class Curve:
    """A line of a panel.

    Attributes:
        run: name of the run.
        task: name of the task; "" for a run with a single task.
        is_training: whether the values are from training rather than evaluations.
        steps: steps of the points, ascending.
        values: values of the points.
    """

    run: str
    task: str
    is_training: bool
    steps: list[int]
    values: list[float]


def panels_of(runs: list[Run]) -> dict[str, list[Curve]]:
    """Groups curves by panel: first the losses, then one panel per metric with all of its tasks.

    The mean over tasks is omitted if only one task has the metric.
    """
    panels: dict[str, list[Curve]] = {"loss": [curve for run in runs for curve in _training_losses(run)]}
    for key in filter(is_quality, metric_keys(runs)):
        metric, _, task = key.partition("/")
        panel = panels.setdefault("loss" if metric == "loss_val" else metric, [])
        panel += [_curve(run, task, run.evaluations, key, False) for run in runs]
    drawn = {panel: _without_idle_mean([curve for curve in curves if curve.steps]) for panel, curves in panels.items()}
    return {panel: curves for panel, curves in drawn.items() if curves}


def drawn(runs: list[Run]) -> tuple[dict[str, list[Curve]], str]:
    """Limits the panels of `panels_of` to those that are drawn.

    Returns:
        The curves by panel, and a note on omitted metrics and tasks, empty if there are none.
    """
    panels = panels_of(runs)
    tasks = list(dict.fromkeys(curve.task for curves in panels.values() for curve in curves))
    tasks.sort(key=lambda task: task not in ("", MEAN))  # overall values and means before single tasks
    shown = set(tasks[:MOST_TASKS])
    kept = {panel: [curve for curve in curves if curve.task in shown] for panel, curves in panels.items()}
    names = [panel for panel, curves in kept.items() if curves][:MOST_PANELS]
    notes = [only(len(shown), len(tasks), "tasks"), only(len(names), len(panels), "metrics")]
    return {name: kept[name] for name in names}, " ".join(note for note in notes if note)


def drawn_of(level: LevelValues) -> tuple[list[str], list[str], str]:
    """Returns the gates and experts of a level that are drawn, and a note on omitted ones, empty if there are none."""
    gates, experts = level.gates[:MOST_GATES], level.experts[:MOST_EXPERTS]
    notes = [only(len(gates), len(level.gates), "gates"), only(len(experts), len(level.experts), "experts")]
    return gates, experts, " ".join(note for note in notes if note)


def only(shown: int, there: int, what: str) -> str:
    """Returns a note that not everything is drawn, or an empty string if everything is."""
    return f"Drawn are {shown:,} of {there:,} {what}; the log has all." if shown < there else ""


def top_of(curves: Sequence[Curve]) -> float:
    """Returns the value at which a panel is clipped; infinite if the panel shows all values (see START, SQUEEZED)."""
    points = [
        (step, value, curve.is_training)
        for curve in curves
        for step, value in zip(curve.steps, curve.values, strict=True)
        if math.isfinite(value)
    ]
    start = START * max((step for step, _, _ in points), default=0)
    kept = [value for step, value, is_training in points if step > start or not is_training]
    if not kept:
        return math.inf
    low, high = min(value for _, value, _ in points), max(value for _, value, _ in points)
    return max(kept) if 0 < max(kept) - low < SQUEEZED * (high - low) else math.inf


def _training_losses(run: Run) -> list[Curve]:
    """Returns the curves of the total training loss and of the loss of each task."""
    keys = dict.fromkeys(key for point in run.training for key in point.values if key.partition("/")[0] == "loss")
    return [_curve(run, key.partition("/")[2], run.training, key, True) for key in keys]


def _without_idle_mean(curves: list[Curve]) -> list[Curve]:
    others = {curve.task for curve in curves} - {MEAN}
    return [curve for curve in curves if curve.task != MEAN or len(others) != 1]


def _curve(run: Run, task: str, points: list[Point], key: str, is_training: bool) -> Curve:
    placed = [(point.step, point.values[key]) for point in points if point.step is not None and key in point.values]
    return Curve(run.name, task, is_training, [step for step, _ in placed], [value for _, value in placed])
