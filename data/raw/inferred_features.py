"""What a specification says of the columns of a sample: labels, ids, lists, numbers, and what is left out."""

import datetime
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.errors import DataError, shown
from data.raw.column_kinds import (
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
from data.raw.sampling import RawSample
from data.spec.features import LABEL, MULTIHOT, NUMERICAL, ONEHOT, name_mistake

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
# Numbers whose values occur this often on average are also ids, which learn what single values and thresholds do.
OCCURRENCES, VALUE = 20, "value"
LEAST_CONSEQUENCES = 20
YES_WORDS = [
    "1",
    "accepted",
    "bought",
    "click",
    "clicked",
    "converted",
    "like",
    "liked",
    "positive",
    "true",
    "y",
    "yes",
]
DAYS_OF_A_WEEK = 7 * 86_400 * MICROSECONDS
MAX_NAME_BYTES = 150


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


Column = SampledColumn | ListKind | None


def summarized(name: str, cells: pa.ChunkedArray) -> Column:
    """Summarize a column of the sample; None if its type is not supported."""
    stored = cells.type
    if pa.types.is_list(stored) or pa.types.is_large_list(stored):
        is_nested = pa.types.is_nested(stored.value_type) or pa.types.is_binary(stored.value_type)
        return None if is_nested else stored_list(name, cells)
    if pa.types.is_large_string(stored) or pa.types.is_decimal(stored):
        cells = cells.cast(pa.string() if pa.types.is_large_string(stored) else pa.float64())
    is_known = pa.types.is_primitive(cells.type) or pa.types.is_string(cells.type) or pa.types.is_null(cells.type)
    return sampled_column(name, cells) if is_known else None


# Labels.


def sampled_label(column: SampledColumn) -> SampledLabel:
    """Return how a column becomes a label.

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
        comment += f", {percent(column.nulls / column.rows)} missing"
    by_value = dict(zip(column.values.to_pylist(), values, strict=True))
    numbers = np.array([by_value.get(text, np.nan) for text in column.texts.to_pylist()], np.float64)
    line = _line(column.name, keys, comment, LABEL)
    return SampledLabel(line, numbers, is_binary)


def _label_encoding(column: SampledColumn) -> tuple[dict[str, Any], np.ndarray, bool, str]:
    """Return the keys of a label, [values] its numbers, whether they are 0 and 1, and what was seen."""
    if column.numbers is not None and np.isin(column.numbers, (0, 1)).all():
        share = column.counts[column.numbers == 1].sum() / column.counts.sum()
        only = "" if column.distinct > 1 else f"; only {column.numbers[0]:g} in the sample"
        return {"dtype": "float32"}, column.numbers, True, f"{percent(share)} are 1{only}"
    if column.distinct == 2:
        return _two_values(column)
    if column.numbers is None:
        if column.distinct == 1:
            value = shown(column.values[0].as_py())
            raise DataError(f"--label {column.name}: is {value} in all rows of the sample; name another column")
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
    return {"encode": encode}, ones.astype(np.float64), True, f"{percent(share)} are {shown(positive)}, taken as 1"


def with_conditions(targets: list[SampledLabel]) -> Iterator[SampledLabel]:
    """Add to the comment of each binary label which other label it requires."""
    for target in targets:
        ones = target.numbers == 1
        for other in targets:
            requires = other.is_binary and target.is_binary and other is not target and ones.any()
            if requires and (other.numbers[ones] == 1).all() and ones.sum() < (other.numbers == 1).sum():
                comment = (
                    f"{target.line.comment}, all in rows where {other.line.name} is 1 (for ESMM, add `given: "
                    f"{other.line.name}`)"
                )
                target = replace(target, line=replace(target.line, comment=comment))
                break
        yield target


# Inputs.


def input_lines(
    sample: RawSample, columns: Mapping[str, Column], targets: list[SampledLabel], when: TimeColumn | None
) -> tuple[list[FeatureLine], dict[str, str]]:
    """Return the lines of all input features, and the columns of which none is made, with the reason.

    Args:
        sample: the sample.
        columns: its columns, summarized.
        targets: the labels.
        when: the column that splits by time, or None.
    """
    lines: list[FeatureLine] = []
    left_out: dict[str, str] = {}
    taken = {target.line.column for target in targets}
    for name, column in columns.items():
        if name in taken:
            continue
        made = _features(name, column, sample, targets, when)
        if isinstance(made, str):
            left_out[name] = made
        else:
            lines += made
    return lines, left_out


def _features(
    name: str, column: Column, sample: RawSample, targets: list[SampledLabel], when: TimeColumn | None
) -> list[FeatureLine] | str:
    """Return the features that are made of a column, or why there are none."""
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
    """Return why a column has nothing to say, or None if it may have."""
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
        return [_number_line(column), *_number_as_ids(column, sample)]
    return _useless_id(column) or [_id_line(column, sample)]


def _timestamp_features(column: SampledColumn, kind: TimestampKind) -> list[FeatureLine] | str:
    return _timestamp_lines(column, kind) or "timestamps without different hours or weekdays"


def _leak(column: SampledColumn, targets: list[SampledLabel]) -> str | None:
    """Return why a column tells a binary label, or None if it does not."""
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
    """Return why the values of a column cannot serve as ids, or None if they can."""
    words = pc.count_substring(column.values, " ").to_numpy() + 1
    if words.mean() >= WORDS_OF_A_SENTENCE and column.unique_share > DISTINCT_SENTENCES:
        return f"free text, {words.mean():.0f} words on average"
    if _is_row_number(column):
        return "numbers its rows"
    is_entity = bool(ENTITY_WORDS.intersection(words_of(column.name)))
    if column.unique_share > ALMOST_UNIQUE and not is_entity and column.rows >= FEW_VALUES:
        return f"differs in nearly every row, as a row id does: {column.distinct:,} values in {column.rows:,} rows"
    return None


def _is_row_number(column: SampledColumn) -> bool:
    """Return whether all values are different whole numbers that mostly grow by 1 from row to row."""
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
    """Return `encode` with a minimum count, if the sample has rarer values."""
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


def _number_as_ids(column: SampledColumn, sample: RawSample) -> list[FeatureLine]:
    """Return the ids of a number's values, if there are more than two and they occur often."""
    if not 2 < column.distinct <= (column.rows - column.nulls) / OCCURRENCES:
        return []
    comment = f"the number {column.name} as ids, {_values(column.distinct)}{_missing(column)}"
    keys = _vocabulary(column.counts, sample)
    return [_line(f"{column.name}_{VALUE}", keys, comment, ONEHOT, column.name)]


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
    comment += f", {_values(items.distinct)}" + (f", {percent(missing)} missing" if missing else "")
    return _line(name, keys, comment, MULTIHOT)


def _timestamp_lines(column: SampledColumn, kind: TimestampKind) -> list[FeatureLine]:
    keys = {"dtype": "timestamp"} | reading_keys(kind)
    span = f"{time_text(kind.micros.min())} to {time_text(kind.micros.max())}"
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


def reading_keys(kind: TimestampKind) -> dict[str, Any]:
    """Return the keys that say how timestamps are read."""
    keys = {"format": kind.format, "unit": kind.unit}
    return {key: value for key, value in keys.items() if value}


def with_shared_vocabularies(lines: Sequence[FeatureLine], columns: Mapping[str, Column]) -> Iterator[FeatureLine]:
    """Let lists of values of another column use the vocabulary of that column's feature."""
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
                comment = f"{line.comment}, {percent(shares[best])} of the items are values of {best}"
                line = replace(line, keys=keys, comment=comment)
        yield line


def _shared(items: SampledColumn, column: SampledColumn) -> float:
    """Return the share of items that are values of a column; 0 if there are few different ones."""
    common = pc.is_in(items.values, value_set=column.values).to_numpy(zero_copy_only=False)
    return 0.0 if common.sum() < LEAST_SHARED_VALUES else float(items.counts[common].sum() / items.counts.sum())


def _line(name: str, keys: dict[str, Any], comment: str, channel: str, column: str | None = None) -> FeatureLine:
    """Return a feature's line; a name that no feature may have is replaced and the raw column named by `column`."""
    column = column or name
    if name_mistake(name):
        name = re.sub(r"[^\w -]", "_", name).encode()[:MAX_NAME_BYTES].decode(errors="ignore").strip(" .") or "feature"
    keys = ({"column": column} if name != column else {}) | keys
    return FeatureLine(name, keys, comment, channel, column)


def distinct_names(lines: Sequence[FeatureLine], columns: Mapping[str, Column]) -> list[FeatureLine]:
    """Rename features that are called like another feature or another raw column."""
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


# How figures are written.


def time_text(micros: int) -> str:
    """Return microseconds since the epoch as a date, with the time of day unless it is midnight."""
    time = datetime.datetime.fromtimestamp(0, datetime.UTC) + datetime.timedelta(microseconds=int(micros))
    return f"{time:%Y-%m-%d}" if not micros % (86_400 * MICROSECONDS) else f"{time:%Y-%m-%d %H:%M:%S}"


def _values(number: int) -> str:
    return f"{number:,} value{'' if number == 1 else 's'}"


def _missing(column: SampledColumn) -> str:
    return f", {percent(column.nulls / column.rows)} missing" if column.nulls else ""


def percent(share: float) -> str:
    """Return a share in percent."""
    return f"{100 * share:.2g}%" if share < 0.1 else f"{100 * share:.1f}%"


def _figure(number: float) -> str:
    return f"{number:,.0f}" if number == int(number) else f"{number:,.4g}"
