"""Decide what becomes of each raw row: whether it is used, its mapping, and whether a negative row is kept.

Every decision depends on the row alone: on its values, its position in its source, or a draw that is seeded by its key
(see `data.encoding.splits`). Blocks, workers and other rows never change it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.encoding.splits import NEGATIVE, SPLIT, TEST, TRAIN, VALID, below, draw, round_half_up
from data.encoding.staged_columns import ROW
from data.errors import DataError
from data.raw.cells import combined
from data.spec.raw.spec import Condition, LastSplit, RandomSplit, RawSpec, TimeSplit

COMPARE: dict[str, Callable[[pa.Array, pa.Scalar], pa.Array]] = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
# Floats below represent every integer.
EXACT_INTEGERS = 2**53


@dataclass(frozen=True)
class RawRows:
    """Rows of a raw file.

    Attributes:
        locate: returns the location of a row of the file, given its number from 0, for messages.
        table: [rows] values, one column per reading.
        in_file: [rows] int64 numbers of the rows in their file, from 0.
        in_source: [rows] int64 numbers of the rows in their source, from 0.
        numbers: [rows] int64 number of the file in its source times 2**40 plus the row's number in the file.
    """

    locate: Callable[[int], str]
    table: pa.Table
    in_file: np.ndarray
    in_source: np.ndarray
    numbers: np.ndarray

    def filter(self, chosen: np.ndarray) -> "RawRows":
        """Return the rows that are marked, [rows] bool."""
        table = self.table.filter(pa.array(chosen))
        return RawRows(self.locate, table, self.in_file[chosen], self.in_source[chosen], self.numbers[chosen])

    def name(self, row: int) -> str:
        """Return the location of a row, for messages."""
        return self.locate(int(self.in_file[row]))


def satisfies(condition: Condition, table: pa.Table) -> np.ndarray:
    """Return which rows satisfy a condition, [rows] bool. Null satisfies none."""
    column = combined(table.column(condition.reading))
    if pa.types.is_dictionary(column.type):
        # Compared once per distinct string.
        result = _compared(condition, column.dictionary).take(column.indices)
    else:
        result = _compared(condition, column)
    return result.fill_null(False).to_numpy(zero_copy_only=False)


def assign_mappings(spec: RawSpec, source: str, rows: RawRows, total: int = 0) -> np.ndarray:
    """Assign rows to mappings.

    Args:
        spec: the specification.
        source: name of the source that the rows come from.
        rows: the rows, with the columns that `split` names.
        total: number of rows of the source, if the last ones are split off.

    Returns:
        [rows] object array of mapping names.

    Raises:
        DataError: if the time of a row is missing.
    """
    split = spec.split
    if split is None or source not in split.sources:
        return np.full(len(rows.numbers), source, object)
    if isinstance(split, TimeSplit):
        return _by_time(split, rows)
    if isinstance(split, LastSplit):
        return _from_the_end(split, rows, total)
    return _at_random(split, spec, rows)


def keeps_negative(spec: RawSpec, rows: RawRows) -> np.ndarray:
    """Draw which rows to keep if they are negative, [rows] bool: a fraction `keep_negatives` of all."""
    return below(row_hashes(spec, NEGATIVE, rows.table, rows.numbers), spec.keep_negatives or 0.0)


def row_hashes(spec: RawSpec, purpose: int, table: pa.Table, numbers: np.ndarray) -> np.ndarray:
    """Return hash(seed, purpose, key) of rows, [rows] uint64; the key is that of `RawSpec.row_key`."""
    key = {name: table.column(name) for name in spec.row_key} or {ROW: pa.array(numbers)}
    return draw(spec.seed, purpose, key)


def _compared(condition: Condition, column: pa.Array) -> pa.Array:
    if isinstance(condition.value, str):
        return COMPARE[condition.comparison](column, pa.scalar(condition.value))
    return _compare(condition.comparison, column, condition.value)


def _compare(comparison: str, numbers: pa.Array, value: float) -> pa.Array:
    """Compare numbers with a constant: integers exactly if it is whole too, else as float64."""
    if float(value).is_integer() and abs(value) < EXACT_INTEGERS and not pa.types.is_boolean(numbers.type):
        return COMPARE[comparison](numbers, pa.scalar(int(value)))
    if pa.types.is_boolean(numbers.type):
        numbers = numbers.cast(pa.int8())
    return COMPARE[comparison](numbers.cast(pa.float64(), safe=False), pa.scalar(float(value)))


def _by_time(split: TimeSplit, rows: RawRows) -> np.ndarray:
    column = combined(rows.table.column(split.reading))
    missing = column.is_null().to_numpy(zero_copy_only=False)
    if missing.any():
        raise DataError(
            f"{rows.name(int(np.argmax(missing)))}: the time {split.reading!r} is missing, so the row is in no "
            "mapping; leave such rows out with `where:`, or fill it in"
        )
    mappings = np.full(len(column), TRAIN, object)
    for name, first in ((VALID, split.valid_from), (TEST, split.test_from)):
        if first is not None:
            reached = _compare(">=", column, first)
            mappings[reached.to_numpy(zero_copy_only=False)] = name
    return mappings


def _from_the_end(split: LastSplit, rows: RawRows, total: int) -> np.ndarray:
    mappings, end = np.full(len(rows.numbers), TRAIN, object), total
    for name in reversed(list(split.fractions)):
        first = end - int(round_half_up(np.array(total * split.fractions[name])))
        mappings[(rows.in_source >= first) & (rows.in_source < end)] = name
        end = first
    return mappings


def _at_random(split: RandomSplit, spec: RawSpec, rows: RawRows) -> np.ndarray:
    hashes = row_hashes(spec, SPLIT, rows.table, rows.numbers)
    if split.by is not None:
        # Rows without a group are drawn one by one.
        groups = combined(rows.table.column(split.by))
        grouped = draw(spec.seed, SPLIT, {split.by: groups})
        hashes = np.where(groups.is_valid().to_numpy(zero_copy_only=False), grouped, hashes)
    mappings = np.full(len(hashes), TRAIN, object)
    shares = list(accumulate(split.fractions.values()))
    # Each narrower range overwrites the wider one.
    for name, share in zip(reversed(list(split.fractions)), reversed(shares), strict=True):
        is_all = share > 1 - 1e-9
        mappings[np.full(len(hashes), True) if is_all else below(hashes, share)] = name
    return mappings
