"""Plots of the learning curves with matplotlib."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from data.storage.files import replacing
from trainer.logging.progress import format_count
from trainer.report.curves import TITLES, Curve, drawn, top_of
from trainer.report.outputs import LEARNING_CURVE, SOURCE, check_pictures, picture_files
from trainer.report.runs import Run
from trainer.report.table import best_of

# Okabe and Ito's color-blind safe palette, with the colors of low contrast on white last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#8C6D31")
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.")
PIXELS = 1280
DPI = 100
PANEL_INCHES = 3.6
LEGEND_INCHES = 0.3
PANELS_PER_ROW = 3
TOP_MARGIN = 0.05
GREY = "#444444"
LONGEST_LABEL = 40
LEGEND_CHARACTERS = 150
TRAINING_LOOK: dict[str, Any] = {"linewidth": 1.2, "alpha": 0.75}
EVALUATION_LOOK: dict[str, Any] = {"linewidth": 1.8, "marker": "o", "markersize": 5}
STYLE: Any = {
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.12,
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.edgecolor": "#8a8a8a",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "grid.color": "#e3e3e3",
    "legend.frameon": False,
    "text.parse_math": False,
    "svg.hashsalt": "learning curve",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
}


@dataclass(frozen=True)
class Key:
    """Assigns styles to curves.

    Colors distinguish runs, or tasks if there is a single run. Dashes distinguish the tasks of several runs, and
    markers distinguish evaluations from training.

    Attributes:
        runs: names of the runs.
        tasks: names of the tasks.
        has_both_kinds: whether there are curves of both training and evaluations.
    """

    runs: list[str]
    tasks: list[str]
    has_both_kinds: bool

    @property
    def hues(self) -> list[str]:
        """Names that are distinguished by color: the runs, or the tasks of a single run."""
        return self.runs if len(self.runs) > 1 else self.tasks

    def style(self, curve: Curve) -> dict[str, Any]:
        """Returns the line style of a curve, as arguments of matplotlib's plot."""
        several = len(self.runs) > 1
        hue = self.hues.index(curve.run if several else curve.task)
        dash = self.tasks.index(curve.task) if several else 0
        look = {"color": COLOURS[hue % len(COLOURS)], "linestyle": DASHES[dash % len(DASHES)]}
        return look | (TRAINING_LOOK if curve.is_training else EVALUATION_LOOK)

    def handles(self) -> list[Line2D]:
        """Returns the legend entries; empty if there is nothing to distinguish."""
        entries = []
        if len(self.hues) > 1:
            colours = [COLOURS[index % len(COLOURS)] for index in range(len(self.hues))]
            entries += [
                Line2D([], [], color=colour, linewidth=4, label=_short(hue or "all tasks"))
                for hue, colour in zip(self.hues, colours, strict=True)
            ]
        if len(self.runs) > 1 and len(self.tasks) > 1:
            dashes = [DASHES[index % len(DASHES)] for index in range(len(self.tasks))]
            entries += [
                Line2D([], [], color=GREY, linestyle=dash, label=_short(task or "all tasks"))
                for task, dash in zip(self.tasks, dashes, strict=True)
            ]
        if self.has_both_kinds:
            entries.append(Line2D([], [], color=GREY, label="training", **TRAINING_LOOK))
            entries.append(Line2D([], [], color=GREY, label="evaluation", **EVALUATION_LOOK))
        return entries


def draw_learning_curves(runs: list[Run], folder: Path, name: str = LEARNING_CURVE) -> list[Path]:
    """Plots losses and metrics over steps as PNG (1280 pixels wide) and SVG, with all runs in each panel.

    Args:
        runs: the runs.
        folder: output folder.
        name: file name without suffix.

    Returns:
        Paths of the files written; empty if no run has values at steps.
    """
    panels, _ = drawn(runs)
    if not panels:
        return []
    rows = -(-len(panels) // PANELS_PER_ROW)
    columns = -(-len(panels) // rows)
    key = _key(runs, panels)
    handles = key.handles()
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    legend_columns = max(1, LEGEND_CHARACTERS // (longest + 8))
    height = rows * PANEL_INCHES + -(-len(handles) // legend_columns) * LEGEND_INCHES
    last_step = max(1, *(step for curves in panels.values() for curve in curves for step in curve.steps))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(PIXELS / DPI, height), dpi=DPI, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
        for axis, (title, curves) in zip(axes, panels.items(), strict=False):
            _draw_panel(axis, title, curves, key)
            axis.set_xlim(-0.03 * last_step, 1.03 * last_step)
        for unused in axes[len(panels) :]:
            unused.remove()
        if handles:
            figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), legend_columns))
        return save(figure, folder, name)


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Writes a figure as PNG and SVG, reproducibly to the byte. Must be called within the STYLE context.

    Raises:
        DataError: if an existing file was not written by this function.
        OSError: if the files cannot be written.
    """
    paths = picture_files(folder, name)
    check_pictures(folder, name)
    for path in paths:
        # Without a date, and with the fixed svg.hashsalt of STYLE, an SVG does not change between calls.
        metadata = {"Source": SOURCE} | ({"Date": None} if path.suffix == ".svg" else {})
        with replacing(path) as file:
            figure.savefig(file, format=path.suffix[1:], metadata=metadata)
    return paths


def _key(runs: list[Run], panels: dict[str, list[Curve]]) -> Key:
    curves = [curve for drawn in panels.values() for curve in drawn]
    kinds = {curve.is_training for curve in curves}
    return Key([run.name for run in runs], list(dict.fromkeys(curve.task for curve in curves)), len(kinds) > 1)


def _draw_panel(axis: Axes, name: str, curves: list[Curve], key: Key) -> None:
    for curve in curves:
        axis.plot(curve.steps, curve.values, **key.style(curve))
    if math.isfinite(top := top_of(curves)):
        axis.set_ylim(top=top + TOP_MARGIN * (top - axis.get_ylim()[0]))
    axis.set_title(TITLES.get(name, name))
    evaluated = [curve for curve in curves if not curve.is_training]
    if len(evaluated) == 1:
        axis.set_title(_best(name, evaluated[0]), loc="right", fontsize=10, fontweight="normal", color="#444444")
    axis.set_xlabel("step")
    axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda step, _: format_count(step)))


def _best(name: str, curve: Curve) -> str:
    known = [value for value in curve.values if not math.isnan(value)]
    return f"best {best_of(name, known):.4f}"


def _short(label: str) -> str:
    """Shortens a label, and prevents matplotlib from omitting labels that start with an underscore."""
    label = f" {label}" if label.startswith("_") else label
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL // 2] + "..." + label[-LONGEST_LABEL // 2 :]
