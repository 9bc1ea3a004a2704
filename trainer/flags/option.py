"""One flag as a dataclass field, and the checks of values that groups of flags share."""

import math
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Any

from data.errors import DataError


def option(default: Any, help_text: str, parse: Callable[[Sequence[str]], Any] | None = None) -> Any:
    """A dataclass field with its help, and how its value is made of the words given where its type does not say."""
    return field(default=default, metadata={"help": help_text, "parse": parse})


def at_least(name: str, value: float, least: int) -> None:
    """Raises a DataError for a smaller value, for infinity and for NaN."""
    if not least <= value < math.inf:
        raise DataError(f"--{name} must be at least {least}, got {value}")


def each_at_least(name: str, values: tuple[int, ...], least: int) -> None:
    """Raises a DataError if one of the values is smaller."""
    for value in values:
        at_least(name, value, least)


def share(name: str, value: float, end: float = 1) -> None:
    """Raises a DataError for a value outside [0, end)."""
    if not 0 <= value < end:
        raise DataError(f"--{name} must lie in [0, {end}), got {value}")


def positive(name: str, value: float) -> None:
    """Raises a DataError for anything but a positive, finite number."""
    if not (math.isfinite(value) and value > 0):
        raise DataError(f"--{name} must be a positive number, got {value}")
