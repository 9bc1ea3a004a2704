"""Amounts that are mostly 0 and heavy-tailed otherwise, such as customer lifetime value."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from trainer.lazy import tf
from trainer.tasks.amount import MAX_LOG, AmountTask

MIN_SIGMA = 0.01  # smallest standard deviation of log(amount)


@dataclass(frozen=True)
class ZilnTask(AmountTask):
    """An amount y learned as a zero-inflated lognormal: 0 with probability 1 - p, else exp(N(mu, sigma^2)).

        loss = -log(1 - p)                                                             if y = 0
        loss = -log(p) + log(sigma / MIN_SIGMA) + (log(y) - mu)^2 / (2 * sigma^2)      if y > 0

    from the logits of p, mu, and a number z with sigma = MIN_SIGMA + log(1 + exp(z)). The prediction is the mean,
    p * exp(mu + sigma^2 / 2). Source: Wang, Liu and Miao, "A Deep Probabilistic Model for Customer Lifetime Value
    Prediction", 2019, equation 4. The paper's loss differs by log(y) and a constant, which do not depend on the logits.
    """

    @property
    def width(self) -> int:
        """The logits of p, mu and sigma."""
        return 3

    def loss(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Compute the negative log-likelihood of each row, [batch] float32."""
        logit, mu, spread = tf.unstack(logits, axis=1)
        positive, sigma = labels > 0, MIN_SIGMA + tf.math.softplus(spread)
        deviations = (tf.math.log(tf.where(positive, labels, 1.0)) - mu) / sigma
        amount = tf.math.log(sigma / MIN_SIGMA) + tf.square(deviations) / 2
        return tf.where(positive, tf.math.softplus(-logit) + amount, tf.math.softplus(logit))

    def losses(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Compute the negative log-likelihood of each row, [rows] float64."""
        logit, mu, spread = logits.T
        positive, sigma = labels > 0, MIN_SIGMA + np.logaddexp(0, spread)
        deviations = (np.log(np.where(positive, labels, 1)) - mu) / sigma
        amount = np.log(sigma) - math.log(MIN_SIGMA) + np.square(deviations) / 2
        return np.where(positive, np.logaddexp(0, -logit) + amount, np.logaddexp(0, logit))

    def activation(self, logits: tf.Tensor) -> tf.Tensor:
        """Return the means, [batch, 1] float32."""
        logit, mu, spread = tf.split(logits, 3, axis=1)
        sigma = MIN_SIGMA + tf.math.softplus(spread)
        return tf.exp(tf.minimum(mu + tf.square(sigma) / 2 - tf.math.softplus(-logit), MAX_LOG))

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """Return the means, [rows, 1] float64."""
        logit, mu, spread = np.split(logits.astype(np.float64), 3, axis=1)
        sigma = MIN_SIGMA + np.logaddexp(0, spread)
        return np.exp(np.minimum(mu + np.square(sigma) / 2 - np.logaddexp(0, -logit), MAX_LOG))
