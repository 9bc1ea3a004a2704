"""Errors of regression tasks."""

import math

import numpy as np

from trainer.metrics.metric import Collectives, Direction, Rows
from trainer.metrics.sums import weighted_mean


class MeanSquaredError:
    """Weighted mean of the squared error, the loss of a regression.

        MSE = sum of w * (v - y)^2 / sum of w

    with predicted value v, label y and sample weight w of each row, in float64. NaN if there are no rows.
    """

    needs_group = False
    direction = Direction.SMALLER

    def result(self, rows: Rows, comm: Collectives) -> float:
        """Computes the error over the rows of all workers. A collective."""
        return weighted_mean(rows, comm, lambda block: np.square(_errors(block)))


class RootMeanSquaredError:
    """Square root of MeanSquaredError, in the label's unit. NaN if there are no rows."""

    needs_group = False
    direction = Direction.SMALLER

    def result(self, rows: Rows, comm: Collectives) -> float:
        """Computes the error over the rows of all workers. A collective."""
        return math.sqrt(MeanSquaredError().result(rows, comm))


class MeanAbsoluteError:
    """Weighted mean of the absolute error, in the label's unit.

        MAE = sum of w * |v - y| / sum of w

    with predicted value v, label y and sample weight w of each row, in float64. NaN if there are no rows.
    """

    needs_group = False
    direction = Direction.SMALLER

    def result(self, rows: Rows, comm: Collectives) -> float:
        """Computes the error over the rows of all workers. A collective."""
        return weighted_mean(rows, comm, lambda block: np.abs(_errors(block)))


def _errors(rows: Rows) -> np.ndarray:
    return rows.logits.astype(np.float64) - rows.labels
