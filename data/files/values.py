"""Find the values of columns that training cannot use, for the checks of CSV files and of whole datasets."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.spec.columns import ALIGNMENTS, LIST_KINDS, Column, as_numbers, is_list
from data.spec.features import LABEL, LIST_WEIGHTS, MAP, SAMPLE_WEIGHT, VECTOR
from data.spec.task_types import LabelKind

VALUES_SHOWN = 5
TEXT_SHOWN = 60


@dataclass(frozen=True)
class Violation:
    """Values of one column, or whole lines, that break the same rule.

    Attributes:
        what: rule that is broken, such as "id out of range".
        column: name of the column, or None for whole lines.
        rows: [count] int64, ascending row positions in the table checked.
        values: first few offending values as text, shortened.
        expected: allowed values, in words.
        is_warning: whether the data is usable in spite of the problem.
    """

    what: str
    column: str | None
    rows: np.ndarray
    values: tuple[str, ...]
    expected: str
    is_warning: bool = False

    def without(self, rows: np.ndarray) -> "Violation":
        """Return the same violation without the given rows."""
        keep = ~np.isin(self.rows, rows)
        values = tuple(value for value, kept in zip(self.values, keep, strict=False) if kept)
        return replace(self, rows=self.rows[keep], values=values)


def find_violations(column: Column, values: pa.Array) -> Iterator[Violation]:
    """Yield the values of a column that training cannot use, one `Violation` per broken rule.

    Args:
        column: description of the column; columns of kind None are not checked.
        values: [rows], of a list type for columns of lists, otherwise booleans, integers or floats.
    """
    if column.kind in LIST_KINDS:
        yield from _list_violations(column, values)
    elif column.kind is not None:
        yield from _scalar_violations(column, as_numbers(values))


def find_unequal_lengths(columns: Sequence[Column], rows: pa.Table | pa.RecordBatch) -> Iterator[Violation]:
    """Yield the rows in which lists that belong together differ in length, one `Violation` per column.

    These are the weights of ids, and the columns of a sequence.

    Args:
        columns: descriptions of columns of the rows; a list is compared if the one that it belongs to is among them.
        rows: rows with lists in these columns. Missing lists are not compared.
    """
    names = {column.name for column in columns}
    for column in columns:
        if column.kind in ALIGNMENTS and column.aligned_with is not None and column.aligned_with.name in names:
            others, own = (list_lengths(rows.column(name)) for name in (column.aligned_with.name, column.name))
            yield from unequal_lengths(column, others, own)


def list_lengths(lists: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return the lengths of lists, [rows] int64, -1 for null."""
    return pc.fill_null(pc.list_value_length(lists), -1).to_numpy().astype(np.int64)


def unequal_lengths(column: Column, others: np.ndarray, own: np.ndarray) -> Iterator[Violation]:
    """Yield the rows in which the lengths of two lists, as `list_lengths` returns them, differ.

    Args:
        column: description of a column that is aligned with another one.
        others: [rows] int64 lengths of the lists of the other column.
        own: [rows] int64 lengths of the lists of this column.
    """
    rows = np.flatnonzero((others != own) & (others >= 0) & (own >= 0))
    if len(rows) and column.kind in ALIGNMENTS and column.aligned_with is not None:
        words = ALIGNMENTS[column.kind]
        found = tuple(f"{others[row]} {words.others}, {own[row]} {words.items}" for row in rows[:VALUES_SHOWN])
        yield Violation(words.what, column.name, rows, found, f"{words.expected} of {column.aligned_with.name!r}")


def shorten(text: str) -> str:
    """Shorten a text to at most `TEXT_SHOWN` characters."""
    return text if len(text) <= TEXT_SHOWN else text[: TEXT_SHOWN - 3] + "..."


def _scalar_violations(column: Column, values: pa.Array) -> Iterator[Violation]:
    missing = values.is_null().to_numpy(zero_copy_only=False)
    numbers = values.fill_null(0).to_numpy(zero_copy_only=False)
    if column.kind == LABEL:
        missing = missing | np.isnan(numbers)
    if column.feature.missing != "ignore":
        yield from _violation("missing value", column, values, missing)
    wrong = ~column.domain.allows(numbers)
    yield from _violation(_rule_name(column), column, values, wrong & ~missing)


def _rule_name(column: Column) -> str:
    """Return the name of the rule that a value outside the domain of a column violates."""
    if column.has_ids:
        return "id out of range"
    names = {MAP: "not a group", SAMPLE_WEIGHT: "not a weight", LIST_WEIGHTS: "not a weight"}
    is_any_number = column.kind != LABEL or column.feature.label_kind is LabelKind.NUMBER
    return names.get(column.kind or "") or ("not finite" if is_any_number else "label value")


def _list_violations(column: Column, values: pa.Array) -> Iterator[Violation]:
    missing = values.is_null().to_numpy(zero_copy_only=False)
    lengths = np.where(missing, 0, values.value_lengths().fill_null(0).to_numpy(zero_copy_only=False))
    items = as_numbers(values.flatten())  # [sum of lengths]; null lists contribute none
    rows = np.repeat(np.arange(len(values)), lengths)  # [sum of lengths] the row of each item
    missing[rows[items.is_null().to_numpy(zero_copy_only=False)]] = True
    yield from _violation("missing value", column, values, missing)
    outside = np.zeros(len(values), bool)
    outside[rows[~column.domain.allows(items.fill_null(0).to_numpy(zero_copy_only=False))]] = True
    yield from _violation(_rule_name(column), column, values, outside)
    if column.kind == VECTOR:
        what = f"vector of another length than dimension {column.feature.dimension}"
        yield from _violation(what, column, values, ~missing & (lengths != column.feature.dimension))
    hotness = column.feature.max_hotness
    if hotness is not None:
        what = f"list longer than max_hotness {hotness}"
        problems = _violation(what, column, values, lengths > hotness)
        yield from (replace(problem, is_warning=True) for problem in problems)


def _violation(what: str, column: Column, values: pa.Array, wrong: np.ndarray) -> Iterator[Violation]:
    rows = np.flatnonzero(wrong)
    if len(rows):
        first = pc.take(values, pa.array(rows[:VALUES_SHOWN]))
        is_half = is_list(first.type) and first.type.value_type == pa.float16()  # read as np.float16(0.5)
        first = (first.cast(pa.list_(pa.float32())) if is_half else first).to_pylist()
        yield Violation(what, column.name, rows, tuple(shorten(str(value)) for value in first), column.expected)
