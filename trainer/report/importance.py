"""The chart of permutation importance: what permuting each feature does to a task's ranking metric."""

import math

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from trainer.importance_file import TaskImportance
from trainer.report.plots import COLORS, GREY, legend_label
from trainer.report.runs import on_one_line
from trainer.tasks.evaluation import metrics_by_name

MOST_FEATURES = 24  # drawn per task
ROW_INCHES, FRAME_INCHES = 0.17, 1.2


def metric_title(name: str) -> str:
    """Return the title of a metric, or its name if this program has no such metric."""
    known = metrics_by_name()
    return known[name].title if name in known else on_one_line(name)


def chart_inches(task: TaskImportance) -> float:
    """Return the height of a task's chart in inches."""
    return FRAME_INCHES + ROW_INCHES * min(len(task.features), MOST_FEATURES)


def draw_importance(axis: Axes, task: TaskImportance) -> None:
    """Draw the change of the ranking metric by feature with its standard error, the most important feature on top."""
    ranking = next(iter(task.intact))
    shown = task.features[:MOST_FEATURES]
    for row, feature in enumerate(shown):
        effect = feature.effects[ranking]
        if effect.change is not None:
            error = effect.standard_error or 0.0
            axis.errorbar(effect.change, row, xerr=error, fmt="o", color=COLORS[0], markersize=4, capsize=2)
    axis.axvline(0, color=GREY, linewidth=0.8)
    axis.set_yticks(range(len(shown)), [legend_label(on_one_line(feature.feature)) for feature in shown])
    axis.set_ylim(len(shown) - 0.5, -0.5)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=4))
    intact = task.intact[ranking]
    axis.set_xlabel(f"change from {math.nan if intact is None else intact:.5g}")
    axis.set_title(f"{metric_title(ranking)} of {legend_label(on_one_line(task.task))}")
