"""Binary tasks that are learned by comparing the rows of a group, a value of the map feature."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from data.spec.feature_spec import FeatureSpec
from data.spec.features import Feature
from trainer.lazy import tf
from trainer.tasks.binary import BinaryTask
from trainer.tasks.task import task_type

LOWEST = -1e30  # score of a row that does not count


@dataclass(frozen=True)
class GroupTask(BinaryTask):
    """A label that is 0 or 1, whose loss compares rows within groups. The base class of such task types.

    A batch has to hold whole groups, each in consecutive rows of one worker.
    """

    @abstractmethod
    def group_loss(self, logits: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor, groups: tf.Tensor) -> tf.Tensor:
        """Compute the loss of each row, which takes the place of `loss`.

        Args:
            logits: [batch, width] float32.
            labels: [batch] float32, 0 or 1.
            weights: [batch] float32; 0 for rows that do not count for the task.
            groups: [batch] int32 number of each row's group, below the number of rows; equal in consecutive rows only.

        Returns:
            [batch] float32; any finite value where the weight is 0.
        """


def group_labels(spec: FeatureSpec) -> list[Feature]:
    """Return the labels of a specification that are learned by comparing the rows of a group."""
    return [label for label in spec.labels if issubclass(task_type(label.task), GroupTask)]


def log_shares(scores: tf.Tensor, weights: tf.Tensor, groups: tf.Tensor) -> tf.Tensor:
    """Return log(w_i exp(s_i) / sum over the rows j of its group of w_j exp(s_j)), [batch] float32, at most 0.

    Args:
        scores: s, [batch] float32.
        weights: w, [batch] float32; rows of weight 0 have no part in the sum, and get a finite value.
        groups: as for `GroupTask.group_loss`.
    """
    rows, counts = tf.shape(scores)[0], weights > 0
    weighted = tf.where(counts, scores + tf.math.log(tf.where(counts, weights, 1.0)), LOWEST)
    # Subtracting the group's maximum prevents overflow and leaves the quotient unchanged.
    highest = tf.gather(tf.math.unsorted_segment_max(tf.stop_gradient(weighted), groups, rows), groups)
    below = weighted - highest
    return below - tf.math.log(tf.gather(tf.math.unsorted_segment_sum(tf.exp(below), groups, rows), groups))
