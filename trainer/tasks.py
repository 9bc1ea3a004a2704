"""Tasks: what each label means. Imports no TensorFlow."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from data.specification.feature_spec import FeatureSpec
from data.specification.parts import JOINT


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


def tasks_of(spec: FeatureSpec) -> tuple[Task, ...]:
    """The tasks of a specification, in the order of its label channel."""
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
    """Which columns of the logits, [batch, sum of widths], are each task's."""
    ends = accumulate(task.width for task in tasks)
    return tuple(slice(end - task.width, end) for task, end in zip(tasks, ends, strict=True))


def joint_chains(tasks: Sequence[Task]) -> dict[int, tuple[int, ...]]:
    """The tasks that have a joint probability, with all that they are given, besides their conditional one.

    Returns:
        Position of each binary task with `given` -> the positions of all that it is given, each given the one before
        it, and its own as the last.
    """
    given_others = [index for index, task in enumerate(tasks) if task.kind == "binary" and task.given is not None]
    return {index: _chain_of(tasks, index) for index in given_others}


def _chain_of(tasks: Sequence[Task], index: int) -> tuple[int, ...]:
    given = tasks[index].given
    return (index,) if given is None else (*_chain_of(tasks, given), index)


def joint_name(tasks: Sequence[Task], chain: Sequence[int]) -> str:
    """What a task and all that it is given are called together, as in click+conversion."""
    return JOINT.join(tasks[index].name for index in chain)


def restrict_to_sample_space(labels: np.ndarray, tasks: Sequence[Task]) -> np.ndarray:
    """Labels [batch, tasks] float32 with NaN (does not count) where a task's `given` label is not 1."""
    if all(task.given is None for task in tasks):
        return labels
    restricted = labels.copy()
    for index, task in enumerate(tasks):
        if task.given is not None:
            restricted[labels[:, task.given] != 1, index] = np.nan
    return restricted
