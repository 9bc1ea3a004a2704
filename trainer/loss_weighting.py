"""How the losses of several tasks become one: each method a weight per task, stated by its formula.

L_k is the mean loss of task k over the global batch, w_k its `loss_weight`, K the number of tasks. A worker hands in
its share of every L_k and gets its share of the sum: the shares of all workers add up to the formula.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import tensorflow as tf

LOG_VARIANCE_LIMIT = 5.0
DWA_TEMPERATURE = 2.0


class LossWeighting(Protocol):
    """One method."""

    @property
    def weights(self) -> dict[str, tf.Variable]:
        """Name -> float32 variable to be trained with the deep part."""

    @property
    def state(self) -> dict[str, tf.Variable]:
        """Name -> variable: what has to be saved besides the trained ones."""

    def total(self, shares: tf.Tensor, weights: dict[str, tf.Tensor], factors: tf.Tensor, workers: int) -> tf.Tensor:
        """This worker's share of the loss, scalar float32.

        Args:
            shares: [tasks] float32, of the mean losses.
            weights: values of the trained variables, which the gradient is taken for.
            factors: [tasks] float32 from `factors`.
            workers: how many there are.
        """

    def factors(self, step: tf.Tensor) -> tf.Tensor:
        """The tasks' factors in a step (from 1), [tasks] float32; not differentiated."""

    def end_epoch(self, losses: Sequence[float]) -> None:
        """Takes the mean loss of each task over the epoch, the same on every worker."""


class Static:
    """sum_k w_k L_k"""

    def __init__(self, loss_weights: Sequence[float], seed: int):
        self._loss_weights = tf.constant(loss_weights, tf.float32)
        self.weights: dict[str, tf.Variable] = {}
        self.state: dict[str, tf.Variable] = {}

    def total(self, shares: tf.Tensor, weights: dict[str, tf.Tensor], factors: tf.Tensor, workers: int) -> tf.Tensor:
        """See LossWeighting."""
        return tf.reduce_sum(factors * shares)

    def factors(self, step: tf.Tensor) -> tf.Tensor:
        """See LossWeighting."""
        return self._loss_weights

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
        tasks = self._loss_weights.shape[0]
        normal = tf.random.stateless_normal([tasks], seed=tf.stack([tf.constant(self._seed), tf.cast(step, tf.int32)]))
        return tasks * tf.nn.softmax(normal) * self._loss_weights


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
        return ratio.shape[0] * tf.nn.softmax(ratio / DWA_TEMPERATURE) * self._loss_weights

    def end_epoch(self, losses: Sequence[float]) -> None:
        """See LossWeighting."""
        self.state["loss_epoch_before"].assign(self.state["loss_last_epoch"])
        self.state["loss_last_epoch"].assign(tf.constant(losses, tf.float32))


METHODS = {"static": Static, "uncertainty": Uncertainty, "rlw": RandomWeights, "dwa": DynamicWeightAverage}


def make_loss_weighting(
    method: str, loss_weights: Sequence[float], regressions: Sequence[bool], seed: int
) -> LossWeighting:
    """The method of a name.

    Args:
        method: a key of METHODS.
        loss_weights: w_k of each task.
        regressions: which tasks are regressions.
        seed: of random weights.
    """
    if method == "uncertainty":
        return Uncertainty(loss_weights, seed, regressions)
    return METHODS[method](loss_weights, seed)
