"""Area under the ROC curve."""

import numpy as np

from trainer.metrics.collectives import Collectives
from trainer.metrics.direction import Direction
from trainer.metrics.rows import Rows
from trainer.metrics.score_table import ScoreTable, score_table


class RocAuc:
    """How often a positive row outscores a negative one.

        AUC = sum over pairs of w_p * w_n * (1 if s_p > s_n, 1/2 if s_p = s_n, else 0) / sum of w_p * w_n

    over all pairs of a positive row p and a negative row n. Sample weights w count; equal float32
    logits s are ties. NaN where a class is absent.
    """

    needs_group = False
    direction = Direction.LARGER

    def __init__(self, num_thresholds: int = 0) -> None:
        """Chooses the computation.

        Args:
            num_thresholds: 0 is exact. Otherwise 2 or more evenly spaced probabilities, from 0 to 1, and
                trapezoids between them, as Keras' AUC(num_thresholds) does: rows between two
                neighbouring thresholds count as ties. Takes no sort and almost no memory.

        Raises:
            ValueError: any other number.
        """
        if num_thresholds < 0 or num_thresholds == 1:
            raise ValueError(f"num_thresholds must be 0 (exact) or at least 2, got {num_thresholds}")
        self._num_thresholds = num_thresholds

    def result(self, rows: Rows, comm: Collectives) -> float:
        """See Metric. Exact, it takes the memory of score_table."""
        return self._binned(rows, comm) if self._num_thresholds else self.of_table(score_table(rows, comm), rows, comm)

    def of_table(self, table: ScoreTable, rows: Rows, comm: Collectives) -> float:
        """See ScoreMetric."""
        if self._num_thresholds:
            return self._binned(rows, comm)
        pairs = _ordered_pairs(table.positive, table.negative)
        return _area(comm.gather_rows(pairs[np.newaxis]))

    def _binned(self, rows: Rows, comm: Collectives) -> float:
        positive, negative = comm.sum_array(_histogram(rows, self._num_thresholds - 1))
        return _area(np.array([_ordered_pairs(positive, negative)]))


def _ordered_pairs(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """[3] float64: weight of the positives, of the negatives, and of the pairs in order, a tie as half.

    Args:
        positive: [scores] float64 weight of the positives at each score, by rising score.
        negative: [scores] float64.
    """
    below = np.cumsum(negative) - negative
    return np.array([positive.sum(), negative.sum(), positive @ (below + negative / 2)])


def _area(parts: np.ndarray) -> float:
    """The AUC of [parts, 3] ordered pairs, the parts by rising score."""
    positive, negative, pairs = parts.T
    below = np.cumsum(negative) - negative
    every_pair = positive.sum() * negative.sum()
    if every_pair == 0:
        return float("nan")
    return float((pairs.sum() + positive @ below) / every_pair)


def _histogram(rows: Rows, num_bins: int) -> np.ndarray:
    """[2, bins] float64: the positives' and the negatives' weight between neighbouring thresholds."""
    with np.errstate(over="ignore"):
        probabilities = 1 / (1 + np.exp(-rows.logits.astype(np.float64)))
    bins = np.maximum(np.ceil(probabilities * num_bins).astype(np.int64) - 1, 0)
    positive = rows.labels > 0
    weights = [np.bincount(bins[mask], rows.weights[mask], num_bins) for mask in (positive, ~positive)]
    return np.stack(weights).astype(np.float64)  # bincount of no row gives integers
