"""Tasks: what each label means for the loss."""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from data.errors import DataError
from data.specification.feature_spec import FeatureSpec


@dataclass(frozen=True)
class Task:
    """One label to learn.

    Attributes:
        name: the label.
        loss_weight: factor of its loss in the sum over tasks.
        positive_weight: factor of a positive row's loss.
        given: position of the label that must be 1 for a row to count (the sample space), None for all rows.
    """

    name: str
    loss_weight: float
    positive_weight: float
    given: int | None


def tasks_of(spec: FeatureSpec) -> tuple[Task, ...]:
    """The tasks of a specification, in the order of its label channel.

    Raises:
        DataError: a label that is not binary.
    """
    names = [label.name for label in spec.labels]
    for label in spec.labels:
        if label.task != "binary":
            raise DataError(
                f"feature_spec.{label.name}.task is {label.task!r}, and only binary labels can be trained. "
                f"Take {label.name} out of channel_spec.label, or turn it into 0 and 1."
            )
    return tuple(
        Task(label.name, label.loss_weight, label.positive_weight, names.index(label.given) if label.given else None)
        for label in spec.labels
    )


def restrict_to_sample_space(labels: np.ndarray, tasks: tuple[Task, ...]) -> np.ndarray:
    """Labels [batch, tasks] float32 with NaN (does not count) where a task's `given` label is not 1."""
    if all(task.given is None for task in tasks):
        return labels
    restricted = labels.copy()
    for index, task in enumerate(tasks):
        if task.given is not None:
            restricted[labels[:, task.given] != 1, index] = np.nan
    return restricted


def row_weights(labels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """What each row counts for each task, [batch, tasks] float32: its weight, or 0 where the label is NaN."""
    return tf.where(tf.math.is_nan(labels), 0.0, weights[:, tf.newaxis])


def task_losses(
    logits: tf.Tensor, labels: tf.Tensor, counts: tf.Tensor, totals: tf.Tensor, positive_weights: tf.Tensor
) -> tf.Tensor:
    """This worker's share of each task's mean binary cross-entropy, [tasks] float32, in nats per row.

    The shares of all workers add up to the mean over the rows of all workers.

    Args:
        logits: [batch, tasks] float32.
        labels: [batch, tasks] float32 in [0, 1], NaN where missing.
        counts: [batch, tasks] float32 from row_weights.
        totals: [tasks] float32, the sum of `counts` over the rows of all workers; a task without a row has loss 0.
        positive_weights: [tasks] float32, factors of the positives' part.
    """
    known = tf.where(tf.math.is_nan(labels), 0.0, labels)
    per_row = tf.nn.weighted_cross_entropy_with_logits(labels=known, logits=logits, pos_weight=positive_weights)
    return tf.math.divide_no_nan(tf.reduce_sum(per_row * counts, axis=0), totals)
