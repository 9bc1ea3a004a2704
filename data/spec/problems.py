"""Describes violations of the specification's rules: values in words, closest names as suggestions."""

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from data.errors import listed, nearest, shown

# Bounds the time spent on suggestions in a document with very many problems. Comparing two names takes up to 0.1 us per
# pair of their characters, plus a constant worth about 50 pairs.
MAX_PAIRS_COMPARED = 1_500_000
PAIRS_PER_NAME = 50


class Problem(NamedTuple):
    """One violation of the specification's rules.

    Attributes:
        place: location in the document, such as `feature_spec.ad_id.cardinality`.
        message: what is wrong and what to write instead.
        wrong: an unknown name, for which the closest of `known` is suggested.
        known: valid names in place of `wrong`.
    """

    place: str
    message: str
    wrong: str = ""
    known: Collection[str] = ()


def place_of(parent: str, key: Any) -> str:
    """Returns the location of a key below `parent`, short and on one line for any key."""
    is_plain = isinstance(key, str) and key.isprintable() and 0 < len(key) <= 80
    return f"{parent}.{key if is_plain else shown(key)}"


def told(problems: Iterable[Problem]) -> list[str]:
    """Formats every problem as one line, with suggestions.

    Of several problems at one location only the first is kept: the others follow from it.
    """
    first: dict[str, Problem] = {}
    for problem in problems:
        first.setdefault(problem.place, problem)
    lines = []
    budget = MAX_PAIRS_COMPARED
    for problem in first.values():
        line = f"{problem.place}: {problem.message}"
        if problem.wrong:
            if budget >= 0:
                budget -= sum(PAIRS_PER_NAME + len(problem.wrong) * len(name) for name in problem.known)
            near = nearest(problem.wrong, problem.known) if budget >= 0 else None
            there_are = listed(problem.known, len(problem.known)) or "none"
            line += f"; did you mean {near!r}?" if near else f"; there are: {there_are}"
        lines.append(line)
    return lines
