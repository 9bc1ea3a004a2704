"""Tasks: what each label means. Imports no TensorFlow."""

from dataclasses import dataclass

import numpy as np

from data.errors import DataError
from data.specification.feature_spec import FeatureSpec

KINDS = ("binary", "regression")


@dataclass(frozen=True)
class Task:
    """One label to learn.

    Attributes:
        name: the label.
        kind: "binary", "regression" or "multiclass".
        loss_weight: factor of its loss in the sum over tasks.
        positive_weight: factor of a positive row's loss.
        given: position of the label that must be 1 for a row to count (the sample space), None for all rows.
        classes: of a multiclass task, whose labels are 0 to classes - 1; else 0.
    """

    name: str
    kind: str = "binary"
    loss_weight: float = 1.0
    positive_weight: float = 1.0
    given: int | None = None
    classes: int = 0

    @property
    def width(self) -> int:
        """How many logits it has: one, or one per class."""
        return self.classes or 1


def logit_columns(tasks: tuple[Task, ...]) -> tuple[slice, ...]:
    """Where each task's logits stand in [batch, outputs]."""
    stops = np.cumsum([task.width for task in tasks]).tolist()
    return tuple(slice(stop - task.width, stop) for task, stop in zip(tasks, stops, strict=True))


def tasks_of(spec: FeatureSpec) -> tuple[Task, ...]:
    """The tasks of a specification, in the order of its label channel.

    Raises:
        DataError: a label of several classes.
    """
    names = [label.name for label in spec.labels]
    for label in spec.labels:
        if label.task not in KINDS:
            raise DataError(
                f"feature_spec.{label.name}.task is {label.task!r}; what can be trained are {' and '.join(KINDS)}. "
                f"Take {label.name} out of channel_spec.label, or make a binary label of each class."
            )
    return tuple(
        Task(
            label.name,
            label.task,
            label.loss_weight,
            label.positive_weight,
            names.index(label.given) if label.given else None,
        )
        for label in spec.labels
    )


def restrict_to_sample_space(labels: np.ndarray, tasks: tuple[Task, ...]) -> np.ndarray:
    """Labels [batch, tasks] float32 with NaN (does not count) where a task's `given` label is not 1."""
    if all(task.given is None for task in tasks):
        return labels
    restricted = labels.copy()
    for index, task in enumerate(tasks):
        if task.given is not None:
            restricted[labels[:, task.given] != 1, index] = np.nan
    return restricted
