"""Values of a raw specification that are written as text: comparisons, thresholds, times and windows."""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, cast, get_args

from data.errors import described, shown
from data.spec.raw.spec import Comparison

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
SECONDS_OF_UNIT = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
MICROSECONDS = 1_000_000

_OPERATORS = "==|!=|<=|>=|<|>"
_COMPARISON = re.compile(rf"(?P<name>[^=!<>]*?)\s*(?P<op>{_OPERATORS})\s*(?P<value>[^=<>].*|)", re.DOTALL)
_QUOTED = re.compile(r"""(["'])(.*)\1""", re.DOTALL)
_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ].*)?")
_WINDOW = re.compile(r"([0-9]{1,9})([dhms])")
_HELP = 'write a comparison, such as "rating >= 4" or {column: country, op: "==", value: US}'


@dataclass(frozen=True)
class WrittenCondition:
    """A condition as written, before its column is known.

    Attributes:
        name: name of a feature or raw column.
        comparison: the operator, or None where only a name is written.
        value: a number, a time, or a text.
        is_quoted: whether the value is a text in quotes, and therefore neither a number nor a time.
    """

    name: str
    comparison: Comparison | None = None
    value: float | datetime | str = 0.0
    is_quoted: bool = False


def read_condition(value: Any) -> WrittenCondition:
    """Read a condition: a name, a comparison as text, or a mapping with column, op and value.

    Raises:
        ValueError: It is none of these; the message says what to write.
    """
    if isinstance(value, dict):
        return _mapped_condition(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"is {described(value)}; {_HELP}")
    text = value.strip()
    if not re.search(r"[=<>!]", text):
        return WrittenCondition(text)
    match = _COMPARISON.fullmatch(text)
    if match is None or not match["name"].strip() or not match["value"].strip():
        raise ValueError(f"is {shown(value)}; {_HELP}")
    written = match["value"].strip()
    quoted = _QUOTED.fullmatch(written)
    constant = quoted[2] if quoted else _constant(written)
    return WrittenCondition(match["name"].strip(), cast(Comparison, match["op"]), constant, quoted is not None)


def read_threshold(value: Any) -> tuple[Comparison, float]:
    """Read a threshold, such as ">= 4".

    Raises:
        ValueError: It is no comparison with a number; the message says what to write.
    """
    match = re.fullmatch(rf"\s*({_OPERATORS})\s*(\S+)\s*", value) if isinstance(value, str) else None
    number = _constant(match[2]) if match else None
    if match is None or not isinstance(number, float):
        raise ValueError(f'is {described(value)}; write a comparison with a number, such as ">= 4"')
    return cast(Comparison, match[1]), number


def read_time(value: Any) -> datetime | float:
    """Read a bound in time: a date, a date with a time (UTC unless it states an offset), or a number.

    Raises:
        ValueError: It is neither; the message says what to write.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf"):
        return value
    time = as_time(value)
    if time is None:
        raise ValueError(f"is {described(value)}; write a date or time, such as 2014-10-29 or 2014-10-29T06:00:00")
    return time


def as_time(value: Any) -> datetime | None:
    """Return a date or ISO 8601 text as a time in UTC, or None if it is neither."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, datetime):
        try:
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        except OverflowError:
            return None
    return datetime(value.year, value.month, value.day, tzinfo=UTC) if isinstance(value, date) else None


def microseconds(time: datetime) -> int:
    """Return a time in UTC as microseconds since the epoch."""
    return (time - EPOCH) // MICROSECOND


def read_window(value: Any) -> int | timedelta:
    """Read the window of a count: a duration, such as 7d, 12h, 30m or 60s, or a whole number.

    Raises:
        ValueError: It is neither; the message says what to write.
    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63:
        return value
    match = _WINDOW.fullmatch(value) if isinstance(value, str) else None
    if match is None or int(match[1]) == 0 or int(match[1]) * SECONDS_OF_UNIT[match[2]] > 86_400 * 36_500:
        expected = "write a duration (7d, 12h, 30m, 60s), or a whole number where `order` is a number"
        raise ValueError(f"is {described(value)}; {expected}")
    return timedelta(seconds=int(match[1]) * SECONDS_OF_UNIT[match[2]])


def _mapped_condition(value: dict[Any, Any]) -> WrittenCondition:
    if set(value) != {"column", "op", "value"}:
        keys = ", ".join(shown(key) for key in value) or "no keys"
        raise ValueError(f"has {keys}; a condition has column, op and value")
    if value["op"] not in get_args(Comparison):
        raise ValueError(f"op is {described(value['op'])}; write one of {', '.join(get_args(Comparison))} in quotes")
    if not isinstance(value["column"], str) or not value["column"]:
        raise ValueError(f"column is {described(value['column'])}; write the name of a column or feature")
    constant = value["value"]
    if isinstance(constant, str):
        return WrittenCondition(value["column"], value["op"], constant, is_quoted=True)
    if isinstance(constant, bool):
        return WrittenCondition(value["column"], value["op"], str(constant).lower())
    try:
        time = read_time(constant)
    except ValueError as error:
        raise ValueError(f"value is {described(constant)}; write a number, a text or a date") from error
    return WrittenCondition(value["column"], value["op"], time if isinstance(time, datetime) else float(time))


def _constant(text: str) -> float | datetime | str:
    """Return a constant without quotes as a number, a time or a text."""
    if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?", text):
        number = float(text)
        if abs(number) < float("inf"):
            return number
    time = as_time(text) if _DATE.fullmatch(text) else None
    return text if time is None else time
