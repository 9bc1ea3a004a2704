"""The formula of a score: arithmetic over predictions and numerical features. It is parsed, never evaluated as code.

    sum     = product {("+" | "-") product}
    product = sign {("*" | "/") sign}
    sign    = "-" sign | power
    power   = operand ["**" sign]
    operand = number | name | function "(" sum {"," sum} ")" | "(" sum ")"

As in Python, `**` binds more tightly than a minus to its left and is evaluated from right to left.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from data.errors import listed, nearest, shown
from data.spec.features import LABEL, NUMERICAL, SCORE, SERVE, Feature

MAX_CHARACTERS = 1000
MAX_DEPTH = 50
EXAMPLE = "click * price ** 0.5"
# Functions and the number of their arguments; those of two take any larger number of arguments, too.
FUNCTIONS = {"log": 1, "exp": 1, "sqrt": 1, "abs": 1, "min": 2, "max": 2}
NEGATIVE = "negative"

_TOKEN = re.compile(
    r"""(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
    | (?P<name>[^\W\d]\w*)
    | (?P<quoted>'[^']*'|"[^"]*")
    | (?P<symbol>\*\*|[-+*/(),])""",
    re.VERBOSE,
)
_ALLOWED = "expected numbers, names, + - * / **, parentheses and " + ", ".join(FUNCTIONS)
_HINTS = {
    "^": "write ** for a power",
    "'": "a name in quotes ends with the quote that it begins with",
    '"': "a name in quotes ends with the quote that it begins with",
}

T = TypeVar("T")


class FormulaError(ValueError):
    """A formula that cannot be parsed. The message says where, what was found and how to fix it."""


class Name(NamedTuple):
    """A name in a formula, as it is without quotes, and the number of its first character, counted from 1."""

    text: str
    position: int


class Operation(NamedTuple):
    """An operator, a function or NEGATIVE, and how many of the values before it are its operands."""

    name: str
    operands: int


@dataclass(frozen=True)
class Formula:
    """A parsed formula.

    Attributes:
        text: the formula as it was written.
        steps: the formula in postfix order: numbers, names, and operations on the last values before them.
    """

    text: str
    steps: tuple[float | Name | Operation, ...]

    @property
    def names(self) -> tuple[Name, ...]:
        """The first occurrence of each name, in the order of the formula."""
        found: dict[str, Name] = {}
        for step in self.steps:
            if isinstance(step, Name):
                found.setdefault(step.text, step)
        return tuple(found.values())

    def evaluate(
        self, values: Mapping[str, T], number: Callable[[float], T], operations: Mapping[str, Callable[..., T]]
    ) -> T:
        """Evaluate the formula with any kind of values.

        Args:
            values: value of each name.
            number: makes a value of a number in the formula.
            operations: the operators + - * / **, NEGATIVE and the functions, by name. Functions take as many operands
                as FUNCTIONS says.
        """
        stack: list[T] = []
        for step in self.steps:
            if isinstance(step, Name):
                stack.append(values[step.text])
            elif isinstance(step, Operation):
                operands = stack[-step.operands :]
                stack[-step.operands :] = [operations[step.name](*operands)]
            else:
                stack.append(number(step))
        (result,) = stack
        return result


def parse_formula(text: str) -> Formula:
    """Parse a formula of at most MAX_CHARACTERS characters.

    Raises:
        FormulaError: it is none, or names nothing.
    """
    if len(text) > MAX_CHARACTERS:
        raise FormulaError(f"this formula has {len(text):,} characters; the maximum is {MAX_CHARACTERS:,}")
    if not text.strip():
        raise FormulaError(f"this formula is empty; write one, such as {EXAMPLE}")
    formula = Formula(text, tuple(_Parser(text).parse()))
    if not formula.names:
        raise FormulaError(f"{shown(text)} names no label and no feature; write a formula such as {EXAMPLE}")
    return formula


def find_mistake(formula: Formula, features: Iterable[Feature], channel_of: Mapping[str, str]) -> str | None:
    """Return what is wrong with the names of a formula, and what to write instead; None if nothing is.

    Args:
        formula: the formula.
        features: the features of the specification.
        channel_of: channel of every feature that is in one.
    """
    unusable = {feature.name: _why_unusable(feature, channel_of.get(feature.name)) for feature in features}
    usable = [name for name, why in unusable.items() if not why]
    if channel_of.get(SCORE) == LABEL:
        return f"the output of the formula is called {SCORE!r}, and so is a label; rename the label"
    for name, position in formula.names:
        if name in usable:
            continue
        near = nearest(name, usable)
        why = unusable.get(name) or "is not in the specification" + (f"; did you mean {near!r}?" if near else "")
        return (
            f"{_at(position)}: {shown(name)} {why}; a formula may name the labels and numerical features "
            f"{listed(usable, len(usable)) or '(there are none)'}"
        )
    return None


def _why_unusable(feature: Feature, channel: str | None) -> str:
    """Return why a formula cannot name a feature; empty if it can."""
    if channel == LABEL:
        return f"has task {feature.task}, whose prediction is no single number" if feature.is_class else ""
    if channel == NUMERICAL:
        return "" if feature.serve is None else f"has `{SERVE}`, so that predictions do not know it"
    return f"is in {channel}" if channel else "is in no channel"


def _at(position: int) -> str:
    return f"at character {position}"


class _Token(NamedTuple):
    kind: str  # number, name, quoted, symbol or end
    text: str
    position: int


def _tokens(text: str) -> Iterator[_Token]:
    place = 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        found = _TOKEN.match(text, place)
        if found is None:
            character = text[place]
            hint = _HINTS.get(character, _ALLOWED)
            raise FormulaError(f"{_at(place + 1)}: {shown(character)} is not part of a formula; {hint}")
        yield _Token(str(found.lastgroup), found[0], place + 1)
        place = found.end()
    yield _Token("end", "", len(text) + 1)


class _Parser:
    """Parses the rules of the module's docstring, one method each, into steps in postfix order."""

    def __init__(self, text: str) -> None:
        self._tokens = [*_tokens(text)]
        self._place = self._depth = 0
        self._steps: list[float | Name | Operation] = []

    def parse(self) -> list[float | Name | Operation]:
        self._sum()
        if self._token.kind != "end":
            raise self._unexpected("an operator, such as *")
        return self._steps

    @property
    def _token(self) -> _Token:
        return self._tokens[self._place]

    def _take(self, *symbols: str) -> str | None:
        """Move past the next token if it is one of these symbols, and return it."""
        token = self._token
        if token.kind != "symbol" or token.text not in symbols:
            return None
        self._place += 1
        return token.text

    def _sum(self) -> None:
        self._product()
        while operator := self._take("+", "-"):
            self._product()
            self._steps.append(Operation(operator, 2))

    def _product(self) -> None:
        self._sign()
        while operator := self._take("*", "/"):
            self._sign()
            self._steps.append(Operation(operator, 2))

    def _sign(self) -> None:
        # All recursion passes through here.
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise FormulaError(f"{_at(self._token.position)}: nested deeper than {MAX_DEPTH} levels; write it flatter")
        if self._take("-"):
            self._sign()
            self._steps.append(Operation(NEGATIVE, 1))
        else:
            self._power()
        self._depth -= 1

    def _power(self) -> None:
        self._operand()
        if self._take("**"):
            self._sign()
            self._steps.append(Operation("**", 2))

    def _operand(self) -> None:
        token = self._token
        if self._take("("):
            self._sum()
            self._close(token)
        elif token.kind in ("number", "name", "quoted"):
            self._place += 1
            if token.kind == "number":
                self._steps.append(_number(token))
            elif token.kind == "name" and (opening := self._token).text == "(":
                self._place += 1
                self._call(token, opening)
            else:
                self._steps.append(Name(token.text if token.kind == "name" else token.text[1:-1], token.position))
        else:
            raise self._unexpected("a number or a name")

    def _call(self, function: _Token, opening: _Token) -> None:
        """Parse the arguments of a function and its closing parenthesis."""
        needed = FUNCTIONS.get(function.text)
        if needed is None:
            near = nearest(function.text, FUNCTIONS)
            hint = f"did you mean {near}?" if near else f"expected one of {', '.join(FUNCTIONS)}"
            raise FormulaError(f"{_at(function.position)}: there is no function {shown(function.text)}; {hint}")
        self._sum()
        arguments = 1
        while self._take(","):
            self._sum()
            arguments += 1
            if needed == 2:
                self._steps.append(Operation(function.text, 2))
        self._close(opening)
        if arguments < needed or arguments > needed == 1:
            takes = "one argument" if needed == 1 else "two arguments or more"
            raise FormulaError(f"{_at(function.position)}: {function.text} takes {takes}, not {arguments}")
        if needed == 1:
            self._steps.append(Operation(function.text, 1))

    def _close(self, opening: _Token) -> None:
        if not self._take(")"):
            if self._token.kind == "end":
                raise FormulaError(f"{_at(opening.position)}: this parenthesis is not closed; add )")
            raise self._unexpected("an operator or )")

    def _unexpected(self, expected: str) -> FormulaError:
        kind, text, position = self._token
        if kind == "end":
            return FormulaError(f"the formula ends where {expected} is expected; complete it")
        hint = "; put a name with other characters than letters, digits and _ in quotes" if kind == "name" else ""
        return FormulaError(f"{_at(position)}: found {shown(text)}, expected {expected}{hint}")


def _number(token: _Token) -> float:
    """Return the value of a number, which float32 must be able to represent, at least rounded."""
    value = float(token.text)
    with np.errstate(over="ignore", under="ignore"):
        rounded = np.float32(value)
    if not np.isfinite(rounded) or bool(rounded) != bool(value):
        limit = "large" if value > 1 else "small"
        raise FormulaError(f"{_at(token.position)}: {shown(token.text)} is too {limit} for float32; scale the formula")
    return value
