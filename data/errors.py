"""Exceptions for mistakes in the user's files or arguments and for lost input, and the wording of their messages."""

import difflib
import reprlib
from collections.abc import Iterable
from itertools import islice
from numbers import Real
from typing import Any

MAX_NAMES_LISTED = 12
# Limits of the search for a similar name, which takes up to 0.1 ms per pair of long names.
MAX_NAMES_COMPARED = 1000
MAX_LENGTH_COMPARED = 200


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
    """Return a text with everything but printable characters and newlines (ESC, lone surrogates) backslash-escaped."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode() for char in text
    )


def shown(value: Any) -> str:
    """Return the `repr` of a value, shortened if it is long."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    return short.repr(value)


def described(value: Any) -> str:
    """Return a value in words that distinguish, for example, the string '3' from the number 3."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return f"the boolean {value}"
    if isinstance(value, str):
        return f"the string {shown(value)}"
    if isinstance(value, Real):
        return f"the number {shown(value)}"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if isinstance(value, dict):
        return "a mapping"
    return f"{type(value).__name__} {shown(value)}"


def listed(names: Iterable[str], count: int, separator: str = ", ") -> str:
    """Join the first dozen of `count` names in one line, without consuming the rest of the iterable."""
    text = separator.join(islice(names, MAX_NAMES_LISTED))
    return f"{text}{separator}... ({count} in all)" if count > MAX_NAMES_LISTED else text


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the most similar of the first thousand known names, or None if none is similar enough."""
    if len(name) > MAX_LENGTH_COMPARED:
        return None
    matches = difflib.get_close_matches(name, list(islice(known, MAX_NAMES_COMPARED)), n=1)
    return matches[0] if matches else None
