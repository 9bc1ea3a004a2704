"""The raw columns of a specification: which are read, as which types, and what a name refers to."""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import get_args

from data.errors import shown
from data.spec.document import Problem
from data.spec.raw.encodings import INTEGER_TYPES, NUMBER_OR_BOOL_TYPES, NUMBER_TYPES
from data.spec.raw.spec import Comparison, Condition, LabelMapRule, RawType, Reading, Rule, ThresholdRule
from data.spec.raw.values import WrittenCondition, as_time, microseconds

ANY_TYPE: tuple[RawType, ...] = get_args(RawType)
ORDER_TYPES: tuple[RawType, ...] = ("timestamp", *NUMBER_TYPES)
KEY_TYPES: tuple[RawType, ...] = ("string", *INTEGER_TYPES)
_TRUTH = {"true": 1.0, "false": 0.0}

# A condition before its reading has a name: the reading, the operator and the constant.
ReadCondition = tuple[Reading, Comparison, str | float]


@dataclass
class RawColumns:
    """What is read of the raw columns.

    A reading has no name here, since that depends on how else its column is read; `named` assigns names at the end.

    Attributes:
        readings: readings of the features that files hold, by feature name.
        rules: encodings of the features, by name.
        unreadable: {feature name: why it has no raw column of its own that others can use}.
        unknown: names of features in which something is malformed.
        formats: {raw column: (format, unit) of its timestamps}, where stated.
        listed: names of all raw columns, if the specification lists them.
        used: every reading in use, in the order of the specification.
        problems: problems found.
    """

    readings: dict[str, Reading] = field(default_factory=dict)
    rules: dict[str, Rule] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    formats: dict[str, tuple[str | None, str | None]] = field(default_factory=dict)
    listed: tuple[str, ...] | None = None
    used: dict[Reading, None] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def reading(self, column: str, dtype: RawType, is_list: bool = False, separator: str | None = None) -> Reading:
        """Return a reading of a column, with the format that is stated for its timestamps."""
        form = self.formats.get(column, (None, None)) if dtype == "timestamp" else (None, None)
        return Reading("", column, dtype, is_list, separator, *form)

    def use(self, reading: Reading) -> Reading:
        """Record that a reading is needed, and return it."""
        self.used.setdefault(reading)
        return reading

    def refer(
        self, name: str, path: str, accepted: Collection[str] = ANY_TYPE, default: RawType = "string"
    ) -> Reading | None:
        """Return how the raw column that a name refers to is read, one value per row; None if that is a problem.

        A name refers to the column of the feature with that name, or else to the raw column.

        Args:
            name: name in the specification.
            path: path of the name in the document.
            accepted: types that fit; a reading of the column with one of them is shared.
            default: type to read the column as if it is read as none of these.
        """
        if name in self.unknown:
            return None
        if name in self.unreadable:
            self.problems.append(Problem(path, f"{shown(name)} {self.unreadable[name]}; name a raw column"))
            return None
        own = self.readings.get(name)
        if own is not None and own.is_list:
            self.problems.append(Problem(path, f"{shown(name)} is a list; name a column with one value per row"))
            return None
        column = name if own is None else own.column
        if own is None:
            self.check_listed(column, path)
        others = [reading for reading in self._read_as(column) if reading.dtype in accepted]
        known = [own] if own is not None and own.dtype in accepted else others
        return self.use(known[0] if known else self.reading(column, default))

    def refer_to_lists(self, column: str) -> Reading | None:
        """Return how a raw column that features read as lists is, as lists of keys; None if those have problems."""
        lists = [reading for reading in self.readings.values() if reading.column == column and reading.is_list]
        if not lists:
            return None
        keys = [reading for reading in lists if reading.dtype in KEY_TYPES]
        return self.use(keys[0] if keys else self.reading(column, "string", True, lists[0].separator))

    def condition(self, written: WrittenCondition, path: str) -> ReadCondition | None:
        """Return the reading, operator and constant of a condition, or None if it has a problem."""
        if written.comparison is None:
            return self._truth(written.name, path)
        value, comparison = written.value, written.comparison
        own = self.readings.get(written.name)
        if mistake := self._label_mistake(written, own):
            self.problems.append(Problem(path, mistake))
            return None
        declared = [own] if own is not None else self._read_as(written.name)
        if isinstance(value, str) and any(reading.dtype == "timestamp" for reading in declared):
            value = as_time(value) or value
        if isinstance(value, datetime):
            reading = self.refer(written.name, path, ("timestamp",), "timestamp")
            return None if reading is None else (reading, comparison, microseconds(value))
        if isinstance(value, str) and value in _TRUTH and any(reading.dtype == "bool" for reading in declared):
            value = _TRUTH[value]
        if isinstance(value, str):
            if comparison not in ("==", "!="):
                message = f"compares with the text {shown(value)}, for which only == and != are defined"
                self.problems.append(Problem(path, f"{message}; write a number or a date without quotes"))
                return None
            reading = self.refer(written.name, path, ("string",), "string")
        elif declared and all(reading.dtype == "timestamp" for reading in declared):
            message = f"compares {shown(written.name)}, a timestamp, with a number; write a date, such as 2014-10-29"
            self.problems.append(Problem(path, message))
            return None
        else:
            reading = self.refer(written.name, path, NUMBER_OR_BOOL_TYPES, "float64")
        return None if reading is None else (reading, comparison, value)

    def keep(self, name: str, path: str) -> Reading | None:
        """Return how a raw column that is stored as it is is read: as text, if nothing else needs another type."""
        own = self.readings.get(name)
        if own is not None and own.column != name and not self._read_as(name):
            message = f"{shown(name)} is a feature; name its raw column, {shown(own.column)}"
            self.problems.append(Problem(path, message))
            return None
        self.check_listed(name, path)
        known = self._read_as(name) or [reading for reading in self.used if reading.column == name]
        texts = [reading for reading in known if reading.dtype == "string"]
        return self.use((texts or known or [self.reading(name, "string")])[0])

    def named(self, taken: Iterable[str]) -> dict[Reading, Reading]:
        """Return every reading in use with its name: the column's, with its type where a column is read in several
        ways.

        Args:
            taken: names that are in use otherwise.
        """
        ways = Counter(reading.column for reading in self.used)
        names = set(taken)
        named: dict[Reading, Reading] = {}
        for reading in self.used:
            name = reading.column
            if ways[name] > 1:
                name += f":list of {reading.dtype}" if reading.is_list else f":{reading.dtype}"
            number, unique = 2, name
            while unique in names:
                number, unique = number + 1, f"{name}:{number}"
            names.add(unique)
            named[reading] = replace(reading, name=unique)
        return named

    def check_listed(self, column: str, path: str) -> None:
        """Check that a raw column exists, if the specification lists them."""
        if self.listed is not None and column not in self.listed:
            message = f"{shown(column)} is neither a feature nor a column of the files"
            self.problems.append(Problem(path, message, column, (*self.readings, *self.listed)))

    def _read_as(self, column: str) -> list[Reading]:
        """Return the readings of a raw column with one value per row, those of features first."""
        features = [reading for reading in self.readings.values() if reading.column == column]
        others = [reading for reading in self.used if reading.column == column]
        return [reading for reading in dict.fromkeys(features + others) if not reading.is_list]

    def _label_mistake(self, written: WrittenCondition, own: Reading | None) -> str | None:
        """Return why a comparison with a label is not what it seems to be, or None: the raw values are compared."""
        rule, name = self.rules.get(written.name), written.name
        is_number = isinstance(rule, LabelMapRule) and not isinstance(written.value, str)
        is_renamed = isinstance(rule, LabelMapRule | ThresholdRule) and own is not None and own.column != name
        if own is None or not (is_number or is_renamed):
            return None
        return (
            f"{shown(name)} is made from {shown(own.column)}; compare that, or write {name!r} alone for its positives"
        )

    def _truth(self, name: str, path: str) -> ReadCondition | None:
        """Return the condition that a feature or column is not 0; for a label, that the label is not 0."""
        rule, own = self.rules.get(name), self.readings.get(name)
        if isinstance(rule, ThresholdRule) and own is not None:
            return self.use(own), rule.comparison, rule.value
        if isinstance(rule, LabelMapRule) and own is not None:
            positive = [text for text, value in rule.values.items() if value]
            negative = [text for text, value in rule.values.items() if not value]
            if len(positive) == 1:
                return self.use(own), "==", positive[0]
            if len(negative) == 1:
                return self.use(own), "!=", negative[0]
            message = f"{shown(name)} is positive for several texts; write a comparison with one of them"
            self.problems.append(Problem(path, message))
            return None
        reading = self.refer(name, path, NUMBER_OR_BOOL_TYPES, "float64")
        return None if reading is None else (reading, "!=", 0.0)


def as_condition(parts: ReadCondition | None, names: dict[Reading, Reading]) -> Condition | None:
    """Return a condition with the name of its reading."""
    return None if parts is None else Condition(names[parts[0]].name, parts[1], parts[2])
