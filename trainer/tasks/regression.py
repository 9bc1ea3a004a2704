"""Regression tasks: the value of a label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from trainer.lazy import tf
from trainer.metrics.losses import MeanAbsoluteError, MeanSquaredError, RootMeanSquaredError
from trainer.metrics.metric import Metric
from trainer.tasks.task import Task


@dataclass(frozen=True)
class RegressionTask(Task):
    """A label that is a number, learned by the squared error. The only logit is the predicted value."""

    metrics: ClassVar[tuple[type[Metric], ...]] = (MeanSquaredError, RootMeanSquaredError, MeanAbsoluteError)
    uncertainty_factor = 0.5

    def loss(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Compute the squared error of each row, [batch] float32."""
        return tf.math.squared_difference(logits[:, 0], labels)

    def activation(self, logits: tf.Tensor) -> tf.Tensor:
        """Return the values, [batch, 1] float32."""
        return tf.identity(logits)

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """Return the values, [rows, 1] float64."""
        return logits.astype(np.float64)
