"""Weights of tasks that follow from their losses, or from nothing at all."""

import math
from collections.abc import Sequence

import tensorflow as tf

from trainer.loss_weighting.method import Wants

LOG_VARIANCE_LIMIT = 5.0
DWA_TEMPERATURE = 2.0


class Static:
    """sum_k w_k L_k"""

    def __init__(self, loss_weights: Sequence[float], seed: int):
        self.loss_weights = tf.constant(loss_weights, tf.float32)
        self.weights: dict[str, tf.Variable] = {}
        self.state: dict[str, tf.Variable] = {}

    @property
    def wants(self) -> Wants:
        """See LossWeighting."""
        return "nothing"

    def total(self, shares: tf.Tensor, weights: dict[str, tf.Tensor], factors: tf.Tensor, workers: int) -> tf.Tensor:
        """See LossWeighting."""
        return tf.reduce_sum(factors * shares)

    def factors(self, step: tf.Tensor) -> tf.Tensor:
        """See LossWeighting."""
        return self.loss_weights

    def combine(self, gradients: tf.Tensor, losses: tf.Tensor, step: tf.Tensor) -> tf.Tensor | None:
        """See LossWeighting."""
        return None

    def end_epoch(self, losses: Sequence[float]) -> None:
        """See LossWeighting."""


class Uncertainty(Static):
    """sum_k w_k (c_k exp(-s_k) L_k + s_k / 2), with trained s_k, c_k = 1 for classification and 1/2 for regression.

    s_k = log sigma_k^2 starts at 0 and is kept in [-5, 5]: without a bound, a task whose loss goes to 0 would take all
    the weight. Source: Kendall, Gal and Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses", CVPR 2018.
    """

    def __init__(self, loss_weights: Sequence[float], seed: int, regressions: Sequence[bool] = ()):
        super().__init__(loss_weights, seed)
        halves = [0.5 if regression else 1.0 for regression in regressions] or [1.0] * len(loss_weights)
        self._scales = tf.constant(halves, tf.float32)
        self.weights = {"loss_log_variance": tf.Variable(tf.zeros(len(loss_weights)))}

    def total(self, shares: tf.Tensor, weights: dict[str, tf.Tensor], factors: tf.Tensor, workers: int) -> tf.Tensor:
        """See LossWeighting."""
        variance = tf.clip_by_value(weights["loss_log_variance"], -LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
        return tf.reduce_sum(factors * (self._scales * tf.exp(-variance) * shares + variance / 2 / workers))


class RandomWeights(Static):
    """sum_k K softmax(z)_k w_k L_k, with z ~ N(0, 1)^K drawn anew in every step.

    Source: Lin et al., "Reasonable Effectiveness of Random Weighting", TMLR 2022.
    """

    def __init__(self, loss_weights: Sequence[float], seed: int):
        super().__init__(loss_weights, seed)
        self._seed = seed

    def factors(self, step: tf.Tensor) -> tf.Tensor:
        """See LossWeighting."""
        tasks = self.loss_weights.shape[0]
        normal = tf.random.stateless_normal([tasks], seed=tf.stack([tf.constant(self._seed), tf.cast(step, tf.int32)]))
        return tasks * tf.nn.softmax(normal) * self.loss_weights


class DynamicWeightAverage(Static):
    """sum_k K softmax(r / T)_k w_k L_k, with r_k = L_k(last epoch) / L_k(the one before), T = 2; r = 1 for two epochs.

    Source: Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019, section 3.3.
    """

    def __init__(self, loss_weights: Sequence[float], seed: int):
        super().__init__(loss_weights, seed)
        tasks = len(loss_weights)
        self.state = {
            "loss_last_epoch": tf.Variable(tf.fill([tasks], math.nan), trainable=False),
            "loss_epoch_before": tf.Variable(tf.fill([tasks], math.nan), trainable=False),
        }

    def factors(self, step: tf.Tensor) -> tf.Tensor:
        """See LossWeighting."""
        ratio = self.state["loss_last_epoch"] / self.state["loss_epoch_before"]
        ratio = tf.where(tf.math.is_finite(ratio), ratio, 1.0)
        return ratio.shape[0] * tf.nn.softmax(ratio / DWA_TEMPERATURE) * self.loss_weights

    def end_epoch(self, losses: Sequence[float]) -> None:
        """See LossWeighting."""
        self.state["loss_epoch_before"].assign(self.state["loss_last_epoch"])
        self.state["loss_last_epoch"].assign(tf.constant(losses, tf.float32))
