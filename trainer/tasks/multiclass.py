"""Multiclass tasks: the probabilities of a label's classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from data.spec.features import Feature
from trainer.lazy import tf
from trainer.metrics.auc import OneVersusRestAuc
from trainer.metrics.losses import Accuracy, SoftmaxLoss, SoftmaxNormalizedEntropy
from trainer.metrics.metric import Metric
from trainer.tasks.task import Task


@dataclass(frozen=True)
class MulticlassTask(Task):
    """A label that is one of several classes, learned by the cross-entropy of the softmax, in nats. A logit per class.

    The loss and the metrics expect classes 0 to `num_classes` - 1.
    """

    metrics: ClassVar[tuple[type[Metric], ...]] = (SoftmaxLoss, OneVersusRestAuc, Accuracy, SoftmaxNormalizedEntropy)

    @classmethod
    def of(cls, label: Feature, given: int | None) -> Self:
        """Create the task of a label. `given` is the index of the label that it is given, or None."""
        return cls(label.name, loss_weight=label.loss_weight, given=given, num_classes=label.cardinality or 0)

    @property
    def width(self) -> int:
        """One logit per class."""
        return self.num_classes

    def loss(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Compute the loss of each row, [batch] float32."""
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.cast(labels, tf.int32), logits=logits)

    def activation(self, logits: tf.Tensor) -> tf.Tensor:
        """Return the probabilities of the classes, [batch, classes] float32."""
        return tf.nn.softmax(logits)

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """Return the probabilities of the classes, [rows, classes] float64."""
        # Subtracting the row's maximum prevents overflow and leaves the quotient unchanged.
        exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    def why_undefined(self, rows: int, positive: int) -> str:
        """Explain that there is only one class."""
        return f"it is one class in all {rows:,} evaluated rows"
