"""Find the values of columns that training cannot use, for the checks of CSV files and of whole datasets."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.spec.columns import Column, as_numbers
from data.spec.features import LABEL, MAP, MULTIHOT, ONEHOT, SAMPLE_WEIGHT
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
        """Returns the same violation without the given rows."""
        keep = ~np.isin(self.rows, rows)
        values = tuple(value for value, kept in zip(self.values, keep, strict=False) if kept)
        return replace(self, rows=self.rows[keep], values=values)


def find_violations(column: Column, values: pa.Array) -> Iterator[Violation]:
    """Yields the values of a column that training cannot use, one `Violation` per broken rule.

    Args:
        column: description of the column; columns of kind None are not checked.
        values: [rows], of a list type for multi-hot columns, otherwise booleans, integers or floats.
    """
    if column.kind == MULTIHOT:
        yield from _list_violations(column, values)
    elif column.kind is not None:
        yield from _scalar_violations(column, as_numbers(values))


def shorten(text: str) -> str:
    """Shortens a text to at most `TEXT_SHOWN` characters."""
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
    """Returns the name of the rule that a value outside the domain of a column violates."""
    name = {ONEHOT: "id out of range", MAP: "not a group", SAMPLE_WEIGHT: "not a weight"}.get(column.kind or "")
    is_any_number = column.kind != LABEL or column.feature.label_kind is LabelKind.NUMBER
    return name or ("not finite" if is_any_number else "label value")


def _list_violations(column: Column, values: pa.Array) -> Iterator[Violation]:
    missing = values.is_null().to_numpy(zero_copy_only=False)
    lengths = np.where(missing, 0, values.value_lengths().fill_null(0).to_numpy(zero_copy_only=False))
    ids = as_numbers(values.flatten())  # [sum of lengths]; null lists contribute none
    rows = np.repeat(np.arange(len(values)), lengths)  # [sum of lengths] the row of each id
    without_id = ids.is_null().to_numpy(zero_copy_only=False)
    missing[rows[without_id]] = True
    yield from _violation("missing value", column, values, missing)
    outside = np.zeros(len(values), bool)
    outside[rows[~column.domain.allows(ids.fill_null(0).to_numpy(zero_copy_only=False))]] = True
    yield from _violation("id out of range", column, values, outside)
    hotness = column.feature.max_hotness
    if hotness is not None:
        what = f"list longer than max_hotness {hotness}"
        problems = _violation(what, column, values, lengths > hotness)
        yield from (replace(problem, is_warning=True) for problem in problems)


def _violation(what: str, column: Column, values: pa.Array, wrong: np.ndarray) -> Iterator[Violation]:
    rows = np.flatnonzero(wrong)
    if len(rows):
        first = pc.take(values, pa.array(rows[:VALUES_SHOWN])).to_pylist()
        yield Violation(what, column.name, rows, tuple(shorten(str(value)) for value in first), column.expected)
