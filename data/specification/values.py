"""Single values of a specification: what each key of a feature may hold, what a name or a path may be."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data.specification.parts import DTYPES, MAX_CARDINALITY, MAX_EMBEDDING_DIM, MISSING, ROLES, TASKS
from data.specification.problems import described, shown

# Names of mappings and features are parts of file names (255 bytes), of features and labels parts of arrays' names.
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
    """What is wrong with the name of a feature or mapping; None if nothing is, and every later use can take it."""
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
    """What is wrong with a path as text; None if nothing is."""
    if not isinstance(path, str):
        return f"is {described(path)}; write a path, in quotes"
    if not path or not path.isprintable():
        return f"is {described(path)}; write the path of a file, without control characters"
    if len(path) > MAX_PATH_LENGTH:
        return f"this path has {len(path)} characters; the most is {MAX_PATH_LENGTH}"
    return None


def whole_number(least: int, most: int) -> Callable[[Any], int]:
    """A function that takes an int (a NumPy one too) in [least, most] and raises ValueError for all else."""

    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            hint = ", without quotes" if isinstance(value, str) else ""
            raise ValueError(f"is {described(value)}; write a whole number from {least} to {most}{hint}")
        if not least <= value <= most:
            raise ValueError(f"is {shown(value)}; write a whole number from {least} to {most}")
        return int(value)

    return convert


def positive_number(value: Any) -> float:
    """A finite number above 0 as float; ValueError for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        hint = " (without quotes; YAML wants a point: 1.0e-3)" if isinstance(value, str) else ""
        raise ValueError(f"is {described(value)}; write a number above 0{hint}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not 0 < number < math.inf:
        raise ValueError(f"is {shown(value)}; write a finite number above 0")
    return number


def one_of(choices: Sequence[str]) -> Callable[[Any], str]:
    """A function that takes one of `choices` and raises ValueError for all else."""

    def convert(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"is {described(value)}; write one of {', '.join(choices)}")
        return value

    return convert


def _dtype(value: Any) -> str:
    """A NumPy name, from a NumPy or a torch name."""
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


# The keys of a feature; each function returns the value or raises ValueError with the mend.
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
