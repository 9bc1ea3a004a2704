"""Binary tasks: the probability that a label is 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar, Self

import numpy as np

from data.spec.features import Feature
from trainer.lazy import tf
from trainer.metrics.auc import PrecisionRecallAuc, RocAuc
from trainer.metrics.calibration import Calibration, CalibrationError, probability
from trainer.metrics.grouped import GroupedAuc
from trainer.metrics.losses import LogLoss, NormalizedEntropy
from trainer.metrics.metric import Metric
from trainer.metrics.ranking import MeanAveragePrecision
from trainer.tasks.logit_map import LogitMap
from trainer.tasks.task import Task


@dataclass(frozen=True)
class BinaryTask(Task):
    """A label that is 0 or 1, learned by the cross-entropy of the sigmoid, in nats.

    Attributes:
        positive_weight: factor of the loss of rows with label 1.
        logit_map: map from the network's logit to that of the predicted probability. It has no part in the loss.
    """

    _: KW_ONLY
    num_classes: int = 2
    positive_weight: float = 1.0
    logit_map: LogitMap = LogitMap()

    # The first three names are those of the public recipe, which existing log parsers expect.
    metrics: ClassVar[tuple[type[Metric], ...]] = (
        LogLoss,
        RocAuc,
        MeanAveragePrecision,
        PrecisionRecallAuc,
        GroupedAuc,
        NormalizedEntropy,
        Calibration,
        CalibrationError,
    )
    is_binary = True

    @classmethod
    def of(cls, label: Feature, given: int | None) -> Self:
        """Create the task of a label. `given` is the index of the label that it is given, or None."""
        return cls(label.name, loss_weight=label.loss_weight, given=given, positive_weight=label.positive_weight)

    def logit(self, logits: tf.Tensor) -> tf.Tensor:
        """Return the network's logit of label 1, [batch] float32, from its logits, [batch, width] float32."""
        return logits[:, 0]

    def loss(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Compute the loss of each row, [batch] float32. Labels may be any probabilities."""
        return tf.nn.weighted_cross_entropy_with_logits(labels, logits[:, 0], pos_weight=self.positive_weight)

    def activation(self, logits: tf.Tensor) -> tf.Tensor:
        """Return the probabilities, [batch, 1] float32."""
        return tf.math.sigmoid(self.logit_map.in_graph(self.logit(logits)[:, tf.newaxis]))

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """Return the probabilities, [rows, 1] float64."""
        return probability(self.output_logits(logits))

    def output_logits(self, logits: np.ndarray) -> np.ndarray:
        """Return the logits of the predicted probabilities."""
        return self.logit_map(logits)

    def why_undefined(self, rows: int, positive: int) -> str:
        """Explain that labels are all equal, or equal within each group."""
        if positive in (0, rows):
            return f"it is {int(positive > 0)} in all {rows:,} evaluated rows"
        return "no group of evaluated rows has both classes"


def with_logit_maps(tasks: Sequence[Task], maps: Mapping[str, LogitMap]) -> tuple[Task, ...]:
    """Return tasks whose predictions go through maps, by name of the label; those without a map show their own logits.

    Raises:
        ValueError: a map is of no binary task.
    """
    binary = {task.name for task in tasks if isinstance(task, BinaryTask)}
    if unknown := sorted(maps.keys() - binary):
        raise ValueError(f"there are logit maps of {', '.join(unknown)}, which are no binary labels")
    return tuple(
        replace(task, logit_map=maps.get(task.name, LogitMap())) if isinstance(task, BinaryTask) else task
        for task in tasks
    )


def logit_maps_of(tasks: Sequence[Task]) -> dict[str, LogitMap]:
    """Return the maps of `with_logit_maps` that change something, by name of the label."""
    binary = [task for task in tasks if isinstance(task, BinaryTask)]
    return {task.name: task.logit_map for task in binary if not task.logit_map.is_identity}


def without_calibrators(tasks: Sequence[Task]) -> tuple[Task, ...]:
    """Return tasks whose predictions are shifted as before, but not calibrated."""
    shifts = {name: replace(one, calibrator=None) for name, one in logit_maps_of(tasks).items()}
    return with_logit_maps(tasks, shifts)
