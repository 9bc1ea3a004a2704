"""Tasks: how labels are learned. Imports no TensorFlow, because tasks are created before the arguments are checked.

A task type is a subclass of `Task` in a file of its own, registered by name in `TASK_TYPES` (data/spec/task_types.py):
the type NAME is the class `NameTask` in trainer/tasks/NAME.py (`two_words` is `TwoWordsTask`).
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import accumulate
from typing import ClassVar, Self

import numpy as np

from data.spec.feature_spec import FeatureSpec
from data.spec.features import JOINT, Feature
from trainer.lazy import tf
from trainer.metrics.metric import Metric


@dataclass(frozen=True)
class Task(ABC):
    """A label to learn: the number of its logits, its loss, and what its logits mean.

    Attributes:
        name: name of the label.
        loss_weight: factor of the task's loss in the sum over tasks.
        given: index of the label that must be 1 for a row to count (the sample space); None if all rows count.
        num_classes: number of classes of the label, which are 0, 1, ...; 0 if the label is a number.
        metrics: the metrics of an evaluation, in the order of the log.
        is_binary: whether the prediction is the probability that the label is 1, the sigmoid of `output_logits`.
        uncertainty_factor: factor of the task's loss in uncertainty weighting: 1 for the cross-entropy of classes, 1/2
            for a squared error that is not halved (see `trainer.tasks.loss_weighting.Uncertainty`).
    """

    name: str
    _: KW_ONLY
    loss_weight: float = 1.0
    given: int | None = None
    num_classes: int = 0

    metrics: ClassVar[tuple[type[Metric], ...]]
    is_binary: ClassVar[bool] = False
    uncertainty_factor: ClassVar[float] = 1.0

    @classmethod
    def of(cls, label: Feature, given: int | None) -> Self:
        """Create the task of a label. `given` is the index of the label that it is given, or None."""
        return cls(label.name, loss_weight=label.loss_weight, given=given)

    @property
    def width(self) -> int:
        """The number of logits."""
        return 1

    @property
    def prediction_width(self) -> int:
        """The number of values of a prediction."""
        return self.width

    @abstractmethod
    def loss(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Compute the loss of each row.

        Args:
            logits: [batch, width] float32.
            labels: [batch] float32, without missing values.

        Returns:
            [batch] float32.
        """

    @abstractmethod
    def activation(self, logits: tf.Tensor) -> tf.Tensor:
        """Convert logits, [batch, width] float32, to predictions in an exported model.

        Returns:
            [batch, prediction_width] float32.
        """

    @abstractmethod
    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """Convert logits, [rows, width] float32, to predictions, [rows, prediction_width] float64."""

    def output_logits(self, logits: np.ndarray) -> np.ndarray:
        """Return the logits of `predictions`, which metrics are computed from, [rows] or [rows, width] float32 both.

        They differ from the network's where probabilities are corrected or calibrated.
        """
        return logits

    def create_metric(self, metric: type[Metric], num_auc_thresholds: int) -> Metric:
        """Create one of the task's metrics. The number of thresholds is 0 for the exact AUC."""
        return metric.create(num_auc_thresholds)

    def invalid_labels(self, labels: np.ndarray) -> tuple[np.ndarray, str]:
        """Return which labels ([rows] bool) no metric of the task can use, and a description of such labels."""
        if not self.num_classes:
            return np.isinf(labels), "a value that is infinite in float32"
        last = self.num_classes - 1
        is_class = (labels >= 0) & (labels <= last) & (labels == np.floor(labels))
        expected = "a value other than 0 and 1" if last == 1 else f"a value that is not a class from 0 to {last}"
        return ~is_class, expected

    def why_undefined(self, rows: int, positive: int) -> str:
        """Explain why a metric has no value although rows were evaluated.

        Args:
            rows: number of rows, at least 1.
            positive: number of rows whose label is above 0.
        """
        return f"it is undefined for the labels of the {rows:,} evaluated rows"


def task_type(name: str) -> type[Task]:
    """Return the class of a task type, a key of TASK_TYPES."""
    module = importlib.import_module(f"trainer.tasks.{name}")
    return getattr(module, "".join(word.capitalize() for word in name.split("_")) + "Task")


def tasks_of(spec: FeatureSpec) -> tuple[Task, ...]:
    """Return the tasks of a specification, in the order of its label channel."""
    names = [label.name for label in spec.labels]
    return tuple(
        task_type(label.task).of(label, names.index(label.given) if label.given else None) for label in spec.labels
    )


def logit_columns(tasks: Sequence[Task]) -> tuple[slice, ...]:
    """Return the columns of each task in the logits, [batch, sum of widths]."""
    ends = accumulate(task.width for task in tasks)
    return tuple(slice(end - task.width, end) for task, end in zip(tasks, ends, strict=True))


def joint_chains(tasks: Sequence[Task]) -> dict[int, tuple[int, ...]]:
    """Return the tasks with a joint probability, that of their label and all labels that it is given.

    Returns:
        Index of each binary task with `given` -> its chain: the indices of all labels that it is given, each given the
        one before it, followed by its own.
    """
    conditional = [index for index, task in enumerate(tasks) if task.is_binary and task.given is not None]
    return {index: _chain_of(tasks, index) for index in conditional}


def _chain_of(tasks: Sequence[Task], index: int) -> tuple[int, ...]:
    given = tasks[index].given
    return (index,) if given is None else (*_chain_of(tasks, given), index)


def joint_name(tasks: Sequence[Task], chain: Sequence[int]) -> str:
    """Return the name of a chain's joint event, such as click+conversion."""
    return JOINT.join(tasks[index].name for index in chain)


def restrict_to_sample_space(labels: np.ndarray, tasks: Sequence[Task]) -> np.ndarray:
    """Return labels, [batch, tasks] float32, set to NaN (does not count) where a task's `given` label is not 1."""
    if all(task.given is None for task in tasks):
        return labels
    restricted = labels.copy()
    for index, task in enumerate(tasks):
        if task.given is not None:
            restricted[labels[:, task.given] != 1, index] = np.nan
    return restricted
