"""Metrics of multiclass tasks."""

import math

import numpy as np

from trainer.metrics.auc import RocAuc
from trainer.metrics.metric import Collectives, Direction, Rows, as_logits
from trainer.metrics.sums import blocks, weighted_mean, weighted_sums


class SoftmaxLoss:
    """Weighted mean of the softmax cross-entropy, in nats per row.

        loss = sum of w * (log(sum over classes c of exp(s_c)) - s_y) / sum of w

    with logits s, class y and sample weight w of each row, in float64. NaN if there are no rows.
    """

    needs_group = False
    direction = Direction.SMALLER

    def result(self, rows: Rows, comm: Collectives) -> float:
        """Computes the loss over the rows of all workers. A collective."""
        return weighted_mean(rows, comm, _cross_entropy)


class SoftmaxNormalizedEntropy:
    """SoftmaxLoss divided by that of a model that predicts the class frequencies for every row.

        NE = loss / -(sum over classes c of q_c * log(q_c)),    q_c = sum of w over the rows of class c / sum of w

    For two classes, this is NormalizedEntropy. NaN if all rows are of one class.
    """

    needs_group = False
    direction = Direction.SMALLER

    def result(self, rows: Rows, comm: Collectives) -> float:
        """Computes the ratio over the rows of all workers. A collective."""
        classes = rows.logits.shape[1]
        # astype: without rows, bincount returns integers, and all workers need one dtype.
        own = np.bincount(rows.labels.astype(np.int64), rows.weights, classes).astype(np.float64)
        by_class = comm.sum_array(own)
        loss, weight = weighted_sums(rows, comm, _cross_entropy)
        seen = by_class[by_class > 0]
        if len(seen) < 2:
            return math.nan
        # -log(q) = log(1 + others / own) keeps precision if nearly all rows are of one class.
        return loss / float(seen @ np.log1p((weight - seen) / seen))


class Accuracy:
    """Weighted share of the rows whose own class has the highest logit.

    If several classes including the own one tie for the highest logit, the row counts 1 / their number, the expectation
    of a random choice. NaN if there are no rows.
    """

    needs_group = False
    direction = Direction.LARGER

    def result(self, rows: Rows, comm: Collectives) -> float:
        """Computes the accuracy over the rows of all workers. A collective."""
        return weighted_mean(rows, comm, _share_right)


class OneVersusRestAuc:
    """Unweighted mean over classes of the ROC AUC of each class against all others, ranked by its probability.

    A class's score is the logit of its probability, s_c - log(sum over the other classes d of exp(s_d)), rounded to
    float32; equal scores are ties. Classes without rows, or with all rows, are left out. NaN if none is left.
    """

    needs_group = False
    direction = Direction.LARGER

    def __init__(self, num_thresholds: int = 0) -> None:
        """Takes the number of thresholds of RocAuc; 0 is exact."""
        self._auc = RocAuc(num_thresholds)

    def result(self, rows: Rows, comm: Collectives) -> float:
        """Computes the mean AUC over the rows of all workers. A collective.

        Takes the time of RocAuc once per class, and its memory plus 4 bytes per row and class.
        """
        aucs = [
            self._auc.result(rows._replace(logits=scores, labels=rows.labels == index), comm)
            for index, scores in enumerate(_log_odds(rows))
        ]
        known = [auc for auc in aucs if not math.isnan(auc)]
        return sum(known) / len(known) if known else math.nan


def _cross_entropy(rows: Rows) -> np.ndarray:
    """Returns -log of the predicted probability of each row's class, [rows] float64."""
    below = rows.logits - _own(rows)[:, np.newaxis].astype(np.float64)
    return np.logaddexp.reduce(below, axis=1)


def _share_right(rows: Rows) -> np.ndarray:
    highest = rows.logits.max(axis=1)
    tied = (rows.logits == highest[:, np.newaxis]).sum(axis=1)
    return (_own(rows) == highest) / tied


def _own(rows: Rows) -> np.ndarray:
    """Returns the logit of each row's own class, [rows] float32."""
    return np.take_along_axis(rows.logits, rows.labels.astype(np.int64)[:, np.newaxis], axis=1)[:, 0]


def _log_odds(rows: Rows) -> np.ndarray:
    """Returns log(p / (1 - p)) of every class's probability p, [classes, rows] float32."""
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
