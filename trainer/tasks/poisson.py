"""Counts, learned by Poisson regression."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.lazy import tf
from trainer.tasks.amount import AmountTask, bounded_exp, bounded_exp_float64


@dataclass(frozen=True)
class PoissonTask(AmountTask):
    """A count y, or another amount whose variance grows with its mean, learned by half the Poisson deviance.

        loss = m - y + y * log(y / m),    m = exp(logit), the predicted mean

    This is the negative log-likelihood of the Poisson distribution less that of m = y, the best prediction (McCullagh
    and Nelder, "Generalized Linear Models", 1989, section 2.3). Labels need not be integers.
    """

    def loss(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Compute half the deviance of each row, [batch] float32."""
        best = tf.math.xlogy(labels, labels) - labels
        return bounded_exp(logits[:, 0]) - labels * logits[:, 0] + best

    def losses(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Compute half the deviance of each row, [rows] float64."""
        best = labels * np.log(np.where(labels > 0, labels, 1)) - labels
        return bounded_exp_float64(logits[:, 0]) - labels * logits[:, 0] + best
