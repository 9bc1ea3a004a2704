"""The named tensors of an export: one input per feature, one output per task. Imports no TensorFlow."""

import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data.errors import DataError
from trainer.layout import InputLayout
from trainer.tasks import Task


@dataclass(frozen=True)
class Port:
    """A named input or output, [batch, width].

    Attributes:
        name: the feature, or the task.
        dtype: "int32" or "float32".
        width: 1, or max_hotness of a multi-hot feature, or the classes of a multi-class task.
    """

    name: str
    dtype: str
    width: int


def inputs_of(layout: InputLayout) -> tuple[Port, ...]:
    """One per feature: ids (-1 pads a multi-hot row), then numbers."""
    ids = (Port(columns.name, "int32", columns.hotness) for columns in layout.categorical)
    return (*ids, *(Port(name, "float32", 1) for name in layout.numerical))


def outputs_of(tasks: Sequence[Task]) -> tuple[Port, ...]:
    """One per task: a probability, the value of a regression, or the probabilities of classes."""
    return tuple(Port(task.name, "float32", task.width) for task in tasks)


def named_inputs(layout: InputLayout, ids: np.ndarray, numerical: np.ndarray) -> dict[str, np.ndarray]:
    """The matrices that a model is fed, [rows, id columns] and [rows, numerical], as one array per feature."""
    named = {columns.name: ids[:, columns.start : columns.stop] for columns in layout.categorical}
    return named | {name: numerical[:, index : index + 1] for index, name in enumerate(layout.numerical)}


def check_names(names: Iterable[str]) -> None:
    """Tells which names cannot be those of tensors in every format.

    TensorFlow renames what is no Python identifier, without a word and so that two names may become one.

    Raises:
        DataError: naming the first.
    """
    for name in names:
        if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name) or keyword.iskeyword(name):
            raise DataError(
                f"{name!r} cannot be the name of a tensor: letters, digits and underscores, a letter first, and no "
                "keyword of Python; rename it in the feature specification and train again"
            )


def rows_of(arrays: Mapping[str, np.ndarray], rows: slice) -> dict[str, np.ndarray]:
    """Some rows of named arrays."""
    return {name: array[rows] for name, array in arrays.items()}
