"""Loss weighting methods that depend on the losses only, or on nothing at all."""

import math
from collections.abc import Sequence

import tensorflow as tf

from trainer.loss_weighting.method import Wants

LOG_VARIANCE_LIMIT = 5.0
DWA_TEMPERATURE = 2.0


class Static:
    """Fixed weights: sum_k w_k L_k"""

    def __init__(self, loss_weights: Sequence[float], seed: int):
        self.loss_weights = tf.constant(loss_weights, tf.float32)
        self.weights: dict[str, tf.Variable] = {}
        self.state: dict[str, tf.Variable] = {}

    @property
    def wants(self) -> Wants:
        """Needs no gradients of single tasks."""
        return "nothing"

    def total(self, shares: tf.Tensor, weights: dict[str, tf.Tensor], factors: tf.Tensor, workers: int) -> tf.Tensor:
        """Returns the sum of the shares times their factors."""
        return tf.reduce_sum(factors * shares)

    def factors(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the fixed loss weights."""
        return self.loss_weights

    def combine(self, gradients: tf.Tensor, losses: tf.Tensor, step: tf.Tensor) -> tf.Tensor | None:
        """Keeps the gradient of the sum."""
        return None

    def end_epoch(self, losses: Sequence[float]) -> None:
        """Ignores the losses."""


class Uncertainty(Static):
    """Uncertainty weighting with trained s_k = log sigma_k^2: sum_k w_k (c_k exp(-s_k) L_k + s_k / 2)

    with c_k = 1 for classification and 1/2 for regression. s_k starts at 0 and is clipped to [-5, 5]: without a bound,
    a task whose loss approaches 0 would take all the weight. Source: Kendall, Gal and Cipolla, "Multi-Task Learning
    Using Uncertainty to Weigh Losses", CVPR 2018.
    """

    def __init__(self, loss_weights: Sequence[float], seed: int, regressions: Sequence[bool] = ()):
        super().__init__(loss_weights, seed)
        halves = [0.5 if regression else 1.0 for regression in regressions] or [1.0] * len(loss_weights)
        self._scales = tf.constant(halves, tf.float32)
        self.weights = {"loss_log_variance": tf.Variable(tf.zeros(len(loss_weights)))}

    def total(self, shares: tf.Tensor, weights: dict[str, tf.Tensor], factors: tf.Tensor, workers: int) -> tf.Tensor:
        """Returns this worker's share of the weighted losses and of the terms s_k / 2."""
        variance = tf.clip_by_value(weights["loss_log_variance"], -LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
        # Every worker has the same s_k / 2, so each adds its 1 / workers of it.
        return tf.reduce_sum(factors * (self._scales * tf.exp(-variance) * shares + variance / 2 / workers))


class RandomWeights(Static):
    """Random weighting: sum_k K softmax(z)_k w_k L_k, with new z ~ N(0, 1)^K in every step.

    Source: Lin et al., "Reasonable Effectiveness of Random Weighting", TMLR 2022.
    """

    def __init__(self, loss_weights: Sequence[float], seed: int):
        super().__init__(loss_weights, seed)
        self._seed = seed

    def factors(self, step: tf.Tensor) -> tf.Tensor:
        """Draws the factors of a step."""
        tasks = self.loss_weights.shape[0]
        # A pure function of seed and step: the same on all workers, and reproduced by a resumed run.
        normal = tf.random.stateless_normal([tasks], seed=tf.stack([tf.constant(self._seed), tf.cast(step, tf.int32)]))
        return tasks * tf.nn.softmax(normal) * self.loss_weights


class DynamicWeightAverage(Static):
    """Dynamic weight average: sum_k K softmax(r / T)_k w_k L_k

    with r_k = L_k(last epoch) / L_k(the epoch before), T = 2, and r = 1 during the first two epochs. Source: Liu, Johns
    and Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019, section 3.3.
    """

    def __init__(self, loss_weights: Sequence[float], seed: int):
        super().__init__(loss_weights, seed)
        tasks = len(loss_weights)
        self.state = {
            "loss_last_epoch": tf.Variable(tf.fill([tasks], math.nan), trainable=False),
            "loss_epoch_before": tf.Variable(tf.fill([tasks], math.nan), trainable=False),
        }

    def factors(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the factors, which change with every epoch."""
        ratio = self.state["loss_last_epoch"] / self.state["loss_epoch_before"]
        # Losses are NaN before the first epochs have ended, and a loss of 0 gives an infinite ratio.
        ratio = tf.where(tf.math.is_finite(ratio), ratio, 1.0)
        return ratio.shape[0] * tf.nn.softmax(ratio / DWA_TEMPERATURE) * self.loss_weights

    def end_epoch(self, losses: Sequence[float]) -> None:
        """Shifts the losses by one epoch and records those of the last one."""
        self.state["loss_epoch_before"].assign(self.state["loss_last_epoch"])
        self.state["loss_last_epoch"].assign(tf.constant(losses, tf.float32))
