"""Loss weighting methods that use the gradient of every task with respect to the shared weights."""

import math
from collections.abc import Sequence

import tensorflow as tf

from trainer.loss_weighting.by_loss import Static
from trainer.loss_weighting.method import Wants

GRADNORM_RATE = 0.025
GRADNORM_LEAST = 1e-3


class GradNorm(Static):
    """GradNorm: sum_k v_k w_k L_k, with v_k adapted until all tasks train at the same pace.

    Let g_k be the gradient of w_k L_k with respect to the last shared kernel, G_k = v_k |g_k|, and r_k the ratio
    L_k / (first L_k), divided by its mean over tasks. v descends the gradient of  sum_k |G_k - mean(G) r_k^alpha|,  the
    second term held constant, and is then rescaled to sum to the number of tasks. Tasks without a row in a step are
    left out of it. Source: Chen et al., "GradNorm", ICML 2018, equations 1 and 2.

    Args:
        loss_weights: weight w_k of each task.
        seed: not used.
        alpha: how strongly slowly learning tasks are favoured.
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
        """Needs the gradients with respect to the last shared kernel."""
        return "last"

    def factors(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the factors v_k w_k."""
        return self.state["gradnorm_weights"] * self.loss_weights

    def combine(self, gradients: tf.Tensor, losses: tf.Tensor, step: tf.Tensor) -> tf.Tensor | None:
        """Updates the v_k from the tasks' gradients; keeps the gradient of the sum."""
        weights, first = self.state["gradnorm_weights"], self.state["gradnorm_first_losses"]
        # A task without a row in the global batch has a loss of 0.
        here = losses > 0
        first.assign(tf.where(tf.math.is_nan(first) & here, losses, first))
        counted = tf.cast(here, tf.float32)
        tasks = tf.maximum(tf.reduce_sum(counted), 1.0)
        norms = self.loss_weights * tf.norm(gradients, axis=1)  # |g_k|, [tasks]
        pace = tf.where(here, losses / first, 0.0)
        relative = tf.math.divide_no_nan(pace, tf.reduce_sum(pace) / tasks)
        weighted = weights * norms
        target = tf.reduce_sum(weighted * counted) / tasks * tf.pow(relative, self._alpha)
        # Derivative of |v_k |g_k| - target_k| with respect to v_k.
        slope = tf.sign(weighted - target) * norms * counted
        # The lower bound keeps every v_k positive.
        moved = tf.maximum(weights - GRADNORM_RATE * slope, GRADNORM_LEAST)
        weights.assign(moved * len(self.loss_weights) / tf.reduce_sum(moved))
        return None


class PCGrad(Static):
    """PCGrad: the sum of the tasks' gradients after removing from each what conflicts with the others.

    g_k is the gradient of w_k L_k with respect to the shared weights. Each g_i is compared with the others in random
    order and loses its component along g_j if the two conflict:
    g_i <- g_i - (g_i . g_j / |g_j|^2) g_j  if  g_i . g_j < 0. Embedding tables get the plain sum.
    Source: Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, algorithm 1.
    """

    def __init__(self, loss_weights: Sequence[float], seed: int):
        super().__init__(loss_weights, seed)
        self._seed = seed

    @property
    def wants(self) -> Wants:
        """Needs the gradients with respect to all shared weights."""
        return "all"

    def combine(self, gradients: tf.Tensor, losses: tf.Tensor, step: tf.Tensor) -> tf.Tensor | None:
        """Returns the sum of the projected gradients, [values] float32."""
        own = gradients * self.loss_weights[:, tf.newaxis]  # [tasks, values]
        tasks = own.shape[0]
        draws = tf.random.stateless_uniform(
            [tasks, tasks], tf.stack([tf.constant(self._seed), tf.cast(step, tf.int32)])
        )
        # Works on the [tasks, tasks] scalar products: no projection touches the long gradients.
        shares = project(tf.linalg.matmul(own, own, transpose_b=True), tf.argsort(draws, axis=1))
        return tf.linalg.matvec(own, tf.reduce_sum(shares, axis=0), transpose_a=True)


def project(products: tf.Tensor, orders: tf.Tensor) -> tf.Tensor:
    """Computes PCGrad's projections as linear combinations of the tasks' gradients.

    Args:
        products: [tasks, tasks] float32, the scalar products g_i . g_j.
        orders: [tasks, tasks] int32; row i is the order in which task i is compared with all tasks.

    Returns:
        [tasks, tasks] float32: the projected g_i is the sum over j of [i, j] g_j.
    """
    tasks = products.shape[0]
    shares, squares = tf.eye(tasks), tf.linalg.diag_part(products)
    for place in range(tasks):
        others = orders[:, place]  # [tasks]: the task that each one is compared with in this round
        # Projected g_i . g_j with the original g_j, as in the paper.
        along = tf.reduce_sum(shares * tf.gather(products, others), axis=1)
        conflicts = (along < 0) & (others != tf.range(tasks))
        amounts = tf.where(conflicts, tf.math.divide_no_nan(along, tf.gather(squares, others)), 0.0)
        shares -= amounts[:, tf.newaxis] * tf.one_hot(others, tasks)
    return shares
