"""The losses of tasks, normalized by the rows of all workers."""

import tensorflow as tf

from trainer.tasks.group import GroupTask
from trainer.tasks.task import Task, joint_chains, logit_columns


def row_weights(labels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Return the weight of each row for each task, [batch, tasks] float32.

    This is the row's sample weight, or 0 where the label is NaN.

    Args:
        labels: labels, [batch, tasks] float32; NaN where a row does not count for a task.
        weights: sample weights, [batch] float32; 0 for padding rows.
    """
    return tf.where(tf.math.is_nan(labels), 0.0, weights[:, tf.newaxis])


def task_losses(
    logits: tf.Tensor,
    labels: tf.Tensor,
    counts: tf.Tensor,
    totals: tf.Tensor,
    tasks: tuple[Task, ...],
    groups: tf.Tensor | None = None,
) -> tf.Tensor:
    """Return this worker's share of each task's mean loss, [tasks] float32.

    The shares of all workers add up to the mean over their rows. Each task defines the loss of a row.

    Args:
        logits: logits, [batch, sum of widths] float32.
        labels: labels, [batch, tasks] float32; NaN where missing.
        counts: result of `row_weights`, [batch, tasks] float32.
        totals: sums of `counts` over the rows of all workers, [tasks] float32; a task without rows has loss 0.
        tasks: the tasks, one per column of the labels.
        groups: the groups of the rows for tasks that compare them, [batch] int32 (see `GroupTask`).
    """

    def loss(task: Task, own: tf.Tensor, known: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        return task.group_loss(own, known, weights, groups) if isinstance(task, GroupTask) else task.loss(own, known)

    # NaN must not reach the loss: 0 * NaN is NaN, in the loss and in its gradient.
    known = tf.where(tf.math.is_nan(labels), 0.0, labels)
    # [batch, tasks]
    per_row = tf.stack(
        [
            loss(task, logits[:, columns], known[:, index], counts[:, index])
            for index, (task, columns) in enumerate(zip(tasks, logit_columns(tasks), strict=True))
        ],
        axis=1,
    )
    return tf.math.divide_no_nan(tf.reduce_sum(per_row * counts, axis=0), totals)


def joint_logits(logits: tf.Tensor, tasks: tuple[Task, ...]) -> tf.Tensor:
    """Replace conditional logits by those of the joint event "this label and all labels that it is given".

    With the odds against, a = (1 - p) / p = exp(-logit(p)) and b likewise for q, the odds against both events are
    1 / (p q) - 1 = a + b + a b: a sum of positive numbers, free of cancellation. `trainer.tasks.joint` does the same
    in NumPy.

    Args:
        logits: logits of the conditional probabilities, [batch, sum of widths] float32.
        tasks: the tasks; the logits of regressions and multiclass tasks are left unchanged.

    Returns:
        The logits, [batch, sum of widths] float32.
    """
    conditional = [logits[:, columns] for columns in logit_columns(tasks)]
    joint = list(conditional)
    for index, chain in joint_chains(tasks).items():
        first, *others = (conditional[position] for position in chain)
        for other in others:
            # logit(p q) = -log(a + b + a b) with log a = -first, log b = -other.
            first = -tf.reduce_logsumexp(tf.stack([-first, -other, -first - other]), axis=0)
        joint[index] = first
    return tf.concat(joint, axis=1)


def joint_labels(labels: tf.Tensor, tasks: tuple[Task, ...]) -> tf.Tensor:
    """Return the labels of the events of `joint_logits`, which are defined on all rows.

    Args:
        labels: labels, [batch, tasks] float32; NaN outside the sample space of a task and where a label is missing.
        tasks: the tasks, one per column.

    Returns:
        Labels, [batch, tasks] float32. A joint label is 0 wherever a label that the task is given is 0; otherwise it is
        NaN where one of those labels or the task's own is NaN.
    """
    known = tf.unstack(labels, axis=1)
    joint = list(known)
    for index, chain in joint_chains(tasks).items():
        every = tf.stack([known[position] for position in chain])  # [chain, batch]
        outside = tf.reduce_any(every[:-1] == 0, axis=0)  # False for NaN, which the product then passes on
        joint[index] = tf.where(outside, 0.0, tf.reduce_prod(every, axis=0))
    return tf.stack(joint, axis=1)
