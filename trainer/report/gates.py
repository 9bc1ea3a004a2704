"""Plots of gates and experts: their development over epochs, and their final state."""

import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainer.logging.gate_records import (
    ARGMAX_SHARE as SHARE,
)
from trainer.logging.gate_records import (
    DEAD_UNITS as DEAD,
)
from trainer.logging.gate_records import (
    ENTROPY,
    WEIGHT,
    histories,
)
from trainer.logging.gate_records import (
    EXPERT_SIMILARITY as EXPERTS,
)
from trainer.logging.gate_records import (
    GATE_SIMILARITY as GATES,
)
from trainer.logging.gate_records import (
    LevelRecord as LevelValues,
)
from trainer.report.curves import drawn_of
from trainer.report.figure import COLOURS, DPI, GREY, PANELS_PER_ROW, PIXELS, STYLE, save
from trainer.report.runs import Run

ROW_INCHES = 3.1
FADING = (1.0, 0.55, 0.25)  # opacity of each repetition of the colors
THINNEST_LABELLED = 0.06
MOST_CELLS_LABELLED = 8
MOST_EPOCHS_LABELLED = 10
MOST_NAMES = 32  # tick labels along each side of a heat map
LONGEST_NAME = 24
WIDEST_LABELS = 36  # total characters of the labels below a heat map, beyond which they are rotated
SMALL = 8.5
SMALLEST = 7


def draw_gates(run: Run, folder: Path, name: str = "gates") -> list[Path]:
    """Plots the gates of a run as PNG (1280 pixels wide) and SVG.

    Each level has a panel per gate with the mean weights of its experts and its entropy by epoch, followed by three
    heat maps of the last epoch: how often each expert has the largest weight, the similarity of gates, and the
    similarity of experts. If there are too many gates or experts, only the first ones are plotted.

    Args:
        run: the run.
        folder: output folder.
        name: file name without suffix.

    Returns:
        Paths of the files written; empty for a run without gates.
    """
    levels = histories([point.values for point in run.gates])
    if not levels:
        return []
    epochs = [point.epoch or number for number, point in enumerate(run.gates, start=1)]
    heights = [-(-len(drawn_of(history[-1])[0]) // PANELS_PER_ROW) + 1 for history in levels]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(PIXELS / DPI, sum(heights) * ROW_INCHES), dpi=DPI, layout="constrained")
        axes = figure.subplots(sum(heights), PANELS_PER_ROW, squeeze=False)
        first = 0
        for number, (history, height) in enumerate(zip(levels, heights, strict=True), start=1):
            place = f"level {number}: " if len(levels) > 1 else ""
            over_time, at_the_end = axes[first : first + height - 1].flatten(), axes[first + height - 1]
            _draw_history(over_time, epochs, history, place)
            _draw_end(at_the_end, history[-1], place, f"epoch {epochs[-1]:g}")
            first += height
        if note := " ".join(dict.fromkeys(note for history in levels if (note := drawn_of(history[-1])[2]))):
            figure.supxlabel(note, fontsize=SMALL, color=GREY)
        return save(figure, folder, name)


def _draw_history(axes: np.ndarray, epochs: list[float], history: tuple[LevelValues, ...], place: str) -> None:
    """Draws a panel per gate, with stacked bars of the experts' weights and a line of the entropy."""
    gates, experts, _ = drawn_of(history[-1])
    for axis, gate in zip(axes, gates, strict=False):
        below = np.zeros(len(epochs))
        for index, expert in enumerate(experts):
            weights = np.nan_to_num([values.get(WEIGHT, gate, expert) for values in history])
            if not weights.any():  # the gate does not use this expert
                continue
            axis.bar(epochs, weights, 0.94, bottom=below, linewidth=0, **_look(index))
            if weights[-1] > THINNEST_LABELLED:
                axis.text(1.01, below[-1] + weights[-1] / 2, expert, **_BESIDE, transform=axis.get_yaxis_transform())
            below += weights
        entropy = [values.get(ENTROPY, gate) for values in history]
        axis.plot(epochs, entropy, color="white", linewidth=4)
        axis.plot(epochs, entropy, color="black", linewidth=1.8, marker="o", markersize=4)
        axis.set_title(f"{place}gate of {_name(gate)}")
        axis.set_xlabel(f"epoch (line: entropy, now {entropy[-1]:.2f})")
        axis.set_ylabel("mean weight of each expert")
        axis.set_ylim(0, 1.03)
        axis.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        axis.set_xticks(epochs[:: -(-len(epochs) // MOST_EPOCHS_LABELLED)])
        axis.grid(False)
    for unused in axes[len(gates) :]:
        unused.remove()


def _draw_end(axes: np.ndarray, level: LevelValues, place: str, when: str) -> None:
    """Draws the three heat maps of the last epoch."""
    gates, experts, _ = drawn_of(level)
    names = [_name(gate) for gate in gates]
    shares = np.array([[level.get(SHARE, gate, expert) for expert in experts] for gate in gates])
    _draw_map(axes[0], shares, names, experts, "{:.0%}")
    axes[0].set_title(f"{place}arg-max share")
    axes[0].set_xlabel(f"expert (share of rows it leads in, {when})")
    _draw_map(axes[1], _pairs(level, GATES, gates), names, names, "{:.2f}")
    axes[1].set_title(f"{place}similarity of gates")
    axes[1].set_xlabel(f"gate (cosine, {when})")
    dead = [level.get(DEAD, expert) for expert in experts]
    rows = [
        f"{expert} ({share:.0%} dead)" if share > 0 else expert for expert, share in zip(experts, dead, strict=True)
    ]
    _draw_map(axes[2], _pairs(level, EXPERTS, experts), rows, experts, "{:.2f}")
    axes[2].set_title(f"{place}similarity of experts")
    axes[2].set_xlabel(f"expert (linear CKA, {when})")


def _pairs(level: LevelValues, name: str, members: list[str]) -> np.ndarray:
    """Returns the values of all pairs, [members, members]; NaN on the diagonal, which is left blank."""
    return np.array([[max(level.get(name, a, b), level.get(name, b, a), key=_known) for b in members] for a in members])


def _known(value: float) -> bool:
    return not math.isnan(value)


def _draw_map(axis: Axes, values: np.ndarray, rows: list[str], columns: list[str], form: str) -> None:
    """Draws a heat map from white (0) to blue (1), with the values in the cells if they fit."""
    axis.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    slant: dict[str, Any] = {"rotation": 25, "ha": "right"} if sum(map(len, columns)) > WIDEST_LABELS else {}
    crowded = len(columns) > MOST_CELLS_LABELLED
    every = -(-len(columns) // MOST_NAMES)
    axis.set_xticks(range(0, len(columns), every), columns[::every], fontsize=SMALLEST if crowded else SMALL, **slant)
    every = -(-len(rows) // MOST_NAMES)
    axis.set_yticks(range(0, len(rows), every), rows[::every], fontsize=SMALL)
    axis.tick_params(length=0)
    axis.grid(False)
    if not crowded:
        for (row, column), value in np.ndenumerate(values):
            if _known(value):
                colour = "white" if value > 0.6 else "black"
                axis.text(column, row, form.format(value), ha="center", va="center", fontsize=SMALL, color=colour)


def _name(gate: str) -> str:
    return gate if len(gate) <= LONGEST_NAME else f"{gate[: LONGEST_NAME - 3]}..."


def _look(index: int) -> dict[str, Any]:
    round_, colour = divmod(index, len(COLOURS))
    return {"color": COLOURS[colour], "alpha": FADING[round_ % len(FADING)]}


_BESIDE: dict[str, Any] = {"ha": "left", "va": "center", "fontsize": SMALL, "color": GREY}
