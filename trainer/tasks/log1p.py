"""Amounts over several orders of magnitude, learned on a logarithmic scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.lazy import tf
from trainer.tasks.amount import MAX_LOG, AmountTask


@dataclass(frozen=True)
class Log1pTask(AmountTask):
    """An amount y learned by the squared error of log(1 + y), the logit. The prediction is exp(logit) - 1.

    This is a typical amount rather than the mean: the mean of log(1 + y), transformed back. It may be slightly below 0,
    but is above -1.
    """

    uncertainty_factor = 0.5

    def loss(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Compute the squared error of each row on the logarithmic scale, [batch] float32."""
        return tf.math.squared_difference(logits[:, 0], tf.math.log1p(labels))

    def losses(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Compute the squared error of each row on the logarithmic scale, [rows] float64."""
        return np.square(logits[:, 0] - np.log1p(labels))

    def activation(self, logits: tf.Tensor) -> tf.Tensor:
        """Return the amounts, [batch, 1] float32."""
        return super().activation(logits) - 1  # ONNX has no expm1

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """Return the amounts, [rows, 1] float64."""
        return np.expm1(np.minimum(logits.astype(np.float64), MAX_LOG))
