"""Validation of single values of a specification: the keys of a feature, names and paths."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data.errors import described, shown
from data.spec.parts import DTYPES, MAX_CARDINALITY, MAX_EMBEDDING_DIM, MISSING, ROLES, TASKS

# Mapping and feature names become parts of file names (at most 255 bytes), feature and label names of array names.
MAX_NAME_LENGTH = 200
MAX_PATH_LENGTH = 1000

TORCH_DTYPES = {
    "half": "float16",
    "float": "float32",
    "double": "float64",
    "short": "int16",
    "int": "int32",
    "long": "int64",
}


def name_mistake(name: Any) -> str | None:
    """Returns what is wrong with the name of a feature or mapping, or None if it is valid for every later use."""
    if isinstance(name, bool):
        return f"YAML reads this name as the truth value {name} (so it does yes, no, on, off); put it in quotes"
    if not isinstance(name, str):
        return f"this name is {described(name)}; a name is text: put it in quotes"
    if not name:
        return "this name is empty; write a name"
    if len(name) > MAX_NAME_LENGTH:
        return f"this name has {len(name)} characters; the most is {MAX_NAME_LENGTH}"
    if name != name.strip() or name.startswith("."):
        return f"the name {shown(name)} begins or ends with a blank, or begins with a dot; take it away"
    if "/" in name or not name.isprintable():
        return f"the name {shown(name)} holds a slash or a control character; leave it out"
    if (size := len(name.encode())) > MAX_NAME_LENGTH:
        return f"this name has {size} bytes in UTF-8; the most is {MAX_NAME_LENGTH}"
    return None


def file_mistake(path: Any) -> str | None:
    """Returns what is wrong with the text of a path, or None if it is valid."""
    if not isinstance(path, str):
        return f"is {described(path)}; write a path, in quotes"
    if not path or not path.isprintable():
        return f"is {described(path)}; write the path of a file, without control characters"
    if len(path) > MAX_PATH_LENGTH:
        return f"this path has {len(path)} characters; the most is {MAX_PATH_LENGTH}"
    return None


def whole_number(least: int, most: int) -> Callable[[Any], int]:
    """Returns a converter that accepts Python and NumPy integers in [least, most], and raises ValueError otherwise."""

    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            hint = ", without quotes" if isinstance(value, str) else ""
            raise ValueError(f"is {described(value)}; write a whole number from {least} to {most}{hint}")
        if not least <= value <= most:
            raise ValueError(f"is {shown(value)}; write a whole number from {least} to {most}")
        return int(value)

    return convert


def positive_number(value: Any) -> float:
    """Converts a finite number above 0 to float.

    Raises:
        ValueError: The value is not a number, not finite, or not above 0.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        hint = " (without quotes; YAML wants a point: 1.0e-3)" if isinstance(value, str) else ""
        raise ValueError(f"is {described(value)}; write a number above 0{hint}")
    try:
        number = float(value)
    except OverflowError:  # an int beyond the range of float64
        number = math.inf
    if not 0 < number < math.inf:
        raise ValueError(f"is {shown(value)}; write a finite number above 0")
    return number


def one_of(choices: Sequence[str]) -> Callable[[Any], str]:
    """Returns a converter that accepts one of `choices`, and raises ValueError otherwise."""

    def convert(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"is {described(value)}; write one of {', '.join(choices)}")
        return value

    return convert


def _dtype(value: Any) -> str:
    """Returns the NumPy name of a dtype, given its NumPy or torch name ("torch.long")."""
    name = value
    if isinstance(value, str) and value.startswith("torch."):
        name = value.removeprefix("torch.")
        name = TORCH_DTYPES.get(name, name)
    if name not in DTYPES:
        raise ValueError(f"is {described(value)}; write one of {', '.join(DTYPES)}")
    return name


def _given(value: Any) -> str:
    if mistake := name_mistake(value):
        raise ValueError(f"{mistake}; write the name of a label")
    return value


# Converters of the keys of a feature: each returns the value, or raises ValueError with the fix.
FEATURE_VALUES: dict[str, Callable[[Any], Any]] = {
    "dtype": _dtype,
    "cardinality": whole_number(1, MAX_CARDINALITY),
    "max_hotness": whole_number(1, MAX_CARDINALITY),
    "embedding_dim": whole_number(1, MAX_EMBEDDING_DIM),
    "task": one_of(TASKS),
    "loss_weight": positive_number,
    "positive_weight": positive_number,
    "given": _given,
    "missing": one_of(MISSING),
    "role": one_of(ROLES),
}
