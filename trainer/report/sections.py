"""The sections of the report page except for gates. Each function returns None if the runs have no data for it."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from trainer.logging.progress import format_count
from trainer.metrics.metric import Direction
from trainer.report.chart import COLOURS, Axis, Line, line_chart
from trainer.report.curves import MOST_PANELS, TITLES, Curve, drawn, only, top_of
from trainer.report.markup import Markup, breakable, element, joined, table
from trainer.report.runs import MEASURED, Point, Run, metric_keys
from trainer.report.table import best_of
from trainer.tasks.evaluation import metric_of

STEP_AXIS = Axis("step", low=0, show=format_count)
ALL_TASKS = "all tasks"
BREAKDOWN = {
    "wait_for_data_ms": "waiting for data",
    "compute_ms": "forward and backward pass",
    "communicate_ms": "exchange between workers",
    "update_ms": "update",
    "rest_ms": "all else",
}
ARROWS = {Direction.LARGER: "\N{UPWARDS ARROW}", Direction.SMALLER: "\N{DOWNWARDS ARROW}"}


def together(*parts: object) -> Markup | None:
    """Joins parts vertically; None if there are none."""
    held = [part for part in parts if part is not None]
    return joined(*held) if held else None


def charts(figures: Sequence[Markup | None], *above: object) -> Markup | None:
    """Arranges charts side by side, wrapped to the page width.

    Args:
        figures: the charts; None is omitted.
        *above: markup to show above the charts.

    Returns:
        The charts, or None if there are none.
    """
    held = [figure for figure in figures if figure is not None]
    return joined(*above, element("div", *held, class_="charts")) if held else None


def legend(names: Sequence[str], *, of: Sequence[str] = (), has_both_kinds: bool = False) -> Markup | None:
    """Creates a legend of colors and of line styles; None if there is nothing to distinguish.

    Args:
        names: names in the order of the colors.
        of: names to include; empty for all.
        has_both_kinds: whether there are lines of both training and evaluations.
    """
    entries = [
        element("li", element("span", class_=f"swatch b{number % COLOURS}"), name)
        for number, name in enumerate(names)
        if name in (of or names)
    ]
    if len(entries) < 2:
        entries = []
    if has_both_kinds:
        entries.append(element("li", element("span", class_="swatch thin"), "training"))
        entries.append(element("li", element("span", class_="swatch dotted"), "evaluation"))
    return element("ul", *entries, class_="legend") if entries else None


def note(text: str) -> Markup | None:
    """Creates a paragraph; None for an empty text."""
    return element("p", text) if text else None


def learning_curves(runs: list[Run]) -> Markup | None:
    """Charts of loss and metrics over steps: one per metric for a single run, one per metric and task for several."""
    panels, left_out = drawn(runs)
    both = len({curve.is_training for curves in panels.values() for curve in curves}) > 1
    if len(runs) == 1:
        tasks = list(dict.fromkeys(curve.task or ALL_TASKS for curves in panels.values() for curve in curves))
        figures = [_curves(TITLES.get(name, name), curves, tasks, "task") for name, curves in panels.items()]
        return charts(figures, note(left_out), legend(tasks, has_both_kinds=both))
    names = [run.name for run in runs]
    figures = []
    for name, curves in panels.items():
        for task in dict.fromkeys(curve.task for curve in curves):
            title = f"{TITLES.get(name, name)} of {task or ALL_TASKS}" if _has_tasks(panels) else TITLES.get(name, name)
            figures.append(_curves(title, [curve for curve in curves if curve.task == task], names, "run"))
    return charts(figures, note(left_out), legend(names, has_both_kinds=both))


def _has_tasks(panels: dict[str, list[Curve]]) -> bool:
    return any(curve.task for curves in panels.values() for curve in curves)


def _curves(title: str, curves: list[Curve], hues: list[str], hue: str) -> Markup | None:
    lines = [
        Line(
            name=curve.run if hue == "run" else curve.task,
            colour=hues.index(curve.run if hue == "run" else curve.task or ALL_TASKS),
            x=curve.steps,
            y=curve.values,
            is_thin=curve.is_training,
        )
        for curve in curves
    ]
    return line_chart(title, lines, STEP_AXIS, Axis(top=top_of(curves)))


def metrics(runs: list[Run]) -> Markup | None:
    """A table of the last values of all metrics: one column per task for a single run, one per run for several."""
    keys = [key for key in metric_keys(runs) if _is_metric(key)]
    if not keys:
        return None
    if len(runs) == 1:
        tasks = list(dict.fromkeys(key.partition("/")[2] for key in keys))
        names = list(dict.fromkeys(key.partition("/")[0] for key in keys))
        head: list[object] = ["metric", *(task or "value" for task in tasks)]
        rows = [
            [_metric(name), *(_of_run(runs[0], f"{name}/{task}" if task else name) for task in tasks)] for name in names
        ]
        explanation = "The last evaluation; below it the best one, where that was another."
    else:
        head = ["metric", *(run.name for run in runs)]
        rows = []
        for key in keys:
            lasts = [_last(run, key) for run in runs]
            best = best_of(key, lasts) if len(set(lasts)) > 1 else math.nan
            cells = [_of_run(run, key, is_best=last == best) for run, last in zip(runs, lasts, strict=True)]
            rows.append([_metric(key), *cells])
        explanation = (
            "The last evaluation of each run, the best run marked; below it the run's best, where that was another."
        )
    return joined(element("p", explanation), table(head, rows))


def _is_metric(key: str) -> bool:
    try:
        metric_of(key)
    except ValueError:
        return False
    return True


def _metric(key: str) -> Markup:
    return joined(element("code", breakable(key)), f" {ARROWS.get(metric_of(key).direction, '')}")


def _last(run: Run, key: str) -> float:
    known = [point.values[key] for point in run.evaluations if not math.isnan(point.values.get(key, math.nan))]
    return known[-1] if known else math.nan


def _of_run(run: Run, key: str, *, is_best: bool = False) -> Markup:
    """Returns the table cell of a run's metric: the last value, and the best one if it differs."""
    last = _last(run, key)
    if math.isnan(last):
        return element("td", "\N{EN DASH}", class_="none")
    best = best_of(key, [point.values.get(key, math.nan) for point in run.evaluations])
    when = next(point for point in run.evaluations if point.values.get(key) == best)
    earlier = None
    if best != last:
        earlier = element("small", f"{number(best)} at {_place(when)}")
    return element("td", number(last), earlier, class_="best" if is_best else None)


def _place(point: Point) -> str:
    return f"epoch {point.epoch:g}" if point.epoch is not None else f"step {point.step}"


def number(value: float) -> str:
    """Formats a metric with five decimals, or four significant digits if it is very small or large."""
    return f"{value:.5f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"


def throughput(runs: list[Run]) -> Markup | None:
    """Charts of samples per second, over the minutes of training or over the steps of a benchmark."""
    names = [run.name for run in runs]
    trained = [
        replace(_over_time(run, run.training, "samples_per_second", colour), is_thin=True)
        for colour, run in enumerate(runs)
    ]
    evaluated = [_over_time(run, run.evaluations, "validation_throughput", colour) for colour, run in enumerate(runs)]
    measured = [
        Line(run.name, colour, [point.step or 0 for point in run.measured], _values(run.measured, MEASURED))
        for colour, run in enumerate(runs)
    ]
    minutes, rate = Axis("minutes since the first record", low=0), Axis(low=0, show=format_count)
    figures = [
        line_chart("Training, samples per second", trained, minutes, rate),
        line_chart("Evaluation, samples per second", evaluated, minutes, rate),
        line_chart("Benchmark, samples per second", measured, Axis("step", show=format_count), rate),
    ]
    return charts(figures, legend(names))


def _over_time(run: Run, points: list[Point], key: str, colour: int) -> Line:
    start = min((point.at for point in (*run.training, *run.evaluations) if point.at is not None), default=0.0)
    placed = [point for point in points if point.at is not None and key in point.values]
    return Line(run.name, colour, [((point.at or 0.0) - start) / 60 for point in placed], _values(placed, key))


def _values(points: list[Point], key: str) -> list[float]:
    return [point.values[key] for point in points]


def step_breakdown(runs: list[Run]) -> Markup | None:
    """Bars of the time breakdown of steps, one per training and per benchmark."""
    steps: dict[str, dict[str, float]] = {}
    for run in runs:
        steps |= {f"{run.name}, training": _trained_parts(run), f"{run.name}, benchmark": _known_parts(run.final)}
    measured = {title: parts for title, parts in steps.items() if parts}
    note = (
        "Milliseconds of a step. Of a training: how long the first worker has waited for its batch and for the "
        "exchange, the other workers' lateness included, and all else, which is the passes and the update; medians of "
        "the log's records. A benchmark takes steps apart, and measures one part after the other."
    )
    if not measured:
        return None
    told = [name for key, name in BREAKDOWN.items() if any(key in parts for parts in measured.values())]
    key = legend(list(BREAKDOWN.values()), of=told)
    return together(element("p", note), key, *(_bar(title, parts) for title, parts in measured.items()))


def _trained_parts(run: Run) -> dict[str, float]:
    """Returns the milliseconds per training step by key of BREAKDOWN, as medians over the log records."""
    records = [point.values for point in run.training if "step_ms" in point.values]
    if not records:
        return {}
    # Medians, as single records contain outliers such as a recompilation.
    whole, *parts = (
        statistics.median(record.get(key, 0.0) for record in records)
        for key in ("step_ms", "wait_for_data_ms", "communicate_ms")
    )
    return _known_parts({"wait_for_data_ms": parts[0], "communicate_ms": parts[1], "rest_ms": whole - sum(parts)})


def _known_parts(values: Mapping[str, float]) -> dict[str, float]:
    """Returns the values of BREAKDOWN that are positive and finite, and can thus be drawn in a bar."""
    return {key: values[key] for key in BREAKDOWN if 0 < values.get(key, 0.0) < math.inf}


def _bar(title: str, parts: Mapping[str, float]) -> Markup:
    whole = sum(parts.values())
    pieces = [
        element(
            "span",
            f"{value:.3g}" if value / whole > 0.08 else None,
            class_=f"b{list(BREAKDOWN).index(key)}",
            style=f"flex-grow:{value / whole:.6f}",
            title=f"{BREAKDOWN[key]}: {value:.4g} ms, {value / whole:.1%}",
        )
        for key, value in parts.items()
    ]
    return joined(element("h3", f"{title}: {whole:.4g} ms"), element("div", *pieces, class_="bar"))


def calibration(runs: list[Run]) -> Markup | None:
    """Charts of the mean label over the mean prediction, one per task."""
    figures = []
    tasks = list(dict.fromkeys(task for run in runs for task in run.calibration))
    for task in tasks[:MOST_PANELS]:
        lines = [
            Line(run.name, colour, run.calibration[task]["prediction"], run.calibration[task]["label"])
            for colour, run in enumerate(runs)
            if task in run.calibration
        ]
        points = [value for line in lines for value in (*line.x, *line.y) if math.isfinite(value)]
        highest = max(points, default=1.0)
        axes = Axis("mean prediction", low=0, high=highest), Axis(low=0, high=highest)
        figures.append(line_chart(f"Mean label of {task}" if task else "Mean label", lines, *axes, diagonal=True))
    explanation = (
        "The rows of the last evaluation in twenty bins of equal weight, by rising prediction. On the dashed line the "
        "model predicts what happens; below it, too much."
    )
    left_out = note(only(len(figures), len(tasks), "tasks"))
    return charts(figures, element("p", explanation), left_out, legend([run.name for run in runs]))


def configuration(runs: list[Run]) -> Markup | None:
    """Tables of the flags, with those that differ between runs first."""
    names = list(dict.fromkeys(name for run in runs for name in run.parameters))
    if not names:
        return None
    head: list[object] = ["flag", *(run.name for run in runs)] if len(runs) > 1 else ["flag", "value"]
    rows = {name: [_flag(run.parameters, name) for run in runs] for name in names}
    differing = [name for name, values in rows.items() if len(set(values)) > 1]
    equal = [name for name, values in rows.items() if len(set(values)) == 1]

    def flags(chosen: list[str]) -> Markup:
        return table(head, [[element("code", breakable(f"--{name}")), *rows[name]] for name in chosen], class_="flags")

    parts = []
    if differing:
        parts += [element("h3", "In which the runs differ"), flags(differing)]
    if equal:
        title = f"{len(equal)} flags that all runs have in common" if len(runs) > 1 else f"{len(equal)} flags"
        parts.append(element("details", element("summary", title), flags(equal)))
    return together(*parts)


def _flag(parameters: dict[str, Any], name: str) -> str:
    if name not in parameters:
        return "\N{EN DASH}"
    value = parameters[name]
    try:
        return value if isinstance(value, str) else json.dumps(value)
    except RecursionError:  # nested so deeply that it could be read but not written
        return "\N{HORIZONTAL ELLIPSIS}"
