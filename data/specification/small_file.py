"""Reading a small text file that a user names: whole, bounded, every failure told in one message."""

from pathlib import Path

from data.errors import DataError
from data.files import open_regular


def read_small_text(path: Path, expected: str, max_mebibytes: int) -> str:
    """The file as text, UTF-8, a byte order mark dropped.

    Args:
        path: the file.
        expected: what it should be, in words for the message ("a YAML file").
        max_mebibytes: a larger file is refused without being read.

    Raises:
        DataError: missing, a folder, not a regular file, not readable, too large or not UTF-8.
    """
    try:
        with open_regular(path, expected) as file:
            content = file.read(max_mebibytes * 2**20 + 1)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; expected {expected}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise DataError(f"{path}: cannot be read: {error}") from error
    if len(content) > max_mebibytes * 2**20:
        raise DataError(f"{path}: is larger than {max_mebibytes} MiB; expected {expected}")
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8 (byte {error.start}); save the file as UTF-8") from error
