"""Amounts that are often 0 and otherwise spread widely, such as claims or spending, learned by Tweedie regression."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Self

import numpy as np

from data.spec.features import Feature
from trainer.lazy import tf
from trainer.tasks.amount import AmountTask, bounded_exp, bounded_exp_float64


@dataclass(frozen=True)
class TweedieTask(AmountTask):
    """An amount y learned by half the Tweedie deviance, a compound Poisson-gamma model with point mass at 0.

        loss = m^(2 - p) / (2 - p) + y * m^(1 - p) / (p - 1) - y^(2 - p) / ((p - 1) * (2 - p)),    m = exp(logit)

    for a variance proportional to m^p (Jorgensen, "Exponential Dispersion Models", Journal of the Royal Statistical
    Society B, 1987). m is the predicted mean. The loss is 0 for m = y.

    Attributes:
        power: p, above 1 (nearly Poisson) and below 2 (nearly gamma).
    """

    _: KW_ONLY
    power: float = 1.5

    @classmethod
    def of(cls, label: Feature, given: int | None) -> Self:
        """Create the task of a label. `given` is the index of the label that it is given, or None."""
        return cls(label.name, loss_weight=label.loss_weight, given=given, power=label.tweedie_power)

    def loss(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Compute half the deviance of each row, [batch] float32."""
        above, below = self.power - 1, 2 - self.power
        of_mean = bounded_exp(below * logits[:, 0]) / below + labels * bounded_exp(-above * logits[:, 0]) / above
        return of_mean - tf.pow(labels, below) / (above * below)

    def losses(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Compute half the deviance of each row, [rows] float64."""
        above, below = self.power - 1, 2 - self.power
        of_mean = bounded_exp_float64(below * logits[:, 0]) / below
        return of_mean + labels * bounded_exp_float64(-above * logits[:, 0]) / above - labels**below / (above * below)
