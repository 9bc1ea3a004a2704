"""Joint events of tasks with `given`, on all rows: a conversion after a click as click and conversion."""

from collections.abc import Sequence

import numpy as np

from trainer.metrics.rows import Rows, as_logits


def joint_rows(parts: Sequence[Rows]) -> Rows:
    """Return the rows with the label of the joint event, and the conditional logits side by side.

    Args:
        parts: the same rows of a chain of binary tasks, each given the one before it; labels are NaN outside a task's
            sample space and where they are missing.

    Returns:
        Rows with logits [rows, tasks] float32 for joint_logits. The label is 0 if any label before the last is 0;
        otherwise it is NaN (unknown) if any label is.
    """
    labels = np.stack([part.labels for part in parts], axis=1)
    outside = (labels[:, :-1] == 0).any(axis=1)
    joint = np.where(outside, np.float32(0), labels.prod(axis=1))
    return parts[-1]._replace(logits=np.stack([part.logits for part in parts], axis=1), labels=joint)


def joint_logits(logits: np.ndarray) -> np.ndarray:
    """Return the logits of the product of probabilities, [rows] float32, finite, rounded once from float64.

    1 / (p q) - 1 = a + b + a b with the odds against, a = (1 - p) / p = exp(-logit of p) and b likewise: a sum of
    positive numbers, without cancellation. `trainer.tasks.losses` has the TensorFlow version.

    Args:
        logits: [rows, probabilities] float32.
    """
    against = -logits[:, 0].astype(np.float64)
    for column in logits.T[1:]:
        other = -column.astype(np.float64)
        # log(a + b + a b) from log a and log b.
        against = np.logaddexp(np.logaddexp(against, other), against + other)
    return as_logits(-against)
