"""Amounts: labels that are numbers of at least 0, such as counts, durations and money, and their exponential link."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from trainer.lazy import tf
from trainer.metrics.losses import AmountLoss, ErrorMetric, MeanAbsoluteError, RootMeanSquaredError
from trainer.metrics.metric import Metric
from trainer.tasks.task import Task

# Exponentials are bounded by exp(40), about 2.4e17: neither they nor their squares overflow float32.
MAX_LOG = 40.0


@dataclass(frozen=True)
class AmountTask(Task):
    """A label that is a number of at least 0. The base class of the task types of such labels.

    The prediction is exp(logit) unless a subclass has another link. A loss is at least 0, as some loss weightings
    expect: terms that do not depend on the logits are chosen so.
    """

    metrics: ClassVar[tuple[type[Metric], ...]] = (AmountLoss, RootMeanSquaredError, MeanAbsoluteError)

    @property
    def prediction_width(self) -> int:
        """The amount, whatever the number of logits."""
        return 1

    @abstractmethod
    def losses(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Compute the loss of each row, as `loss` does, in NumPy.

        Args:
            logits: [rows, width] float64.
            labels: [rows] float64, at least 0.

        Returns:
            [rows] float64.
        """

    def activation(self, logits: tf.Tensor) -> tf.Tensor:
        """Return the amounts, [batch, 1] float32."""
        return tf.exp(tf.minimum(logits, MAX_LOG))

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """Return the amounts, [rows, 1] float64."""
        return np.exp(np.minimum(logits.astype(np.float64), MAX_LOG))

    def create_metric(self, metric: type[Metric], num_auc_thresholds: int) -> Metric:
        """Create one of the task's metrics, with the loss or the link that it needs."""
        if issubclass(metric, AmountLoss):
            return metric(self._losses_of_rows)
        if issubclass(metric, ErrorMetric):
            return metric(self._amounts_of_rows)
        return super().create_metric(metric, num_auc_thresholds)

    def invalid_labels(self, labels: np.ndarray) -> tuple[np.ndarray, str]:
        """Return which labels ([rows] bool) are no amounts, and a description of such labels."""
        return ~((labels >= 0) & np.isfinite(labels)), "a value that is below 0, or infinite in float32"

    def _losses_of_rows(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Compute the losses of rows, whose only logits may be [rows]; float32 both."""
        return self.losses(logits.reshape(-1, self.width).astype(np.float64), labels.astype(np.float64))

    def _amounts_of_rows(self, logits: np.ndarray) -> np.ndarray:
        return self.predictions(logits.reshape(-1, self.width))[:, 0]


def bounded_exp(logits: tf.Tensor) -> tf.Tensor:
    """Return exp(x), continued by its tangent beyond MAX_LOG: convex, with a gradient that is bounded but not 0."""
    return tf.exp(tf.minimum(logits, MAX_LOG)) * (1 + tf.nn.relu(logits - MAX_LOG))


def bounded_exp_float64(logits: np.ndarray) -> np.ndarray:
    """Return `bounded_exp` in NumPy, float64."""
    return np.exp(np.minimum(logits, MAX_LOG)) * (1 + np.maximum(logits - MAX_LOG, 0))
