"""Tasks: how each label is learned. Imports no TensorFlow."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from data.spec.feature_spec import FeatureSpec
from data.spec.features import JOINT


@dataclass(frozen=True)
class Task:
    """One label to learn.

    Attributes:
        name: name of the label.
        kind: "binary", "regression" or "multiclass".
        loss_weight: factor of the task's loss in the sum over tasks.
        positive_weight: factor of the loss of positive rows in a binary task.
        given: index of the label that must be 1 for a row to count (the sample space); None if all rows count.
        classes: number of classes of a multiclass task, whose labels are 0 to classes - 1; 0 for other tasks.
    """

    name: str
    kind: str = "binary"
    loss_weight: float = 1.0
    positive_weight: float = 1.0
    given: int | None = None
    classes: int = 0

    @property
    def width(self) -> int:
        """The number of logits: one, or one per class."""
        return self.classes or 1


def tasks_of(spec: FeatureSpec) -> tuple[Task, ...]:
    """Return the tasks of a specification, in the order of its label channel."""
    names = [label.name for label in spec.labels]
    return tuple(
        Task(
            label.name,
            label.task,
            label.loss_weight,
            label.positive_weight,
            names.index(label.given) if label.given else None,
            classes=(label.cardinality or 0) if label.task == "multiclass" else 0,
        )
        for label in spec.labels
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
    given_others = [index for index, task in enumerate(tasks) if task.kind == "binary" and task.given is not None]
    return {index: _chain_of(tasks, index) for index in given_others}


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
