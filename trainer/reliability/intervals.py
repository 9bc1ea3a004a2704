"""How often something is done: every so many steps, or every so many seconds."""

import re
from dataclasses import dataclass

from data.errors import DataError

_UNITS = {"s": 1, "m": 60, "h": 3600}
_INTERVAL = re.compile(r"([0-9]{1,9})([smh]?)")


@dataclass(frozen=True)
class Interval:
    """Steps or seconds; 0 of both is never."""

    steps: int = 0
    seconds: float = 0.0


def parse_interval(name: str, text: str) -> Interval:
    """Of "500" (steps), "90s", "10m" or "2h"; "0" is never.

    Raises:
        DataError: naming the flag.
    """
    found = _INTERVAL.fullmatch(text)
    if found is None:
        raise DataError(f"--{name} takes a number of steps, or seconds, minutes or hours as 90s, 10m, 2h; got {text!r}")
    number, unit = int(found[1]), found[2]
    return Interval(seconds=number * _UNITS[unit]) if unit else Interval(steps=number)
