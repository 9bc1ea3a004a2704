"""Tables of the distinct scores of a binary task's rows."""

from abc import abstractmethod
from collections.abc import Sequence
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


class SquaredTable(NamedTuple):
    """One line per distinct score, by increasing score.

    Attributes:
        scores: [scores] float32.
        positive: [scores] float64, weight of the rows with label 1.
        negative: [scores] float64, weight of the rows with label 0.
        squared_positive: [scores] float64, sum of the squared weights of the rows with label 1.
        squared_negative: [scores] float64, sum of the squared weights of the rows with label 0.
    """

    scores: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    squared_positive: np.ndarray
    squared_negative: np.ndarray


class ScoreMetric(Metric):
    """A metric that is computed from the score table. An evaluation builds the table once for all of them."""

    def result(self, rows: Rows, comm: Collectives) -> float:
        """Compute the metric over the rows of all workers, with the memory of score_table. A collective."""
        return self.of_table(score_table(rows, comm), rows, comm)

    @abstractmethod
    def of_table(self, table: ScoreTable, rows: Rows, comm: Collectives) -> float:
        """Compute the metric from the score table of the rows. A collective."""


def score_table(rows: Rows, comm: Collectives) -> ScoreTable:
    """Build this worker's part of the table of all rows. A collective.

    Parts are in rank order, no score is in two of them, and workers get about equally many lines (at most an eighth
    more, plus one per worker). It takes about 60 bytes per row while it runs, up to 140 with several workers, less if
    scores are tied; a line of the table takes 28.
    """
    largest = np.float64(comm.gather_rows(rows.weights.max(initial=0, keepdims=True)).max())
    scores, weights, starts = _by_score(rows)
    positive, negative = np.maximum(-weights, 0), np.maximum(weights, 0)
    table = ScoreTable(
        scores,
        sum_runs(positive, starts, np.float64),
        sum_runs(negative, starts, np.float64),
        sum_runs(np.rint((positive + negative) / largest * MASS_OF_LARGEST), starts, np.float64),
    )
    return ScoreTable(*_share_by_score(table, comm))


def squared_table(rows: Rows, comm: Collectives) -> SquaredTable:
    """Build this worker's part of the table of all rows with squared weights. A collective.

    Parts are as in score_table, and so is the memory while it runs; a line of the table takes 36 bytes.
    """
    scores, weights, starts = _by_score(rows)
    parts = (np.maximum(-weights, 0), np.maximum(weights, 0))
    sums = [sum_runs(part, starts, np.float64) for part in parts]
    squares = [sum_runs(np.square(part, dtype=np.float64), starts, np.float64) for part in parts]
    return SquaredTable(*_share_by_score((scores, *sums, *squares), comm))


def _by_score(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort this worker's rows by score.

    Returns:
        The distinct scores, [scores] float32; the weights, [rows] float32, negative for rows with label 1; and where
        the rows of each score start, [scores] int64.
    """
    # Score, weight and label in one integer, since sorting those is fast. The label is the sign of the weight.
    packed = rising_key(rows.logits).astype(np.uint64)
    packed <<= np.uint64(32)
    packed |= np.where(rows.labels > 0, -rows.weights, rows.weights).view(np.uint32)
    packed.sort()
    keys = (packed >> np.uint64(32)).astype(np.uint32)
    signed_weights = packed.astype(np.uint32).view(np.float32)
    del packed
    starts = run_starts(keys)
    return score_of_key(keys[starts]), signed_weights, starts


def _share_by_score(table: Sequence[np.ndarray], comm: Collectives) -> tuple[np.ndarray, ...]:
    """Return this worker's lines of all workers' tables, with those of equal score joined. A collective.

    Args:
        table: [scores] columns: the scores, then sums.
        comm: collectives of the group of workers.
    """
    if comm.size == 1:
        return tuple(table)
    (lowest,) = splitters((table[0],), np.argsort, comm)
    ends = np.searchsorted(table[0], lowest, side="left")
    counts = np.diff(ends, prepend=0, append=len(table[0]))
    received = exchange_columns(table, counts.tolist(), comm)
    order = np.argsort(received[0], kind="stable")  # merges the workers' sorted runs
    scores, *sums = (column[order] for column in received)
    starts = run_starts(scores)
    return scores[starts], *(sum_runs(column, starts, np.float64) for column in sums)
