"""Binary cross-entropy, absolute and relative to that of the base rate."""

import math

import numpy as np

from trainer.metrics.metric import Collectives, Direction, Rows
from trainer.metrics.sums import weighted_mean, weighted_sums


class LogLoss:
    """Weighted mean of the binary cross-entropy, in nats per row.

        loss = sum of w * softplus(-s if y = 1 else s) / sum of w,    softplus(x) = log(1 + exp(x))

    with logit s, label y and sample weight w of each row, in float64. NaN if there are no rows.
    """

    needs_group = False
    direction = Direction.SMALLER

    def result(self, rows: Rows, comm: Collectives) -> float:
        """Computes the loss over the rows of all workers. A collective."""
        return weighted_mean(rows, comm, cross_entropy)


class NormalizedEntropy:
    """Log loss divided by the log loss of a model that predicts the mean label for every row.

        NE = log loss / -(q * log(q) + (1 - q) * log(1 - q)),    q = sum of w * y / sum of w

    Below 1, a model is better than the base rate q of the evaluated rows (He et al., "Practical Lessons from Predicting
    Clicks on Ads at Facebook", ADKDD 2014). NaN if all labels are equal.
    """

    needs_group = False
    direction = Direction.SMALLER

    def result(self, rows: Rows, comm: Collectives) -> float:
        """Computes the ratio over the rows of all workers. A collective."""
        loss, positive, negative, _ = weighted_sums(rows, comm, cross_entropy, _is_positive, _is_negative)
        if positive == 0 or negative == 0:
            return math.nan
        # -log(q) = log(1 + N / P) keeps precision if nearly all rows have the same label.
        entropy = positive * math.log1p(negative / positive) + negative * math.log1p(positive / negative)
        return loss / entropy


def cross_entropy(rows: Rows) -> np.ndarray:
    """Returns -log of the predicted probability of each row's label, [rows] float64."""
    wrong_way = np.where(rows.labels > 0, -rows.logits, rows.logits).astype(np.float64)
    return np.maximum(wrong_way, 0) + np.log1p(np.exp(-np.abs(wrong_way)))


def _is_positive(rows: Rows) -> np.ndarray:
    return (rows.labels > 0).astype(np.float64)


def _is_negative(rows: Rows) -> np.ndarray:
    return (rows.labels <= 0).astype(np.float64)
