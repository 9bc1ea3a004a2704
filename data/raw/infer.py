"""A first raw specification for raw files, inferred from a sample of their rows (preprocess.py --infer)."""

import datetime
import io
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from data.errors import DataError, listed, nearest, printable, shown
from data.raw.column_kinds import MICROSECONDS, SampledColumn, TimestampKind, find_timestamp, words_of
from data.raw.inferred_features import (
    Column,
    FeatureLine,
    TimeColumn,
    distinct_names,
    input_lines,
    percent,
    reading_keys,
    sampled_label,
    summarized,
    time_text,
    with_conditions,
    with_shared_vocabularies,
)
from data.raw.sampling import RawSample, draw_sample, find_raw_files
from data.spec.feature_spec import PlainRepresenter
from data.spec.features import LABEL, MULTIHOT, NUMERICAL, ONEHOT
from data.spec.raw.spec import RawChunk

ROWS = 100_000
SOURCE = "logs"
TEST_SHARE = VALID_SHARE = 0.1
# Bounds of a split by time are rounded to a day, an hour, ... if that moves them by at most this share of the range.
MAX_ROUNDING = 0.025
ROUND_TO = (86_400 * MICROSECONDS, 3_600 * MICROSECONDS, 60 * MICROSECONDS, MICROSECONDS)
WIDTH = 120
COMMENT_COLUMN = 64


def infer(
    patterns: Sequence[str],
    labels: Sequence[str],
    time: str | None = None,
    *,
    folder: Path = Path(),
    rows: int = ROWS,
) -> str:
    """Return a raw specification of raw files, as commented YAML to edit.

    It reads about `rows` rows: the start, the middle and the end of up to 16 files. The first line of the text says how
    many rows of how many files it saw, the end of each line of a feature what it saw in its column. Columns of which no
    feature is made are listed with the reason.

    Args:
        patterns: paths, globs and folders of the raw files, relative to the current folder or else to `folder`.
        labels: names of the columns to predict: 0 and 1, two different values, or numbers.
        time: name of a column of timestamps or numbers; the last 10% of its range are the test rows and the 10%
            before them the validation rows. By default these are drawn at random.
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
    columns = {name: summarized(name, sample.table.column(name)) for name in sample.table.column_names}
    targets = [sampled_label(_scalar(columns[name], "--label")) for name in dict.fromkeys(labels)]
    when = None if time is None else _time_column(_scalar(columns[time], "--time"))
    lines, left_out = input_lines(sample, columns, targets, when)
    lines = distinct_names([target.line for target in with_conditions(targets)] + lines, columns)
    lines = list(with_shared_vocabularies(lines, columns))
    if not any(line.channel not in ("", LABEL) for line in lines):
        reasons = "; ".join(f"{column}: {reason}" for column, reason in list(left_out.items())[:3])
        raise DataError(f"{found[0]}: no column is of use as an input ({reasons}); write the specification by hand")
    return "\n".join(_document(sample, written, lines, left_out, when)) + "\n"


def _found_files(patterns: Sequence[str], folder: Path) -> tuple[tuple[Path, ...], list[str]]:
    """Return the files that patterns match, and the patterns relative to `folder`."""
    try:
        base, files = Path(), find_raw_files(patterns, Path())
    except DataError as error:
        try:
            base, files = folder, find_raw_files(patterns, folder)
        except DataError:
            raise error from None
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
    if sample.chunk.type == "csv" and not sample.chunk.has_header:
        first = [f"{column}={sample.table.column(column)[0]}" for column in names]
        message += f". The file has no header, so columns are numbered; its first row is {listed(first, len(first))}"
    return DataError(message)


def _scalar(column: Column, flag: str) -> SampledColumn:
    if not isinstance(column, SampledColumn):
        name = f" {column.items.name}" if column else ""
        raise DataError(f"{flag}{name}: holds lists or nested values; name a column with one value per row")
    return column


# The split.


def _time_column(column: SampledColumn) -> TimeColumn:
    """Return the column that splits by time.

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
    """Return `split` and what it does to the sample.

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
    split |= reading_keys(when.kind) if when.kind and not is_feature else {}
    split |= {name: _bound(bound, when.kind) for name, bound in zip(names, bounds, strict=True)}
    parts = zip(("train", "valid", "test") if len(bounds) > 1 else ("train", "test"), shares, strict=True)
    return split, "of the sample, " + ", ".join(f"{percent(share)} {part}" for part, share in parts)


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
        text = time_text(int(bound))
        return text if " " in text else datetime.date.fromisoformat(text)
    return int(bound) if bound == int(bound) else bound


# The text.


def _document(
    sample: RawSample,
    files: Sequence[str],
    lines: Sequence[FeatureLine],
    left_out: Mapping[str, str],
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
        yield from (printable(f"  # - {column}: {reason}") for column, reason in left_out.items())
    yield ""
    yield "source_spec:"
    yield f"  {SOURCE}:"
    yield from _chunk_lines(_chunk(sample.chunk, files))
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
    yield "# Review and correct it, then run preprocess.py. Comments describe the values of each column in the sample."
    yield "# docs/features.md documents every key."


def _chunk(found: RawChunk, files: Sequence[str]) -> dict[str, Any]:
    """Return the keys of a chunk: those that differ from the defaults."""
    keys: dict[str, Any] = {"type": found.type}
    if found.type == "csv":
        keys |= {"header": True} if found.has_header else {"features": list(found.columns)}
    keys |= {"separator": found.separator} if found.separator != "," else {}
    keys |= {"quote": found.quote} if found.quote != '"' else {}
    keys |= {"null": list(found.null)} if found.null else {}
    keys |= {"trim": True} if found.trim else {}
    return keys | {"files": list(files)}


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
    """Return a line with its comment, which comes above it if both are too long for one line."""
    line = f"{text.ljust(COMMENT_COLUMN)}  # {printable(comment)}"
    indent = " " * (len(text) - len(text.lstrip()))
    return [line] if len(line) <= WIDTH else [f"{indent}# {printable(comment)}", text]


def _wrapped(text: str, indent: str = "    ") -> list[str]:
    """Break a list of names into lines, at commas."""
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _flow(value: Any) -> str:
    """Return a value as YAML on one line."""
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


def _about(number: int) -> str:
    digits = max(0, len(str(number)) - 2)
    return f"{round(number, -digits):,}"
