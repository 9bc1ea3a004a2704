"""Prints how far the metrics are from their definitions, over batch sizes and numbers of workers, as Markdown.

    python -m benchmarks.metric_exactness [--rows 2000]

The definitions are computed by brute force, in exact fractions: every pair of a positive and a negative row for AUC,
every placement of the positives among tied rows for MAP@12.
"""

import argparse
import sys

import numpy as np

from tests.trainer.metrics.evaluations import TestRows, evaluate
from tests.trainer.metrics.oracles import auc_over_all_pairs, log_loss_row_by_row, map_over_all_placements

METRICS = ("streaming_map_val", "auc_roc", "loss_val")


def make_rows(count: int) -> TestRows:
    """Groups of 1 to 60 rows, several positives in many, 60 different scores and so many ties, weights."""
    random = np.random.default_rng(12)
    sizes = random.integers(1, 61, count)
    group = random.permutation(np.repeat(np.arange(count), sizes)[:count])
    return TestRows(
        (random.integers(-30, 30, count) / 8).astype(np.float32),
        (random.random(count) < 0.2).astype(np.float32),
        random.choice([0, 0.25, 1, 3], count).astype(np.float32),
        group * 10**12,
    )


def splits(count: int) -> list[tuple[str, list[int]]]:
    """(what it is, where one worker's rows end and the next one's begin)."""
    even = [(str(workers), [worker * count // workers for worker in range(1, workers)]) for workers in (1, 2, 3, 4)]
    return [*even, ("4, two of them empty", [0, count // 3, count // 3])]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000, help="rows; the time grows with their square")
    rows = make_rows(parser.parse_args(argv).rows)
    counted = rows.counted
    exact = (
        map_over_all_placements(counted.logits, counted.labels, counted.group),
        auc_over_all_pairs(*counted[:3]),
        log_loss_row_by_row(*counted[:3]),
    )
    print("| workers | batch size | MAP@12 | ROC AUC | log loss | largest difference |")
    print("|---|---|---|---|---|---|")
    print("| brute force | | " + " | ".join(f"{value:.15f}" for value in exact) + " | |")
    for workers, borders in splits(len(rows.logits)):
        for batch_size in (1, 7, 256, None):
            result = evaluate(rows, borders=borders, batch_size=batch_size)
            values = [result[metric] for metric in METRICS]
            largest = max(abs(value - wanted) for value, wanted in zip(values, exact, strict=True))
            cells = [workers, str(batch_size or "all"), *(f"{value:.15f}" for value in values), f"{largest:.0e}"]
            print(f"| {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
