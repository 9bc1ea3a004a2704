"""The weight of the positive and of the negative rows at every score, shared out by score.

All that a ranking metric over the whole test set needs to know, and no larger when scores are tied.
"""

from typing import NamedTuple

import numpy as np

from trainer.metrics.collectives import Collectives, exchange_columns, splitters
from trainer.metrics.rows import Rows
from trainer.metrics.sorting import rising_key, run_starts, score_of_key, sum_runs


class ScoreTable(NamedTuple):
    """One line per distinct score, by rising score.

    Attributes:
        scores: [scores] float32.
        positive: [scores] float64, the weight of the rows with label 1.
        negative: [scores] float64, the weight of the rows with label 0.
    """

    scores: np.ndarray
    positive: np.ndarray
    negative: np.ndarray


def tabulate(rows: Rows) -> ScoreTable:
    """This worker's own table."""
    # Score, weight and label in one integer: the label is the sign of the weight.
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
    )


def share_by_score(table: ScoreTable, comm: Collectives) -> ScoreTable:
    """This worker's part of the table of all rows. A collective.

    The parts follow each other by rank, no score is in two of them, and the workers' tables are cut so
    that each worker gets about as many lines as the others (an eighth more at most, and one per worker).
    """
    (lowest,) = splitters((table.scores,), np.argsort, comm)
    ends = np.searchsorted(table.scores, lowest, side="left")
    counts = np.diff(ends, prepend=0, append=len(table.scores))
    received = exchange_columns(table, counts.tolist(), comm)
    order = np.argsort(received[0], kind="stable")  # merges the workers' sorted runs
    scores, positive, negative = (column[order] for column in received)
    starts = run_starts(scores)
    return ScoreTable(scores[starts], sum_runs(positive, starts, np.float64), sum_runs(negative, starts, np.float64))
