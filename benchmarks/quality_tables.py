"""What the runs of benchmarks/quality.py say: test metrics of every model, and ours against FuxiCTR's Wide & Deep."""

import math
import statistics
from collections.abc import Sequence

from benchmarks.harness import Line, markdown

# Metric -> heading, and whether more is better.
METRICS = {"auc": ("AUC", True), "log_loss": ("log loss", False)}
DIGITS = 4


def values(runs: Sequence[Line], dataset: str, model: str, metric: str, mapping: str = "test") -> list[float]:
    """Return the metric of a model's runs on a dataset."""
    return [run[mapping][metric] for run in runs if (run["dataset"], run["model"]) == (dataset, model)]


def best_on_valid(runs: Sequence[Line], dataset: str, models: Sequence[str], metric: str) -> str | None:
    """Return the model whose mean metric of the valid rows is the best; None if none has run."""
    means = {
        model: statistics.fmean(found)
        for model in models
        if (found := values(runs, dataset, model, metric, mapping="valid"))
    }
    _, more_is_better = METRICS[metric]
    best = max if more_is_better else min
    return best(means, key=means.__getitem__) if means else None


def advantage(ours: Sequence[float], theirs: Sequence[float], *, more_is_better: bool) -> tuple[float, float | None]:
    """Return by how much our mean is the better one, and its standard error; None with fewer than two runs on a side.

    Runs of both sides are independent: the variances of the two means add up (Welch).
    """
    difference = statistics.fmean(ours) - statistics.fmean(theirs)
    if min(len(ours), len(theirs)) < 2:
        error = None
    else:
        error = math.sqrt(sum(statistics.variance(side) / len(side) for side in (ours, theirs)))
    return difference if more_is_better else -difference, error


def results_table(runs: Sequence[Line], datasets: Sequence[str], models: Sequence[str]) -> str:
    """Format the test metrics of every dataset and model that have runs, as mean ± sample deviation."""
    rows = []
    for dataset in datasets:
        for model in models:
            cells = [values(runs, dataset, model, metric) for metric in METRICS]
            if cells[0]:
                rows.append([dataset, model, *map(spread, cells), str(len(cells[0]))])
    return markdown(["dataset", "model", *(f"test {heading}" for heading, _ in METRICS.values()), "seeds"], rows)


def comparison_table(runs: Sequence[Line], datasets: Sequence[str], ours: str, theirs: Sequence[str]) -> str:
    """Format our advantage on test rows over the best of the other models, which the valid rows choose per metric."""
    rows = []
    for dataset in datasets:
        for metric, (heading, more_is_better) in METRICS.items():
            own, best = values(runs, dataset, ours, metric), best_on_valid(runs, dataset, theirs, metric)
            if own and best is not None:
                other = values(runs, dataset, best, metric)
                better, error = advantage(own, other, more_is_better=more_is_better)
                errors = f"{better / error:+.1f}" if error else "–"
                rows.append([dataset, heading, spread(own), best, spread(other), f"{better:+.{DIGITS}f}", errors])
    headings = ["dataset", "metric", ours, "best on valid", "its test metric", "better by", "standard errors"]
    return markdown(headings, rows)


def spread(numbers: Sequence[float]) -> str:
    """Format mean ± sample deviation; only the mean of one number."""
    deviation = f" ± {statistics.stdev(numbers):.{DIGITS}f}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):.{DIGITS}f}{deviation}"
