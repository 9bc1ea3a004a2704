"""Shared command-line handling: an argument parser, and errors reported as one message with an exit code."""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from data.errors import DataError, nearest, shown
from data.storage.checksummed_dir import StorageError
from data.storage.remote import RemoteUnreachableError, is_url, mirror_of

LARGEST = 2**31 - 1
OUTSIDE_PATHS_HELP = "allow a trusted specification to name files outside of its folder"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser without abbreviated flags that suggests the closest flag for a misspelled one.

    Args:
        prog: name of the program in messages.
        description: text at the top of the help.
        formatter: help formatter class; by default the one that shows the default values.
    """

    def __init__(self, prog: str, description: str, formatter: type[argparse.HelpFormatter] | None = None) -> None:
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
            formatter_class=formatter or argparse.ArgumentDefaultsHelpFormatter,
        )

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse `argv` (without the program name), or the arguments of this process if it is None.

        Arguments that no file name or log can contain are errors too: NUL characters, and bytes that are not UTF-8,
        which Python passes on as surrogates.
        """
        words = sys.argv[1:] if argv is None else argv
        for word in words:
            if not _is_text(word):
                self.error(f"the argument {shown(word)} is not text in UTF-8; rename the file, or correct the argument")
        arguments = self.parse_args(words)
        for name, value in vars(arguments).items():
            if value == [] and value is not self.get_default(name):  # argparse turns `--flag=--` into an empty list
                self.error(f"--{name} has no value; write one after it")
        return arguments

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, with a suggested flag if there is one, and exit with code 2."""
        super().error(message + self.nearest_flag(message))

    def nearest_flag(self, message: str) -> str:
        """Return "; did you mean FLAG?" for an unknown flag named in an error message, or an empty string."""
        flags = [name for action in self._actions for name in action.option_strings]
        wrong = [word for word in message.replace(":", " ").split() if word.startswith("--") and word not in flags]
        found = [near for word in wrong if (near := nearest(word, flags))]
        return f"; did you mean {found[0]}?" if found else ""

    def add_outside_paths(self) -> None:
        """Add --allow_outside_paths, which every command that reads a specification has."""
        self.add_argument("--allow_outside_paths", action="store_true", help=OUTSIDE_PATHS_HELP)


def _is_text(word: str) -> bool:
    try:
        os.fsencode(word).decode()
    except UnicodeError:
        return False
    return "\0" not in word


def whole_number(least: int) -> Callable[[str], int]:
    """Return an argparse `type` that accepts integers from `least` to 2**31 - 1."""

    def convert(text: str) -> int:
        is_number = text.isascii() and text.isdigit() and len(text) <= len(str(LARGEST))
        if not is_number or not least <= int(text) <= LARGEST:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {LARGEST}, got {text!r}")
        return int(text)

    return convert


def location(text: str) -> Path:
    """Convert a flag's text to a local path: for a URL that of its local copy, which `url_of` turns back."""
    try:
        return mirror_of(text) if is_url(text) else Path(text)
    except DataError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run_tool(name: str, job: Callable[[], int]) -> int:
    """Run the job of a tool and return its exit code.

    Returns:
        The job's own code, 1 for a system failure (I/O error, out of memory) or an interrupt, 2 for wrong input.
    """
    try:
        return job()
    except DataError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1 if isinstance(error, RemoteUnreachableError) else 2
    except StorageError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = "; the disk of the output is full: free some space there, or choose another one" if full else ""
        print(f"{name}: {error}{fix}", file=sys.stderr)
        return 1
    except MemoryError as error:
        print(f"{name}: out of memory: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 1
