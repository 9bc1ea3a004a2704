"""The named tensors of an export: one input per feature, one output per task. Imports no TensorFlow."""

import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.layout import InputLayout
from trainer.tasks import Task


@dataclass(frozen=True)
class Port:
    """A named input or output, [batch, width].

    Attributes:
        name: the feature, or the task (as `tensor_names` calls it).
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


def tensor_names(names: Iterable[str]) -> dict[str, str]:
    """What tensors are called, by the names of features, tasks and raw columns.

    A name stays as it is where it can: TensorFlow renames inputs that are no Python identifiers, and takes names that
    differ only in case for one. Elsewhere other characters become underscores, and a number tells equal names apart.
    """
    known = list(dict.fromkeys(names))
    tensors: dict[str, str] = {}
    taken: set[str] = set()
    for name in known:
        if _is_tensor_name(name) and name.lower() not in taken:
            tensors[name] = name
            taken.add(name.lower())
    for name in known:
        if name not in tensors:
            tensors[name] = _free_name(name, taken)
            taken.add(tensors[name].lower())
    return tensors


def _is_tensor_name(name: str) -> bool:
    # TensorFlow calls a signature with its inputs as keywords, beside `self`.
    return re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name) is not None and not keyword.iskeyword(name) and name != "self"


def _free_name(name: str, taken: set[str]) -> str:
    plain = re.sub("[^A-Za-z0-9_]", "_", name)
    plain = plain if plain[0].isalpha() else f"tensor_{plain}"
    candidates = (plain, *(f"{plain}_{number}" for number in range(2, len(taken) + 3)))
    return next(one for one in candidates if _is_tensor_name(one) and one.lower() not in taken)


def rows_of(arrays: Mapping[str, np.ndarray], rows: slice) -> dict[str, np.ndarray]:
    """Some rows of named arrays."""
    return {name: array[rows] for name, array in arrays.items()}
