"""Exceptions for mistakes in the user's files or arguments, and for input files that are lost while being read."""


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
