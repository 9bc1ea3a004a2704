"""Watch times and other amounts of positive rows, learned by weighted logistic regression."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.lazy import tf
from trainer.tasks.amount import AmountTask


@dataclass(frozen=True)
class WeightedLogisticTask(AmountTask):
    """An amount y learned by logistic regression of y > 0, in which a positive row weighs y and a negative row 1.

        loss = y * log(1 + exp(-logit))    if y > 0, else    log(1 + exp(logit))

    The prediction is the odds, exp(logit): the sum of the amounts over the number of rows with y = 0, that is, their
    mean divided by the share of such rows. It is close to the mean if few rows have an amount. Source: Covington, Adams
    and Sargin, "Deep Neural Networks for YouTube Recommendations", RecSys 2016, section 4.2.
    """

    def loss(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Compute the weighted cross-entropy of each row, [batch] float32."""
        logit = logits[:, 0]
        return tf.where(labels > 0, labels * tf.math.softplus(-logit), tf.math.softplus(logit))

    def losses(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Compute the weighted cross-entropy of each row, [rows] float64."""
        logit = logits[:, 0]
        return np.where(labels > 0, labels * np.logaddexp(0, -logit), np.logaddexp(0, logit))
