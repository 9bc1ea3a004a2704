"""What the data tools' command lines share: numbers as arguments, and mistakes as one message with an exit code."""

import argparse
import errno
import sys
from collections.abc import Callable

from data.errors import DataError

LARGEST = 2**31 - 1


def whole_number(least: int) -> Callable[[str], int]:
    """A `type` for argparse: an integer from `least` to 2**31 - 1."""

    def convert(text: str) -> int:
        is_number = text.isascii() and text.isdigit() and len(text) <= len(str(LARGEST))
        if not is_number or not least <= int(text) <= LARGEST:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {LARGEST}, got {text!r}")
        return int(text)

    return convert


def run_tool(name: str, job: Callable[[], int]) -> int:
    """Runs a tool's job and returns its exit code: 1 for a failure of the machine, 2 for wrong input."""
    try:
        return job()
    except DataError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        mend = "; the disk of the output is full: free some space there, or choose another one" if full else ""
        print(f"{name}: {error}{mend}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 1
