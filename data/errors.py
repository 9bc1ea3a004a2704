"""Exceptions for wrong or lost input, and how their messages describe values and names."""

import difflib
import reprlib
from collections.abc import Collection, Iterable
from itertools import islice
from numbers import Real
from typing import Any

MAX_NAMES_LISTED = 12


class DataError(ValueError):
    """Wrong input. The message says where, what was found, what was expected and how to fix it.

    `str` escapes everything but newlines and printable characters, so that file contents cannot control a terminal.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class LostInputError(OSError):
    """An input file that can no longer be read, or that has changed, since it was opened.

    An environment failure, such as a network disk that went away. Unlike wrong input it may be transient, so a restart
    is worthwhile. The message names the file.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(text: str) -> str:
    """Returns a text with everything but printable characters and newlines (ESC, lone surrogates) backslash-escaped."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode() for char in text
    )


def shown(value: Any) -> str:
    """Returns the `repr` of a value, shortened if it is long."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    return short.repr(value)


def described(value: Any) -> str:
    """Returns a value in words that distinguish, for example, the text '3' from the number 3."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return f"the truth value {value}"
    if isinstance(value, str):
        return f"the text {shown(value)}"
    if isinstance(value, Real):
        return f"the number {shown(value)}"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, dict):
        return "a mapping"
    return f"{type(value).__name__} {shown(value)}"


def listed(names: Iterable[str], count: int, separator: str = ", ") -> str:
    """Joins the first dozen of `count` names in one line, without consuming the rest of the iterable."""
    text = separator.join(islice(names, MAX_NAMES_LISTED))
    return f"{text}{separator}... ({count} in all)" if count > MAX_NAMES_LISTED else text


def nearest(name: str, known: Collection[str]) -> str | None:
    """Returns the known name most similar to `name`, or None if none is similar enough."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return matches[0] if matches else None
