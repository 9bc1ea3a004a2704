"""Columns of lists: their lengths, lists cut to a maximum length, and how text lists are written."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.errors import DataError, shown
from data.preprocess.earlier_rows import joined_ranges
from data.preprocess.staging import Staged, read_arrow
from data.raw.cells import first_true
from data.spec.raw.spec import Keep, RawSpec, Reading

IN_BRACKETS = r"^\s*[\[({].*[\])}]\s*$"
SEPARATORS = ("|", ";", ", ", ",", "\t", " ")


def longest(lists: pa.Array) -> int:
    """Return the length of the longest list, 0 if there is none."""
    return int(pc.max(pc.list_value_length(lists)).as_py() or 0)


def keep_items(lists: pa.ListArray, limit: int, keep: Keep) -> pa.ListArray:
    """Cut lists to at most `limit` items: the first or the last ones. Null lists stay null."""
    if longest(lists) <= limit:
        return lists
    offsets = lists.offsets.to_numpy().astype(np.int64)
    lengths = np.diff(offsets)
    kept = np.minimum(lengths, limit)
    starts = offsets[:-1] + (lengths - kept if keep == "last" else 0)
    new_offsets = np.concatenate([[0], np.cumsum(kept)])
    values = lists.values.take(pa.array(joined_ranges(starts, kept)))
    nulls = lists.is_null() if lists.null_count else None
    return pa.ListArray.from_arrays(pa.array(new_offsets, pa.int32()), values, mask=nulls)


def check_text_lists(spec: RawSpec, staged: Staged) -> None:
    """Check that lists in text are written as the specification says.

    Raises:
        DataError: if all cells are in brackets, or none has the separator and at least half of them have another one.
    """
    for reading in spec.readings.values():
        if reading.separator is not None and reading.dtype == "string":
            _check_text_list(reading, reading.separator, staged)


def _check_text_list(reading: Reading, separator: str, staged: Staged) -> None:
    cells, has_separator, in_brackets = 0, False, True
    having, firsts = Counter[str](), dict[str, tuple[Path, int, str]]()
    for path in (path for files in staged.files.values() for path in files):
        lists = read_arrow(path).column(reading.name).combine_chunks()
        texts = pc.if_else(pc.greater(pc.list_value_length(lists), 0), pc.binary_join(lists, separator), None)
        has_separator |= longest(lists) > 1
        in_brackets &= pc.all(pc.match_substring_regex(texts, IN_BRACKETS)).as_py() is not False
        if has_separator and not in_brackets:
            return
        cells += len(texts) - texts.null_count
        for mark in ("", *SEPARATORS):
            has_mark = pc.match_substring(texts, mark)
            having[mark] += pc.sum(has_mark).as_py() or 0
            if (row := first_true(has_mark)) is not None:
                firsts.setdefault(mark, (path, row, texts[row].as_py()))
    found = "" if in_brackets else next((mark for mark in SEPARATORS if 2 * having[mark] >= cells), None)
    if found is None or not cells:
        return
    path, row, text = firsts[found]
    cell = f"{staged.row_name(path, row)}: column {reading.column!r} is {shown(text)}"
    if in_brackets:
        raise DataError(
            f"{cell}, in brackets like all cells of this list; write lists as text such as 1|2|3 with "
            '`separator: "|"`, or as lists of a parquet file'
        )
    raise DataError(
        f"{cell}, and no cell of this list has its separator {shown(separator)}; write `separator: "
        f"{json.dumps(found)}`, or drop `separator` if the column has one value per row"
    )
