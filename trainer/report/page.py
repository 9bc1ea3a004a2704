"""The report as a self-contained HTML page, without scripts or network access.

A section is a function in SECTIONS that returns blocks for the template page.html: pairs of a kind ("text", "heading",
"legend", "charts", "table", "heatmaps", "bars", "details") and its contents. The template escapes all but charts.
"""

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data.storage.files import write_whole
from trainer.importance_file import Effect, TaskImportance
from trainer.logging.gate_records import (
    ARGMAX_SHARE,
    DEAD_UNITS,
    EXPERT_SIMILARITY,
    GATE_SIMILARITY,
    WEIGHT,
    LevelRecord,
)
from trainer.logging.progress import format_count
from trainer.metrics.metric import Direction
from trainer.report.curves import (
    ALL_TASKS,
    UNCALIBRATED,
    Chart,
    calibration_charts,
    drawn_members,
    learning_charts,
    split_by_task,
    throughput_charts,
)
from trainer.report.gates import draw_gate, epochs_of, levels_of, pairs
from trainer.report.importance import MOST_FEATURES, chart_inches, draw_importance, metric_title
from trainer.report.outputs import TITLE
from trainer.report.plots import COLORS, INLINE_INCHES, Key, chart_svg, has_both_kinds, panel_svg
from trainer.report.runs import Point, Run, metric_keys, on_one_line
from trainer.report.table import best_of, metric_direction

Block = tuple[str, Any]

DASH = "\N{EN DASH}"
ARROWS = {
    Direction.LARGER: "\N{UPWARDS ARROW}",
    Direction.SMALLER: "\N{DOWNWARDS ARROW}",
    Direction.NEAREST_1: "",
}
BREAKDOWN = {
    "wait_for_data_ms": "waiting for data",
    "compute_ms": "forward and backward pass",
    "communicate_ms": "exchange between workers",
    "update_ms": "update",
    "rest_ms": "everything else",
}


class Cell(NamedTuple):
    """A table cell: its text, smaller text below it, a CSS class, and how strongly it is shaded (0 to 1)."""

    text: str
    note: str = ""
    css: str = ""
    shade: float = 0.0


class Table(NamedTuple):
    """A table, whose first cell in each row is the row's header."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    css: str = ""
    title: str = ""


def write_page(runs: list[Run], path: Path) -> None:
    """Write the page of the given runs.

    Raises:
        OSError: if the file cannot be written.
    """
    write_whole(path, page(runs))


def page(runs: list[Run]) -> str:
    """Return the HTML page of a single run, or of several runs side by side."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = {name: section(runs) for name, section in SECTIONS.items()}
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    return environment.get_template("page.html").render(
        title=f"{TITLE}{title}",
        summary=_summary(runs),
        sections={name: blocks for name, blocks in sections.items() if blocks},
    )


def _summary(runs: list[Run]) -> Table:
    head = ["run", "model", "dataset", "global batch", "steps", "epochs"]
    flags = ("model", "dataset_path", "global_batch_size")
    return Table(
        head, [[run.name, *(_flag(run, name) for name in flags), *_steps_and_epochs(run)] for run in runs], "summary"
    )


def _steps_and_epochs(run: Run) -> list[str]:
    last = max((*run.training, *run.evaluations), key=lambda point: point.step or 0)
    return [format_count(last.step) if last.step else DASH, DASH if last.epoch is None else f"{last.epoch:.3g}"]


def _learning_curves(runs: list[Run]) -> list[Block]:
    """Return charts of loss and metrics over steps: one per metric for one run, one per metric and task for several."""
    charts, note = learning_charts(runs)
    key = Key.of(runs, charts)
    if len(runs) > 1:
        charts, key = split_by_task(charts), Key(key.runs)
    return _charts(charts, key, note)


def _throughput(runs: list[Run]) -> list[Block]:
    return _charts(throughput_charts(runs), Key([run.name for run in runs]))


def _calibration(runs: list[Run]) -> list[Block]:
    charts, note = calibration_charts(runs)
    explanation = (
        "The rows of the last evaluation in twenty bins of equal weight, by increasing prediction. On the dashed line "
        "predictions are right on average; below it they are too high."
    )
    key = Key.of(runs, charts)
    if UNCALIBRATED in key.tasks:
        explanation += " Where a calibrator is applied, there is a second curve without it"
        explanation += ", which is dashed." if len(runs) > 1 else "."
        explanation += " The rows that it was fitted on (those of the evaluation in training) show it too favourably."
    return _charts(charts, key, explanation, note)


def _slices(runs: list[Run]) -> list[Block]:
    """Return a table per run, column and task: the metrics of each slice with their standard errors."""
    blocks: list[Block] = []
    for run in runs:
        tables: dict[str, list[dict[str, Any]]] = {}
        for one in run.slices:
            title = f"{one['column']}, {one['task']}"
            tables.setdefault(title if len(runs) == 1 else f"{run.name}: {title}", []).append(one)
        for title, lines in tables.items():
            names = list(dict.fromkeys(name for line in lines for name in line["metrics"]))
            head = [lines[0]["column"], "rows", "positives", *(f"{name} {_arrow(name)}" for name in names)]
            blocks += [("heading", title), ("table", Table(head, [_slice(line, names) for line in lines], "names"))]
    text = "The last evaluation by the value of a column, with standard errors where a metric has one."
    return [("text", text), *blocks] if blocks else []


def _slice(line: Mapping[str, Any], names: Sequence[str]) -> list[str | Cell]:
    counts = [f"{line[key]:,}" if key in line else DASH for key in ("rows", "positives")]
    cells = []
    for name in names:
        value, error = (line[part].get(name, math.nan) for part in ("metrics", "standard_errors"))
        note = "" if math.isnan(error) else f"\N{PLUS-MINUS SIGN} {error:.2g}"
        cells.append(Cell(DASH, css="none") if math.isnan(value) else Cell(_number(value), note))
    return [line["value"], *counts, *cells]


def _arrow(name: str) -> str:
    direction = metric_direction(name)
    return "" if direction is None else ARROWS[direction]


def _charts(charts: Sequence[Chart], key: Key, *texts: str) -> list[Block]:
    if not charts:
        return []
    entries = [(color, name or ALL_TASKS) for name, color in key.colors.items()] if len(key.colors) > 1 else []
    legend = {"colors": entries, "has_both_kinds": has_both_kinds(charts)}
    return [
        *(("text", text) for text in texts if text),
        ("legend", legend),
        ("charts", [chart_svg(chart, key) for chart in charts]),
    ]


def _metrics(runs: list[Run]) -> list[Block]:
    """Return a table of the last values of all metrics: a column per task for one run, a column per run for several."""
    arrows = {key: ARROWS[direction] for key in metric_keys(runs) if (direction := metric_direction(key))}
    if not arrows:
        return []
    rows: list[list[str | Cell]]
    if len(runs) > 1:
        text = "The last evaluation of each run, the best run marked; below it the run's best if it was another one."
        head = ["metric", *(run.name for run in runs)]
        rows = [[f"{key} {arrow}", *_compared(runs, key)] for key, arrow in arrows.items()]
    else:
        text = "The last evaluation; below it the best one if it was another one."
        tasks = list(dict.fromkeys(key.partition("/")[2] for key in arrows))
        head = ["metric", *(task or "value" for task in tasks)]
        rows = [
            [f"{name} {arrow}", *(_value(runs[0], f"{name}/{task}" if task else name) for task in tasks)]
            for name, arrow in {key.partition("/")[0]: arrow for key, arrow in arrows.items()}.items()
        ]
    return [("text", text), ("table", Table(head, rows, "names"))]


def _compared(runs: list[Run], key: str) -> list[Cell]:
    lasts = [_last(run, key) for run in runs]
    best = best_of(key, lasts) if len(set(lasts)) > 1 else math.nan
    return [_value(run, key, css="best" if last == best else "") for run, last in zip(runs, lasts, strict=True)]


def _last(run: Run, key: str) -> float:
    known = [point.values[key] for point in run.evaluations if not math.isnan(point.values.get(key, math.nan))]
    return known[-1] if known else math.nan


def _value(run: Run, key: str, css: str = "") -> Cell:
    """Return the cell of a run's metric: the last value, and the best one if it differs."""
    last = _last(run, key)
    if math.isnan(last):
        return Cell(DASH, css="none")
    best = best_of(key, [point.values.get(key, math.nan) for point in run.evaluations])
    when = next(point for point in run.evaluations if point.values.get(key) == best)
    return Cell(_number(last), f"{_number(best)} at {_time(when)}" if best != last else "", css)


def _time(point: Point) -> str:
    return f"epoch {point.epoch:g}" if point.epoch is not None else f"step {point.step}"


def _number(value: float) -> str:
    return f"{value:.5f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"


def _step_breakdown(runs: list[Run]) -> list[Block]:
    """Return bars of the time breakdown of steps, one per training and per benchmark."""
    steps: dict[str, dict[str, float]] = {}
    for run in runs:
        steps |= {f"{run.name}, training": _training_step(run), f"{run.name}, benchmark": _drawable(run.final)}
    steps = {title: parts for title, parts in steps.items() if parts}
    if not steps:
        return []
    text = (
        "Milliseconds per step. Training: how long the first worker waited for its batch and for the exchange "
        "(including slower workers); everything else is the forward and backward pass and the update; medians over the "
        "log's records. Benchmark: the parts of a step, measured one after the other."
    )
    colors = dict(zip(BREAKDOWN, COLORS, strict=False))
    used = [key for key in BREAKDOWN if any(key in parts for parts in steps.values())]
    legend = {"colors": [(colors[key], BREAKDOWN[key]) for key in used], "has_both_kinds": False}
    bars = [_bar(title, parts, colors) for title, parts in steps.items()]
    return [("text", text), ("legend", legend), ("bars", bars)]


def _training_step(run: Run) -> dict[str, float]:
    """Return the milliseconds per training step by key of BREAKDOWN, as medians over the log records."""
    records = [point.values for point in run.training if "step_ms" in point.values]
    if not records:
        return {}
    # Medians, as single records contain outliers such as a recompilation.
    whole, data, exchange = (
        statistics.median(record.get(key, 0.0) for record in records)
        for key in ("step_ms", "wait_for_data_ms", "communicate_ms")
    )
    return _drawable({"wait_for_data_ms": data, "communicate_ms": exchange, "rest_ms": whole - data - exchange})


def _drawable(values: Mapping[str, float]) -> dict[str, float]:
    """Return the values of BREAKDOWN that are positive and finite, and can thus be drawn in a bar."""
    return {key: values[key] for key in BREAKDOWN if 0 < values.get(key, 0.0) < math.inf}


def _bar(title: str, parts: Mapping[str, float], colors: Mapping[str, str]) -> dict[str, Any]:
    whole = sum(parts.values())
    pieces = [
        {
            "color": colors[key],
            "share": f"{value / whole:.6f}",
            "label": f"{value:.3g}" if value / whole > 0.08 else "",
            "tooltip": f"{BREAKDOWN[key]}: {value:.4g} ms, {value / whole:.1%}",
        }
        for key, value in parts.items()
    ]
    return {"title": f"{title}: {whole:.4g} ms", "pieces": pieces}


def _gates(runs: list[Run]) -> list[Block]:
    """Return the gates of each run: their development over epochs, and their state at the last evaluation."""
    blocks: list[Block] = []
    for run in runs:
        levels = levels_of(run)
        if levels and len(runs) > 1:
            blocks.append(("heading", run.name))
        for level, history in levels:
            gates, experts, note = drawn_members(history[-1])
            epochs = epochs_of(run)
            panels = [
                panel_svg(partial(draw_gate, gate=gate, history=history, epochs=epochs, level=level), f"{level}{gate}")
                for gate in gates
            ]
            blocks += [("text", note)] if note else []
            blocks += [("charts", panels), ("heatmaps", _heatmaps(history[-1], gates, experts, level))]
    return blocks


def _heatmaps(record: LevelRecord, gates: list[str], experts: list[str], level: str) -> list[Table]:
    """Return tables of the last evaluation with cells shaded by value."""
    weights, shares = (
        [[record.get(name, gate, expert) for expert in experts] for gate in gates] for name in (WEIGHT, ARGMAX_SHARE)
    )
    dead = [[record.get(DEAD_UNITS, expert) for expert in experts]]
    maps: list[tuple[str, list[str], list[str], Any]] = [
        ("mean weight", gates, experts, weights),
        ("share of rows in which the expert leads", gates, experts, shares),
        ("dead units", ["share"], experts, dead),
        ("similarity of gates (cosine)", gates, gates, pairs(record, GATE_SIMILARITY, gates)),
        ("similarity of experts (CKA)", experts, experts, pairs(record, EXPERT_SIMILARITY, experts)),
    ]
    return [
        Table(
            ["", *columns],
            [[row, *map(_shaded, line)] for row, line in zip(rows, values, strict=True)],
            "heatmap",
            f"{level}{title}",
        )
        for title, rows, columns, values in maps
        if title != "similarity of gates (cosine)" or len(gates) > 1
    ]


def _shaded(value: float) -> Cell:
    return Cell("", css="none") if math.isnan(value) else Cell(f"{value:.2f}", shade=min(max(value, 0.0), 1.0))


def _importance(runs: list[Run]) -> list[Block]:
    """Return what permuting each feature does to the metrics: a chart and a table per task."""
    blocks: list[Block] = []
    for run in runs:
        found = run.importance
        if found is None:
            continue
        blocks += [("heading", run.name)] if len(runs) > 1 else []
        text = (
            f"Metrics with one feature permuted across the rows, minus those of the intact rows: {found.rows:,} of the "
            f"{found.mapping_rows:,} rows of mapping {on_one_line(found.mapping)}. Bars are standard errors."
        )
        if len(found.tasks[0].features) > MOST_FEATURES:
            text += f" The charts show the {MOST_FEATURES} most important features."
        panels = [
            panel_svg(
                partial(draw_importance, task=task),
                f"Importance for {on_one_line(task.task)}",
                (INLINE_INCHES[0], chart_inches(task)),
            )
            for task in found.tasks
        ]
        blocks += [("text", text), ("charts", panels)]
        blocks += [("details", _effects(task)) for task in found.tasks]
    return blocks


def _effects(task: TaskImportance) -> Table:
    """Return the table of all features of a task, the most important one first."""
    rows: list[list[str | Cell]] = [
        [on_one_line(feature.feature), *(_effect(feature.effects[name]) for name in task.intact)]
        for feature in task.features
    ]
    head = ["feature", *(f"change of {metric_title(name)}" for name in task.intact)]
    return Table(head, rows, "names", f"{len(rows)} features of {on_one_line(task.task)}")


def _effect(effect: Effect) -> Cell:
    if effect.change is None:
        return Cell(DASH, css="none")
    error = DASH if effect.standard_error is None else f"{effect.standard_error:.2g}"
    return Cell(f"{effect.change:+.5f}", f"standard error {error}")


def _configuration(runs: list[Run]) -> list[Block]:
    """Return tables of the flags, with those that differ between runs first."""
    head = ["flag", *(run.name for run in runs)] if len(runs) > 1 else ["flag", "value"]
    names = dict.fromkeys(name for run in runs for name in run.parameters)
    rows = [[f"--{on_one_line(name)}", *(_flag(run, name) for run in runs)] for name in names]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    equal = [row for row in rows if len(set(row[1:])) == 1]
    blocks: list[Block] = []
    if differing:
        blocks += [("heading", "Differences"), ("table", Table(head, differing, "names flags"))]
    if equal:
        title = f"{len(equal)} flags that are equal in all runs" if len(runs) > 1 else f"{len(equal)} flags"
        blocks.append(("details", Table(head, equal, "names flags", title)))
    return blocks


def _flag(run: Run, name: str) -> str:
    if name not in run.parameters:
        return DASH
    value = run.parameters[name]
    try:
        return on_one_line(value if isinstance(value, str) else json.dumps(value))
    except RecursionError:  # nested so deeply that it could be read but not written
        return "\N{HORIZONTAL ELLIPSIS}"


# To add a section, write a function that returns its blocks, or none for runs without data for it.
SECTIONS: dict[str, Callable[[list[Run]], list[Block]]] = {
    "Learning curves": _learning_curves,
    "Metrics": _metrics,
    "Calibration": _calibration,
    "Slices": _slices,
    "Throughput": _throughput,
    "Step breakdown": _step_breakdown,
    "Gates and experts": _gates,
    "Feature importance": _importance,
    "Configuration": _configuration,
}
