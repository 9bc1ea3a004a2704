"""The losses of tasks, with denominators that are right over all workers."""

import tensorflow as tf

from trainer.tasks import Task, joint_chains, logit_columns


def row_weights(labels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """What each row counts for each task, [batch, tasks] float32: its weight, or 0 where the label is NaN."""
    return tf.where(tf.math.is_nan(labels), 0.0, weights[:, tf.newaxis])


def task_losses(
    logits: tf.Tensor, labels: tf.Tensor, counts: tf.Tensor, totals: tf.Tensor, tasks: tuple[Task, ...]
) -> tf.Tensor:
    """This worker's share of each task's mean loss, [tasks] float32.

    That is cross-entropy in nats per row, of the sigmoid for a binary task and of the softmax for several classes, or
    for a regression the squared error. The shares of all workers add up to the mean over the rows of all workers.

    Args:
        logits: [batch, sum of widths] float32; for a regression the predicted value.
        labels: [batch, tasks] float32, in [0, 1] for binary tasks, classes for multiclass ones; NaN where missing.
        counts: [batch, tasks] float32 from row_weights.
        totals: [tasks] float32, the sum of `counts` over the rows of all workers; a task without a row has loss 0.
        tasks: one per column of the labels.
    """
    known = tf.where(tf.math.is_nan(labels), 0.0, labels)
    per_row = tf.stack(
        [
            _row_losses(logits[:, columns], known[:, index], task)
            for index, (task, columns) in enumerate(zip(tasks, logit_columns(tasks), strict=True))
        ],
        axis=1,
    )
    return tf.math.divide_no_nan(tf.reduce_sum(per_row * counts, axis=0), totals)


def joint_logits(logits: tf.Tensor, tasks: tuple[Task, ...]) -> tf.Tensor:
    """Logits of "this label and all that it is given" in the place of conditional ones.

    1 / (p q) - 1 = a + b + a b with the odds against, a = (1 - p) / p = exp(-logit of p) and b: a sum of positive
    numbers, which cancels nowhere. `trainer.metrics.joint` has it in NumPy.

    Args:
        logits: [batch, sum of widths] float32, of the conditional probabilities.
        tasks: regressions and those of several classes stay as they are.
    """
    conditional = [logits[:, columns] for columns in logit_columns(tasks)]
    joint = list(conditional)
    for index, chain in joint_chains(tasks).items():
        first, *others = (conditional[position] for position in chain)
        for other in others:
            first = -tf.reduce_logsumexp(tf.stack([-first, -other, -first - other]), axis=0)
        joint[index] = first
    return tf.concat(joint, axis=1)


def joint_labels(labels: tf.Tensor, tasks: tuple[Task, ...]) -> tf.Tensor:
    """Labels of the events of joint_logits, on all rows.

    Args:
        labels: [batch, tasks] float32, NaN outside the sample space of a task and where a label is missing.
        tasks: one per column.

    Returns:
        [batch, tasks] float32. A joint label is 0 wherever one that the task is given is 0, and else unknown, NaN,
        where one of them or its own is.
    """
    known = tf.unstack(labels, axis=1)
    joint = list(known)
    for index, chain in joint_chains(tasks).items():
        every = tf.stack([known[position] for position in chain])
        outside = tf.reduce_any(every[:-1] == 0, axis=0)
        joint[index] = tf.where(outside, 0.0, tf.reduce_prod(every, axis=0))
    return tf.stack(joint, axis=1)


def _row_losses(logits: tf.Tensor, labels: tf.Tensor, task: Task) -> tf.Tensor:
    """[batch] float32 from one task's logits [batch, width] and labels [batch]."""
    if task.kind == "multiclass":
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.cast(labels, tf.int32), logits=logits)
    if task.kind == "regression":
        return tf.math.squared_difference(logits[:, 0], labels)
    return tf.nn.weighted_cross_entropy_with_logits(labels=labels, logits=logits[:, 0], pos_weight=task.positive_weight)
