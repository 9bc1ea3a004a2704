"""Which values of runs are curves, and which of these belong into one panel."""

from dataclasses import dataclass

from trainer.report.runs import Point, Run, metric_keys
from trainer.report.table import is_quality

TITLES = {"loss": "Loss", "auc_roc": "ROC AUC", "streaming_map_val": "MAP@12"}


@dataclass(frozen=True)
class Curve:
    """A line of a panel, of one run and one task ("" for a run with a single task)."""

    run: str
    task: str
    is_training: bool
    steps: list[int]
    values: list[float]


def panels_of(runs: list[Run]) -> dict[str, list[Curve]]:
    """Curves by the name of their panel: losses in the first, then a panel for each metric with all its tasks."""
    panels: dict[str, list[Curve]] = {"loss": [_curve(run, "", run.training, "loss", True) for run in runs]}
    for key in filter(is_quality, metric_keys(runs)):
        metric, _, task = key.partition("/")
        panel = panels.setdefault("loss" if metric == "loss_val" else metric, [])
        panel += [_curve(run, task, run.evaluations, key, False) for run in runs]
    drawn = {panel: [curve for curve in curves if curve.steps] for panel, curves in panels.items()}
    return {panel: curves for panel, curves in drawn.items() if curves}


def _curve(run: Run, task: str, points: list[Point], key: str, is_training: bool) -> Curve:
    placed = [(point.step, point.values[key]) for point in points if point.step is not None and key in point.values]
    return Curve(run.name, task, is_training, [step for step, _ in placed], [value for _, value in placed])
