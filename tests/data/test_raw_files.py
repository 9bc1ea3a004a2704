"""Raw files: CSV and parquet give the values written, in any blocks; bad input is located and explained."""

import bz2
import csv
import gzip
import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.raw import csv as raw_csv
from data.raw import text as raw_text
from data.raw.files import count_rows_estimate, list_files, locate_row, read_raw
from data.raw.text import Records
from data.spec.raw.spec import RawChunk, Reading

NULL = "NA"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HEADED = RawChunk("csv", ("rows.csv",), has_header=True)
PARQUET = RawChunk("parquet", ("rows.parquet",))


def read(folder: Path, chunk: RawChunk, readings: Sequence[Reading], block_rows: int = 1000) -> pa.Table:
    """All rows of a chunk; blocks must follow each other without gaps."""
    tables, rows = [], dict[str, int]()
    for block in read_raw(chunk, folder, readings, block_rows=block_rows):
        assert block.first_row == rows.get(block.file, 0)
        assert block.table.num_rows
        rows[block.file] = block.first_row + block.table.num_rows
        tables.append(block.table)
    return pa.concat_tables(tables) if tables else pa.table({})


def values(folder: Path, chunk: RawChunk, *readings: Reading) -> dict[str, list]:
    return read(folder, chunk, readings).to_pydict()


def written(folder: Path, text: str | bytes, chunk: RawChunk = HEADED) -> RawChunk:
    (folder / chunk.files[0]).write_bytes(text.encode() if isinstance(text, str) else text)
    return chunk


def error_of(folder: Path, chunk: RawChunk, *readings: Reading) -> str:
    with pytest.raises(DataError) as error:
        read(folder, chunk, readings)
    return str(error.value).replace(f"{folder}/", "")


# Any table, as text and as parquet


def text_of(cell: str) -> str | None:
    return None if cell in ("", NULL) else cell


def trimmed(cell: str) -> str | None:
    return text_of(cell.strip(" \t"))


def float_of(cell: str) -> float | None:
    text = trimmed(cell)
    return None if text is None or float(text) != float(text) else float(text)


def float32_of(cell: str) -> float | None:
    number = float_of(cell)
    return None if number is None else float(np.float32(number))


def integer_of(cell: str) -> int | None:
    text = trimmed(cell)
    return None if text is None else int(text)


def seconds_of(cell: str) -> int | None:
    seconds = integer_of(cell)
    return None if seconds is None else seconds * 1_000_000


def moment_of(form: str) -> Callable[[str], int | None]:
    def parsed(cell: str) -> int | None:
        text = trimmed(cell)
        if text is None:
            return None
        moment = datetime.strptime(text, form)
        return (moment.replace(tzinfo=moment.tzinfo or UTC) - EPOCH) // timedelta(microseconds=1)

    return parsed


def list_of(item: Callable[[str], Any]) -> Callable[[str], list | None]:
    def split(cell: str) -> list | None:
        return None if text_of(cell) is None else [item(part) for part in cell.split("|")]

    return split


@dataclass(frozen=True)
class Kind:
    """A kind of column: its cells, and what each way of reading it makes of one."""

    cells: st.SearchStrategy[str]
    readings: dict[str, tuple[Reading, Callable[[str], Any]]]
    stored: pa.DataType
    stored_value: Callable[[str], Any]


def reading_of(dtype: Any = "string", **keys: Any) -> Reading:
    return Reading("", "", dtype, **keys)


MISSING = st.sampled_from(["", NULL])
TEXTS = st.text(st.sampled_from(list("ab,;|\t\"' \n\ré漢🙂\0\ufeff")) | st.characters(codec="utf-8"), max_size=6)
# Within float32, so that every reading is finite.
NUMBERS = st.floats(-1e30, 1e30).map(repr) | st.sampled_from(
    ["1", "+2.5", " 3 ", "1e3", ".5", "5.", "-0", "nan", "007"]
)
INTEGERS = st.integers(-(2**31), 2**31 - 1).map(str) | st.sampled_from(["+5", " 7", "7\t", "-0", "0012"])
ITEMS = st.text('ab ,"é\n', min_size=1, max_size=3)


def moments(form: str, low: int = 1, high: int = 9999) -> Kind:
    """Times from a year to another, as `form` writes them."""
    dates = st.datetimes(datetime(low, 1, 1), datetime(high, 12, 31))
    # strftime does not pad years below 1000 on all platforms.
    cells = dates.map(lambda date: date.replace(tzinfo=UTC).strftime(form.replace("%Y", f"{date.year:04}")))
    key = {"timestamp": (reading_of("timestamp", format=form), moment_of(form)), "string": (reading_of(), text_of)}
    return Kind(MISSING | cells, key, pa.string(), text_of)


KINDS = {
    "text": Kind(MISSING | TEXTS, {"string": (reading_of(), text_of)}, pa.string(), text_of),
    "number": Kind(
        MISSING | NUMBERS,
        {"float64": (reading_of("float64"), float_of), "float32": (reading_of("float32"), float32_of)},
        pa.float64(),
        float_of,
    ),
    "integer": Kind(
        MISSING | INTEGERS,
        {
            "int64": (reading_of("int64"), integer_of),
            "int32": (reading_of("int32"), integer_of),
            "float64": (reading_of("float64"), float_of),
            "timestamp": (reading_of("timestamp", unit="s"), seconds_of),
        },
        pa.int64(),
        integer_of,
    ),
    "day": moments("%Y-%m-%d"),
    "hour": moments("%y%m%d%H", 1970, 2060),
    "zoned": moments("%d/%m/%Y %H:%M:%S.%f%z", 2),
    "name": moments("%d %b %Y"),
    "list": Kind(
        MISSING | st.lists(ITEMS, min_size=1, max_size=4).map("|".join),
        {"list": (reading_of(is_list=True, separator="|"), list_of(text_of)), "string": (reading_of(), text_of)},
        pa.string(),
        text_of,
    ),
    "number list": Kind(
        MISSING | st.lists(NUMBERS, min_size=1, max_size=4).map("|".join),
        {"list": (reading_of("float64", is_list=True, separator="|"), list_of(float_of))},
        pa.list_(pa.float64()),
        list_of(float_of),
    ),
}
TYPES = {"string": pa.dictionary(pa.int32(), pa.string()), "timestamp": pa.int64(), "float32": pa.float32()}


@dataclass(frozen=True)
class Drawn:
    """A table of text cells, how to write it, and how to read it."""

    kinds: list[str]
    rows: list[list[str]]
    readings: list[Reading]
    expected: dict[str, list]
    chunk: RawChunk
    text: bytes
    block_rows: int


@st.composite
def tables(draw: st.DrawFn) -> Drawn:
    kinds = draw(st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=5))
    rows = draw(st.lists(st.tuples(*(KINDS[kind].cells for kind in kinds)).map(list), max_size=12))
    readings, expected = [], {}
    for index, kind in enumerate(kinds):
        chosen = draw(st.sets(st.sampled_from(list(KINDS[kind].readings))))
        for way in sorted(chosen):
            reading, value_of = KINDS[kind].readings[way]
            readings.append(replace(reading, name=f"c{index}:{way}", column=f"c{index}"))
            expected[readings[-1].name] = [value_of(row[index]) for row in rows]
    separator = draw(st.sampled_from([",", ";", "\t", "|"]))
    header = draw(st.booleans())
    names = [f"c{index}" for index in range(len(kinds))]
    stream = io.StringIO()
    # Python's writer leaves "\r" without quotes where lines end in "\n"; readers of CSV take it for the end of a line.
    quotes_all = draw(st.booleans()) or any("\r" in cell for row in rows for cell in row)
    writer = csv.writer(
        stream,
        delimiter=separator,
        quoting=csv.QUOTE_ALL if quotes_all else csv.QUOTE_MINIMAL,
        lineterminator=draw(st.sampled_from(["\n", "\r\n"])),
    )
    writer.writerows([names, *rows] if header else rows)
    text = stream.getvalue()
    if draw(st.booleans()):
        text = text.removesuffix("\n").removesuffix("\r")
    mark = b"\xef\xbb\xbf" if draw(st.booleans()) or text.startswith("\ufeff") else b""
    chunk = RawChunk("csv", ("rows.csv",), () if header else tuple(names), header, separator, null=(NULL,))
    return Drawn(kinds, rows, readings, expected, chunk, mark + text.encode(), draw(st.integers(1, 8)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a property."""
    return tmp_path_factory.mktemp("raw")


@settings(max_examples=150, deadline=None)
@given(drawn=tables())
def test_any_table_reads_as_written(folder: Path, drawn: Drawn) -> None:
    written(folder, drawn.text, drawn.chunk)
    table = read(folder, drawn.chunk, drawn.readings, drawn.block_rows)
    if drawn.rows and drawn.readings:
        assert table.to_pydict() == drawn.expected
        assert [table.schema.field(reading.name).type for reading in drawn.readings] == [
            stored_type(reading) for reading in drawn.readings
        ]
    parquet = pa.table(
        {
            f"c{index}": pa.array([KINDS[kind].stored_value(row[index]) for row in drawn.rows], KINDS[kind].stored)
            for index, kind in enumerate(drawn.kinds)
        }
    )
    pq.write_table(parquet, folder / "rows.parquet", row_group_size=3)
    assert read(folder, PARQUET, drawn.readings, drawn.block_rows).to_pydict() == table.to_pydict()


def stored_type(reading: Reading) -> pa.DataType:
    if reading.is_list:
        return pa.list_(pa.string() if reading.dtype == "string" else TYPES.get(reading.dtype, pa.float64()))
    return TYPES.get(reading.dtype) or pa.type_for_alias(reading.dtype.replace("float64", "double"))


@settings(max_examples=300, deadline=None)
@given(text=st.text('a,"\n\r', max_size=30), rows=st.integers(1, 4))
def test_blocks_end_with_rows(folder: Path, text: str, rows: int) -> None:
    """Also with quotes inside cells, which RFC 4180 does not allow."""
    path = folder / "rows.csv"
    path.write_bytes(text.encode())
    expected = list(csv.reader(io.StringIO(text, newline="")))
    records = Records(",", '"')
    try:
        with path.open("rb") as file:
            pieces = [piece for _, piece in records.blocks(file, rows, path)]
    except DataError as error:
        assert "quote that is not closed" in str(error)
        return
    assert b"".join(pieces) == text.encode()
    found = [row for piece in pieces for row in csv.reader(io.StringIO(piece.decode(), newline=""))]
    assert found == expected
    starts = records.starts(text.encode(), keeps_empty=True)
    cells = [records.cells(text.encode()[start:end]) for start, end in pairwise([*starts, len(text)])]
    assert [[cell.decode() for cell in row] for row in cells] == [row or [""] for row in expected]


# Cells as they stand in a file, well-formed or not.
RAW_CELLS = st.sampled_from(['a"b', '"a""b"', '"a"b"c', '"a\r\nb,"', '""', "", '""""', 'x""', "'", '"\n"', "a b"])


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(RAW_CELLS, RAW_CELLS), min_size=1), block_rows=st.integers(1, 5))
def test_quotes_are_read_as_by_python(folder: Path, rows: list[tuple[str, str]], block_rows: int) -> None:
    text = "".join(f"{first},{second}\n" for first, second in rows)
    chunk = written(folder, text, RawChunk("csv", ("rows.csv",), ("a", "b")))
    table = read(folder, chunk, [Reading("a", "a"), Reading("b", "b")], block_rows)
    expected = [[cell or None for cell in row] for row in csv.reader(io.StringIO(text, newline=""))]
    assert [list(row.values()) for row in table.to_pylist()] == expected


# Formats


def test_compression_by_suffix(tmp_path: Path) -> None:
    text = b"a,b\n1,x\n2,y\n"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.csv", text)
    contents = {
        "rows.csv.gz": gzip.compress(text[:7], mtime=0) + gzip.compress(text[7:], mtime=0),
        "rows.csv.bz2": bz2.compress(text),
        "rows.csv.zst": pa.compress(text, "zstd", asbytes=True),
        "rows.csv.zip": packed.getvalue(),
    }
    for name, content in contents.items():
        chunk = written(tmp_path, content, replace(HEADED, files=(name,)))
        assert values(tmp_path, chunk, Reading("b", "b"), Reading("a", "a", "int8")) == {"b": ["x", "y"], "a": [1, 2]}
        assert count_rows_estimate(chunk, tmp_path) == 2


@pytest.mark.parametrize("separator", ["::", ", ", "¦"])
def test_separator_of_several_bytes(tmp_path: Path, separator: str) -> None:
    text = separator.join(["1", 'an "odd" title', "3"]) + "\n"
    chunk = written(tmp_path, text * 3, RawChunk("csv", ("rows.csv",), ("a", "b", "c"), separator=separator))
    read_values = values(tmp_path, chunk, Reading("b", "b"), Reading("c", "c", "int64"))
    assert read_values == {"b": ['an "odd" title'] * 3, "c": [3] * 3}


def test_other_quote_or_none(tmp_path: Path) -> None:
    chunk = written(tmp_path, "a,b\n'x,''y',\"z\n")
    quoted = replace(chunk, quote="'")
    assert values(tmp_path, quoted, Reading("a", "a"), Reading("b", "b")) == {"a": ["x,'y"], "b": ['"z']}
    written(tmp_path, 'a,b\n"x,y"\n')
    assert values(tmp_path, replace(chunk, quote=None), Reading("a", "a")) == {"a": ['"x']}


def test_unnamed_columns_are_not_converted(tmp_path: Path) -> None:
    chunk = written(tmp_path, b"a,junk\n1,\xff\n")
    assert values(tmp_path, chunk, Reading("a", "a", "int64")) == {"a": [1]}


def test_trimmed_cells(tmp_path: Path) -> None:
    text = "a,b,c\n x , 1, p | q\nx,?,\n ? , 2 ,? \n\u3000,\u30003,\u3000z\n"
    chunk = replace(written(tmp_path, text), trim=True, null=("?",))
    readings = [Reading("a", "a"), Reading("b", "b", "int8"), Reading("c", "c", is_list=True, separator="|")]
    for block_rows in (1, 9):
        assert read(tmp_path, chunk, readings, block_rows).to_pydict() == {
            "a": ["x", "x", None, None],
            "b": [1, None, 2, 3],
            "c": [["p ", " q"], None, None, ["z"]],
        }
    table = next(read_raw(chunk, tmp_path, readings, block_rows=9)).table
    assert table.column("a").combine_chunks().dictionary.to_pylist() == ["x"]


def test_empty_lines(tmp_path: Path) -> None:
    """They are skipped, except that in a file of one column each is a missing value."""
    chunk = written(tmp_path, "\na,b\n\n1,2\r\n\r\n3,4\n\n")
    assert values(tmp_path, chunk, Reading("a", "a", "int64")) == {"a": [1, 3]}
    written(tmp_path, "a\n1\n\n3\n")
    assert values(tmp_path, chunk, Reading("a", "a", "int64")) == {"a": [1, None, 3]}


def test_files_without_rows(tmp_path: Path) -> None:
    for content in ("", "a,b\n", "a,b", "\ufeff"):
        chunk = written(tmp_path, content)
        assert values(tmp_path, chunk, Reading("a", "a", "int64")) == {}
        assert count_rows_estimate(chunk, tmp_path) == 0


def test_blocks_have_about_the_rows_asked_for(tmp_path: Path) -> None:
    lines = [f"{row},{'x' * (row % 7)}" for row in range(5000)]
    written(tmp_path, "\n".join(["a,b", *lines]))
    pq.write_table(pa.table({"a": range(5000)}), tmp_path / "rows.parquet", row_group_size=130)
    for chunk in (HEADED, PARQUET):
        blocks = list(read_raw(chunk, tmp_path, [Reading("a", "a", "int64")], block_rows=500))
        sizes = [block.table.num_rows for block in blocks]
        assert sum(sizes) == 5000 and all(300 < size <= 700 for size in sizes[1:-1])
        assert [block.first_row for block in blocks] == [sum(sizes[:index]) for index in range(len(sizes))]


def test_blanks_do_not_change_types(tmp_path: Path) -> None:
    """A block that Arrow does not parse as numbers gives what the others give."""
    chunk = written(tmp_path, "a,b\n1,0.5\n ,1e3\n+3, nan \n4,\n")
    expected = {"a": [1, None, 3, 4], "b": [0.5, 1000.0, None, None]}
    for block_rows in (1, 2, 100):
        table = read(tmp_path, chunk, [Reading("a", "a", "int16"), Reading("b", "b", "float64")], block_rows)
        assert table.to_pydict() == expected


def test_parquet_types(tmp_path: Path) -> None:
    day = datetime(2014, 10, 21, 8, 30, tzinfo=UTC)
    micros = int(day.timestamp() * 1e6)
    columns = {
        "int": pa.array([7, None], pa.uint8()),
        "whole": pa.array([7.0, float("nan")]),
        "float": pa.array([0.5, None], pa.float32()),
        "flag": pa.array([True, None]),
        "ns": pa.array([day, None], pa.timestamp("ns", "Europe/Berlin")),
        "s": pa.array([day, None], pa.timestamp("s")),
        "before": pa.array([-1, None], pa.timestamp("ns")),
        "date": pa.array([day.date(), None]),
        "hour": pa.array([14102108, None]),
        "dictionary": pa.array(["x", None]).dictionary_encode(),
        "large": pa.array(["x", None], pa.large_string()),
        "bytes": pa.array([b"x", None]),
        "items": pa.array([[1, None], None], pa.list_(pa.int32())),
        "texts": pa.array(["1|2", None]),
        "none": pa.nulls(2),
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    cases: list[tuple[str, Reading, Any]] = [
        ("int", reading_of(), "7"),
        ("int", reading_of("float32"), 7.0),
        ("whole", reading_of(), "7"),
        ("whole", reading_of("int64"), 7),
        ("whole", reading_of("float64"), 7.0),
        ("float", reading_of(), "0.5"),
        ("flag", reading_of("float32"), 1.0),
        ("flag", reading_of("bool"), True),
        ("int", reading_of("timestamp", unit="ms"), 7000),
        ("ns", reading_of("timestamp"), micros),
        ("s", reading_of("timestamp"), micros),
        ("before", reading_of("timestamp"), -1),
        ("date", reading_of("timestamp"), micros - 30_600_000_000),
        ("hour", reading_of("timestamp", format="%y%m%d%H"), micros - 1_800_000_000),
        ("dictionary", reading_of(), "x"),
        ("large", reading_of(), "x"),
        ("bytes", reading_of(), "x"),
        ("items", reading_of(is_list=True), ["1", None]),
        ("items", reading_of("float64", is_list=True), [1.0, None]),
        ("texts", reading_of("int64", is_list=True, separator="|"), [1, 2]),
        ("none", reading_of(), None),
        ("none", reading_of("float32"), None),
        ("none", reading_of("timestamp"), None),
        ("none", reading_of(is_list=True), None),
    ]
    readings = [replace(reading, name=str(index), column=name) for index, (name, reading, _) in enumerate(cases)]
    found = values(tmp_path, PARQUET, *readings)
    assert found == {str(index): [value, None] for index, (*_, value) in enumerate(cases)}


def test_parquet_vectors(tmp_path: Path) -> None:
    pq.write_table(pa.table({"v": pa.array([[1, 2], [3, 4]], pa.list_(pa.int8(), 2))}), tmp_path / "rows.parquet")
    assert values(tmp_path, PARQUET, Reading("v", "v", is_list=True)) == {"v": [["1", "2"], ["3", "4"]]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2014-10-21", "2014-10-21T00:00:00"),
        ("2014-10-21 08:30", "2014-10-21T08:30:00"),
        ("2014-10-21T08:30:01.123456789", "2014-10-21T08:30:01.123456"),
        ("2014-10-21T08:30:01Z", "2014-10-21T08:30:01"),
        ("2014-10-21 08:30:01.5+02:00", "2014-10-21T06:30:01.5"),
    ],
)
def test_iso_timestamps(tmp_path: Path, text: str, expected: str) -> None:
    chunk = written(tmp_path, f"t,\n{text},\n")
    moment = datetime.fromisoformat(expected).replace(tzinfo=UTC)
    micros = (moment - EPOCH) // timedelta(microseconds=1)
    assert values(tmp_path, chunk, Reading("t", "t", "timestamp")) == {"t": [micros]}


@pytest.mark.parametrize(
    ("unit", "cells"),
    [("s", ["1.5", "-0.25", "2"]), ("ms", ["1500", "-250", "2e3"]), ("ns", ["1500000000", "-250000000", "2000000000"])],
)
def test_numeric_timestamps(tmp_path: Path, unit: str, cells: list[str]) -> None:
    chunk = written(tmp_path, "t,\n" + "".join(f"{cell},\n" for cell in cells))
    reading = Reading("t", "t", "timestamp", unit=unit)
    assert values(tmp_path, chunk, reading) == {"t": [1_500_000, -250_000, 2_000_000]}
    pq.write_table(pa.table({"t": [float(cell) for cell in cells]}), tmp_path / "rows.parquet")
    assert values(tmp_path, PARQUET, reading) == {"t": [1_500_000, -250_000, 2_000_000]}


def test_dictionaries_hold_only_values_of_the_block(tmp_path: Path) -> None:
    chunk = written(tmp_path, "a,b\n" + "".join(f"{row // 10},\n" for row in range(100)))
    pq.write_table(arrow_table(tmp_path), tmp_path / "rows.parquet")
    for source in (chunk, PARQUET):
        for block in read_raw(source, tmp_path, [Reading("a", "a")], block_rows=15):
            column = block.table.column("a").combine_chunks()
            assert sorted(column.dictionary.to_pylist()) == sorted(set(column.to_pylist()))


def arrow_table(folder: Path) -> pa.Table:
    return pa.table({"a": read(folder, HEADED, [Reading("a", "a")]).column("a").cast(pa.string())})


# Files


def test_globs_folders_and_partitions(tmp_path: Path) -> None:
    for day, hour in (("2014-10-21", "0"), ("2014-10-21", "1"), ("2014-10-22", "__HIVE_DEFAULT_PARTITION__")):
        folder = tmp_path / "logs" / f"day={day}" / f"hour={hour}"
        folder.mkdir(parents=True)
        (folder / "part-0.csv").write_text(f"a,\n{hour[0]},\n")
        (folder / "_SUCCESS").write_text("")
        (folder / ".part-0.csv.crc").write_text("x")
    (tmp_path / "logs" / "feature_spec.yaml").write_text("{}")
    (tmp_path / "logs" / "a%3A=b.csv").write_text("a,\n9,\n")
    everything = [
        "logs/a%3A=b.csv",
        *sorted(
            f"logs/{path}"
            for path in (
                "day=2014-10-21/hour=0/part-0.csv",
                "day=2014-10-21/hour=1/part-0.csv",
                "day=2014-10-22/hour=__HIVE_DEFAULT_PARTITION__/part-0.csv",
            )
        ),
    ]
    assert sorted(everything) == list_files(replace(HEADED, files=("logs",)), tmp_path)
    assert list_files(replace(HEADED, files=("logs/**/*.csv", "logs/a%3A=b.csv")), tmp_path) == sorted(everything)
    chunk = replace(HEADED, files=("logs/day=*",))
    readings = [Reading("day", "day", "timestamp"), Reading("hour", "hour"), Reading("n", "hour", "int8")]
    days = [1413849600000000, 1413849600000000, 1413936000000000]
    expected = {"day": days, "hour": ["0", "1", None], "n": [0, 1, None]}
    assert values(tmp_path, chunk, *readings) == expected
    assert values(tmp_path, chunk, *readings, Reading("a", "a"))["a"] == ["0", "1", "_"]
    files = [block.file for block in read_raw(chunk, tmp_path, readings, block_rows=9)]
    assert files == list_files(chunk, tmp_path)
    assert "has the partition keys day, hour, but logs/a%3A=b.csv has none" in error_of(
        tmp_path, replace(HEADED, files=("logs",)), Reading("a", "a")
    )


def test_outside_paths(tmp_path: Path) -> None:
    folder = tmp_path / "spec"
    folder.mkdir()
    written(tmp_path, "a,\n1,\n")
    (folder / "link.csv").symlink_to(tmp_path / "rows.csv")
    for path, fault in (("../rows.csv", "leads out"), (str(tmp_path / "*.csv"), "absolute"), ("*.csv", "is a link")):
        chunk = replace(HEADED, files=(path,))
        message = error_of(folder, chunk, Reading("a", "a"))
        assert fault in message and "--allow_outside_paths" in message
        blocks = list(read_raw(chunk, folder, [Reading("a", "a")], block_rows=9, allow_outside_paths=True))
        assert [block.file for block in blocks] == ["link.csv" if path == "*.csv" else "../rows.csv"]


def test_no_file_matches(tmp_path: Path) -> None:
    written(tmp_path, "a\n")
    message = error_of(tmp_path, replace(HEADED, files=("logs/*.csv",)), Reading("a", "a"))
    assert "no file matches 'logs/*.csv'; the folder holds rows.csv" in message


# Mistakes

INT, FLOAT, TEXT = Reading("a", "a", "int64"), Reading("a", "a", "float64"), Reading("a", "a")
PLAIN = RawChunk("csv", ("rows.csv",), ("a", "b"))


@pytest.mark.parametrize(
    ("text", "chunk", "reading", "message"),
    [
        ("a,b\n1,2\n", PLAIN, TEXT, "rows.csv, line 1: names the columns (a, b); write `header: true`"),
        ("x,y\n1,2\n", PLAIN, INT, "line 1: column 'a' is 'x'; expected a whole number (int64)"),
        ("x,y\n1,2\n", PLAIN, INT, "if line 1 names the columns, write `header: true`"),
        ("5,6\n1,2\n", HEADED, INT, "is read as the header and holds numbers: '5,6'; drop `header: true`"),
        ("u1,6\nu2,2\n", HEADED, INT, "its columns are u1, 6; if line 1 is a row of data, drop `header: true`"),
        ("1,2\n2,1\n", RawChunk("csv", ("rows.csv",), ("2", "a")), INT, ""),
        ("1;2\n", PLAIN, INT, "line 1: 1 cell, expected 2, in '1;2'; cells seem to be separated by \";\""),
        ("1\t2\n", PLAIN, INT, 'write `separator: "\\t"`'),
        ("a;b\n1;2\n", HEADED, INT, 'write `separator: ";"`'),
        ("aa,b\n1,2\n", HEADED, INT, "line 1: has no column 'a'; did you mean 'aa'?"),
        ("x,b\n1,2\n", HEADED, INT, "line 1: has no column 'a'; its columns are x, b"),
        ("a,a\n1,2\n", HEADED, INT, "line 1: 2 columns are named 'a'"),
        ('a,b\n1,2\n\n"3\n",4\n1,2,3\n', HEADED, TEXT, "line 6: 3 cells, expected 2, in '1,2,3'"),
        ("a,b\n1,2\n0.0,1\n", HEADED, INT, "line 3: column 'a' is '0.0'; expected a whole number (int64); this one"),
        ("a,b\n99999999999999999999,2\n", HEADED, INT, "expected a number that fits int64; write `dtype: string`"),
        ("a,b\n300,2\n", HEADED, Reading("a", "a", "int8"), "line 2: column 'a' is 300; expected a number that fits"),
        ('a,b\n"1\n",\r\n2,\nx,\n', HEADED, FLOAT, "line 2: column 'a' is '1\\n'; expected a number (float64)"),
        ('a,b\n1,"\n\n"\n2,\nx,\n', HEADED, FLOAT, "line 6: column 'a' is 'x'; expected a number"),
        ("a,b\n1,\ninf,\n", HEADED, FLOAT, "line 3: column 'a' is inf; expected a finite number"),
        (
            "a,b\n1,\n2014-13-01,\n",
            HEADED,
            Reading("a", "a", "timestamp"),
            "line 2: column 'a' is '1'; expected a timest",
        ),
        (
            "a,b\n20140230,\n",
            HEADED,
            Reading("a", "a", "timestamp", format="%Y%m%d"),
            "line 2: column 'a' is '20140230'; expected a timestamp of the format '%Y%m%d'",
        ),
        (
            "a,b\n1|2,\n3|x,\n",
            HEADED,
            Reading("a", "a", "int64", is_list=True, separator="|"),
            "line 3: column 'a' has the item 'x'; expected a whole number (int64)",
        ),
        ("a,b\n1,2\n", HEADED, Reading("a", "a", "bool"), ""),
        ("a,b\n2,2\n", HEADED, Reading("a", "a", "bool"), "line 2: column 'a' is '2'; expected a boolean"),
        (b"a,b\nx,y\n\xff,z\n", HEADED, TEXT, "line 3: column 'a' is not UTF-8: b'\\xff'; save the file as UTF-8"),
        ('a,b\n1,2\n3,"4\n5,6\n', HEADED, TEXT, "line 3: begins a row with a quote that is not closed"),
        (
            gzip.compress(b"a,b\n1,2\n", mtime=0),
            HEADED,
            TEXT,
            "rows.csv: is gzip-compressed, expected plain text; rename it to rows",
        ),
        (pa.compress(b"a,b", "zstd", asbytes=True), HEADED, TEXT, "compressed with Zstandard"),
        (bz2.compress(b"a,b"), HEADED, TEXT, "compressed with bzip2"),
        (b"PK\x03\x04", HEADED, TEXT, "is a zip archive"),
        (b"PAR1", HEADED, TEXT, "is a parquet file, expected plain text; write `type: parquet`"),
        ("a,b\n1,2\n".encode("utf-16"), HEADED, TEXT, "is UTF-16 text"),
    ],
)
def test_mistakes_in_csv(tmp_path: Path, text: str | bytes, chunk: RawChunk, reading: Reading, message: str) -> None:
    written(tmp_path, text, chunk)
    if not message:
        assert values(tmp_path, chunk, reading)
        return
    assert message in error_of(tmp_path, chunk, reading)


def test_line_of_a_mistake_in_any_block(tmp_path: Path) -> None:
    lines = [*(f'{row},"x\ny"' for row in range(200)), "oops,"]
    for mark in ("", "\ufeff"):
        chunk = written(tmp_path, mark + "a,b\n" + "\n".join(lines))
        for block_rows in (1, 7, 1000):
            with pytest.raises(DataError, match="line 402: column 'a' is 'oops'"):
                read(tmp_path, chunk, [INT], block_rows)
        chunk = written(tmp_path, mark + "a::b\n" + "1::2\n" * 300 + "x::2\n", replace(HEADED, separator="::"))
        with pytest.raises(DataError, match="line 302: column 'a' is 'x'"):
            read(tmp_path, chunk, [INT], 7)


@pytest.mark.parametrize("rows_per_block", [1, 2, 1000])
@pytest.mark.parametrize("has_mark", [True, False])
def test_a_byte_order_mark_belongs_to_the_file_only_at_its_start(
    tmp_path: Path, has_mark: bool, rows_per_block: int
) -> None:
    cells = ["\ufeff", "\ufeffx", "x", "\ufeff\ufeffx"]
    mark = "\ufeff" if has_mark else ""
    text = Reading("a", "a", "string")
    chunk = written(tmp_path, mark + "a,b\n" + "".join(f"{cell},1\n" for cell in cells), HEADED)
    assert read(tmp_path, chunk, [text], rows_per_block)["a"].to_pylist() == cells


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv.gz", b"a,b\n1,2\n", "is not a .gz file; if it is plain text, rename it to rows.csv"),
        ("rows.csv.gz", gzip.compress(b"a,b\n1,2\n" * 99, mtime=0)[:-20], "is not a complete .gz file"),
        ("rows.csv.bz2", bz2.compress(b"a,b\n1,2\n" * 99)[:-9], "is not a complete .bz2 file"),
        ("rows.csv.zst", pa.compress(b"a,b\n1,2\n" * 99, "zstd", asbytes=True)[:-9], "is not a complete .zst file"),
        ("rows.csv.zip", b"PK\x03\x04" + bytes(99), "is not a complete .zip file"),
    ],
)
def test_damaged_compression(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    chunk = written(tmp_path, content, replace(HEADED, files=(name,)))
    assert message in error_of(tmp_path, chunk, TEXT)


@pytest.mark.parametrize("rows_per_block", [1, 2, 1000])
@pytest.mark.parametrize(
    ("text", "chunk", "lines"),
    [
        ('\ufeffa,b\n1,"x\ny"\n\n2,z\r\n3,w', HEADED, [2, 5, 6]),
        ("\na\n1\n\n3\n", HEADED, [3, 4, 5]),  # with one column, an empty line is a row
        ("1::2\n\n3::4\n5::6\n", replace(HEADED, has_header=False, columns=("a", "b"), separator="::"), [1, 3, 4]),
    ],
    ids=["quotes", "one column", "long separator"],
)
def test_lines_of_rows(
    text: str, chunk: RawChunk, lines: list[int], rows_per_block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw_csv, "ROWS_SEARCHED", rows_per_block)
    chunk = written(tmp_path, gzip.compress(text.encode(), mtime=0), replace(chunk, files=("rows.csv.gz",)))
    path = tmp_path / "rows.csv.gz"
    assert read(tmp_path, chunk, [Reading("a", "a")]).num_rows == len(lines)
    found = [locate_row(path, chunk, row) for row in range(len(lines))]
    assert found == [f"{path}, line {line}" for line in lines]


def test_mistakes_in_parquet(tmp_path: Path) -> None:
    columns = {
        "x": pa.array([1.0, 2.5]),
        "large": pa.array([1, 2**63], pa.uint64()),
        "l": pa.array([None, [1]]),
        "t": pa.array([0, 1], pa.timestamp("s")),
        "latin": pa.array([b"x", b"\xff"]),
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    cases = [
        (
            Reading("x", "x", "int64"),
            "row 2: column 'x' is 2.5; expected a whole number (int64); write `dtype: float64`",
        ),
        (
            Reading("large", "large", "int64"),
            "row 2: column 'large' is 9223372036854775808; expected a number that fits",
        ),
        (
            Reading("l", "l"),
            "rows.parquet: column 'l' holds list<element: int64>; expected one value; state `max_hotness`",
        ),
        (Reading("x", "x", is_list=True), "column 'x' holds double; expected lists; drop `max_hotness`"),
        (Reading("x", "x", "timestamp"), "column 'x' holds double; expected a timestamp; write `unit:`"),
        (
            Reading("t", "t", "float32"),
            "column 't' holds timestamp[ms]; expected a number; write `dtype: timestamp`",
        ),
        (Reading("latin", "latin"), "row 2: column 'latin' is b'\\xff'; expected UTF-8 text"),
        (Reading("y", "y"), "rows.parquet: has no column 'y'; "),
    ]
    for reading, message in cases:
        assert message in error_of(tmp_path, PARQUET, reading)
    (tmp_path / "rows.parquet").write_text("a,b\n1,2\n")
    assert "is not a parquet file; write `type: csv`" in error_of(tmp_path, PARQUET, TEXT)
    (tmp_path / "rows.parquet").write_bytes(gzip.compress(b"PAR1", mtime=0))
    assert "is not a parquet file, but gzip-compressed; decompress it" in error_of(tmp_path, PARQUET, TEXT)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1" + bytes(99) + b"PAR1")
    assert "cannot be read as parquet" in error_of(tmp_path, PARQUET, TEXT)


def test_rows_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_text, "MAX_RECORD_BYTES", 2**20)
    chunk = written(tmp_path, 'a,b\n1,"' + "x\n" * 2**20 + '"\n')
    assert "line 2: begins a row of more than 1,048,576 bytes" in error_of(tmp_path, chunk, TEXT)
