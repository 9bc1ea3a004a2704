"""Convert the cells of a raw column, from text or parquet, to the type that a reading asks for.

The same values give the same result whatever they are read from: the text `12`, the integer 12 and the float 12.0 all
become 12.0 in a reading of float64. A conversion works on Arrow memory, and on a dictionary's distinct values only.
"""

import re
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.errors import DataError, shown
from data.spec.columns import is_list
from data.spec.raw.spec import Reading

TEXT = pa.dictionary(pa.int32(), pa.string())
ARROW_TYPES = {
    "bool": pa.bool_(),
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float16": pa.float16(),
    "float32": pa.float32(),
    "float64": pa.float64(),
}
CAST_ERRORS = (pa.ArrowInvalid, pa.ArrowNotImplementedError)
BLANKS = " \t"
ITEM_SEPARATORS = "|;, "
MICROSECONDS = {"s": 1_000_000, "ms": 1000, "us": 1}
# Units of numeric timestamps from 2001 to 2286, by number of digits.
UNIT_OF_DIGITS = {10: "s", 13: "ms", 16: "us", 19: "ns"}
EPOCH = datetime(1970, 1, 1)
TRUTH = {"1": True, "true": True, "True": True, "TRUE": True, "0": False, "false": False, "False": False}
TRUTH["FALSE"] = False

INTEGER_AS_DECIMAL = re.compile(r"[+-]?[0-9]+\.0*")
WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+")
# Patterns of strptime directives of fixed width; a format of others is parsed by Python, once per distinct text.
DIRECTIVES = {
    "%Y": r"(?P<year>[0-9]{4})",
    "%m": r"(?P<month>[0-9]{2})",
    "%d": r"(?P<day>[0-9]{2})",
    "%H": r"(?P<hour>[0-9]{2})",
    "%M": r"(?P<minute>[0-9]{2})",
    "%S": r"(?P<second>[0-9]{2})",
    "%f": r"(?P<fraction>[0-9]{1,6})",
    "%z": r"(?P<zone>Z|[+-][0-9]{2}:?[0-9]{2})",
    "%%": "%",
}
TIME_OF_DAY = (("hour", "00"), ("minute", "00"), ("second", "00"))
ISO_WITH_ZONE = r"[T ][0-9:.]*(Z|[+-][0-9]{2}(:?[0-9]{2})?)$"


class CellError(Exception):
    """A cell that cannot be converted, or a column whose type cannot.

    Attributes:
        row: index of the cell, or None if the whole column is of the wrong type.
        found: what was found, in words: "is" and the value, or "holds" and the type.
        expected: description of what was expected, with the fix.
    """

    def __init__(self, row: int | None, found: str, expected: str):
        super().__init__(f"row {row} {found}; expected {expected}")
        self.row, self.found, self.expected = row, found, expected

    def located(self, place: str, reading: Reading) -> DataError:
        """Return an error that also names the place (a file, with a line or row) and the column."""
        return DataError(f"{place}: column {reading.column!r} {self.found}; expected {self.expected}")


def convert(cells: pa.Array, reading: Reading, null: Collection[str] = ()) -> pa.Array:
    """Convert the cells of a column.

    Args:
        cells: [n] cells, of any type that a text or parquet file gives.
        reading: how they are read.
        null: texts that mean a missing number, timestamp or list item; an empty one always does.

    Returns:
        [n] values: dictionary<int32, string>, a number type, int64 microseconds (UTC) for a timestamp, or lists of
        string, number or int64. Missing values and NaN are null.

    Raises:
        CellError: if a cell is not of the reading's type, for the first such row.
    """
    if not pa.types.is_dictionary(cells.type):
        return _convert_plain(cells, reading, null)
    if reading.dtype == "string" and not reading.is_list:
        return _as_text_dictionary(cells)
    try:
        return _convert_plain(cells.dictionary, reading, null).take(cells.indices)
    except CellError:
        # Locate the first row: the order of the dictionary is not that of the rows.
        return _convert_plain(cells.cast(cells.type.value_type), reading, null)


def used_dictionary(cells: pa.DictionaryArray) -> pa.DictionaryArray:
    """Drop the values of a dictionary that no row has."""
    codes = cells.indices.fill_null(0).to_numpy()
    used = np.zeros(len(cells.dictionary), bool)
    used[codes[cells.indices.is_valid().to_numpy(zero_copy_only=False)]] = True
    if used.all():
        return cells
    new_codes = pa.array(np.cumsum(used) - 1, pa.int32())
    return pa.DictionaryArray.from_arrays(new_codes.take(cells.indices), cells.dictionary.filter(pa.array(used)))


def trimmed(cells: pa.Array, null: Collection[str]) -> pa.Array:
    """Remove white space around texts; those that are then empty, or in `null`, become null. Numbers stay."""
    if pa.types.is_dictionary(cells.type):
        texts = _trimmed_texts(cells.dictionary, null)
        if texts.equals(cells.dictionary):
            return cells
        # Values that differed in white space only are one now.
        return texts.take(cells.indices).dictionary_encode().cast(TEXT)
    return _trimmed_texts(cells, null) if is_text(cells.type) else cells


def _trimmed_texts(texts: pa.Array, null: Collection[str]) -> pa.Array:
    return _without(pc.utf8_trim_whitespace(texts), null)


def _without(texts: pa.Array, null: Collection[str]) -> pa.Array:
    """Return texts, null where they are empty or stand for a missing value."""
    return pc.if_else(pc.is_in(texts, pa.array(["", *null], pa.string())), pa.scalar(None, pa.string()), texts)


def _convert_plain(cells: pa.Array, reading: Reading, null: Collection[str]) -> pa.Array:
    if reading.is_list:
        return _lists(cells, reading, null)
    if is_list(cells.type):
        raise _wrong_type(cells, "one value; state `max_hotness` for a feature of lists")
    values = _values(cells, reading, null)
    return values.dictionary_encode().cast(TEXT) if reading.dtype == "string" else values


def _values(cells: pa.Array, reading: Reading, null: Collection[str]) -> pa.Array:
    """Convert single values, of a column or the items of its lists; strings without a dictionary."""
    if pa.types.is_dictionary(cells.type):
        cells = cells.cast(cells.type.value_type)
    if reading.dtype == "string":
        return as_texts(cells)
    return _timestamps(cells, reading, null) if reading.dtype == "timestamp" else _numbers(cells, reading.dtype, null)


# Text


def _as_text_dictionary(cells: pa.DictionaryArray) -> pa.DictionaryArray:
    if cells.type == TEXT and not cells.dictionary.null_count:
        return cells
    return as_texts(cells.cast(cells.type.value_type)).dictionary_encode().cast(TEXT)


def as_texts(cells: pa.Array) -> pa.Array:
    """Return cells as strings: whole numbers without a point, other values as Arrow prints them."""
    stored = cells.type
    if pa.types.is_floating(stored):
        return _float_texts(cells)
    if pa.types.is_binary(stored) or pa.types.is_large_binary(stored) or pa.types.is_fixed_size_binary(stored):
        return _checked(cells, lambda part: part.cast(pa.binary()).cast(pa.string()), lambda _: "UTF-8 text")
    try:
        return cells.cast(pa.string())
    except CAST_ERRORS as error:
        raise _wrong_type(cells, "text or numbers") from error


def _float_texts(cells: pa.Array) -> pa.Array:
    numbers = _without_nan(cells.cast(pa.float64()))
    known = numbers.fill_null(0.5).to_numpy(zero_copy_only=False)
    is_whole = (known == np.floor(known)) & (np.abs(known) < 2**53)
    whole = pa.array(np.where(is_whole, known, 0).astype(np.int64)).cast(pa.string())
    return pc.if_else(pa.array(is_whole), whole, numbers.cast(pa.string()))


def is_text(stored: pa.DataType) -> bool:
    """Return whether an Arrow type is that of strings."""
    return pa.types.is_string(stored) or pa.types.is_large_string(stored)


def _known_texts(cells: pa.Array, null: Collection[str]) -> pa.Array:
    """Return trimmed texts, null where they are empty or stand for a missing value."""
    return _without(pc.ascii_trim(cells.cast(pa.string()), BLANKS), null)


# Numbers


def _numbers(cells: pa.Array, dtype: str, null: Collection[str]) -> pa.Array:
    stored = cells.type
    if pa.types.is_null(stored):
        return pa.nulls(len(cells), ARROW_TYPES[dtype])
    if is_text(stored):
        cells = _parsed(_known_texts(cells, null), dtype)
    elif pa.types.is_temporal(stored):
        raise _wrong_type(cells, "a number; write `dtype: timestamp`")
    elif pa.types.is_decimal(stored):
        cells = cells.cast(pa.float64(), safe=False)
    elif not (pa.types.is_integer(stored) or pa.types.is_floating(stored) or pa.types.is_boolean(stored)):
        raise _wrong_type(cells, "a number")
    if dtype == "bool":
        return _booleans(cells)
    return _floats(cells, dtype) if dtype.startswith("float") else _integers(cells, dtype)


def _parsed(texts: pa.Array, dtype: str) -> pa.Array:
    """Parse trimmed texts to bool, int64 or float64."""
    if dtype == "bool":
        positions = pc.index_in(texts, pa.array(list(TRUTH), pa.string()))
        _reject(texts, pc.and_(texts.is_valid(), positions.is_null()), "a boolean: 0, 1, true or false")
        return pa.array(list(TRUTH.values())).take(positions)
    if pc.any(pc.starts_with(texts, "+")).as_py():
        texts = pc.replace_substring_regex(texts, r"^\+([0-9.])", r"\1")
    if dtype.startswith("float"):
        return _checked(texts, lambda part: part.cast(pa.float64()), lambda _: f"a number ({dtype})")
    return _checked(texts, lambda part: part.cast(pa.int64()), lambda value: _whole_number_fix(value, dtype))


def _whole_number_fix(value: str, dtype: str) -> str:
    if INTEGER_AS_DECIMAL.fullmatch(value):
        return (
            f"a whole number ({dtype}); this one is written with decimals, as programs do in a column with missing "
            "values; for an id, drop `dtype` and write `encode: vocabulary`; for a number, write `dtype: float64`"
        )
    if WHOLE_NUMBER.fullmatch(value):
        return f"a number that fits {dtype}; write `dtype: string` for longer ids"
    return f"a whole number ({dtype}); for ids that are text, write `encode: vocabulary` and no `dtype`"


def _integers(cells: pa.Array, dtype: str) -> pa.Array:
    if pa.types.is_floating(cells.type):
        expected = f"a whole number ({dtype}); write `dtype: float64`"
        cells = _without_nan(cells.cast(pa.float64()))
        cells = _checked(cells, lambda part: part.cast(pa.int64()), lambda _: expected)
    if pa.types.is_boolean(cells.type):
        return cells.cast(ARROW_TYPES[dtype])
    expected = f"a number that fits {dtype}; write a wider `dtype`, or `dtype: string` for longer ids"
    return _checked(cells, lambda part: part.cast(ARROW_TYPES[dtype]), lambda _: expected)


def _floats(cells: pa.Array, dtype: str) -> pa.Array:
    if pa.types.is_boolean(cells.type):
        cells = cells.cast(pa.int8())
    # Like the text of a large integer, an integer is rounded to the nearest float.
    wide = _without_nan(cells.cast(pa.float64(), safe=False))
    numbers = wide.fill_null(0).to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):
        narrow = numbers.astype(dtype, copy=False)
    _reject(cells, pa.array(np.isinf(narrow)), f"a finite number ({dtype})")
    if dtype == "float64":
        return wide
    return pa.array(narrow, ARROW_TYPES[dtype], mask=wide.is_null().to_numpy(zero_copy_only=False))


def _booleans(cells: pa.Array) -> pa.Array:
    if pa.types.is_boolean(cells.type):
        return cells
    numbers = _without_nan(cells.cast(pa.float64(), safe=False))
    _reject(cells, pc.invert(pc.is_in(numbers, pa.array([0.0, 1.0, None]))), "a boolean: 0 or 1")
    return pc.equal(numbers, 1.0)


def _without_nan(numbers: pa.Array) -> pa.Array:
    if not pc.any(pc.is_nan(numbers)).as_py():
        return numbers
    return pc.if_else(pc.is_nan(numbers), pa.scalar(None, numbers.type), numbers)


# Timestamps


def _timestamps(cells: pa.Array, reading: Reading, null: Collection[str]) -> pa.Array:
    """Return int64 microseconds since the epoch, UTC."""
    stored = cells.type
    if pa.types.is_null(stored):
        return pa.nulls(len(cells), pa.int64())
    if pa.types.is_timestamp(stored):
        return _from_units(cells.cast(pa.int64()), stored.unit)
    if pa.types.is_date(stored):
        return cells.cast(pa.timestamp("us")).cast(pa.int64())
    if pa.types.is_temporal(stored) or pa.types.is_nested(stored):
        raise _wrong_type(cells, "a timestamp")
    if reading.unit is not None:
        return _from_units(_whole_or_float(cells, null), reading.unit)
    if is_text(stored):
        return _parse_timestamps(_known_texts(cells, null), reading.format)
    if reading.format is not None:
        return _parse_timestamps(as_texts(cells), reading.format)
    raise _wrong_type(cells, "a timestamp; write `unit:` s, ms, us or ns, or `format:`")


def _whole_or_float(cells: pa.Array, null: Collection[str]) -> pa.Array:
    """Return numbers as int64 if all are whole, which is exact, else as float64."""
    if is_text(cells.type):
        texts = _known_texts(cells, null)
        try:
            return texts.cast(pa.int64())
        except pa.ArrowInvalid:
            cells = _parsed(texts, "float64")
    if not pa.types.is_floating(cells.type):
        return _integers(cells, "int64") if pa.types.is_integer(cells.type) else cells.cast(pa.float64())
    numbers = _floats(cells, "float64")
    known = numbers.fill_null(0).to_numpy(zero_copy_only=False)
    if ((known == np.floor(known)) & (np.abs(known) < 2**63)).all():
        return numbers.cast(pa.int64(), safe=False)
    return numbers


def _from_units(numbers: pa.Array, unit: str) -> pa.Array:
    """Return int64 microseconds: exact for whole numbers (nanoseconds rounded down), else to the nearest one."""
    values = numbers.fill_null(0).to_numpy(zero_copy_only=False)
    if unit == "ns":
        micros = values // 1000
    else:
        micros = values * MICROSECONDS[unit]
        limit = np.iinfo(np.int64).max // MICROSECONDS[unit]
        _reject(numbers, pa.array(np.abs(values) > limit), f"a timestamp in {unit}; write another `unit:`")
    if micros.dtype.kind == "f":
        micros = np.floor(micros + 0.5).astype(np.int64)
    return pa.array(micros, pa.int64(), mask=numbers.is_null().to_numpy(zero_copy_only=False))


def _parse_timestamps(texts: pa.Array, form: str | None) -> pa.Array:
    """Parse trimmed texts: ISO 8601 without a format."""
    return _parse_iso(texts) if form is None else _parse_format(texts, form)


def _parse_iso(texts: pa.Array) -> pa.Array:
    # Digits beyond microseconds are dropped.
    texts = pc.replace_substring_regex(texts, r"(\.[0-9]{6})[0-9]+", r"\1")
    has_zone = pc.match_substring_regex(texts, ISO_WITH_ZONE)
    nothing = pa.scalar(None, pa.string())
    local = _checked(pc.if_else(has_zone, nothing, texts), _cast_iso(pa.timestamp("us")), _iso_fix)
    zoned = _checked(pc.if_else(has_zone, texts, nothing), _cast_iso(pa.timestamp("us", "UTC")), _iso_fix)
    return pc.coalesce(local, zoned)


def _iso_fix(value: str) -> str:
    fix = 'write its format, such as `format: "%d.%m.%Y %H:%M"`'
    if WHOLE_NUMBER.fullmatch(value):
        unit = UNIT_OF_DIGITS.get(len(value))
        fix = f"write `unit: {unit}`" if unit else 'write `unit:` s, ms, us or ns, or a format such as "%Y%m%d"'
    return f"a timestamp such as 2014-10-21 or 2014-10-21T08:30:00; {fix}"


def _cast_iso(target: pa.DataType) -> Callable[[pa.Array], pa.Array]:
    return lambda texts: texts.cast(target).cast(pa.int64())


def _parse_format(texts: pa.Array, form: str) -> pa.Array:
    """Parse by a strptime format: fixed-width texts are rewritten to ISO 8601, which Arrow parses; others by Python."""
    pattern = _pattern(form)
    if pattern is not None:
        matches = pc.match_substring_regex(texts, pattern)
        if pc.all(matches).as_py() is not False:
            iso = pc.replace_substring_regex(texts, pattern, _iso_template(pattern))
            zone = "UTC" if "<zone>" in pattern else None
            try:
                return _cast_iso(pa.timestamp("us", zone))(iso)
            except pa.ArrowInvalid:  # such as the 30th of February; located below
                pass
    distinct = texts.dictionary_encode()
    parsed = [_strptime(text, form) for text in distinct.dictionary.to_pylist()]
    micros = pa.array(parsed, pa.int64()).take(distinct.indices)
    _reject(texts, pc.and_(texts.is_valid(), micros.is_null()), f"a timestamp of the format {form!r}")
    return micros


def _pattern(form: str) -> str | None:
    """Return a regular expression of a format's texts, or None if a directive is repeated or not of fixed width."""
    parts = re.split(r"(%.)", form)
    if not set(parts[1::2]) <= set(DIRECTIVES) or len(set(parts[1::2])) < len(parts[1::2]):
        return None
    if not {"%Y", "%m", "%d"} <= set(parts) or ("%f" in parts and "%S" not in parts):
        return None
    return "^" + "".join(DIRECTIVES.get(part, re.escape(part)) for part in parts) + "$"


def _iso_template(pattern: str) -> str:
    groups = {name: f"\\{number}" for name, number in re.compile(pattern).groupindex.items()}
    time = ":".join(groups.get(name, default) for name, default in TIME_OF_DAY)
    fraction = f".{groups['fraction']}" if "fraction" in groups else ""
    return f"{groups['year']}-{groups['month']}-{groups['day']} {time}{fraction}{groups.get('zone', '')}"


def _strptime(text: str, form: str) -> int | None:
    try:
        moment = datetime.strptime(text, form)
    except ValueError:
        return None
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC).replace(tzinfo=None)
    return (moment - EPOCH) // timedelta(microseconds=1)


# Lists


def _lists(cells: pa.Array, reading: Reading, null: Collection[str]) -> pa.Array:
    if is_text(cells.type):
        return _split(cells.cast(pa.string()), reading, null)
    if pa.types.is_null(cells.type):
        return _list_array(cells, np.zeros(len(cells), np.int64), _values(pa.nulls(0, pa.string()), reading, null))
    if not is_list(cells.type):
        raise _wrong_type(cells, "lists; drop `max_hotness` if each row has one value")
    lengths = pc.list_value_length(cells).fill_null(0).to_numpy(zero_copy_only=False)
    return _convert_values(cells, lengths, cells.flatten(), reading, null)


def _split(texts: pa.Array, reading: Reading, null: Collection[str]) -> pa.Array:
    """Split texts at the separator; an empty text is an empty list, and an empty item null."""
    if reading.separator is None:
        first = first_true(texts.is_valid()) or 0
        mark = next((mark for mark in ITEM_SEPARATORS if mark in (texts[first].as_py() or "")), "|")
        expected = f'a list; write the separator of its items, such as `separator: "{mark}"`'
        raise CellError(first, f"is {_shown(texts, first)}", expected)
    if null:
        texts = pc.if_else(pc.is_in(texts, pa.array(list(null), pa.string())), pa.scalar(None, pa.string()), texts)
    parts = pc.split_pattern(texts, reading.separator)
    lengths = pc.list_value_length(parts).fill_null(0).to_numpy(zero_copy_only=False)
    is_filled = pc.not_equal(texts, "").fill_null(False).to_numpy(zero_copy_only=False)
    items = parts.flatten().filter(pa.array(np.repeat(is_filled, lengths)))
    return _convert_values(texts, lengths * is_filled, _without(items, null), reading, null)


def _convert_values(
    cells: pa.Array, lengths: np.ndarray, items: pa.Array, reading: Reading, null: Collection[str]
) -> pa.Array:
    try:
        return _list_array(cells, lengths, _values(items, reading, null))
    except CellError as error:
        if error.row is None:
            raise CellError(None, f"holds {cells.type}", f"lists of {error.expected}") from error
        row = int(np.searchsorted(np.cumsum(lengths), error.row, side="right"))
        raise CellError(row, error.found.replace("is", "has the item", 1), error.expected) from error


def _list_array(cells: pa.Array, lengths: np.ndarray, items: pa.Array) -> pa.Array:
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, items, pa.list_(items.type), mask=cells.is_null())


# Tables


def combined(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array, with one dictionary."""
    if column.num_chunks <= 1:
        return column.chunk(0) if column.num_chunks else pa.nulls(0, column.type)
    array = column.unify_dictionaries().combine_chunks()
    return array if isinstance(array, pa.Array) else pa.concat_arrays(array.chunks)


def as_table(readings: Sequence[Reading], values: Sequence[pa.Array], rows: int) -> pa.Table:
    """Return a table of one column per reading; without readings, a column of nulls keeps the number of rows."""
    if not readings:
        return pa.table({"": pa.nulls(rows)})
    return pa.table(list(values), names=[reading.name for reading in readings])


# Errors


def _wrong_type(cells: pa.Array, expected: str) -> CellError:
    return CellError(None, f"holds {cells.type}", expected)


def _checked(cells: pa.Array, convert_all: Callable[[pa.Array], pa.Array], expected: Callable[[Any], str]) -> pa.Array:
    """Convert cells; on failure, find the first one that cannot be converted by bisection."""
    try:
        return convert_all(cells)
    except CAST_ERRORS:
        good, bad = 0, len(cells)  # the first `good` cells can be converted, the first `bad` cannot
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            convert_all(cells[good:middle])
            good = middle
        except CAST_ERRORS:
            bad = middle
    raise CellError(good, f"is {_shown(cells, good)}", expected(cells[good].as_py()))


def _reject(cells: pa.Array, is_wrong: pa.Array, expected: str) -> None:
    row = first_true(is_wrong)
    if row is not None:
        raise CellError(row, f"is {_shown(cells, row)}", expected)


def _shown(cells: pa.Array, row: int) -> str:
    return shown(cells[row].as_py())


def first_true(flags: pa.Array) -> int | None:
    """Return the index of the first true flag, or None; null counts as false."""
    found = int(pc.index(flags, True).as_py())
    return None if found < 0 else found
