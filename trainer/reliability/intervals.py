"""Intervals given as a number of steps or as a duration."""

import re
from dataclasses import dataclass

from data.errors import DataError

_UNITS = {"s": 1, "m": 60, "h": 3600}
_INTERVAL = re.compile(r"([0-9]{1,9})([smh]?)")


@dataclass(frozen=True)
class Interval:
    """An interval in steps or in seconds; both 0 means never.

    Attributes:
        steps: number of steps, or 0.
        seconds: duration in seconds, or 0.
    """

    steps: int = 0
    seconds: float = 0.0


def parse_interval(name: str, text: str) -> Interval:
    """Parses "500" (steps), "90s", "10m" or "2h"; "0" means never.

    Args:
        name: name of the flag without dashes, for the error message.
        text: the flag's value.

    Raises:
        DataError: if the text is not an interval; the message names the flag.
    """
    found = _INTERVAL.fullmatch(text)
    if found is None:
        raise DataError(f"--{name} takes a number of steps, or seconds, minutes or hours as 90s, 10m, 2h; got {text!r}")
    number, unit = int(found[1]), found[2]
    return Interval(seconds=number * _UNITS[unit]) if unit else Interval(steps=number)
