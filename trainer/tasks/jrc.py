"""Binary tasks that are learned to rank the rows of a group and to predict probabilities, jointly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.lazy import tf
from trainer.metrics.calibration import probability
from trainer.metrics.rows import as_logits
from trainer.tasks.group import GroupTask, log_shares

CALIBRATION_SHARE = 0.5  # alpha


@dataclass(frozen=True)
class JrcTask(GroupTask):
    """A label y that is 0 or 1, learned by joint optimization of ranking and calibration with two logits, s_0 and s_1.

        loss = alpha * -log(exp(s_y) / (exp(s_0) + exp(s_1)))
             + (1 - alpha) * -log(w * exp(s_y) / sum over the rows j of its group of w_j * exp(s_yj))

    with alpha = CALIBRATION_SHARE and sample weights w: the probability of a row's label among labels, and of the row
    among those of its group. The prediction is the former, the sigmoid of s_1 - s_0. Source: Sheng et al., "Joint
    Optimization of Ranking and Calibration with Contextualized Hybrid Model", KDD 2023, equations 5 to 7.
    """

    @property
    def width(self) -> int:
        """A logit per label."""
        return 2

    @property
    def prediction_width(self) -> int:
        """The probability of label 1."""
        return 1

    def logit(self, logits: tf.Tensor) -> tf.Tensor:
        """Return the logit of label 1 against label 0, [batch] float32."""
        return logits[:, 1] - logits[:, 0]

    def group_loss(self, logits: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor, groups: tf.Tensor) -> tf.Tensor:
        """Compute the loss of each row, [batch] float32."""
        logit = self.logit(logits)
        calibration = tf.math.softplus(tf.where(labels > 0, -logit, logit))
        of_zero, of_one = (log_shares(scores, weights, groups) for scores in tf.unstack(logits, axis=1))
        ranking = -tf.where(labels > 0, of_one, of_zero)
        return CALIBRATION_SHARE * calibration + (1 - CALIBRATION_SHARE) * ranking

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """Return the probabilities, [rows, 1] float64."""
        return probability(self.output_logits(logits))[:, np.newaxis]

    def output_logits(self, logits: np.ndarray) -> np.ndarray:
        """Return the logits of the predicted probabilities, [rows] float32, from [rows, 2]."""
        return self.logit_map(as_logits(logits[:, 1].astype(np.float64) - logits[:, 0]))
