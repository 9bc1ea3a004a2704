"""The section of the report page on gates and experts."""

import math

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
from trainer.report.chart import Axis, Line, line_chart
from trainer.report.curves import drawn_of
from trainer.report.markup import Markup, element, joined, table
from trainer.report.runs import Run
from trainer.report.sections import charts, legend, note, together

SHARE_AXIS = Axis(low=0, high=1)


def gate_health(runs: list[Run]) -> Markup | None:
    """Shows the gates of each run: their development over epochs, and their state at the last evaluation."""
    parts = []
    for run in runs:
        if run.gates:
            if len(runs) > 1:
                parts.append(element("h3", run.name))
            levels = histories([point.values for point in run.gates])
            epochs = [point.epoch or float(count) for count, point in enumerate(run.gates, start=1)]
            for count, history in enumerate(levels, start=1):
                parts += _level(history, epochs, f"Level {count}: " if len(levels) > 1 else "")
    return together(*parts)


def _level(history: tuple[LevelValues, ...], epochs: list[float], place: str) -> list[Markup]:
    """Returns the charts and tables of a level of experts."""
    gates, experts, left_out = drawn_of(history[-1])
    x = Axis("epoch", low=min(epochs), high=max(epochs))
    entropy = [
        Line(gate, colour, epochs, [values.get(ENTROPY, gate) for values in history])
        for colour, gate in enumerate(gates)
    ]
    weights = [
        line_chart(
            f"{place}Gate of {gate}, mean weights",
            [
                Line(f"expert {expert}", colour, epochs, [values.get(WEIGHT, gate, expert) for values in history])
                for colour, expert in enumerate(experts)
            ],
            x,
            SHARE_AXIS,
        )
        for gate in gates
    ]
    parts = [
        note(left_out),
        charts([line_chart(f"{place}Entropy of the gates", entropy, x, SHARE_AXIS)], legend(gates)),
        charts(weights, legend([f"expert {expert}" for expert in experts])),
        element("div", *_maps(history[-1], gates, experts, place), class_="maps"),
    ]
    return [part for part in parts if part is not None]


def _maps(level: LevelValues, gates: list[str], experts: list[str], place: str) -> list[Markup]:
    """Returns tables of the last evaluation with cells colored by value."""
    dead = [level.get(DEAD, expert) for expert in experts]
    maps = [
        _map(f"{place}Mean weight", gates, experts, [[level.get(WEIGHT, g, e) for e in experts] for g in gates]),
        _map(f"{place}Share of rows led", gates, experts, [[level.get(SHARE, g, e) for e in experts] for g in gates]),
        _map(f"{place}Dead units", ["share"], experts, [dead]),
    ]
    if len(gates) > 1:
        maps.append(_map(f"{place}Similarity of gates (cosine)", gates, gates, _pairs(level, GATES, gates)))
    maps.append(_map(f"{place}Similarity of experts (CKA)", experts, experts, _pairs(level, EXPERTS, experts)))
    return maps


def _pairs(level: LevelValues, name: str, members: list[str]) -> list[list[float]]:
    """Returns the symmetric matrix of values of pairs, which are logged once per pair; NaN on the diagonal."""
    known = [[level.get(name, a, b) for b in members] for a in members]
    return [[known[b][a] if math.isnan(value) else value for b, value in enumerate(row)] for a, row in enumerate(known)]


def _map(title: str, rows: list[str], columns: list[str], values: list[list[float]]) -> Markup:
    lines = [[row, *(_cell(value) for value in line)] for row, line in zip(rows, values, strict=True)]
    return element("div", joined(element("h4", title), table(["", *columns], lines, class_="map")))


def _cell(value: float) -> Markup:
    if math.isnan(value):
        return element("td", "", class_="none")
    share = min(max(value, 0.0), 1.0)
    return element("td", f"{value:.2f}", style=f"--share:{100 * share:.0f}%")
