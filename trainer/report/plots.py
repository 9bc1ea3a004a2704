"""Charts drawn with matplotlib, into picture files or as SVG for the page. Every curve is drawn by `draw_chart`."""

import io
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from data.storage.files import replacing
from trainer.logging.progress import format_count
from trainer.report.curves import ALL_TASKS, Chart, Curve, finite_points, learning_charts
from trainer.report.outputs import LEARNING_CURVE, SOURCE, check_pictures, picture_files
from trainer.report.runs import Run

# Okabe and Ito's color-blind safe palette, with the colors of low contrast on white last.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#8C6D31")
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.")
GREY = "#444444"
PIXELS, DPI = 1280, 100
PANEL_INCHES, LEGEND_INCHES, PANELS_PER_ROW = 3.6, 0.3, 3
INLINE_INCHES = (4.2, 2.5)
MARGIN = 0.05  # free space above clipped curves, as a share of the height
MAX_POINTS = 300  # longer curves are drawn as means of neighboring points
MAX_MARKERS = 60
LONGEST_LABEL = 40
LEGEND_CHARACTERS = 150
TRAINING_STYLE: dict[str, Any] = {"linewidth": 1.2, "alpha": 0.75}
EVALUATION_STYLE: dict[str, Any] = {"linewidth": 1.8, "marker": "o", "markersize": 5}
STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#8a8a8a",
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.12,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.5,
    "grid.color": "#e3e3e3",
    "legend.frameon": False,
    "svg.hashsalt": "learning curve",  # else the identifiers in an SVG are random
    "text.parse_math": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
}
# Texts remain texts, which can be searched and copied.
INLINE_STYLE: Any = STYLE | {"axes.titlesize": 10, "font.size": 8.5, "svg.fonttype": "none", "lines.markersize": 4}


@dataclass(frozen=True)
class Key:
    """Assigns styles to curves.

    Colors distinguish runs, or tasks if there is a single run. Dashes distinguish the tasks of several runs, and
    markers distinguish evaluations from training.

    Attributes:
        runs: names of the runs.
        tasks: names of the tasks.
    """

    runs: Sequence[str]
    tasks: Sequence[str] = ("",)

    @classmethod
    def of(cls, runs: Sequence[Run], charts: Sequence[Chart]) -> "Key":
        """Return the key of charts whose curves belong to tasks."""
        tasks = dict.fromkeys(curve.task for chart in charts for curve in chart.curves)
        return cls([run.name for run in runs], list(tasks))

    @property
    def colors(self) -> dict[str, str]:
        """Name of a run, or of a task of a single run -> color."""
        names = self.runs if len(self.runs) > 1 else self.tasks
        return {name: COLORS[index % len(COLORS)] for index, name in enumerate(names)}

    def style(self, curve: Curve) -> dict[str, Any]:
        """Return the line style of a curve, as arguments of matplotlib's plot."""
        several = len(self.runs) > 1
        dash = self.tasks.index(curve.task) if several and len(self.tasks) > 1 else 0
        style = TRAINING_STYLE if curve.is_training else EVALUATION_STYLE
        shown = len(finite_points(curve))
        marker = "o" if shown == 1 or (shown <= MAX_MARKERS and not curve.is_training) else "none"
        color = self.colors[curve.run if several else curve.task]
        return style | {"color": color, "linestyle": DASHES[dash % len(DASHES)], "marker": marker}

    def handles(self, charts: Sequence[Chart]) -> list[Line2D]:
        """Return the legend entries of charts; empty if there is nothing to distinguish."""
        entries = []
        if len(self.colors) > 1:
            entries += [Line2D([], [], color=color, linewidth=4, label=name) for name, color in self.colors.items()]
        if len(self.runs) > 1 and len(self.tasks) > 1:
            entries += [
                Line2D([], [], color=GREY, linestyle=DASHES[index % len(DASHES)], label=task)
                for index, task in enumerate(self.tasks)
            ]
        for entry in entries:
            entry.set_label(legend_label(str(entry.get_label()) or ALL_TASKS))
        if has_both_kinds(charts):
            entries.append(Line2D([], [], color=GREY, label="training", **TRAINING_STYLE))
            entries.append(Line2D([], [], color=GREY, label="evaluation", **EVALUATION_STYLE))
        return entries


def has_both_kinds(charts: Sequence[Chart]) -> bool:
    """Return whether charts have curves of both training and evaluations."""
    return len({curve.is_training for chart in charts for curve in chart.curves}) > 1


def draw_chart(axis: Axes, chart: Chart, key: Key) -> None:
    """Draw a chart. The curve with index i gets the identifier `curve_i` in an SVG."""
    for index, curve in enumerate(chart.curves):
        axis.plot(*_averaged(curve), gid=f"curve_{index}", **key.style(curve))
    axis.set_title(chart.title)
    axis.set_title(chart.note, loc="right", fontsize="medium", fontweight="normal", color=GREY)
    axis.set_xlabel(chart.x_label)
    is_over_steps = chart.x_label == "step"
    axis.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10], integer=is_over_steps))
    count = FuncFormatter(lambda value, _: format_count(value))
    if is_over_steps:
        axis.xaxis.set_major_formatter(count)
    if chart.x_max is not None:
        last = max(1, chart.x_max)
        axis.set_xlim(-0.03 * last, 1.03 * last)
    points = np.array([point for curve in chart.curves for point in finite_points(curve)])
    if math.isfinite(chart.y_max):
        low = points[:, 1].min()
        margin = MARGIN * (chart.y_max - low)
        axis.set_ylim(low - margin, chart.y_max + margin)
    if chart.is_rate:
        axis.set_ylim(0, (1 + MARGIN) * points[:, 1].max() or 1)
        axis.yaxis.set_major_formatter(count)
    if chart.is_calibration:
        high = (1 + MARGIN) * points.max() or 1
        axis.plot([0, high], [0, high], color=GREY, linewidth=1, linestyle="--", zorder=0)
        axis.set(xlim=(0, high), ylim=(0, high))


def draw_learning_curves(runs: list[Run], folder: Path) -> list[Path]:
    """Plot losses and metrics over steps as PNG (1280 pixels wide) and SVG, with all runs in each panel.

    Returns:
        Paths of the files written; empty if no run has values at steps.
    """
    charts, _ = learning_charts(runs)
    if not charts:
        return []
    rows = -(-len(charts) // PANELS_PER_ROW)
    columns = -(-len(charts) // rows)
    key = Key.of(runs, charts)
    handles = key.handles(charts)
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    legend_columns = max(1, LEGEND_CHARACTERS // (longest + 8))
    height = rows * PANEL_INCHES + -(-len(handles) // legend_columns) * LEGEND_INCHES
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(PIXELS / DPI, height), dpi=DPI, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
        for axis, chart in zip(axes, charts, strict=False):
            draw_chart(axis, chart, key)
        for unused in axes[len(charts) :]:
            unused.remove()
        if handles:
            figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), legend_columns))
        return save(figure, folder, LEARNING_CURVE)


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG and SVG, reproducibly to the byte. Must be called within the STYLE context.

    Raises:
        DataError: if an existing file was not written by this function.
        OSError: if the files cannot be written.
    """
    paths = picture_files(folder, name)
    check_pictures(folder, name)
    for path in paths:
        metadata = {"Source": SOURCE} | ({"Date": None} if path.suffix == ".svg" else {})
        with replacing(path) as file:
            figure.savefig(file, format=path.suffix[1:], metadata=metadata)
    return paths


def chart_svg(chart: Chart, key: Key) -> Markup:
    """Return a chart as an SVG element for an HTML page, whose markers show their values on hover."""
    svg = _draw_svg(lambda axis: draw_chart(axis, chart, key), chart.title)
    for index, curve in enumerate(chart.curves):
        name = curve.run if len(key.runs) > 1 else curve.task or curve.run
        group = next(group for group in svg.iter("g") if group.get("id") == f"curve_{index}")
        for marker, (x, y) in zip(group.iter("use"), finite_points(curve), strict=False):
            ElementTree.SubElement(marker, "title").text = f"{name}: {x:.6g}, {y:.6g}".removeprefix(": ")
    return _to_markup(svg)


def panel_svg(draw: Callable[[Axes], None], title: str, inches: tuple[float, float] = INLINE_INCHES) -> Markup:
    """Return what a function draws on an axis of a given width and height as an SVG element for an HTML page."""
    return _to_markup(_draw_svg(draw, title, inches))


def _draw_svg(
    draw: Callable[[Axes], None], title: str, inches: tuple[float, float] = INLINE_INCHES
) -> ElementTree.Element:
    """Return a figure as SVG elements without namespaces and metadata, which HTML does not need."""
    file = io.BytesIO()
    with matplotlib.rc_context(INLINE_STYLE):
        figure = Figure(figsize=inches, layout="constrained")
        draw(figure.subplots())
        figure.savefig(file, format="svg", metadata={"Date": None})
    svg = ElementTree.fromstring(file.getvalue())
    for element in svg.iter():
        element.tag = element.tag.rpartition("}")[2]
        for name in [name for name in element.attrib if "}" in name]:
            element.set(name.rpartition("}")[2], element.attrib.pop(name))
    for unused in [*svg.iterfind("metadata"), *svg.iterfind("defs/style/..")]:  # page.css has the style, once
        svg.remove(unused)
    svg.attrib = {"viewBox": svg.attrib["viewBox"], "role": "img", "aria-label": title}
    return svg


def _to_markup(svg: ElementTree.Element) -> Markup:
    for element in svg.iter("g"):
        element.attrib.pop("id", None)  # counted from 1 in every figure, and so not unique within a page
    return Markup(ElementTree.tostring(svg, encoding="unicode"))  # noqa: S704


def _averaged(curve: Curve) -> tuple[Sequence[float], Sequence[float]]:
    """Return the points of a curve, at most MAX_POINTS; longer curves are replaced by means of neighboring points."""
    stride = -(-len(curve.x) // MAX_POINTS)
    if stride <= 1:
        return curve.x, curve.y
    starts = range(0, len(curve.x), stride)
    x, y = ([float(np.mean(values[i : i + stride])) for i in starts] for values in (curve.x, curve.y))
    return x, y


def legend_label(label: str) -> str:
    """Shorten a label, and prevent matplotlib from omitting labels that start with an underscore."""
    label = f" {label}" if label.startswith("_") else label
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL // 2] + "..." + label[-LONGEST_LABEL // 2 :]
