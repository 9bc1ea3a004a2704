"""Flags as dataclass fields, and the range checks that groups of flags share."""

import math
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Any

from data.errors import DataError


def option(default: Any, help_text: str, parse: Callable[[Sequence[str]], Any] | None = None) -> Any:
    """Return the dataclass field of a flag.

    Args:
        default: default value of the flag.
        help_text: description of the flag for --help.
        parse: function that makes the value from the words on the command line; None to follow the field's type.
    """
    return field(default=default, metadata={"help": help_text, "parse": parse})


def at_least(name: str, value: float, least: int) -> None:
    """Raise a DataError if the value is smaller than `least`, infinite or NaN."""
    if not least <= value < math.inf:
        raise DataError(f"--{name} must be at least {least}, got {value}")


def each_at_least(name: str, values: tuple[int, ...], least: int) -> None:
    """Raise a DataError if one of the values is smaller than `least`."""
    for value in values:
        at_least(name, value, least)


def share(name: str, value: float, end: float = 1) -> None:
    """Raise a DataError if the value lies outside of [0, end)."""
    if not 0 <= value < end:
        raise DataError(f"--{name} must lie in [0, {end}), got {value}")


def positive(name: str, value: float) -> None:
    """Raise a DataError unless the value is positive and finite."""
    if not (math.isfinite(value) and value > 0):
        raise DataError(f"--{name} must be a positive number, got {value}")
