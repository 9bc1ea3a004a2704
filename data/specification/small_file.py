"""Reads small text files given by the user, with a size limit and one clear message per failure."""

from pathlib import Path

from data.errors import DataError
from data.files import open_regular


def read_small_text(path: Path, expected: str, max_mebibytes: int) -> str:
    """Returns the content of a UTF-8 file, without its byte order mark.

    Args:
        path: path of the file.
        expected: what the file should be, in words for error messages ("a YAML file").
        max_mebibytes: size limit in MiB; no more than this is read.

    Raises:
        DataError: The file is missing, not a regular file, not readable, too large or not UTF-8.
    """
    try:
        with open_regular(path, expected) as file:
            content = file.read(max_mebibytes * 2**20 + 1)  # one byte more than allowed shows that it is too large
    except DataError:  # a subclass of ValueError, which is caught below
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
