"""What is raised for every mistake in a user's files or arguments, and for files that get lost."""


class DataError(ValueError):
    """Wrong input. The message says where, what was found, what was expected and what to do about it.

    As text, everything but line ends and printable characters is escaped: what a file holds cannot control a terminal.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class LostInputError(OSError):
    """An input that was there when it was opened and can no longer be read, or is not what it was.

    A failure of the surroundings, such as a network disk that has gone, which another try may not meet: unlike wrong
    input it is worth a restart. The message names the file.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(text: str) -> str:
    """A text with backslash escapes for what is neither printable nor a line end, such as ESC and half characters."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode() for char in text
    )
