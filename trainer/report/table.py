"""Learning curves as text tables."""

import math
from collections.abc import Sequence

from trainer.logging.progress import format_count
from trainer.metrics.metric import Direction
from trainer.report.runs import Point, Run, metric_keys, training_loss
from trainer.tasks.evaluation import metric_of

MISSING = "-"
WIDEST = 120
LAST_RECORDS = 20
GAP = 2  # spaces between columns


def curve_table(run: Run) -> str:
    """Format one line per evaluation: step, epoch, training loss and metrics; `*` marks the best value of a metric.

    The training loss is the mean of the values logged since the previous evaluation. Columns that do not fit into
    WIDEST characters continue in another table. A run without evaluations shows its last training records.
    """
    points = run.evaluations or run.training[-LAST_RECORDS:]
    keys = metric_keys([run]) if run.evaluations else sorted(run.training[0].values)
    losses = training_loss(run) if run.evaluations else {}
    columns = [_column(points, key) for key in keys]
    if any(not math.isnan(loss) for loss in losses.values()):
        columns.insert(0, ["loss", *(_number("loss", losses.get(point.step or 0, math.nan)) for point in points)])
    steps = ["step", *(MISSING if point.step is None else f"{point.step:,}" for point in points)]
    epochs = ["epoch", *(MISSING if point.epoch is None else f"{point.epoch:.4g}" for point in points)]
    return "\n\n".join(_aligned(table) for table in _tables([steps, epochs], columns))


def best_of(key: str, values: Sequence[float]) -> float:
    """Return the best of a metric's values; NaN if there are none.

    For metrics unknown to this program the largest value is the best, except for losses.
    """
    default = Direction.SMALLER if key.split("/")[0] == "loss" else Direction.LARGER
    direction = metric_direction(key) or default
    best = math.nan
    for value in values:
        if direction.is_better(value, best):
            best = value
    return best


def metric_direction(key: str) -> Direction | None:
    """Return which values of a key are better; None for a key that is no metric of this program."""
    try:
        return metric_of(key).direction
    except ValueError:
        return None


def is_quality(key: str) -> bool:
    """Return whether a key measures the quality of the model, not speed or schedule."""
    return not key.endswith(("_throughput", "_ms", "samples_per_second", "batch_samplesps", "learning_rate"))


def _column(points: list[Point], key: str) -> list[str]:
    values = [point.values.get(key, math.nan) for point in points]
    known = [value for value in values if not math.isnan(value)]
    best = None
    if is_quality(key) and len(known) > 1 and min(known) < max(known):  # no mark if all values are equal
        best = best_of(key, known)
    return [key, *(_number(key, value) + ("*" if value == best else " ") for value in values)]


def _number(key: str, value: float) -> str:
    if math.isnan(value):
        return MISSING
    if not is_quality(key) and key != "learning_rate":
        return format_count(value)
    return f"{value:.5f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.3e}"


def _tables(left: list[list[str]], columns: list[list[str]]) -> list[list[list[str]]]:
    """Split the columns into tables of at most WIDEST characters that start with the columns `left`."""
    tables = [list(left)]
    for column in columns:
        if len(tables[-1]) > len(left) and sum(map(_width, [*tables[-1], column])) > WIDEST + GAP:
            tables.append(list(left))
        tables[-1].append(column)
    return tables


def _aligned(columns: list[list[str]]) -> str:
    lines = zip(*([cell.rjust(_width(column)) for cell in column] for column in columns), strict=True)
    return "\n".join("".join(line)[GAP:].rstrip() for line in lines)


def _width(column: list[str]) -> int:
    return max(map(len, column)) + GAP
