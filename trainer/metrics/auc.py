"""Areas under the ROC and the precision-recall curve, of two and of several classes."""

import math
from typing import Self

import numpy as np

from trainer.metrics.metric import Collectives, Direction, Metric, blocks, error_of_sums
from trainer.metrics.rows import Rows, as_logits
from trainer.metrics.score_table import ScoreMetric, ScoreTable, squared_table


class _RocAuc(Metric):
    """What the AUC of two classes and that of several have in common."""

    name = "auc_roc"
    title = "ROC AUC"
    direction = Direction.LARGER
    headline = 4

    def __init__(self, num_thresholds: int = 0) -> None:
        """Choose between the exact and the binned computation.

        Args:
            num_thresholds: 0 for the exact AUC. Otherwise, at least 2 evenly spaced probabilities from 0 to 1 with
                trapezoids between them, as in Keras' AUC(num_thresholds): rows between two adjacent thresholds count as
                ties. Needs no sort and almost no memory.

        Raises:
            ValueError: any other number.
        """
        if num_thresholds < 0 or num_thresholds == 1:
            raise ValueError(f"num_thresholds must be 0 (exact) or at least 2, got {num_thresholds}")
        self._num_thresholds = num_thresholds

    @classmethod
    def create(cls, num_auc_thresholds: int) -> Self:
        """Create the metric with a number of thresholds."""
        return cls(num_auc_thresholds)


class RocAuc(_RocAuc, ScoreMetric):
    """Probability that a positive row outscores a negative one.

        AUC = sum over pairs of w_p * w_n * (1 if s_p > s_n, 1/2 if s_p = s_n, else 0) / sum of w_p * w_n

    over all pairs of a positive row p and a negative row n. Sample weights w count; equal float32 logits s are ties.
    NaN if a class is absent.
    """

    def result(self, rows: Rows, comm: Collectives) -> float:
        """Compute the AUC over the rows of all workers; if exact, with the memory of score_table. A collective."""
        return self._binned(rows, comm) if self._num_thresholds else super().result(rows, comm)

    def of_table(self, table: ScoreTable, rows: Rows, comm: Collectives) -> float:
        """Compute the AUC from an existing score table; with thresholds, from the rows. A collective."""
        if self._num_thresholds:
            return self._binned(rows, comm)
        pairs = _ordered_pairs(table.positive, table.negative)
        return _area(comm.gather_rows(pairs[np.newaxis]))

    def standard_error(self, rows: Rows, comm: Collectives, value: float) -> float:
        """Compute the standard error of DeLong et al. (Biometrics 1988), extended to sample weights. A collective.

            SE^2 = P / (P - 1) * sum over positives p of (w_p / W_P)^2 * (V_p - AUC)^2
                 + N / (N - 1) * sum over negatives n of (w_n / W_N)^2 * (V_n - AUC)^2

        with P positives of total weight W_P, N negatives of W_N, the share V_p of the negatives' weight that p
        outscores, and the share V_n of the positives' weight that outscores n; ties count one half. NaN with fewer than
        two rows of a class. The AUC in it is the exact one, also with thresholds.
        """
        table = squared_table(rows, comm)
        parts = comm.gather_rows(np.array([[table.positive.sum(), table.negative.sum()]]))
        # Workers hold increasing scores in rank order.
        positive_below, negative_below = parts[: comm.rank].sum(axis=0)
        positive, negative = parts.sum(axis=0)
        of_positives = (negative_below + np.cumsum(table.negative) - table.negative / 2) / negative
        of_negatives = (positive - positive_below - np.cumsum(table.positive) + table.positive / 2) / positive
        auc = comm.sum_array(np.array([table.positive @ of_positives]))[0] / positive
        is_positive = rows.labels > 0
        own = [
            table.squared_positive @ np.square(of_positives - auc),
            table.squared_negative @ np.square(of_negatives - auc),
            np.count_nonzero(is_positive),
            np.count_nonzero(~is_positive),
        ]
        above, below, positives, negatives = comm.sum_array(np.array(own, np.float64)).tolist()
        return math.hypot(
            error_of_sums(np.array([above, positive, positives])), error_of_sums(np.array([below, negative, negatives]))
        )

    def _binned(self, rows: Rows, comm: Collectives) -> float:
        positive, negative = comm.sum_array(_histogram(rows, self._num_thresholds - 1))
        return _area(np.array([_ordered_pairs(positive, negative)]))


def _ordered_pairs(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Return the weight of positives, of negatives, and of correctly ordered pairs (ties count one half), [3] float64.

    Args:
        positive: [scores] float64 weight of the positives at each score, by increasing score.
        negative: [scores] float64 weight of the negatives.
    """
    below = np.cumsum(negative) - negative
    return np.array([positive.sum(), negative.sum(), positive @ (below + negative / 2)])


def _area(parts: np.ndarray) -> float:
    """Return the AUC from [parts, 3] results of _ordered_pairs, by increasing score."""
    positive, negative, pairs = parts.T
    below = np.cumsum(negative) - negative
    every_pair = positive.sum() * negative.sum()
    if every_pair == 0:
        return float("nan")
    return float((pairs.sum() + positive @ below) / every_pair)


def _histogram(rows: Rows, num_bins: int) -> np.ndarray:
    """Return the weights of positives and of negatives between adjacent thresholds, [2, bins] float64."""
    with np.errstate(over="ignore"):
        probabilities = 1 / (1 + np.exp(-rows.logits.astype(np.float64)))
    # Bins are open below and closed above, except that the first one includes 0.
    bins = np.maximum(np.ceil(probabilities * num_bins).astype(np.int64) - 1, 0)
    positive = rows.labels > 0
    weights = [np.bincount(bins[mask], rows.weights[mask], num_bins) for mask in (positive, ~positive)]
    return np.stack(weights).astype(np.float64)  # without rows, bincount returns integers


class PrecisionRecallAuc(ScoreMetric):
    """Average precision: the precision at every score, weighted by the recall that the score adds.

        PR AUC = sum over the distinct scores k, decreasing, of (R_k - R_(k-1)) * P_k

    with recall R_k and precision P_k among the rows of score k or above; all rows of a score are added at once (Davis
    and Goadrich, "The Relationship Between Precision-Recall and ROC Curves", ICML 2006, show why points must not be
    joined by straight lines). Sample weights count; equal float32 logits are ties. A model with the same score for all
    rows gets the share of positives. NaN if no row is positive.
    """

    name = "pr_auc"
    title = "PR AUC"
    direction = Direction.LARGER

    def of_table(self, table: ScoreTable, rows: Rows, comm: Collectives) -> float:
        """Compute the area from an existing score table. A collective."""
        parts = comm.gather_rows(np.array([[table.positive.sum(), table.negative.sum()]]))
        # Workers hold increasing scores in rank order: those of higher rank come first in the ranking.
        positive_above, negative_above = parts[comm.rank + 1 :].sum(axis=0)
        gained = table.positive[::-1]
        found = np.cumsum(gained) + positive_above
        precision = found / (found + np.cumsum(table.negative[::-1]) + negative_above)
        area = float(comm.sum_array(np.array([gained @ precision]))[0])
        positive = float(parts[:, 0].sum())
        return area / positive if positive > 0 else math.nan


class OneVersusRestAuc(_RocAuc):
    """Unweighted mean over classes of the ROC AUC of each class against all others, ranked by its probability.

    A class's score is the logit of its probability, s_c - log(sum over the other classes d of exp(s_d)), rounded to
    float32; equal scores are ties. Classes without rows, or with all rows, are left out. NaN if none is left.
    """

    def result(self, rows: Rows, comm: Collectives) -> float:
        """Compute the mean AUC over the rows of all workers. A collective.

        It takes the time of RocAuc once per class, and its memory plus 4 bytes per row and class.
        """
        auc = RocAuc(self._num_thresholds)
        aucs = [
            auc.result(rows._replace(logits=scores, labels=rows.labels == index), comm)
            for index, scores in enumerate(_log_odds(rows))
        ]
        known = [auc for auc in aucs if not math.isnan(auc)]
        return sum(known) / len(known) if known else math.nan


def _log_odds(rows: Rows) -> np.ndarray:
    """Return log(p / (1 - p)) of every class's probability p, [classes, rows] float32."""
    scores = np.empty(rows.logits.shape[::-1], np.float32)
    end = 0
    for block in blocks(rows):
        start, end = end, end + len(block.logits)
        columns = block.logits.T.astype(np.float64)
        # The other classes' sum is joined from those before and those after: subtracting the own one would cancel.
        before, behind = np.logaddexp.accumulate(columns[:-1]), np.logaddexp.accumulate(columns[:0:-1])[::-1]
        inner = np.logaddexp(before[:-1], behind[1:])
        scores[:, start:end] = as_logits(columns - np.concatenate([behind[:1], inner, before[-1:]]))
    return scores
