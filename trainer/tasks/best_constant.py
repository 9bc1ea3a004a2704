"""The best constant prediction of each task, from which training starts."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from trainer.tasks.group import GroupTask
from trainer.tasks.task import Task, restrict_to_sample_space

# Limit of the logits of probabilities, which would be infinite for a label that is always the same.
LARGEST_LOG = 15.0
# Tolerances of L-BFGS: the default ones stop far from the minimum of a flat loss.
EXACT = {"ftol": 1e-14, "gtol": 1e-9}


def best_constants(tasks: Sequence[Task], labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Find the logits with the smallest mean loss of each task if all rows have the same, [outputs] float32.

    For a binary task, for example, this is the log-odds of the share of positive rows. Tasks whose loss compares rows
    with each other, or that have no row, get 0.

    Args:
        tasks: the tasks.
        labels: [rows, tasks] float32; NaN where a row does not count for a task.
        weights: [rows] float32 sample weights.
    """
    labels = restrict_to_sample_space(labels, tasks)
    return np.concatenate(
        [_best_constant(task, labels[:, index], weights) for index, task in enumerate(tasks)], dtype=np.float32
    )


def _best_constant(task: Task, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    from scipy.optimize import minimize  # takes time to import

    counts = ~np.isnan(labels) & (weights > 0)
    if isinstance(task, GroupTask) or not counts.any():
        return np.zeros(task.width)
    # Equal labels have equal losses: binary labels and classes leave few rows.
    distinct, of_row = np.unique(labels[counts], return_inverse=True)
    sums = np.bincount(of_row, weights[counts].astype(np.float64))
    shares = sums / sums.sum()
    values = tf.constant(distinct, tf.float64)

    def mean_loss(logits: np.ndarray) -> tuple[float, np.ndarray]:
        constant = tf.constant(logits[np.newaxis])  # [1, width] float64
        with tf.GradientTape() as tape:
            tape.watch(constant)
            losses = task.loss(tf.tile(constant, [len(distinct), 1]), values)
            mean = tf.reduce_sum(losses * shares)
        return float(mean), tape.gradient(mean, constant).numpy()[0]

    limits = [(None, None) if task.num_classes == 0 else (-LARGEST_LOG, LARGEST_LOG)] * task.width
    # Not from 0, where losses made of absolute values have no gradient in TensorFlow.
    found = minimize(mean_loss, np.full(task.width, 0.1), jac=True, method="L-BFGS-B", bounds=limits, options=EXACT).x
    return found if np.isfinite(found).all() else np.zeros(task.width)
