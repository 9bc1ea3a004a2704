"""A first raw specification for raw files, inferred from a sample of their rows (preprocess.py --infer)."""

import datetime
import io
import os
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ruamel.yaml import YAML

from data.errors import DataError, listed, nearest, printable, shown
from data.preprocess.column_kinds import (
    ENTITY_WORDS,
    HISTORY_WORDS,
    MICROSECONDS,
    ListKind,
    SampledColumn,
    TimestampKind,
    find_list,
    find_timestamp,
    is_number,
    is_skewed,
    sampled_column,
    stored_list,
    words_of,
)
from data.preprocess.sampling import RawSample, draw_sample, find_raw_files
from data.spec.feature_spec import PlainRepresenter
from data.spec.features import LABEL, MULTIHOT, NUMERICAL, ONEHOT, name_mistake

ROWS = 100_000
SOURCE = "logs"
TEST_SHARE = VALID_SHARE = 0.1
# Bounds of a split by time are rounded to a day, an hour, ... if that moves them by at most this share of the range.
MAX_ROUNDING = 0.025
ROUND_TO = (86_400 * MICROSECONDS, 3_600 * MICROSECONDS, 60 * MICROSECONDS, MICROSECONDS)
# (rows of all files, min_count): the more rows, the more occurrences can be asked for.
MIN_COUNTS = ((30_000, 1), (300_000, 2), (3_000_000, 5))
LARGEST_MIN_COUNT = 10
ALMOST_UNIQUE = 0.95
WORDS_OF_A_SENTENCE, DISTINCT_SENTENCES = 4, 0.5
MAX_HOTNESS = 100
# Share of the items of a list that must be values of another column for the list to use its vocabulary.
SHARED_ITEMS, LEAST_SHARED_VALUES = 0.5, 20
FEW_VALUES = 20
# Numbers of which at least this share is missing get a feature that says which are.
LEAST_MISSING, INDICATOR = 0.01, "missing"
LEAST_CONSEQUENCES = 20
YES_WORDS = (
    "1",
    "accepted",
    "bought",
    "click",
    "clicked",
    "converted",
    "like",
    "liked",
    "positive",
    "t",
    "true",
    "y",
    "yes",
)
DAYS_OF_A_WEEK = 7 * 86_400 * MICROSECONDS
MAX_NAME_BYTES = 150
WIDTH = 120
COMMENT_COLUMN = 64


@dataclass(frozen=True)
class FeatureLine:
    """A line of `feature_spec`.

    Attributes:
        name: name of the feature.
        keys: what the specification says of it.
        comment: what was seen in the sample.
        channel: its channel, or "" for none.
        column: the raw column that it is made from.
    """

    name: str
    keys: dict[str, Any]
    comment: str
    channel: str
    column: str


@dataclass(frozen=True)
class LeftOut:
    """A raw column of which no feature is made.

    Attributes:
        column: name of the raw column.
        reason: why.
    """

    column: str
    reason: str


@dataclass(frozen=True)
class SampledLabel:
    """A label in the sample.

    Attributes:
        line: its line of the specification.
        numbers: [rows] float64 values, NaN where missing.
        is_binary: whether they are 0 and 1.
    """

    line: FeatureLine
    numbers: np.ndarray
    is_binary: bool


@dataclass(frozen=True)
class TimeColumn:
    """The column that splits the rows by time.

    Attributes:
        column: the column.
        kind: how it writes timestamps, or None for plain numbers.
        values: [values] what rows are compared by: microseconds, or the numbers.
    """

    column: SampledColumn
    kind: TimestampKind | None
    values: np.ndarray


def infer(
    patterns: Sequence[str],
    labels: Sequence[str],
    time: str | None = None,
    *,
    folder: Path = Path(),
    rows: int = ROWS,
) -> str:
    """Returns a raw specification of raw files, as commented YAML to edit.

    It reads about `rows` rows: the start, the middle and the end of up to 16 files. The first line of the text says how
    many rows of how many files it saw, the end of each line of a feature what it saw in its column. Columns of which no
    feature is made are listed with the reason.

    Args:
        patterns: paths, globs and folders of the raw files, relative to the current folder or else to `folder`.
        labels: names of the columns to predict: 0 and 1, two different values, or numbers.
        time: name of a column of timestamps or numbers; its last 10 % become the test rows and the 10 % before them
            the validation rows. By default these are drawn at random.
        folder: folder in which the specification will be written; paths in it are relative to this folder.
        rows: approximate number of rows to read.

    Returns:
        The YAML; `read_raw_spec` accepts it as a file in `folder`.

    Raises:
        DataError: No files match, they cannot be read, a column does not exist, or a label or the time is of no use.
    """
    found, written = _found_files(patterns, folder)
    sample = draw_sample(found, rows, [*labels, *([time] if time else [])])
    _check_names(sample, labels, time)
    columns = {name: _column(name, sample.table.column(name)) for name in sample.table.column_names}
    targets = [_label(_scalar(columns[name], "--label")) for name in dict.fromkeys(labels)]
    when = None if time is None else _time_column(_scalar(columns[time], "--time"))
    lines, left_out = _inputs(sample, columns, targets, when)
    lines = _distinct_names([target.line for target in _with_conditions(targets)] + lines, columns)
    lines = list(_with_shared_vocabularies(lines, columns))
    if not any(line.channel not in ("", LABEL) for line in lines):
        reasons = "; ".join(f"{entry.column}: {entry.reason}" for entry in left_out[:3])
        raise DataError(f"{found[0]}: no column is of use as an input ({reasons}); write the specification by hand")
    return "\n".join(_document(sample, written, lines, left_out, when)) + "\n"


def _found_files(patterns: Sequence[str], folder: Path) -> tuple[tuple[Path, ...], list[str]]:
    """Returns the files that patterns match, and the patterns relative to `folder`."""
    try:
        base, files = Path(), find_raw_files(patterns, Path())
    except DataError:
        base, files = folder, find_raw_files(patterns, folder)
    return files, [Path(os.path.relpath(base / pattern, folder)).as_posix() for pattern in patterns]


def _check_names(sample: RawSample, labels: Sequence[str], time: str | None) -> None:
    if not labels:
        raise DataError("--label: name the column to predict, such as --label click")
    for flag, name in [*(("--label", label) for label in labels), *([("--time", time)] if time else [])]:
        if name not in sample.table.column_names:
            raise _unknown_column(flag, name, sample)
    if time in labels:
        raise DataError(f"--time {time}: is a label, too; name a column of timestamps")


def _unknown_column(flag: str, name: str, sample: RawSample) -> DataError:
    names = sample.table.column_names
    near = nearest(name, names)
    hint = f"did you mean {near!r}?" if near else f"the columns are {listed(names, len(names))}"
    message = f"{flag} {name}: no such column in {sample.files[0]}; {hint}"
    if sample.dialect and not sample.dialect.has_header:
        first = [f"{column}={sample.table.column(column)[0]}" for column in names]
        message += f". The file has no header, so columns are numbered; its first row is {listed(first, len(first))}"
    return DataError(message)


Column = SampledColumn | ListKind | None


def _column(name: str, cells: pa.ChunkedArray) -> Column:
    """Summarizes a column of the sample; None if its type is not supported."""
    stored = cells.type
    if pa.types.is_list(stored) or pa.types.is_large_list(stored):
        is_nested = pa.types.is_nested(stored.value_type) or pa.types.is_binary(stored.value_type)
        return None if is_nested else stored_list(name, cells)
    if pa.types.is_large_string(stored) or pa.types.is_decimal(stored):
        cells = cells.cast(pa.string() if pa.types.is_large_string(stored) else pa.float64())
    is_known = pa.types.is_primitive(cells.type) or pa.types.is_string(cells.type) or pa.types.is_null(cells.type)
    return sampled_column(name, cells) if is_known else None


def _scalar(column: Column, flag: str) -> SampledColumn:
    if not isinstance(column, SampledColumn):
        name = f" {column.items.name}" if column else ""
        raise DataError(f"{flag}{name}: holds lists or nested values; name a column with one value per row")
    return column


# Labels.


def _label(column: SampledColumn) -> SampledLabel:
    """Returns how a column becomes a label.

    Raises:
        DataError: It is empty in the sample, or has more than two values that are no numbers.
    """
    if not column.distinct:
        raise DataError(
            f"--label {column.name}: is empty in all {column.rows:,} rows of the sample; name another column"
        )
    keys, values, is_binary, comment = _label_encoding(column)
    if column.nulls:
        keys["missing"] = "ignore"
        comment += f", {_percent(column.nulls / column.rows)} missing"
    by_value = dict(zip(column.values.to_pylist(), values, strict=True))
    numbers = np.array([by_value.get(text, np.nan) for text in column.texts.to_pylist()], np.float64)
    line = _line(column.name, keys, comment, LABEL)
    return SampledLabel(line, numbers, is_binary)


def _label_encoding(column: SampledColumn) -> tuple[dict[str, Any], np.ndarray, bool, str]:
    """Returns the keys of a label, [values] its numbers, whether they are 0 and 1, and what was seen."""
    if column.numbers is not None and np.isin(column.numbers, (0, 1)).all():
        share = column.counts[column.numbers == 1].sum() / column.counts.sum()
        only = "" if column.distinct > 1 else f"; only {column.numbers[0]:g} in the sample"
        return {"dtype": "float32"}, column.numbers, True, f"{_percent(share)} are 1{only}"
    if column.distinct == 2:
        return _two_values(column)
    if column.numbers is None:
        values = [shown(value) for value in column.values[:3].to_pylist()]
        raise DataError(
            f"--label {column.name}: has {column.distinct:,} different texts, such as {', '.join(values)}; a "
            "label is 0 or 1, one of two texts, or a number. For classes, write the specification by hand (task: "
            "multiclass and a map)"
        )
    low, high = column.numbers.min(), column.numbers.max()
    mean = np.average(column.numbers, weights=column.counts)
    comment = f"{low:g} to {high:g}, mean {mean:.4g}"
    if column.is_whole and column.distinct <= FEW_VALUES:
        comment += f"; as 0 and 1: encode: {{threshold: '>= {np.ceil(mean):g}'}} and no task"
    return {"dtype": "float32", "task": "regression"}, column.numbers, False, comment


def _two_values(column: SampledColumn) -> tuple[dict[str, Any], np.ndarray, bool, str]:
    texts = column.values.to_pylist()
    if column.numbers is not None:
        high = float(column.numbers.max())
        ones, positive = column.numbers == high, f"{high:g}"
        encode: dict[str, Any] = {"threshold": f">= {positive}"}
    else:
        yes = [place for place, text in enumerate(texts) if text.lower() in YES_WORDS]
        one = yes[0] if len(yes) == 1 else 1  # else the rarer value
        ones, positive = np.arange(2) == one, texts[one]
        encode = {"map": {texts[1 - one]: 0, texts[one]: 1}}
    share = column.counts[ones].sum() / column.counts.sum()
    return {"encode": encode}, ones.astype(np.float64), True, f"{_percent(share)} are {shown(positive)}, taken as 1"


def _with_conditions(targets: list[SampledLabel]) -> Iterator[SampledLabel]:
    """Adds to the comment of each binary label which other label it requires."""
    for target in targets:
        ones = target.numbers == 1
        for other in targets:
            requires = other.is_binary and target.is_binary and other is not target and ones.any()
            if requires and (other.numbers[ones] == 1).all() and ones.sum() < (other.numbers == 1).sum():
                comment = (
                    f"{target.line.comment}, only where {other.line.name} is 1 (given: {other.line.name} for ESMM)"
                )
                line = FeatureLine(target.line.name, target.line.keys, comment, LABEL, target.line.column)
                target = SampledLabel(line, target.numbers, True)
                break
        yield target


# Inputs.


def _inputs(
    sample: RawSample, columns: Mapping[str, Column], targets: list[SampledLabel], when: TimeColumn | None
) -> tuple[list[FeatureLine], list[LeftOut]]:
    lines: list[FeatureLine] = []
    left_out: list[LeftOut] = []
    taken = {target.line.column for target in targets}
    for name, column in columns.items():
        if name in taken:
            continue
        made = _features(name, column, sample, targets, when)
        if isinstance(made, str):
            left_out.append(LeftOut(name, made))
        else:
            lines += made
    return lines, left_out


def _features(
    name: str, column: Column, sample: RawSample, targets: list[SampledLabel], when: TimeColumn | None
) -> list[FeatureLine] | str:
    """Returns the features that are made of a column, or why there are none."""
    if not name or not name.isprintable():
        return "no printable name: name it in the files"
    if column is None:
        return f"values of type {sample.table.column(name).type}"
    if isinstance(column, ListKind):
        return [_list_line(name, column, sample)]
    if when is not None and name == when.column.name:
        return "the time of the split" if when.kind is None else _timestamp_features(column, when.kind)
    return _useless(column) or _leak(column, targets) or _value_features(column, sample)


def _useless(column: SampledColumn) -> str | None:
    """Returns why a column has nothing to say, or None if it may have."""
    if not column.distinct:
        return "empty"
    return f"always {shown(column.values[0].as_py())}" if column.distinct == 1 and not column.nulls else None


def _value_features(column: SampledColumn, sample: RawSample) -> list[FeatureLine] | str:
    if kind := find_timestamp(column):
        return _timestamp_features(column, kind)
    if pc.all(pc.match_substring_regex(column.values, r"^[\[(].*[\])]$")).as_py():
        return "lists in brackets: write them without, separated by | or a space, or as lists of a parquet file"
    if found := find_list(column):
        return [_list_line(column.name, found, sample)]
    if is_number(column) and not _is_row_number(column):
        return [_number_line(column)]
    return _useless_id(column) or [_id_line(column, sample)]


def _timestamp_features(column: SampledColumn, kind: TimestampKind) -> list[FeatureLine] | str:
    return _timestamp_lines(column, kind) or "timestamps without different hours or weekdays"


def _leak(column: SampledColumn, targets: list[SampledLabel]) -> str | None:
    """Returns why a column tells a binary label, or None if it does not."""
    for target in targets:
        known = ~np.isnan(target.numbers)
        ones = target.numbers[known].sum()
        if not target.is_binary or min(ones, known.sum() - ones) < LEAST_CONSEQUENCES:
            continue
        name = target.line.name
        if column.distinct <= FEW_VALUES:
            codes = column.texts.dictionary_encode().indices.fill_null(-1).to_numpy()[known]
            pairs = np.unique(np.stack([codes, target.numbers[known].astype(np.int64)]), axis=1)
            if pairs.shape[1] == len(np.unique(codes)):
                return f"tells the label {name}: each of its values occurs with one value of the label only"
        if column.numbers is not None:
            nonzero = column.values.filter(pa.array(column.numbers != 0))
            rows = pc.is_in(column.texts, value_set=nonzero).to_numpy(zero_copy_only=False) & known
            is_rare = rows.mean() < 0.5 and target.numbers[known].mean() < 0.5
            if is_rare and rows.sum() >= LEAST_CONSEQUENCES and (target.numbers[rows] == 1).all():
                return f"not 0 only where the label {name} is 1: a consequence of the label"
    return None


def _useless_id(column: SampledColumn) -> str | None:
    """Returns why the values of a column cannot serve as ids, or None if they can."""
    words = pc.count_substring(column.values, " ").to_numpy() + 1
    if words.mean() >= WORDS_OF_A_SENTENCE and column.unique_share > DISTINCT_SENTENCES:
        return f"free text, {words.mean():.0f} words on average"
    if _is_row_number(column):
        return "numbers its rows"
    is_entity = bool(ENTITY_WORDS.intersection(words_of(column.name)))
    if column.unique_share > ALMOST_UNIQUE and not is_entity and column.rows >= FEW_VALUES:
        return f"almost unique, such as an id of the row: {column.distinct:,} values in {column.rows:,} rows"
    return None


def _is_row_number(column: SampledColumn) -> bool:
    """Whether all values are different whole numbers that mostly grow by 1 from row to row."""
    if column.nulls or not column.is_whole or column.distinct < max(2, column.rows) or column.rows < FEW_VALUES:
        return False
    steps = np.diff(column.texts.cast(pa.float64()).to_numpy())
    return bool(np.mean(steps == 1) > ALMOST_UNIQUE)


def _id_line(column: SampledColumn, sample: RawSample) -> FeatureLine:
    if column.numbers is None:
        kind = "text"
    else:
        low, high = column.numbers.min(), column.numbers.max()
        kind = f"numbers {low:.0f} to {high:.0f}, taken as ids"
    comment = f"{kind}, {_values(column.distinct)}{_missing(column)}"
    if column.unique_share > ALMOST_UNIQUE:
        comment += ", almost every row has its own"
    return _line(column.name, _vocabulary(column.counts, sample), comment, ONEHOT)


def _vocabulary(counts: np.ndarray, sample: RawSample) -> dict[str, Any]:
    """Returns `encode` with a minimum count, if the sample has rarer values."""
    least = next((count for rows, count in MIN_COUNTS if sample.estimated_rows < rows), LARGEST_MIN_COUNT)
    return {"encode": {"vocabulary": {"min_count": least}}} if least > 1 and counts.min() < least else {}


def _number_line(column: SampledColumn) -> FeatureLine:
    numbers = np.zeros(1) if column.numbers is None else column.numbers
    steps = [{"fill": "median"}, *(["log1p"] if is_skewed(column) else []), "standardize"]
    comment = f"{_figure(numbers.min())} to {_figure(numbers.max())}, median {_figure(column.median)}{_missing(column)}"
    keys: dict[str, Any] = {"encode": steps}
    if column.nulls >= LEAST_MISSING * column.rows:
        keys["indicator"] = INDICATOR  # named later, when all names are known
    return _line(column.name, keys, comment, NUMERICAL)


def _list_line(name: str, found: ListKind, sample: RawSample) -> FeatureLine:
    lengths, items = found.lengths, found.items
    longest, usual = int(lengths.max(initial=1)), int(np.ceil(np.quantile(lengths, 0.99))) if len(lengths) else 1
    hotness = max(1, longest if longest <= MAX_HOTNESS else min(usual, MAX_HOTNESS))
    is_history = bool(HISTORY_WORDS.intersection(words_of(name)))
    keys: dict[str, Any] = {} if found.separator is None else {"separator": found.separator}
    keys |= {"max_hotness": hotness} | ({"keep": "last"} if is_history else {})
    keys |= _vocabulary(items.counts, sample) if items.distinct else {}
    missing = 1 - len(lengths) / sample.table.num_rows
    shortest, mean = (lengths.min(), lengths.mean()) if len(lengths) else (0, 0)
    comment = f"lists of {shortest} to {longest} items, mean {mean:.2g}"
    comment += f", {_values(items.distinct)}" + (f", {_percent(missing)} missing" if missing else "")
    return _line(name, keys, comment, MULTIHOT)


def _timestamp_lines(column: SampledColumn, kind: TimestampKind) -> list[FeatureLine]:
    keys = {"dtype": "timestamp"} | _reading_keys(kind)
    span = f"{_time_text(kind.micros.min())} to {_time_text(kind.micros.max())}"
    note = "; day and month may be exchanged" if kind.is_ambiguous else ""
    name, lines = column.name, []
    if len(np.unique(kind.micros // (3_600 * MICROSECONDS) % 24)) > 1:
        own = name if name.lower() == "hour" else f"{name}_hour"
        lines.append(
            _line(own, keys | {"encode": {"timestamp": "hour"}}, f"{span}{_missing(column)}{note}", ONEHOT, name)
        )
    if np.ptp(kind.micros) >= DAYS_OF_A_WEEK:
        own = "weekday" if name.lower() in ("hour", "day") else f"{name}_weekday"
        lines.append(_line(own, keys | {"encode": {"timestamp": "weekday"}}, f"{span}{note}", ONEHOT, name))
    return lines


def _reading_keys(kind: TimestampKind) -> dict[str, Any]:
    keys = {"format": kind.format, "unit": kind.unit}
    return {key: value for key, value in keys.items() if value}


def _with_shared_vocabularies(lines: Sequence[FeatureLine], columns: Mapping[str, Column]) -> Iterator[FeatureLine]:
    """Lets lists of values of another column use the vocabulary of that column's feature."""
    scalars = [
        (line.name, column)
        for line in lines
        if line.channel == ONEHOT
        and "timestamp" not in line.keys.get("encode", {})
        and isinstance(column := columns[line.column], SampledColumn)
    ]
    for line in lines:
        if line.channel == MULTIHOT:
            column = columns[line.column]
            found = column if isinstance(column, ListKind) else find_list(column) if column else None
            shares = {name: _shared(found.items, scalar) for name, scalar in scalars} if found else {}
            best = max(shares, key=lambda name: shares[name], default=None)
            if best is not None and shares[best] >= SHARED_ITEMS:
                keys = line.keys | {"encode": {"vocabulary_of": best}}
                comment = f"{line.comment}, {_percent(shares[best])} of the items are values of {best}"
                line = FeatureLine(line.name, keys, comment, MULTIHOT, line.column)
        yield line


def _shared(items: SampledColumn, column: SampledColumn) -> float:
    """Returns the share of items that are values of a column; 0 if there are few different ones."""
    common = pc.is_in(items.values, value_set=column.values).to_numpy(zero_copy_only=False)
    return 0.0 if common.sum() < LEAST_SHARED_VALUES else float(items.counts[common].sum() / items.counts.sum())


def _line(name: str, keys: dict[str, Any], comment: str, channel: str, column: str | None = None) -> FeatureLine:
    """Returns a feature's line; a name that no feature may have is replaced and the raw column named by `column`."""
    column = column or name
    if name_mistake(name):
        name = re.sub(r"[^\w -]", "_", name).encode()[:MAX_NAME_BYTES].decode(errors="ignore").strip(" .") or "feature"
    keys = ({"column": column} if name != column else {}) | keys
    return FeatureLine(name, keys, comment, channel, column)


def _distinct_names(lines: Sequence[FeatureLine], columns: Mapping[str, Column]) -> list[FeatureLine]:
    """Renames features that are called like another feature or another raw column."""
    done: list[FeatureLine] = []
    taken = {name for name in columns if not name_mistake(name)}

    def free(name: str) -> str:
        while name in taken:
            name += "_"
        taken.add(name)
        return name

    for line in lines:
        name = line.name if line.name == line.column else free(line.name)
        keys = line.keys | ({"indicator": free(f"{name}_{INDICATOR}")} if "indicator" in line.keys else {})
        done.append(_line(name, keys, line.comment, line.channel, line.column))
    return done


# The split.


def _time_column(column: SampledColumn) -> TimeColumn:
    """Returns the column that splits by time.

    Raises:
        DataError: Its values are neither timestamps nor numbers, or all the same, or some are missing.
    """
    kind = find_timestamp(column, is_time=True)
    values = kind.micros if kind else column.numbers
    if values is None:
        example = shown(column.values[0].as_py()) if column.distinct else "nothing"
        raise DataError(
            f"--time {column.name}: holds {example}, which is not recognized as a timestamp; name a column of dates or "
            "numbers, or leave --time out to split at random"
        )
    if column.nulls:
        raise DataError(
            f"--time {column.name}: is missing in {column.nulls:,} of {column.rows:,} sampled rows, which are "
            "in no mapping; name another column, or leave --time out"
        )
    if column.distinct < 2:
        raise DataError(f"--time {column.name}: is the same in all rows of the sample; leave --time out")
    return TimeColumn(column, kind, values)


def _time_split(when: TimeColumn, is_feature: bool) -> tuple[dict[str, Any], str]:
    """Returns `split` and what it does to the sample.

    Args:
        when: the column of the time.
        is_feature: whether a feature says how the column is read.
    """
    low, high = float(when.values.min()), float(when.values.max())
    wanted = [low + share * (high - low) for share in (1 - TEST_SHARE - VALID_SHARE, 1 - TEST_SHARE)]
    bounds = [_rounded(bound, high - low) if when.kind else np.ceil(bound) for bound in wanted]
    shares = _shares(when, bounds)
    if min(shares) <= 0 or shares[0] < 0.5:  # few or unevenly spread times: by the number of rows
        order = np.argsort(when.values)
        before = np.cumsum(when.column.counts[order]) / when.column.counts.sum()
        places = np.searchsorted(before, [1 - TEST_SHARE - VALID_SHARE, 1 - TEST_SHARE]).clip(1)
        bounds = sorted({float(when.values[order][place]) for place in places})
        shares = _shares(when, bounds)
    names = ("valid_from", "test_from")[-len(bounds) :]
    split: dict[str, Any] = {"from": SOURCE, "time": when.column.name}
    split |= _reading_keys(when.kind) if when.kind and not is_feature else {}
    split |= {name: _bound(bound, when.kind) for name, bound in zip(names, bounds, strict=True)}
    parts = zip(("train", "valid", "test") if len(bounds) > 1 else ("train", "test"), shares, strict=True)
    return split, "of the sample, " + ", ".join(f"{_percent(share)} {part}" for part, share in parts)


def _rounded(bound: float, span: float) -> float:
    for unit in ROUND_TO:
        rounded = round(bound / unit) * unit
        if abs(rounded - bound) <= MAX_ROUNDING * span:
            return float(rounded)
    return float(round(bound))


def _shares(when: TimeColumn, bounds: Sequence[float]) -> list[float]:
    mapping = np.searchsorted(np.asarray(bounds), when.values, side="right")
    rows = np.bincount(mapping, when.column.counts, minlength=len(bounds) + 1)
    return list(rows / rows.sum())


def _bound(bound: float, kind: TimestampKind | None) -> datetime.date | str | int | float:
    if kind:
        text = _time_text(int(bound))
        return text if " " in text else datetime.date.fromisoformat(text)
    return int(bound) if bound == int(bound) else bound


def _time_text(micros: int) -> str:
    time = datetime.datetime.fromtimestamp(0, datetime.UTC) + datetime.timedelta(microseconds=int(micros))
    return f"{time:%Y-%m-%d}" if not micros % (86_400 * MICROSECONDS) else f"{time:%Y-%m-%d %H:%M:%S}"


# The text.


def _document(
    sample: RawSample,
    files: Sequence[str],
    lines: Sequence[FeatureLine],
    left_out: Sequence[LeftOut],
    when: TimeColumn | None,
) -> Iterator[str]:
    yield from _heading(sample, files)
    yield ""
    yield "feature_spec:"
    titles = {LABEL: "Labels", ONEHOT: "Ids", MULTIHOT: "Lists of ids", NUMERICAL: "Numbers"}
    for channel, title in titles.items():
        if of_channel := [line for line in lines if line.channel == channel]:
            yield f"  # {title}"
        for line in of_channel:
            yield from _commented(f"  {_flow(line.name)}: {_flow(line.keys)}", line.comment)
    if left_out:
        yield "  # Left out"
        yield from (printable(f"  # - {entry.column}: {entry.reason}") for entry in left_out)
    yield ""
    yield "source_spec:"
    yield f"  {SOURCE}:"
    yield from _chunk_lines(_chunk(sample, files))
    yield ""
    yield from _split_lines(lines, when)
    yield ""
    yield "channel_spec:"
    for channel in (ONEHOT, MULTIHOT, NUMERICAL, LABEL):
        names = [name for line in lines if line.channel == channel for name in (line.name, line.keys.get("indicator"))]
        if names := [name for name in names if name]:
            yield from _wrapped(f"  {channel}: {_flow(names)}")


def _heading(sample: RawSample, files: Sequence[str]) -> Iterator[str]:
    number = len(sample.files)
    many = "1 file" if number == 1 else f"{number:,} files"
    all_rows = f"all {sample.table.num_rows:,} rows" if sample.is_complete else f"{sample.table.num_rows:,} rows"
    some = many if sample.sampled == number else f"{sample.sampled:,} of {many}"
    estimate = "" if sample.is_complete else f", which have about {_about(sample.estimated_rows)} rows"
    yield f"# Inferred from {all_rows} of {some}{estimate}."
    if not sample.is_spread:
        yield "# Only the start of each file was read, since they are compressed and large: check a split by time."
    yield "# Read and correct it, then run preprocess.py. Comments say what the sample had in a column."
    yield "# docs/features.md explains all keys."


def _chunk(sample: RawSample, files: Sequence[str]) -> dict[str, Any]:
    if sample.dialect is None:
        return {"type": "parquet", "files": list(files)}
    dialect = sample.dialect
    chunk: dict[str, Any] = {"type": "csv"}
    chunk |= {"header": True} if dialect.has_header else {"features": list(dialect.columns)}
    chunk |= {"separator": dialect.separator} if dialect.separator != "," else {}
    chunk |= {"quote": dialect.quote} if dialect.quote != '"' else {}
    chunk |= {"null": list(sample.null)} if sample.null else {}
    chunk |= {"trim": True} if sample.has_space else {}
    return chunk | {"files": list(files)}


def _split_lines(lines: Sequence[FeatureLine], when: TimeColumn | None) -> Iterator[str]:
    if when:
        is_feature = any(line.column == when.column.name for line in lines)
        split, comment = _time_split(when, is_feature)
        yield from _commented(f"split: {_flow(split)}", comment)
        return
    split = {"from": SOURCE, "random": {"valid": VALID_SHARE, "test": TEST_SHARE}}
    times = {line.column: line for line in lines if "timestamp" in line.keys.get("encode", {})}
    users = [line.name for line in lines if {"user", "uid", "uuid"}.intersection(words_of(line.column))]
    hints = [f"--time {name} would split by time" for name in list(times)[:1]]
    hints += [f"`by: {name}` keeps all rows of a user in one mapping" for name in users[:1]]
    yield from _commented(f"split: {_flow(split)}", "; ".join(hints) or "at random")


def _chunk_lines(chunk: Mapping[str, Any]) -> Iterator[str]:
    line = f"    - {_flow(chunk)}"
    if len(line) <= WIDTH:
        yield line
        return
    for place, (key, value) in enumerate(chunk.items()):
        yield from _wrapped(f"    {' ' if place else '-'} {_flow(key)}: {_flow(value)}", " " * 8)


def _commented(text: str, comment: str) -> list[str]:
    """Returns a line with its comment, which comes above it if both are too long for one line."""
    line = f"{text.ljust(COMMENT_COLUMN)}  # {printable(comment)}"
    indent = " " * (len(text) - len(text.lstrip()))
    return [line] if len(line) <= WIDTH else [f"{indent}# {printable(comment)}", text]


def _wrapped(text: str, indent: str = "    ") -> list[str]:
    """Breaks a list of names into lines, at commas."""
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _flow(value: Any) -> str:
    """Returns a value as YAML on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.Representer = PlainRepresenter
    yaml.width = 2**30
    text = io.StringIO()
    yaml.dump(value, text)
    return text.getvalue().strip().removesuffix("...").strip()


def _values(number: int) -> str:
    return f"{number:,} value{'' if number == 1 else 's'}"


def _missing(column: SampledColumn) -> str:
    return f", {_percent(column.nulls / column.rows)} missing" if column.nulls else ""


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.1f} %"


def _figure(number: float) -> str:
    return f"{number:,.0f}" if number == int(number) else f"{number:,.4g}"


def _about(number: int) -> str:
    digits = max(0, len(str(number)) - 2)
    return f"{round(number, -digits):,}"
