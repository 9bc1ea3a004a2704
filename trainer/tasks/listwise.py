"""Binary tasks learned by ranking the rows of a group as a list."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.lazy import tf
from trainer.tasks.group import GroupTask, log_shares


@dataclass(frozen=True)
class ListwiseTask(GroupTask):
    """A label that is 0 or 1, learned by the cross-entropy of the softmax over the rows of a group.

        loss = -log(w * exp(s) / sum over the rows j of its group of w_j * exp(s_j))    of a row with label 1, else 0

    with logits s and sample weights w (Cao et al., "Learning to Rank: From Pairwise Approach to Listwise Approach",
    ICML 2007, with the top one probability). Only differences of logits within groups matter: their sigmoid ranks the
    rows of a group, but is no probability before it is calibrated.
    """

    def group_loss(self, logits: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor, groups: tf.Tensor) -> tf.Tensor:
        """Compute the loss of each row, [batch] float32."""
        return tf.where(labels > 0, -log_shares(logits[:, 0], weights, groups), 0.0)
