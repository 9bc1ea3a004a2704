"""The task types of labels, by the values that such labels have."""

from enum import Enum


class LabelKind(Enum):
    """The values that a label can have."""

    BINARY = "0 or 1"
    CLASS = "a class from 0 to cardinality - 1"
    NUMBER = "a finite number"
    AMOUNT = "a finite number of at least 0"


# `task` of a label -> values of the label. The trainer defines the task type NAME in trainer/tasks/NAME.py.
TASK_TYPES = {
    "binary": LabelKind.BINARY,
    "multiclass": LabelKind.CLASS,
    "regression": LabelKind.NUMBER,
    "log1p": LabelKind.AMOUNT,
    "poisson": LabelKind.AMOUNT,
    "tweedie": LabelKind.AMOUNT,
    "ziln": LabelKind.AMOUNT,
    "weighted_logistic": LabelKind.AMOUNT,
    "pairwise": LabelKind.BINARY,
    "listwise": LabelKind.BINARY,
    "jrc": LabelKind.BINARY,
}
