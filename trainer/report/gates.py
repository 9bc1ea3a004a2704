"""Plots of gates and experts: their development over epochs, and their final state."""

import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data.errors import DataError
from trainer.logging.gate_records import (
    ARGMAX_SHARE,
    DEAD_UNITS,
    ENTROPY,
    EXPERT_SIMILARITY,
    GATE_SIMILARITY,
    WEIGHT,
    LevelRecord,
    histories,
)
from trainer.logging.log import warn
from trainer.report.curves import drawn_members
from trainer.report.plots import COLORS, DPI, GREY, PANELS_PER_ROW, PIXELS, STYLE, save
from trainer.report.runs import Run, read_run

ROW_INCHES = 3.1
FADING = (1.0, 0.55, 0.25)  # opacity of each repetition of the colors
THINNEST_LABELLED = 0.06
MAX_CELLS_LABELLED = 8
MAX_EPOCHS_LABELLED = 10
MAX_NAMES = 32  # tick labels along each side of a heat map
LONGEST_NAME = 24
WIDEST_LABELS = 36  # total characters of the labels below a heat map, beyond which they are rotated
SMALL, SMALLEST = 8.5, 7


def draw_gates_of_run(results_dir: Path, log_filename: str) -> None:
    """Draw the gates of all epochs in the log of a model with gates.

    Failures are only reported: the trained model matters more than its picture.
    """
    try:
        for path in draw_gates(read_run(results_dir, "", log_filename), results_dir):
            print(f"gates: {path}", flush=True)
    except (DataError, OSError) as error:
        warn(f"the gates could not be drawn: {error}")


def draw_gates(run: Run, folder: Path, name: str = "gates") -> list[Path]:
    """Plot the gates of a run as PNG (1280 pixels wide) and SVG.

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
    levels = levels_of(run)
    if not levels:
        return []
    epochs = epochs_of(run)
    members = [drawn_members(history[-1]) for _, history in levels]
    heights = [-(-len(gates) // PANELS_PER_ROW) + 1 for gates, _, _ in members]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(PIXELS / DPI, sum(heights) * ROW_INCHES), dpi=DPI, layout="constrained")
        rows = iter(figure.subplots(sum(heights), PANELS_PER_ROW, squeeze=False))
        for (level, history), (gates, _, _), height in zip(levels, members, heights, strict=True):
            panels = np.concatenate([next(rows) for _ in range(height - 1)])
            for axis, gate in zip(panels, gates, strict=False):
                draw_gate(axis, gate, history, epochs, level)
            for unused in panels[len(gates) :]:
                unused.remove()
            _draw_last(next(rows), history[-1], level, f"epoch {epochs[-1]:g}")
        if note := " ".join(dict.fromkeys(note for _, _, note in members if note)):
            figure.supxlabel(note, fontsize=SMALL, color=GREY)
        return save(figure, folder, name)


def levels_of(run: Run) -> list[tuple[str, tuple[LevelRecord, ...]]]:
    """Return each level's history over the records, after a prefix for titles that names one of several levels."""
    levels = histories([point.values for point in run.gates])
    return [(f"level {number}: " if len(levels) > 1 else "", history) for number, history in enumerate(levels, start=1)]


def epochs_of(run: Run) -> list[float]:
    """Return the epochs of the run's records on gates."""
    return [point.epoch or float(number) for number, point in enumerate(run.gates, start=1)]


def draw_gate(axis: Axes, gate: str, history: tuple[LevelRecord, ...], epochs: list[float], level: str) -> None:
    """Draw stacked bars of the experts' mean weights in a gate by epoch, and a line of the gate's entropy."""
    _, experts, _ = drawn_members(history[-1])
    bottom = np.zeros(len(epochs))
    for index, expert in enumerate(experts):
        weights = np.nan_to_num([record.get(WEIGHT, gate, expert) for record in history])
        if not weights.any():  # the gate does not use this expert
            continue
        fading, color = divmod(index, len(COLORS))
        alpha = FADING[fading % len(FADING)]
        axis.bar(epochs, weights, 0.94, bottom=bottom, linewidth=0, color=COLORS[color], alpha=alpha)
        if weights[-1] > THINNEST_LABELLED:
            beside: dict[str, Any] = {
                "transform": axis.get_yaxis_transform(),
                "ha": "left",
                "va": "center",
                "fontsize": SMALL,
            }
            axis.text(1.01, bottom[-1] + weights[-1] / 2, expert, color=GREY, **beside)
        bottom += weights
    entropy = [record.get(ENTROPY, gate) for record in history]
    axis.plot(epochs, entropy, color="white", linewidth=4)
    axis.plot(epochs, entropy, color="black", linewidth=1.8, marker="o", markersize=4)
    axis.set_title(f"{level}gate of {_short(gate)}")
    axis.set_xlabel(f"epoch (line: entropy, now {entropy[-1]:.2f})")
    axis.set_ylabel("mean weight of each expert")
    axis.set_ylim(0, 1.03)
    axis.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    axis.set_xticks(epochs[:: -(-len(epochs) // MAX_EPOCHS_LABELLED)])
    axis.grid(False)


def pairs(record: LevelRecord, name: str, members: list[str]) -> np.ndarray:
    """Return the values of all pairs, [members, members], which are logged once per pair; NaN on the diagonal."""
    values = np.array([[record.get(name, a, b) for b in members] for a in members])
    return np.where(np.isnan(values), values.T, values)


def _draw_last(axes: np.ndarray, record: LevelRecord, level: str, when: str) -> None:
    """Draw the three heat maps of the last epoch."""
    gates, experts, _ = drawn_members(record)
    names = [_short(gate) for gate in gates]
    shares = np.array([[record.get(ARGMAX_SHARE, gate, expert) for expert in experts] for gate in gates])
    _draw_map(axes[0], shares, names, experts, "{:.0%}")
    axes[0].set_title(f"{level}arg-max share")
    axes[0].set_xlabel(f"expert (share of rows it leads in, {when})")
    _draw_map(axes[1], pairs(record, GATE_SIMILARITY, gates), names, names, "{:.2f}")
    axes[1].set_title(f"{level}similarity of gates")
    axes[1].set_xlabel(f"gate (cosine, {when})")
    dead = {expert: record.get(DEAD_UNITS, expert) for expert in experts}
    rows = [f"{expert} ({share:.0%} dead)" if share > 0 else expert for expert, share in dead.items()]
    _draw_map(axes[2], pairs(record, EXPERT_SIMILARITY, experts), rows, experts, "{:.2f}")
    axes[2].set_title(f"{level}similarity of experts")
    axes[2].set_xlabel(f"expert (linear CKA, {when})")


def _draw_map(axis: Axes, values: np.ndarray, rows: list[str], columns: list[str], number_format: str) -> None:
    """Draw a heat map from white (0) to blue (1), with the values in the cells if they fit."""
    axis.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    slant: dict[str, Any] = {"rotation": 25, "ha": "right"} if sum(map(len, columns)) > WIDEST_LABELS else {}
    crowded = len(columns) > MAX_CELLS_LABELLED
    every = -(-len(columns) // MAX_NAMES)
    axis.set_xticks(range(0, len(columns), every), columns[::every], fontsize=SMALLEST if crowded else SMALL, **slant)
    every = -(-len(rows) // MAX_NAMES)
    axis.set_yticks(range(0, len(rows), every), rows[::every], fontsize=SMALL)
    axis.tick_params(length=0)
    axis.grid(False)
    if not crowded:
        for (row, column), value in np.ndenumerate(values):
            if not math.isnan(value):
                label: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": SMALL}
                axis.text(column, row, number_format.format(value), color="white" if value > 0.6 else "black", **label)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."
