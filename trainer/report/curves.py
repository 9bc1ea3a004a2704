"""Which values of runs are curves, and which of these belong into one panel."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.report.runs import Point, Run, metric_keys
from trainer.report.table import is_quality

TITLES = {
    "loss": "Loss",
    "auc_roc": "ROC AUC",
    "streaming_map_val": "MAP@12",
    "pr_auc": "PR AUC",
    "gauc": "GAUC",
    "normalized_entropy": "Normalized entropy",
    "calibration": "Calibration",
    "calibration_error": "Calibration error",
    "rmse": "RMSE",
    "mae": "MAE",
    "accuracy": "Accuracy",
}
MEAN = "mean"
# Training losses of the first tenth may leave a panel at its top where they would squeeze the others into a quarter.
START, SQUEEZED = 0.1, 0.25


@dataclass(frozen=True)
class Curve:
    """A line of a panel, of one run and one task ("" for a run with a single task)."""

    run: str
    task: str
    is_training: bool
    steps: list[int]
    values: list[float]


def panels_of(runs: list[Run]) -> dict[str, list[Curve]]:
    """Curves by the name of their panel: losses in the first, then a panel for each metric with all its tasks.

    The mean over tasks is left out where one task alone has the metric.
    """
    panels: dict[str, list[Curve]] = {"loss": [curve for run in runs for curve in _training_losses(run)]}
    for key in filter(is_quality, metric_keys(runs)):
        metric, _, task = key.partition("/")
        panel = panels.setdefault("loss" if metric == "loss_val" else metric, [])
        panel += [_curve(run, task, run.evaluations, key, False) for run in runs]
    drawn = {panel: _without_idle_mean([curve for curve in curves if curve.steps]) for panel, curves in panels.items()}
    return {panel: curves for panel, curves in drawn.items() if curves}


def top_of(curves: Sequence[Curve]) -> float:
    """Where a panel may end, in its values; infinite where it has to show everything."""
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
    """The loss, and that of each of several tasks."""
    keys = dict.fromkeys(key for point in run.training for key in point.values if key.partition("/")[0] == "loss")
    return [_curve(run, key.partition("/")[2], run.training, key, True) for key in keys]


def _without_idle_mean(curves: list[Curve]) -> list[Curve]:
    others = {curve.task for curve in curves} - {MEAN}
    return [curve for curve in curves if curve.task != MEAN or len(others) != 1]


def _curve(run: Run, task: str, points: list[Point], key: str, is_training: bool) -> Curve:
    placed = [(point.step, point.values[key]) for point in points if point.step is not None and key in point.values]
    return Curve(run.name, task, is_training, [step for step, _ in placed], [value for _, value in placed])
