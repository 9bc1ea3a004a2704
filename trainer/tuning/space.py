"""The search space: which flags of main.py are searched, and among which values."""

import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data.errors import DataError, nearest
from trainer.config import Flag, TrainingOptions, section_flags
from trainer.models import model_flags

FORMS = "FLAG=log:LOW:HIGH, FLAG=uniform:LOW:HIGH, FLAG=int:LOW:HIGH[:STEP] or FLAG=choice:A,B,..."
Value = float | int | str


@dataclass(frozen=True)
class Search:
    """A flag and the values that trials may give it.

    Attributes:
        text: the search as it was written.
        name: name of the flag, without dashes.
        kind: log (a number whose logarithm is uniform), uniform (a number), int or choice.
        values: smallest value, largest value and, for int, the step; the values of a choice.
        is_switch: whether the flag takes no value: "true" passes it, "false" leaves it out.
    """

    text: str
    name: str
    kind: str
    values: tuple[Value, ...]
    is_switch: bool = False

    def suggest(self, trial: Any) -> Value:
        """Return the value that an Optuna trial suggests."""
        if self.kind == "choice":
            chosen: Value = trial.suggest_categorical(self.name, list(self.values))
        elif self.kind == "int":
            low, high, step = self.values
            chosen = trial.suggest_int(self.name, low, high, step=step)
        else:
            low, high = self.values
            chosen = trial.suggest_float(self.name, low, high, log=self.kind == "log")
        return chosen

    def words(self, value: Value) -> list[str]:
        """Return the words on the command line that give the flag a value."""
        if self.is_switch:
            return [f"--{self.name}"] if value == "true" else []
        return [f"--{self.name}", *str(value).split()]

    @property
    def extremes(self) -> tuple[Value, ...]:
        """The values to check: all of a choice, otherwise the smallest and the largest one."""
        return self.values if self.kind == "choice" else self.values[:2]


def parse_searches(texts: Sequence[str]) -> list[Search]:
    """Parse the values of --search.

    Raises:
        DataError: one of them is not of FORMS, names no flag of the model or of the training, or contradicts the flag;
            or a flag is searched twice.
    """
    if not texts:
        raise DataError(f"--search is missing: which flags should be searched? Write {FORMS}")
    searches = [parse_search(text) for text in texts]
    names = [search.name for search in searches]
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"--search {twice[0]}: given {names.count(twice[0])} times; give each flag one search space")
    return searches


def parse_search(text: str) -> Search:
    """Parse one value of --search; see parse_searches."""
    name, _, space = text.partition("=")
    kind, _, rest = space.partition(":")
    name, flags = name.removeprefix("--"), model_flags() | section_flags(TrainingOptions)
    if name not in flags:
        near = nearest(name, flags)
        raise DataError(
            f"--search {text}: {name!r} is no flag of the model or of the training"
            + (f"; did you mean {near}?" if near else "")
        )
    if kind not in ("log", "uniform", "int", "choice") or not rest:
        raise DataError(f"--search {text}: expected {FORMS}")
    if kind == "choice":
        return _choice(text, name, flags[name], rest)
    return _numbers(text, name, flags[name], kind, rest.split(":"))


def _choice(text: str, name: str, flag: Flag, rest: str) -> Search:
    values = tuple(value.strip() for value in rest.split(","))
    if len(set(values)) < len(values) or "" in values:
        raise DataError(f"--search {text}: the values of a choice must differ, and none may be empty")
    is_switch = flag.type is bool and flag.field.metadata["bare"] is None
    if is_switch and not set(values) <= {"true", "false"}:
        raise DataError(f"--search {text}: --{name} is on or off; expected choice:false,true")
    return Search(text, name, "choice", values, is_switch)


def _numbers(text: str, name: str, flag: Flag, kind: str, words: list[str]) -> Search:
    allowed = {int, float} & {flag.type, *typing.get_args(flag.type)}
    if not allowed or (allowed == {int} and kind != "int"):
        expected = "int or choice" if allowed else "choice"
        raise DataError(f"--search {text}: --{name} takes no such numbers; expected {expected}")
    if len(words) not in ((2, 3) if kind == "int" else (2,)):
        raise DataError(f"--search {text}: expected {FORMS}")
    try:
        values: list[Any] = [int(word) if kind == "int" else float(word) for word in words]
    except ValueError:
        raise DataError(f"--search {text}: {':'.join(words)} are not {'whole ' * (kind == 'int')}numbers") from None
    low, high, *step = values
    if not (math.isfinite(low) and math.isfinite(high) and low < high) or (kind == "log" and low <= 0):
        above = "above 0, " if kind == "log" else ""
        raise DataError(f"--search {text}: expected LOW {above}below HIGH, both finite")
    if kind == "int":
        step = step or [1]
        if step[0] < 1 or (high - low) % step[0]:
            raise DataError(f"--search {text}: STEP must be at least 1 and lead from LOW to HIGH")
    return Search(text, name, kind, (low, high, *step))
