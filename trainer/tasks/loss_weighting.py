"""Loss weighting: methods that combine the losses of several tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from trainer.config import TrainingOptions
from trainer.lazy import tf
from trainer.tasks.task import Task

Wants = Literal["nothing", "last", "all"]

LOG_VARIANCE_LIMIT = 5.0
DWA_TEMPERATURE = 2.0
GRADNORM_RATE = 0.025
GRADNORM_LEAST = 1e-3


class LossWeighting:
    """Fixed weights: sum_k w_k L_k, and the base class of all methods that combine the losses L_k of several tasks.

    A method overrides what it does differently.

    Args:
        tasks: the tasks, with their loss weights w_k.
        seed: seed of random weights and orders.

    Attributes:
        wants: shared weights whose gradients `combine` gets: the last kernel or all; with "nothing", it is not called.
        loss_weights: w_k, [tasks] float32.
        weights: name -> float32 variable to train with the deep part.
        state: name -> variable to checkpoint besides the trained ones.
    """

    wants: ClassVar[Wants] = "nothing"

    def __init__(self, tasks: Sequence[Task], seed: int):
        self.loss_weights = tf.constant([task.loss_weight for task in tasks], tf.float32)
        self.weights: dict[str, tf.Variable] = {}
        self.state: dict[str, tf.Variable] = {}
        self._seed = seed

    @classmethod
    def from_options(cls, tasks: Sequence[Task], options: TrainingOptions) -> Self:
        """Create the method with the flags, of which most methods use none but the seed."""
        return cls(tasks, options.seed)

    def factors(self, step: tf.Tensor) -> tf.Tensor:
        """Return the tasks' factors in a step (from 1), [tasks] float32; they are not differentiated."""
        return self.loss_weights

    def total(self, shares: tf.Tensor, weights: dict[str, tf.Tensor], factors: tf.Tensor, workers: int) -> tf.Tensor:
        """Compute this worker's share of the loss, scalar float32.

        Args:
            shares: [tasks] float32, this worker's shares of the mean losses.
            weights: values of the trained variables, with respect to which the loss is differentiated.
            factors: [tasks] float32, result of `factors`.
            workers: number of workers.
        """
        return tf.reduce_sum(factors * shares)

    def combine(self, gradients: tf.Tensor, losses: tf.Tensor, step: tf.Tensor) -> tf.Tensor | None:
        """Process the tasks' gradients when a step is applied.

        Args:
            gradients: [tasks, values] float32, gradient of every L_k over the global batch with respect to the shared
                weights that the method wants.
            losses: [tasks] float32, every L_k.
            step: scalar int32, counted from 1.

        Returns:
            [values] float32 to replace the gradient of the sum, or None to keep it.
        """
        return None

    def end_epoch(self, losses: Sequence[float]) -> None:
        """Record the mean loss of each task over the epoch, which is the same on every worker."""

    def _seed_of(self, step: tf.Tensor) -> tf.Tensor:
        """Return a seed that depends on nothing else: equal on all workers, and reproduced by a resumed run."""
        return tf.stack([tf.constant(self._seed), tf.cast(step, tf.int32)])


class Uncertainty(LossWeighting):
    """Uncertainty weighting with trained s_k = log sigma_k^2: sum_k w_k (c_k exp(-s_k) L_k + s_k / 2)

    with c_k the task's `uncertainty_factor`, 1 for classification and 1/2 for regression. s_k starts at 0 and is
    clipped to [-5, 5]: without a bound, a task whose loss approaches 0 would take all the weight. Source: Kendall, Gal
    and Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses", CVPR 2018.
    """

    def __init__(self, tasks: Sequence[Task], seed: int):
        super().__init__(tasks, seed)
        self._scales = tf.constant([task.uncertainty_factor for task in tasks], tf.float32)
        self.weights = {"loss_log_variance": tf.Variable(tf.zeros(len(tasks)))}

    def total(self, shares: tf.Tensor, weights: dict[str, tf.Tensor], factors: tf.Tensor, workers: int) -> tf.Tensor:
        """Return this worker's share of the weighted losses and of the terms s_k / 2."""
        variance = tf.clip_by_value(weights["loss_log_variance"], -LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
        # Every worker has the same s_k / 2, so each adds its 1 / workers of it.
        return tf.reduce_sum(factors * (self._scales * tf.exp(-variance) * shares + variance / 2 / workers))


class RandomWeights(LossWeighting):
    """Random weighting: sum_k K softmax(z)_k w_k L_k, with new z ~ N(0, 1)^K in every step.

    Source: Lin et al., "Reasonable Effectiveness of Random Weighting", TMLR 2022.
    """

    def factors(self, step: tf.Tensor) -> tf.Tensor:
        """Draw the factors of a step."""
        tasks = self.loss_weights.shape[0]
        normal = tf.random.stateless_normal([tasks], seed=self._seed_of(step))
        return tasks * tf.nn.softmax(normal) * self.loss_weights


class DynamicWeightAverage(LossWeighting):
    """Dynamic weight average: sum_k K softmax(r / T)_k w_k L_k

    with r_k = L_k(last epoch) / L_k(the epoch before), T = 2, and r = 1 during the first two epochs. Source: Liu, Johns
    and Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019, section 3.3.
    """

    def __init__(self, tasks: Sequence[Task], seed: int):
        super().__init__(tasks, seed)
        names = ("loss_last_epoch", "loss_epoch_before")
        self.state = {name: tf.Variable(tf.fill([len(tasks)], math.nan), trainable=False) for name in names}

    def factors(self, step: tf.Tensor) -> tf.Tensor:
        """Return the factors, which change with every epoch."""
        ratio = self.state["loss_last_epoch"] / self.state["loss_epoch_before"]
        # Losses are NaN before the first epochs have ended, and a loss of 0 gives an infinite ratio.
        ratio = tf.where(tf.math.is_finite(ratio), ratio, 1.0)
        return ratio.shape[0] * tf.nn.softmax(ratio / DWA_TEMPERATURE) * self.loss_weights

    def end_epoch(self, losses: Sequence[float]) -> None:
        """Shift the losses by one epoch and record those of the last one."""
        self.state["loss_epoch_before"].assign(self.state["loss_last_epoch"])
        self.state["loss_last_epoch"].assign(tf.constant(losses, tf.float32))


class GradNorm(LossWeighting):
    """GradNorm: sum_k v_k w_k L_k, with v_k adapted until all tasks train at the same pace.

    Let g_k be the gradient of w_k L_k with respect to the last shared kernel, G_k = v_k |g_k|, and r_k the ratio
    L_k / (first L_k), divided by its mean over tasks. v descends the gradient of  sum_k |G_k - mean(G) r_k^alpha|,  the
    second term held constant, and is then rescaled to sum to the number of tasks. Tasks without a row in a step are
    left out of it. Source: Chen et al., "GradNorm", ICML 2018, equations 1 and 2.

    Args:
        tasks: the tasks, with their loss weights w_k.
        seed: not used.
        alpha: how strongly slowly learning tasks are favoured.
    """

    wants = "last"

    def __init__(self, tasks: Sequence[Task], seed: int, alpha: float = 1.5):
        super().__init__(tasks, seed)
        self._alpha = alpha
        self.state = {
            "gradnorm_weights": tf.Variable(tf.ones(len(tasks)), trainable=False),
            "gradnorm_first_losses": tf.Variable(tf.fill([len(tasks)], math.nan), trainable=False),
        }

    @classmethod
    def from_options(cls, tasks: Sequence[Task], options: TrainingOptions) -> Self:
        """Create the method with --gradnorm_alpha."""
        return cls(tasks, options.seed, options.gradnorm_alpha)

    def factors(self, step: tf.Tensor) -> tf.Tensor:
        """Return the factors v_k w_k."""
        return self.state["gradnorm_weights"] * self.loss_weights

    def combine(self, gradients: tf.Tensor, losses: tf.Tensor, step: tf.Tensor) -> tf.Tensor | None:
        """Update the v_k from the tasks' gradients; keep the gradient of the sum."""
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


class PCGrad(LossWeighting):
    """PCGrad: the sum of the tasks' gradients after removing from each what conflicts with the others.

    g_k is the gradient of w_k L_k with respect to the shared weights. Each g_i is compared with the others in random
    order and loses its component along g_j if the two conflict:
    g_i <- g_i - (g_i . g_j / |g_j|^2) g_j  if  g_i . g_j < 0. Embedding tables get the plain sum.
    Source: Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, algorithm 1.
    """

    wants = "all"

    def combine(self, gradients: tf.Tensor, losses: tf.Tensor, step: tf.Tensor) -> tf.Tensor | None:
        """Return the sum of the projected gradients, [values] float32."""
        own = gradients * self.loss_weights[:, tf.newaxis]  # [tasks, values]
        tasks = own.shape[0]
        draws = tf.random.stateless_uniform([tasks, tasks], self._seed_of(step))
        # Works on the [tasks, tasks] scalar products: no projection touches the long gradients.
        shares = project(tf.linalg.matmul(own, own, transpose_b=True), tf.argsort(draws, axis=1))
        return tf.linalg.matvec(own, tf.reduce_sum(shares, axis=0), transpose_a=True)


def project(products: tf.Tensor, orders: tf.Tensor) -> tf.Tensor:
    """Compute PCGrad's projections as linear combinations of the tasks' gradients.

    Args:
        products: [tasks, tasks] float32, the scalar products g_i . g_j.
        orders: [tasks, tasks] int32; row i is the order in which task i is compared with all tasks.

    Returns:
        [tasks, tasks] float32: the projected g_i is the sum over j of [i, j] g_j.
    """
    tasks = products.shape[0]
    shares, squares = tf.eye(tasks), tf.linalg.diag_part(products)
    for index in range(tasks):
        others = orders[:, index]  # [tasks]: the task that each one is compared with in this round
        # Projected g_i . g_j with the original g_j, as in the paper.
        along = tf.reduce_sum(shares * tf.gather(products, others), axis=1)
        conflicts = (along < 0) & (others != tf.range(tasks))
        amounts = tf.where(conflicts, tf.math.divide_no_nan(along, tf.gather(squares, others)), 0.0)
        shares -= amounts[:, tf.newaxis] * tf.one_hot(others, tasks)
    return shares


# The choices of --loss_weighting.
LOSS_WEIGHTINGS: dict[str, type[LossWeighting]] = {
    "static": LossWeighting,
    "uncertainty": Uncertainty,
    "gradnorm": GradNorm,
    "dwa": DynamicWeightAverage,
    "rlw": RandomWeights,
    "pcgrad": PCGrad,
}
