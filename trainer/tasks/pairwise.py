"""Binary tasks learned by ranking pairs of rows of a group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainer.lazy import tf
from trainer.tasks.group import GroupTask


@dataclass(frozen=True)
class PairwiseTask(GroupTask):
    """A label that is 0 or 1, learned by the order of the pairs of a positive and a negative row of a group.

        loss = sum over the negatives j of its group of w_j * log(1 + exp(s_j - s)) / sum of w_j

    of a row with label 1, and 0 of others and in groups without both, with logits s and sample weights w: BPR (Rendle
    et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback", UAI 2009) over all pairs instead of drawn ones.
    Only differences of logits within groups matter: their sigmoid ranks the rows of a group, but is no probability
    before it is calibrated.
    """

    def group_loss(self, logits: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor, groups: tf.Tensor) -> tf.Tensor:
        """Compute the loss of each row, [batch] float32."""
        return mean_pair_loss(logits[:, 0], labels, weights, groups)


def mean_pair_loss(scores: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor, groups: tf.Tensor) -> tf.Tensor:
    """Compute the loss of each row, [batch] float32, differentiable in the scores.

    It takes memory for some columns of the batch, and time for it times the rows of its largest group.

    Args:
        scores: [batch] float32.
        labels: [batch] float32.
        weights: [batch] float32.
        groups: as for `GroupTask.group_loss`.
    """
    rows = tf.shape(scores)[0]
    places = tf.range(rows)
    longest = tf.reduce_max(tf.math.unsorted_segment_sum(tf.ones_like(groups), groups, rows))
    negative = tf.where(labels > 0, 0.0, weights)
    of_group = tf.gather(tf.math.unsorted_segment_sum(negative, groups, rows), groups)
    share = tf.where(labels > 0, tf.math.divide_no_nan(1.0, of_group), 0.0)

    def sum_over_group(term: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        """Sum what `term` returns for the partner of each row, over all rows of its group as partners."""

        def add(offset: tf.Tensor, sums: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            partners = tf.clip_by_value(places + offset, 0, rows - 1)
            is_of_group = (partners == places + offset) & (tf.gather(groups, partners) == groups)
            return offset + 1, sums + tf.where(is_of_group, term(partners), 0.0)

        return tf.while_loop(lambda offset, _: offset < longest, add, (1 - longest, tf.zeros_like(scores)))[1]

    # With its own gradient, which is a sum over pairs, too: that of a loop would keep the values of every pass.
    @tf.custom_gradient
    def losses(scores: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            of_positive = upstream * share

            def term(partners: tf.Tensor) -> tf.Tensor:
                gap = tf.gather(scores, partners) - scores
                as_positive = of_positive * tf.gather(negative, partners) * tf.sigmoid(gap)
                as_negative = tf.gather(of_positive, partners) * negative * tf.sigmoid(-gap)
                return as_negative - as_positive

            return sum_over_group(term)

        def loss(partners: tf.Tensor) -> tf.Tensor:
            return tf.gather(negative, partners) * tf.math.softplus(tf.gather(scores, partners) - scores)

        return share * sum_over_group(loss), gradient

    return losses(scores)
