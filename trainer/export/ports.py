"""The named tensors of an export: one input per feature, one output per task. Does not import TensorFlow."""

import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data.spec.features import SCORE
from trainer.layout import InputSchema, ModelInputs
from trainer.tasks.score import Score
from trainer.tasks.task import Task


@dataclass(frozen=True)
class Port:
    """A named input or output tensor, [batch, width].

    Attributes:
        name: tensor name of the feature or task (see `tensor_names`).
        dtype: "int32" or "float32".
        width: 1; max_hotness of a multi-hot feature or its weights, or of a feature of a sequence; the dimension of a
            vector; or the number of classes of a multi-class task.
    """

    name: str
    dtype: str
    width: int


def inputs_of(layout: InputSchema) -> tuple[Port, ...]:
    """Return one input per feature: ids (lists are padded with -1), weights, numbers of steps, vectors and numbers."""
    ids = (Port(columns.name, "int32", columns.hotness) for columns in layout.categorical)
    weights = (Port(columns.weights, "float32", columns.hotness) for columns in layout.weighted)
    numbers = (Port(name, "float32", places.stop - places.start) for name, places in layout.sequence_numbers.items())
    vectors = (Port(vector.name, "float32", vector.dimension) for vector in layout.vectors)
    return (*ids, *weights, *numbers, *vectors, *(Port(name, "float32", 1) for name in layout.numerical))


def outputs_of(tasks: Sequence[Task], score: Score | None = None) -> tuple[Port, ...]:
    """Return one output per task: a probability, a number, or the class probabilities; then the score, if any."""
    ports = tuple(Port(task.name, "float32", task.prediction_width) for task in tasks)
    return ports if score is None else (*ports, Port(SCORE, "float32", 1))


def named_inputs(layout: InputSchema, inputs: ModelInputs) -> dict[str, np.ndarray]:
    """Split a model's input matrices into one array per input of `inputs_of`."""
    named = {columns.name: inputs.ids[:, columns.start : columns.stop] for columns in layout.categorical}
    named |= {columns.weights: inputs.weights[:, places] for columns, places in layout.weighted.items()}
    named |= {name: inputs.numbers[:, places] for name, places in layout.sequence_numbers.items()}
    named |= {name: inputs.vectors[:, places] for name, places in layout.vector_places.items()}
    return named | {name: inputs.numerical[:, index : index + 1] for index, name in enumerate(layout.numerical)}


def tensor_names(names: Iterable[str], reserved: Iterable[str] = ()) -> dict[str, str]:
    """Map the names of features, tasks and raw columns to valid, distinct tensor names, none of them reserved.

    Names are kept where possible. TensorFlow renames inputs that are not Python identifiers, and does not distinguish
    names that differ only in case. In such names invalid characters are replaced by underscores, and a number is
    appended to names that are taken.
    """
    known = list(dict.fromkeys(names))
    tensors: dict[str, str] = {}
    taken = {name.lower() for name in reserved}
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
    # TensorFlow passes the inputs of a signature as keyword arguments, next to `self`.
    return re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name) is not None and not keyword.iskeyword(name) and name != "self"


def _free_name(name: str, taken: set[str]) -> str:
    plain = re.sub("[^A-Za-z0-9_]", "_", name)
    plain = plain if plain[0].isalpha() else f"tensor_{plain}"
    candidates = (plain, *(f"{plain}_{number}" for number in range(2, len(taken) + 3)))
    return next(one for one in candidates if _is_tensor_name(one) and one.lower() not in taken)


def rows_of(arrays: Mapping[str, np.ndarray], rows: slice) -> dict[str, np.ndarray]:
    """Return a slice of the rows of named arrays."""
    return {name: array[rows] for name, array in arrays.items()}
