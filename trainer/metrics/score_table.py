"""A table of the distinct scores of a binary task's rows, which several metrics share."""

from abc import abstractmethod
from typing import NamedTuple

import numpy as np

from trainer.metrics.metric import Collectives, Metric
from trainer.metrics.rows import Rows
from trainer.metrics.sorting import exchange_columns, rising_key, run_starts, score_of_key, splitters, sum_runs

MASS_OF_LARGEST = 2**22  # mass of the heaviest row; float64 sums of up to 2 ** 31 such rows are exact


class ScoreTable(NamedTuple):
    """One line per distinct score, by increasing score.

    Attributes:
        scores: [scores] float32.
        positive: [scores] float64, weight of the rows with label 1.
        negative: [scores] float64, weight of the rows with label 0.
        mass: [scores] float64, weight of all rows, each rounded to an integer multiple of the largest weight
            / MASS_OF_LARGEST and counted in such units; sums are exact in any order.
    """

    scores: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    mass: np.ndarray


class ScoreMetric(Metric):
    """A metric that is computed from the score table. An evaluation builds the table once for all of them."""

    def result(self, rows: Rows, comm: Collectives) -> float:
        """Computes the metric over the rows of all workers, with the memory of score_table. A collective."""
        return self.of_table(score_table(rows, comm), rows, comm)

    @abstractmethod
    def of_table(self, table: ScoreTable, rows: Rows, comm: Collectives) -> float:
        """Computes the metric from the score table of the rows. A collective."""


def score_table(rows: Rows, comm: Collectives) -> ScoreTable:
    """Builds this worker's part of the table of all rows. A collective.

    Parts are in rank order, no score is in two of them, and workers get about equally many lines (at most an eighth
    more, plus one per worker). Takes about 60 bytes per row while it runs, up to 140 with several workers, less if
    scores are tied; a line of the table takes 28.
    """
    largest = comm.gather_rows(rows.weights.max(initial=0, keepdims=True)).max()
    table = _tabulate(rows, float(largest))
    return table if comm.size == 1 else _share_by_score(table, comm)


def _tabulate(rows: Rows, largest_weight: float) -> ScoreTable:
    """Builds this worker's own table."""
    # Score, weight and label in one integer, since sorting those is fast. The label is the sign of the weight.
    packed = rising_key(rows.logits).astype(np.uint64)
    packed <<= np.uint64(32)
    packed |= np.where(rows.labels > 0, -rows.weights, rows.weights).view(np.uint32)
    packed.sort()
    keys = (packed >> np.uint64(32)).astype(np.uint32)
    signed_weights = packed.astype(np.uint32).view(np.float32)
    del packed
    starts = run_starts(keys)
    return ScoreTable(
        score_of_key(keys[starts]),
        sum_runs(np.maximum(-signed_weights, 0), starts, np.float64),
        sum_runs(np.maximum(signed_weights, 0), starts, np.float64),
        sum_runs(np.rint(np.abs(signed_weights) / np.float64(largest_weight) * MASS_OF_LARGEST), starts, np.float64),
    )


def _share_by_score(table: ScoreTable, comm: Collectives) -> ScoreTable:
    """Returns this worker's lines of all workers' tables, with those of equal score joined. A collective."""
    (lowest,) = splitters((table.scores,), np.argsort, comm)
    ends = np.searchsorted(table.scores, lowest, side="left")
    counts = np.diff(ends, prepend=0, append=len(table.scores))
    received = exchange_columns(table, counts.tolist(), comm)
    order = np.argsort(received[0], kind="stable")  # merges the workers' sorted runs
    scores, *sums = (column[order] for column in received)
    starts = run_starts(scores)
    return ScoreTable(scores[starts], *(sum_runs(column, starts, np.float64) for column in sums))
