"""Prints how far the metrics are from their definitions, over batch sizes and numbers of workers, as Markdown.

    python -m benchmarks.metric_exactness [--rows 2000]

A line per split into workers, with the largest difference over batches of 1, 7 and 256 rows and of all at once. The
definitions are computed by brute force, in exact fractions where they need no logarithm: every pair of a positive and a
negative row for AUC, every placement of the positives among tied rows for MAP@12, every row's own search for its bin
for the calibration error. The regression's labels are random numbers, and the multiclass label has three classes.
"""

import argparse
import math
import sys
from collections.abc import Callable

import numpy as np

from tests.trainer.metrics import oracles
from tests.trainer.metrics.evaluations import TestRows, evaluate

BATCH_SIZES = (1, 7, 256, None)
Definition = Callable[[TestRows], float]
BINARY: dict[str, Definition] = {
    "loss_val": lambda rows: oracles.log_loss_row_by_row(*rows[:3]),
    "normalized_entropy": lambda rows: (
        oracles.log_loss_row_by_row(*rows[:3]) / oracles.entropy_of_labels(rows.labels, rows.weights)
    ),
    "auc_roc": lambda rows: oracles.auc_over_all_pairs(*rows[:3]),
    "pr_auc": lambda rows: oracles.average_precision_score_by_score(*rows[:3]),
    "gauc": lambda rows: oracles.auc_group_by_group(*rows),
    "streaming_map_val": lambda rows: oracles.map_over_all_placements(rows.logits, rows.labels, rows.group),
    "calibration": lambda rows: oracles.calibration_row_by_row(*rows[:3]),
    "calibration_error": lambda rows: oracles.calibration_error_bin_by_bin(*rows[:3]),
}
REGRESSION: dict[str, Definition] = {
    "rmse": lambda rows: math.sqrt(oracles.mean_error(*rows[:3], 2)),
    "mae": lambda rows: oracles.mean_error(*rows[:3], 1),
}
MULTICLASS: dict[str, Definition] = {
    "loss_val": lambda rows: oracles.softmax_loss_row_by_row(*rows[:3]),
    "normalized_entropy": lambda rows: (
        oracles.softmax_loss_row_by_row(*rows[:3]) / oracles.entropy_of_classes(rows.labels, rows.weights)
    ),
    "auc_roc": lambda rows: oracles.auc_class_by_class(*rows[:3]),
    "accuracy": lambda rows: oracles.accuracy_row_by_row(*rows[:3]),
}
DEFINITIONS = {"binary": BINARY, "regression": REGRESSION, "multiclass": MULTICLASS}


def make_rows(count: int) -> TestRows:
    """Draw groups of 1 to 60 rows, several positives in many, 60 different scores and so many ties, weights."""
    random = np.random.default_rng(12)
    sizes = random.integers(1, 61, count)
    group = random.permutation(np.repeat(np.arange(count), sizes)[:count])
    return TestRows(
        (random.integers(-30, 30, count) / 8).astype(np.float32),
        (random.random(count) < 0.2).astype(np.float32),
        random.choice([0, 0.25, 1, 3], count).astype(np.float32),
        group * 10**12,
    )


def rows_of_kinds(count: int) -> dict[str, TestRows]:
    """Return the same rows with labels, and for classes logits, of each kind of task."""
    rows, random = make_rows(count), np.random.default_rng(3)
    numbers = rows._replace(labels=random.standard_normal(count).astype(np.float32))
    classes = rows._replace(
        logits=(random.integers(-15, 15, (count, 3)) / 8).astype(np.float32),
        labels=random.choice(3, count, p=[0.7, 0.2, 0.1]).astype(np.float32),
    )
    return {"binary": rows, "regression": numbers, "multiclass": classes}


def splits(count: int) -> list[tuple[str, list[int]]]:
    """Return ways to split the rows: (what it is, where one worker's rows end and the next one's begin)."""
    even = [(str(workers), [worker * count // workers for worker in range(1, workers)]) for workers in (1, 2, 3, 4)]
    return [*even, ("4, two of them empty", [0, count // 3, count // 3])]


def table(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000, help="rows; the time grows with their square")
    rows = rows_of_kinds(parser.parse_args(argv).rows)
    exact = {
        (kind, key): definition(rows[kind].counted)
        for kind, definitions in DEFINITIONS.items()
        for key, definition in definitions.items()
    }
    table("workers", *(f"`{key}`" + (" of classes" if kind == "multiclass" else "") for kind, key in exact))
    table(*["---"] * (1 + len(exact)))
    table("brute force", *(f"{value:.12f}" for value in exact.values()))
    for workers, borders in splits(len(rows["binary"].logits)):
        differences = dict.fromkeys(exact, 0.0)
        for batch_size in BATCH_SIZES:
            found = {
                kind: evaluate(own, kind=kind, borders=borders, batch_size=batch_size) for kind, own in rows.items()
            }
            for (kind, key), value in exact.items():
                differences[kind, key] = max(differences[kind, key], abs(found[kind][key] - value))
        table(workers, *(f"{difference:.0e}" for difference in differences.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
