"""The losses of tasks, with denominators that are right over all workers."""

import tensorflow as tf

from trainer.tasks import Task


def row_weights(labels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """What each row counts for each task, [batch, tasks] float32: its weight, or 0 where the label is NaN."""
    return tf.where(tf.math.is_nan(labels), 0.0, weights[:, tf.newaxis])


def task_losses(
    logits: tf.Tensor, labels: tf.Tensor, counts: tf.Tensor, totals: tf.Tensor, tasks: tuple[Task, ...]
) -> tf.Tensor:
    """This worker's share of each task's mean loss, [tasks] float32.

    That is binary cross-entropy in nats per row, or for a regression the squared error. The shares of all workers add
    up to the mean over the rows of all workers.

    Args:
        logits: [batch, tasks] float32; for a regression the predicted value.
        labels: [batch, tasks] float32, in [0, 1] for binary tasks; NaN where missing.
        counts: [batch, tasks] float32 from row_weights.
        totals: [tasks] float32, the sum of `counts` over the rows of all workers; a task without a row has loss 0.
        tasks: one per column.
    """
    known = tf.where(tf.math.is_nan(labels), 0.0, labels)
    per_row = tf.stack([_row_losses(logits[:, i], known[:, i], task) for i, task in enumerate(tasks)], axis=1)
    return tf.math.divide_no_nan(tf.reduce_sum(per_row * counts, axis=0), totals)


def joint(logits: tf.Tensor, labels: tf.Tensor, tasks: tuple[Task, ...]) -> tuple[tf.Tensor, tf.Tensor]:
    """Logits and labels of "this label and all that it is given", on all rows, in the place of conditional ones.

    Args:
        logits: [batch, tasks] float32, of the conditional probabilities.
        labels: [batch, tasks] float32, NaN outside the sample space of a task and where a label is missing.
        tasks: one per column; regressions stay as they are.

    Returns:
        Both [batch, tasks] float32. A joint label is NaN only where it is unknown: 0 wherever the given one is 0.
    """
    log_probabilities, known = tf.math.log_sigmoid(logits), tf.unstack(labels, axis=1)
    new_logits, new_labels = tf.unstack(logits, axis=1), list(known)
    for index, task in enumerate(tasks):
        if task.given is None or task.kind != "binary":
            continue
        total, above = log_probabilities[:, index], task.given
        outside = tf.zeros_like(known[index], tf.bool)
        given: int | None = above
        while given is not None:
            total += log_probabilities[:, given]
            outside |= known[given] == 0
            given = tasks[given].given
        new_logits[index] = _logit_of_log(total)
        new_labels[index] = tf.where(outside, 0.0, known[index])
    return tf.stack(new_logits, axis=1), tf.stack(new_labels, axis=1)


def _logit_of_log(log_probability: tf.Tensor) -> tf.Tensor:
    """log(p / (1 - p)) from log p < 0, without cancellation near p = 1 (Maechler, "Accurately computing log1mexp")."""
    least = tf.minimum(log_probability, -1e-7)
    is_large = least > -0.6931472
    near_one = tf.math.log(-tf.math.expm1(tf.where(is_large, least, -1.0)))
    near_zero = tf.math.log1p(-tf.exp(tf.where(is_large, -1.0, least)))
    return least - tf.where(is_large, near_one, near_zero)


def _row_losses(logits: tf.Tensor, labels: tf.Tensor, task: Task) -> tf.Tensor:
    if task.kind == "regression":
        return tf.math.squared_difference(logits, labels)
    return tf.nn.weighted_cross_entropy_with_logits(labels=labels, logits=logits, pos_weight=task.positive_weight)
