"""Methods that look at the gradients of every task with respect to the weights that the tasks share."""

import math
from collections.abc import Sequence

import tensorflow as tf

from trainer.loss_weighting.by_loss import Static
from trainer.loss_weighting.method import Wants

GRADNORM_RATE = 0.025
GRADNORM_LEAST = 1e-3


class GradNorm(Static):
    """sum_k v_k w_k L_k, with v moved until all tasks train at one pace.

    With g_k the gradient of w_k L_k with respect to the last shared weights, G_k = v_k |g_k| and r_k the task's
    L_k / (its first L_k) over the mean of these, v goes down the gradient of  sum_k |G_k - mean(G) r_k^alpha|,  where
    the second term is held fixed; then v is scaled to sum to the number of tasks. A step without a row of a task leaves
    that task out. Source: Chen et al., "GradNorm", ICML 2018, equations 1 and 2.

    Args:
        loss_weights: w_k of each task.
        seed: not used.
        alpha: how strongly tasks that learn slowly are favoured.
    """

    def __init__(self, loss_weights: Sequence[float], seed: int, alpha: float = 1.5):
        super().__init__(loss_weights, seed)
        self._alpha = alpha
        tasks = len(loss_weights)
        self.state = {
            "gradnorm_weights": tf.Variable(tf.ones(tasks), trainable=False),
            "gradnorm_first_losses": tf.Variable(tf.fill([tasks], math.nan), trainable=False),
        }

    @property
    def wants(self) -> Wants:
        """See LossWeighting."""
        return "last"

    def factors(self, step: tf.Tensor) -> tf.Tensor:
        """See LossWeighting."""
        return self.state["gradnorm_weights"] * self.loss_weights

    def combine(self, gradients: tf.Tensor, losses: tf.Tensor, step: tf.Tensor) -> tf.Tensor | None:
        """See LossWeighting."""
        weights, first = self.state["gradnorm_weights"], self.state["gradnorm_first_losses"]
        here = losses > 0
        first.assign(tf.where(tf.math.is_nan(first) & here, losses, first))
        counted = tf.cast(here, tf.float32)
        tasks = tf.maximum(tf.reduce_sum(counted), 1.0)
        norms = self.loss_weights * tf.norm(gradients, axis=1)
        pace = tf.where(here, losses / first, 0.0)
        relative = tf.math.divide_no_nan(pace, tf.reduce_sum(pace) / tasks)
        weighted = weights * norms
        target = tf.reduce_sum(weighted * counted) / tasks * tf.pow(relative, self._alpha)
        slope = tf.sign(weighted - target) * norms * counted
        moved = tf.maximum(weights - GRADNORM_RATE * slope, GRADNORM_LEAST)
        weights.assign(moved * len(self.loss_weights) / tf.reduce_sum(moved))
        return None


class PCGrad(Static):
    """The sum of the tasks' gradients, each without what conflicts with the others.

    g_k is the gradient of w_k L_k with respect to the shared weights. Every g_i, against the others one after the
    other in random order, loses its part along g_j wherever the two point apart:
    g_i <- g_i - (g_i . g_j / |g_j|^2) g_j  if  g_i . g_j < 0. Embedding tables get the plain sum.
    Source: Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, algorithm 1.
    """

    def __init__(self, loss_weights: Sequence[float], seed: int):
        super().__init__(loss_weights, seed)
        self._seed = seed

    @property
    def wants(self) -> Wants:
        """See LossWeighting."""
        return "all"

    def combine(self, gradients: tf.Tensor, losses: tf.Tensor, step: tf.Tensor) -> tf.Tensor | None:
        """See LossWeighting."""
        own = gradients * self.loss_weights[:, tf.newaxis]
        tasks = own.shape[0]
        draws = tf.random.stateless_uniform(
            [tasks, tasks], tf.stack([tf.constant(self._seed), tf.cast(step, tf.int32)])
        )
        shares = project(tf.linalg.matmul(own, own, transpose_b=True), tf.argsort(draws, axis=1))
        return tf.linalg.matvec(own, tf.reduce_sum(shares, axis=0), transpose_a=True)


def project(products: tf.Tensor, orders: tf.Tensor) -> tf.Tensor:
    """PCGrad's projections, in terms of the tasks' gradients.

    Args:
        products: [tasks, tasks] float32, the scalar products g_i . g_j.
        orders: [tasks, tasks] int32; row i is the order in which task i is held against all tasks.

    Returns:
        [tasks, tasks] float32: the projected g_i is the sum over j of [i, j] g_j.
    """
    tasks = products.shape[0]
    shares, squares = tf.eye(tasks), tf.linalg.diag_part(products)
    for place in range(tasks):
        others = orders[:, place]
        along = tf.reduce_sum(shares * tf.gather(products, others), axis=1)
        conflicts = (along < 0) & (others != tf.range(tasks))
        amounts = tf.where(conflicts, tf.math.divide_no_nan(along, tf.gather(squares, others)), 0.0)
        shares -= amounts[:, tf.newaxis] * tf.one_hot(others, tasks)
    return shares
