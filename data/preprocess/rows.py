"""Decide what becomes of each raw row: whether it is used, its mapping and its weight.

Every decision depends on the row alone: on its values, or on a draw that is seeded by its file and number or by its key
columns (see `data.preprocess.splits`). Blocks, workers and other rows never change it.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.errors import DataError, shown
from data.preprocess.hashing import hash_rows, hash_values, mix
from data.preprocess.raw_cells import combined
from data.preprocess.raw_files import RawBlock
from data.preprocess.splits import MAPPINGS, NEGATIVE, SPLIT, TEST, TRAIN, VALID, below
from data.spec.raw_spec import Condition, RandomSplit, RawSpec, TimeSplit

NOT_USED = -1
NULL_HASH = np.uint64(0)
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


def mapping_names(spec: RawSpec) -> tuple[str, ...]:
    """Return the mappings of the dataset: train, valid and test, as far as they exist, then others as written."""
    split = spec.split
    names = [source for source in spec.sources if split is None or source not in split.sources]
    if isinstance(split, TimeSplit):
        names += [TRAIN, TEST] if split.valid_from is None else [TRAIN, VALID, TEST]
    elif isinstance(split, RandomSplit):
        names += [TRAIN, *split.fractions]
    known = [name for name in MAPPINGS if name in names]
    return (*known, *dict.fromkeys(name for name in names if name not in MAPPINGS))


def assign(spec: RawSpec, source: str, block: RawBlock) -> np.ndarray:
    """Assign rows to mappings.

    Args:
        spec: the specification.
        source: name of the source that the rows come from.
        block: rows, with the columns that `where` and `split` name.

    Returns:
        [rows] int8 indices into `mapping_names(spec)`, `NOT_USED` for rows that do not satisfy `where`.

    Raises:
        DataError: if the time of a row that is used is missing.
    """
    names = mapping_names(spec)
    used = np.ones(block.table.num_rows, bool) if spec.where is None else selected(spec.where, block.table)
    split = spec.split
    if split is None or source not in split.sources:
        codes = np.full(block.table.num_rows, names.index(source), np.int8)
    elif isinstance(split, TimeSplit):
        codes = _by_time(split, names, block, used)
    else:
        codes = _at_random(split, names, block)
    return np.where(used, codes, NOT_USED).astype(np.int8)


def selected(condition: Condition, table: pa.Table) -> np.ndarray:
    """Return which rows satisfy a condition, [rows] bool. Null satisfies none.

    Raises:
        DataError: if a string is compared with a number, or a list with anything.
    """
    column = combined(table.column(condition.reading))
    if pa.types.is_dictionary(column.type):
        # Compared once per distinct string.
        result = _compared(condition, column.dictionary).take(column.indices)
    else:
        result = _compared(condition, column)
    return result.fill_null(False).to_numpy(zero_copy_only=False)


def row_weights(spec: RawSpec, block: RawBlock) -> np.ndarray:
    """Return the weights of rows, [rows] float64, 1 if the specification names no column of weights.

    Raises:
        DataError: if a weight is missing or negative, naming the row.
    """
    if spec.sample_weight is None:
        return np.ones(block.table.num_rows)
    column = combined(block.table.column(spec.sample_weight)).cast(pa.float64())
    weights = column.fill_null(-1).to_numpy(zero_copy_only=False)
    if (weights < 0).any():
        row = int(np.argmax(weights < 0))
        found = "missing" if column[row].as_py() is None else f"{weights[row]:g}"
        raise DataError(
            f"{_place(block, row)}: the sample weight {spec.sample_weight!r} is {found}; expected a number of at least "
            "0; select rows with `where:`, or fill it in"
        )
    return weights


def draw_negatives(
    spec: RawSpec, file: str, rows: np.ndarray, labels: Sequence[np.ndarray], table: pa.Table
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the training rows that `keep_negatives` keeps. A row is negative if all its binary labels are 0.

    Args:
        spec: the specification.
        file: file of the rows, relative to the specification's folder.
        rows: [rows] int64 numbers of the training rows in the file, from 0.
        labels: [rows] values of each binary label, NaN where it is missing (such a row is not negative).
        table: the rows' values, with the columns of `split: key`.

    Returns:
        kept: [rows] bool, whether each row is kept.
        factors: [rows] float64 to multiply the weights with: 1 / keep_negatives for negative rows, else 1.
    """
    rate = spec.keep_negatives
    if rate is None or not labels:
        return np.ones(len(rows), bool), np.ones(len(rows))
    negative = np.all([np.asarray(label, np.float64) == 0 for label in labels], axis=0)
    drawn = below(_row_hashes(spec.seed, NEGATIVE, _key(spec.split), file, rows, table), rate)
    return ~negative | drawn, np.where(negative, 1 / rate, 1.0)


def key_readings(spec: RawSpec) -> tuple[str, ...]:
    """Return the readings that `assign`, `row_weights` and `draw_negatives` use."""
    split = spec.split
    names: list[str | None] = [spec.sample_weight, spec.where.reading if spec.where else None]
    if isinstance(split, TimeSplit):
        names.append(split.reading)
    elif isinstance(split, RandomSplit):
        names += [split.by, *split.key]
    return tuple(dict.fromkeys(name for name in names if name is not None))


def _compared(condition: Condition, column: pa.Array) -> pa.Array:
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if pa.types.is_nested(column.type) or is_text != isinstance(condition.value, str):
        kind = "lists" if pa.types.is_nested(column.type) else "text" if is_text else "numbers"
        fix = "write the constant in quotes" if is_text else "write a number"
        raise DataError(
            f"where: {condition.reading} {condition.comparison} {shown(condition.value)}: the column holds {kind}; "
            + ("only a single value can be compared" if kind == "lists" else f"{fix}, or state another `dtype`")
        )
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    return COMPARE[condition.comparison](column, pa.scalar(_exact(condition.value)))


def _exact(value: str | float) -> str | float | int:
    """Return whole numbers as integers, so that large integers are compared exactly."""
    if isinstance(value, float) and value.is_integer() and abs(value) < EXACT_INTEGERS:
        return int(value)
    return value


def _by_time(split: TimeSplit, names: Sequence[str], block: RawBlock, used: np.ndarray) -> np.ndarray:
    column = combined(block.table.column(split.reading))
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise DataError(f"split: {split.reading} holds text; state `dtype: timestamp` or a number type for it")
    missing = column.is_null().to_numpy(zero_copy_only=False) & used
    if missing.any():
        raise DataError(
            f"{_place(block, int(np.argmax(missing)))}: the time {split.reading!r} is missing, so the row is in no "
            "mapping; leave such rows out with `where:`, or fill it in"
        )
    codes = np.full(len(column), names.index(TRAIN), np.int8)
    for name, first in ((VALID, split.valid_from), (TEST, split.test_from)):
        if first is not None:
            reached = pc.greater_equal(column, pa.scalar(_exact(float(first)))).fill_null(False)
            codes[reached.to_numpy(zero_copy_only=False)] = names.index(name)
    return codes


def _at_random(split: RandomSplit, names: Sequence[str], block: RawBlock) -> np.ndarray:
    rows = np.arange(block.first_row, block.first_row + block.table.num_rows)
    hashes = _row_hashes(split.seed, SPLIT, split.key, block.file, rows, block.table)
    if split.by is not None:
        # Rows without a group are drawn one by one.
        groups = combined(block.table.column(split.by))
        grouped = mix(hash_rows(split.seed, SPLIT) ^ _column_hashes(split.by, groups))
        hashes = np.where(groups.is_valid().to_numpy(zero_copy_only=False), grouped, hashes)
    codes = np.full(len(rows), names.index(TRAIN), np.int8)
    # As in `draw_mappings`, the lowest hashes are test, then valid; each narrower range overwrites the wider one.
    order = sorted(split.fractions, key=lambda name: (name != TEST, name != VALID))
    shares = list(accumulate(split.fractions[name] for name in order))
    for name, share in zip(reversed(order), reversed(shares), strict=True):
        codes[below(hashes, share)] = names.index(name)
    return codes


def _key(split: TimeSplit | RandomSplit | None) -> tuple[str, ...]:
    return split.key if isinstance(split, RandomSplit) else ()


def _row_hashes(
    seed: int, purpose: int, key: Sequence[str], file: str, rows: np.ndarray, table: pa.Table
) -> np.ndarray:
    """Return hash(seed, purpose, key columns), or hash(seed, purpose, file, row) without a key: [rows] uint64."""
    if not key:
        return hash_rows(seed, purpose, [file], rows)
    hashes = hash_rows(seed, purpose)
    for name in key:
        hashes = mix(hashes ^ _column_hashes(name, combined(table.column(name))))
    return hashes


def _column_hashes(name: str, column: pa.Array) -> np.ndarray:
    """Return the hashes of strings and numbers, 0 for null. A float is hashed by its bits unless it is whole."""
    is_known = column.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_dictionary(column.type):
        hashes = np.append(hash_values(column.dictionary), NULL_HASH)
        return hashes[column.indices.fill_null(len(hashes) - 1).to_numpy(zero_copy_only=False)]
    if pa.types.is_nested(column.type):
        raise DataError(f"split: {name} holds lists, which cannot seed a draw; name another column")
    if pa.types.is_floating(column.type):
        floats = column.cast(pa.float64()).fill_null(0).to_numpy(zero_copy_only=False)
        is_whole = (floats == np.floor(floats)) & (np.abs(floats) < EXACT_INTEGERS)
        words = np.where(is_whole, np.where(is_whole, floats, 0).astype(np.int64), floats.view(np.int64))
    else:
        words = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    return np.where(is_known, hash_values(words), NULL_HASH)


def _place(block: RawBlock, row: int) -> str:
    return f"{block.file}, row {block.first_row + row} (from 0)"
