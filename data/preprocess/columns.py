"""Declare raw columns as features, labels or the map feature, and parse and check their cells."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.preprocess.encoders import Encoder
from data.preprocess.prepared import encoded_features
from data.preprocess.text_tables import TextTable
from data.spec.features import LABEL, MAP, NUMERICAL, ONEHOT, Feature

# At most 15 digits, so that values stay below 2**53 and are exact when nulls make a column float64.
CODE = r"^[0-9]{1,15}$"
DECIMAL = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$"
YES_OR_NO = {"0": 0.0, "1": 1.0}


@dataclass(frozen=True)
class Category:
    """A one-hot feature.

    Attributes:
        name: name of the feature.
        is_code: whether the values are non-negative integers rather than strings.
        null: string that marks an unknown value; None if every line must have a value.
        column: name of the raw column, if it differs from `name`.
    """

    name: str
    is_code: bool = False
    null: str | None = None
    column: str | None = None

    @property
    def source(self) -> str:
        """Name of the raw column."""
        return self.column or self.name

    def read(self, table: TextTable) -> pa.Array:
        """Parse the cells to strings or int64; to float64 if a code may be null, so that all blocks share one type."""
        texts, known = _cells(table, self.source, self.null)
        if not self.is_code:
            table.reject(_flags(pc.and_(known, pc.equal(texts, ""))), self.source, _or_null("a string", self.null))
            return pc.if_else(known, texts, None)
        code = _or_null("a whole number of at most 15 digits", self.null)
        _reject_unlike(table, self.source, texts, known, CODE, code)
        codes = pc.cast(pc.if_else(known, texts, None), pa.int64())
        return codes if self.null is None else pc.cast(codes, pa.float64())


@dataclass(frozen=True)
class Number:
    """A standardized numerical feature.

    Attributes:
        name: name of the raw column and of the feature.
        log: whether to apply log(1 + number) first, which requires non-negative numbers.
        null: string that marks an unknown value, which the training median replaces; None if every line must have one.
    """

    name: str
    log: bool = False
    null: str | None = None

    def read(self, table: TextTable) -> pa.Array:
        """Parse the cells to float64, null where unknown."""
        texts, known = _cells(table, self.name, self.null)
        expected = _or_null("a number of at least 0" if self.log else "a number", self.null)
        return _numbers(table, self.name, texts, known, expected, least=0.0 if self.log else None)


@dataclass(frozen=True)
class Label:
    """A label to learn.

    Attributes:
        name: name of the label.
        column: name of the raw column.
        values: label of each string that the column may contain; None if it contains non-negative numbers.
        given: name of the binary label whose positives form the sample space; where that is 0, this label must be 0.
    """

    name: str
    column: str
    values: Mapping[str, float] | None = None
    given: str | None = None

    @property
    def task(self) -> str:
        """Task type: "binary" if `values` is given, else "regression"."""
        return "regression" if self.values is None else "binary"

    def read(self, table: TextTable) -> pa.Array:
        """Parse the label of each line to float64."""
        texts, known = _cells(table, self.column, None)
        if self.values is None:
            return _numbers(table, self.column, texts, known, "a number of at least 0", least=0.0)
        allowed = pa.array(list(self.values), pa.string())
        codes = pc.index_in(texts, allowed)
        table.reject(_flags(pc.is_null(codes)), self.column, "one of " + ", ".join(map(repr, self.values)))
        return pc.take(pa.array(list(self.values.values()), pa.float64()), codes)


@dataclass(frozen=True)
class Group:
    """The map feature, an integer id that groups rows for MAP; stored unencoded, and left out of mapping "train".

    Attributes:
        name: name of the raw column and of the feature.
    """

    name: str

    def read(self, table: TextTable) -> pa.Array:
        """Parse the ids to int64."""
        return Category(self.name, is_code=True).read(table)


@dataclass(frozen=True)
class Columns:
    """The columns that make up a dataset; other columns of its files are ignored.

    Attributes:
        features: categories and numbers, each kind in the order of its channel.
        labels: labels to learn, at least one.
        group: map feature, if any.
    """

    features: tuple[Category | Number, ...]
    labels: tuple[Label, ...]
    group: Group | None = None

    @property
    def onehot(self) -> tuple[Category, ...]:
        """Categorical features."""
        return tuple(column for column in self.features if isinstance(column, Category))

    @property
    def numerical(self) -> tuple[Number, ...]:
        """Numerical features."""
        return tuple(column for column in self.features if isinstance(column, Number))

    @property
    def unencoded(self) -> tuple[str, ...]:
        """Names of the columns that are stored without encoding: labels and the map feature."""
        return (*(label.name for label in self.labels), *([self.group.name] if self.group else []))

    def read(self, table: TextTable) -> pa.Table:
        """Parse a block of lines into raw values, one column per feature, label and map feature.

        Raises:
            DataError: if a cell does not match its declaration, or a label is not 0 where its `given` label is 0,
                naming file and line.
        """
        columns = (*self.features, *self.labels, *([self.group] if self.group else []))
        cells = {column.name: column.read(table) for column in columns}
        for label in self.labels:
            if label.given is not None:
                outside = pc.and_(pc.not_equal(cells[label.name], 0), pc.equal(cells[label.given], 0))
                table.reject(_flags(outside), label.column, f"0 where {label.given} is 0")
        return pa.table(cells)

    def specified(self, encoders: Mapping[str, Encoder]) -> tuple[dict[str, Feature], dict[str, tuple[str, ...]]]:
        """Return the features and channels of the specification, given the encoder of each feature."""
        features = encoded_features(encoders, {})
        for label in self.labels:
            features[label.name] = Feature(name=label.name, dtype="float32", task=label.task, given=label.given)
        channels = {
            ONEHOT: tuple(column.name for column in self.onehot),
            NUMERICAL: tuple(column.name for column in self.numerical),
            LABEL: tuple(label.name for label in self.labels),
            MAP: (self.group.name,) if self.group else (),
        }
        if self.group:
            features[self.group.name] = Feature(name=self.group.name, dtype="int64")
        return features, channels


def _cells(table: TextTable, column: str, null: str | None) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Return a column's strings without surrounding whitespace, and whether each is known; neither contains nulls."""
    texts = pc.utf8_trim_whitespace(table.texts.column(column))
    known = pc.is_valid(texts) if null is None else pc.not_equal(texts, null)
    return texts, known


def _numbers(
    table: TextTable,
    column: str,
    texts: pa.ChunkedArray,
    known: pa.ChunkedArray,
    expected: str,
    least: float | None,
) -> pa.ChunkedArray:
    _reject_unlike(table, column, texts, known, DECIMAL, expected)
    numbers = pc.cast(pc.if_else(known, texts, None), pa.float64())
    wrong = pc.invert(pc.is_finite(numbers))
    if least is not None:
        wrong = pc.or_(wrong, pc.less(numbers, least))
    table.reject(_flags(pc.fill_null(wrong, False)), column, expected)
    return numbers


def _reject_unlike(
    table: TextTable, column: str, texts: pa.ChunkedArray, known: pa.ChunkedArray, pattern: str, expected: str
) -> None:
    wrong = pc.and_(known, pc.invert(pc.match_substring_regex(texts, pattern)))
    table.reject(_flags(wrong), column, expected)


def _or_null(expected: str, null: str | None) -> str:
    if null is None:
        return expected
    return f"{expected}, or {repr(null) if null else 'nothing'} if unknown"


def _flags(flags: pa.ChunkedArray) -> np.ndarray:
    return flags.to_numpy()
