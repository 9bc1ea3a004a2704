"""Losses as metrics: cross-entropy and relative entropy of classes, accuracy, and errors of predicted numbers."""

import math
from abc import abstractmethod
from collections.abc import Callable

import numpy as np

from trainer.metrics.metric import Collectives, Direction, Metric, error_of_ratio, weighted_mean, weighted_sums
from trainer.metrics.rows import Rows


class MeanLoss(Metric):
    """Weighted mean of a loss over rows, in float64. NaN if there are no rows. Subclasses define the loss of a row."""

    direction = Direction.SMALLER

    @abstractmethod
    def per_row(self, rows: Rows) -> np.ndarray:
        """Return the loss of each row, [rows] float64."""

    def result(self, rows: Rows, comm: Collectives) -> float:
        """Compute the mean over the rows of all workers. A collective."""
        return weighted_mean(rows, comm, self.per_row)

    def standard_error(self, rows: Rows, comm: Collectives, value: float) -> float:
        """Compute the standard error of the mean. A collective."""
        return error_of_ratio(rows, comm, value, self.per_row)


LOSS = "loss_val"  # key of the loss that a task is trained with


class _TaskLoss(MeanLoss):
    """The loss that a task is trained with."""

    name = LOSS
    title = "Loss"
    headline = 1


class _NormalizedEntropy(Metric):
    """Loss relative to that of the base rate."""

    name = "normalized_entropy"
    title = "Normalized entropy"
    direction = Direction.SMALLER


def sigmoid_cross_entropy(rows: Rows) -> np.ndarray:
    """Return -log of the predicted probability of each row's label, [rows] float64."""
    wrong_way = np.where(rows.labels > 0, -rows.logits, rows.logits).astype(np.float64)
    return np.maximum(wrong_way, 0) + np.log1p(np.exp(-np.abs(wrong_way)))


def softmax_cross_entropy(rows: Rows) -> np.ndarray:
    """Return -log of the predicted probability of each row's class, [rows] float64."""
    below = rows.logits - logits_of_labels(rows)[:, np.newaxis].astype(np.float64)  # [rows, classes]
    return np.logaddexp.reduce(below, axis=1)


def logits_of_labels(rows: Rows) -> np.ndarray:
    """Return the logit of each row's own class, [rows] float32."""
    return np.take_along_axis(rows.logits, rows.labels.astype(np.int64)[:, np.newaxis], axis=1)[:, 0]


class LogLoss(_TaskLoss):
    """Weighted mean of the binary cross-entropy, in nats per row.

        loss = sum of w * softplus(-s if y = 1 else s) / sum of w,    softplus(x) = log(1 + exp(x))

    with logit s, label y and sample weight w of each row.
    """

    def per_row(self, rows: Rows) -> np.ndarray:
        """Return the cross-entropy of each row, [rows] float64."""
        return sigmoid_cross_entropy(rows)


class NormalizedEntropy(_NormalizedEntropy):
    """Log loss divided by the log loss of a model that predicts the mean label for every row.

        NE = log loss / -(q * log(q) + (1 - q) * log(1 - q)),    q = sum of w * y / sum of w

    Below 1, a model is better than the base rate q of the evaluated rows (He et al., "Practical Lessons from Predicting
    Clicks on Ads at Facebook", ADKDD 2014). NaN if all labels are equal.
    """

    def result(self, rows: Rows, comm: Collectives) -> float:
        """Compute the ratio over the rows of all workers. A collective."""
        loss, positive, negative, _ = weighted_sums(
            rows,
            comm,
            sigmoid_cross_entropy,
            lambda block: (block.labels > 0).astype(np.float64),
            lambda block: (block.labels <= 0).astype(np.float64),
        )
        if positive == 0 or negative == 0:
            return math.nan
        # -log(q) = log(1 + N / P) keeps precision if nearly all rows have the same label.
        entropy = positive * math.log1p(negative / positive) + negative * math.log1p(positive / negative)
        return loss / entropy


class SoftmaxLoss(_TaskLoss):
    """Weighted mean of the softmax cross-entropy, in nats per row.

        loss = sum of w * (log(sum over classes c of exp(s_c)) - s_y) / sum of w

    with logits s, class y and sample weight w of each row.
    """

    def per_row(self, rows: Rows) -> np.ndarray:
        """Return the cross-entropy of each row, [rows] float64."""
        return softmax_cross_entropy(rows)


class SoftmaxNormalizedEntropy(_NormalizedEntropy):
    """SoftmaxLoss divided by that of a model that predicts the class frequencies for every row.

        NE = loss / -(sum over classes c of q_c * log(q_c)),    q_c = sum of w over the rows of class c / sum of w

    For two classes, this is NormalizedEntropy. NaN if all rows are of one class.
    """

    def result(self, rows: Rows, comm: Collectives) -> float:
        """Compute the ratio over the rows of all workers. A collective."""
        classes = rows.logits.shape[1]
        # astype: without rows, bincount returns integers, and all workers need one dtype.
        own = np.bincount(rows.labels.astype(np.int64), rows.weights, classes).astype(np.float64)
        by_class = comm.sum_array(own)
        loss, weight = weighted_sums(rows, comm, softmax_cross_entropy)
        seen = by_class[by_class > 0]
        if len(seen) < 2:
            return math.nan
        # -log(q) = log(1 + others / own) keeps precision if nearly all rows are of one class.
        return loss / float(seen @ np.log1p((weight - seen) / seen))


class Accuracy(Metric):
    """Weighted share of the rows whose own class has the highest logit.

    If several classes including the own one tie for the highest logit, the row counts 1 / their number, the expectation
    of a random choice. NaN if there are no rows.
    """

    name = "accuracy"
    title = "Accuracy"
    direction = Direction.LARGER
    headline = 2

    def result(self, rows: Rows, comm: Collectives) -> float:
        """Compute the accuracy over the rows of all workers. A collective."""
        return weighted_mean(rows, comm, _share_correct)

    def standard_error(self, rows: Rows, comm: Collectives, value: float) -> float:
        """Compute the standard error of the mean. A collective."""
        return error_of_ratio(rows, comm, value, _share_correct)


def _share_correct(rows: Rows) -> np.ndarray:
    highest = rows.logits.max(axis=1)
    tied = (rows.logits == highest[:, np.newaxis]).sum(axis=1)
    return (logits_of_labels(rows) == highest) / tied


class AmountLoss(_TaskLoss):
    """Weighted mean of the loss of an amount, which its task type defines (see `trainer.tasks.amount`).

    Args:
        loss: function of logits and labels of some rows that returns the loss of each, [rows] float64.
    """

    def __init__(self, loss: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
        self._loss = loss

    def per_row(self, rows: Rows) -> np.ndarray:
        """Return the loss of each row, [rows] float64."""
        return self._loss(rows.logits, rows.labels)


def _as_they_are(logits: np.ndarray) -> np.ndarray:
    return logits.astype(np.float64)


class ErrorMetric(MeanLoss):
    """A mean over the errors of predicted values.

    Args:
        values: function that returns the predicted value of each row, [rows] float64, from the logits.
    """

    def __init__(self, values: Callable[[np.ndarray], np.ndarray] = _as_they_are) -> None:
        self._values = values

    def _errors(self, rows: Rows) -> np.ndarray:
        return self._values(rows.logits) - rows.labels


class MeanSquaredError(ErrorMetric, _TaskLoss):
    """Weighted mean of the squared error, the loss of a regression.

        MSE = sum of w * (v - y)^2 / sum of w

    with predicted value v, label y and sample weight w of each row.
    """

    def per_row(self, rows: Rows) -> np.ndarray:
        """Return the squared errors, [rows] float64."""
        return np.square(self._errors(rows))


class RootMeanSquaredError(MeanSquaredError):
    """Square root of MeanSquaredError, in the label's unit. NaN if there are no rows."""

    name = "rmse"
    title = "RMSE"
    headline = 3

    def result(self, rows: Rows, comm: Collectives) -> float:
        """Compute the error over the rows of all workers. A collective."""
        return math.sqrt(super().result(rows, comm))

    def standard_error(self, rows: Rows, comm: Collectives, value: float) -> float:
        """Compute SE(MSE) / (2 * RMSE), by the delta method; 0 if all errors are 0. A collective."""
        error = super().standard_error(rows, comm, value**2)
        return error / (2 * value) if value > 0 else error


class MeanAbsoluteError(ErrorMetric):
    """Weighted mean of the absolute error, in the label's unit.

        MAE = sum of w * |v - y| / sum of w

    with predicted value v, label y and sample weight w of each row.
    """

    name = "mae"
    title = "MAE"

    def per_row(self, rows: Rows) -> np.ndarray:
        """Return the absolute errors, [rows] float64."""
        return np.abs(self._errors(rows))
