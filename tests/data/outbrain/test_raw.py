import gzip
import zipfile
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.outbrain import raw_tables as tables
from data.outbrain.raw_tables import estimated_rows, find_raw, read_blocks
from tests.helpers import real_data

# Numbers of rows, the first row and the last, as the published files have them.
PUBLISHED = [
    (tables.CLICKS, 10, (1, 42337, 0), (2, 308455, 1)),
    (tables.CLICKS_TO_PREDICT, 10, (16874594, 66758), (16874596, 11430)),
    (
        tables.EVENTS,
        10,
        (1, "cb8c55702adb93", 379743, 61, 3, "US>SC>519"),
        (10, "b09a0e92aa4d17", 157455, 693, 1, "US"),
    ),
    (tables.PROMOTED, 11, (1, 6614, 1, 7), (42337, 938164, 5969, 1499)),
    (tables.META, 10, (1595802, 1, 603, datetime(2016, 6, 5)), (1488264, 1, 603, datetime(2016, 5, 23, 13))),
    (tables.CATEGORIES, 10, (1595802, 1611, 0.92), (1615460, 1603, 0.041136)),
    (tables.TOPICS, 10, (1595802, 140, 0.073113), (1524246, 207, 0.008282)),
    (
        tables.ENTITIES,
        10,
        (1524246, "f9eec25663db4cd83183f5c805186f16", 0.672865),
        (1617787, "d523aaba6d3916f8b7039fcce0f29639", 0.235799),
    ),
    (
        tables.PAGE_VIEWS,
        10,
        ("1fd5f051fba643", 120, 31905835, 1, "RS", 2),
        ("1005181847a1f9", 1758965, 8539642, 2, "US>CA>803", 1),
    ),
]
HEADER = "display_id,uuid,document_id,timestamp,platform,geo_location"
EVENTS = st.lists(
    st.tuples(
        st.integers(-(10**12), 10**12),
        st.text("abcdef0123456789", min_size=1, max_size=60),
        st.integers(0, 10**6),
        st.integers(0, 10**9),
        st.one_of(st.integers(1, 3), st.none()),
        st.one_of(st.sampled_from(["US>CA>803", "--", "É>1"]), st.none()),
    ),
    min_size=1,
    max_size=12,
)


def read(path: Path, table: tables.RawTable) -> pa.Table:
    return pa.concat_tables(read_blocks(path, table))


def rows_of(table: pa.Table) -> list[tuple]:
    return [tuple(row.values()) for row in table.to_pylist()]


def written(folder: Path, name: str, lines: list[str], ending: str = ".csv", line_end: str = "\n") -> Path:
    content = "".join(line + line_end for line in lines).encode()
    path = folder / (name + ending)
    if ending == ".csv.zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{name}.csv", content)
    else:
        path.write_bytes(gzip.compress(content) if ending == ".csv.gz" else content)
    return path


@pytest.mark.real_data
@pytest.mark.parametrize(("table", "rows", "first", "last"), PUBLISHED, ids=[table.name for table, *_ in PUBLISHED])
def test_published_rows_are_read_as_they_are(table, rows, first, last):
    path = find_raw(real_data("outbrain-schema"), table)
    found = read(path, table)
    assert found.column_names == list(table.columns)
    assert [field.type for field in found.schema] == list(table.columns.values())
    assert rows_of(found)[0] == first and rows_of(found)[-1] == last
    assert found.num_rows == rows
    assert sum(column.null_count for column in found.columns) == 0
    assert rows <= estimated_rows(path) <= rows + 2


@pytest.mark.parametrize("cell", ["", r"\N", '""'])
def test_null_cells(tmp_path, cell):
    lines = [HEADER, f"1,u,2,3,{cell},US", f"2,u,2,3,1,{cell}"]
    found = rows_of(read(written(tmp_path, "events", lines), tables.EVENTS))
    assert found == [(1, "u", 2, 3, None, "US"), (2, "u", 2, 3, 1, None)]


def test_null_times_and_ids_of_documents_are_null(tmp_path):
    lines = ["document_id,source_id,publisher_id,publish_time", "1,,,", r"2,\N,\N,\N", "3,4,5,2016-06-14 04:00:01"]
    found = rows_of(read(written(tmp_path, "documents_meta", lines), tables.META))
    assert found == [(1, None, None, None), (2, None, None, None), (3, 4, 5, datetime(2016, 6, 14, 4, 0, 1))]


def test_columns_are_found_by_name(tmp_path):
    lines = ["﻿clicked,extra,display_id,ad_id", "1,x,5,6", "0,,7,8"]
    found = read(written(tmp_path, "clicks_train", lines), tables.CLICKS)
    assert found.column_names == ["display_id", "ad_id", "clicked"]
    assert rows_of(found) == [(5, 6, 1), (7, 8, 0)]


def test_quoted_names_and_cells_are_read(tmp_path):
    lines = ['"display_id","ad_id","clicked"', '"5","6",1']
    assert rows_of(read(written(tmp_path, "clicks_train", lines), tables.CLICKS)) == [(5, 6, 1)]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(EVENTS, st.integers(100, 400), st.sampled_from(["\n", "\r\n"]), st.booleans())
@example([(1, "a" * 60, 2, 3, 1, "US>CA>803")] * 12, 100, "\r\n", True)
def test_small_blocks_give_the_table_that_one_block_gives(tmp_path, events, block_bytes, line_end, ends):
    cells = [[r"\N" if cell is None else str(cell) for cell in event] for event in events]
    path = written(tmp_path, "events", [HEADER, *(",".join(row) for row in cells)], line_end=line_end)
    if not ends:
        path.write_bytes(path.read_bytes().removesuffix(line_end.encode()))
    assert rows_of(read(path, tables.EVENTS)) == events
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "BLOCK_BYTES", block_bytes)
        blocks = list(read_blocks(path, tables.EVENTS))
    assert rows_of(pa.concat_tables(blocks)) == events
    # A block has no more than what is read at once, and the rest of the line before.
    assert len(blocks) >= (path.stat().st_size - len(HEADER)) // (2 * block_bytes)


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".csv.zip"])
@pytest.mark.parametrize("wrong", [0, 1, 57, 99])
def test_invalid_cell_names_its_line(tmp_path, monkeypatch, ending, wrong):
    monkeypatch.setattr(tables, "BLOCK_BYTES", 64)
    lines = [f"{number},{number},{'x' if number == wrong else 0}" for number in range(100)]
    path = written(tmp_path, "clicks_train", ["display_id,ad_id,clicked", *lines], ending)
    with pytest.raises(DataError, match=rf"^{path}, line {wrong + 2}: .*'x'"):
        list(read_blocks(path, tables.CLICKS))


@pytest.mark.parametrize("wrong", [0, 57, 99])
def test_missing_cell_and_short_row_name_their_line(tmp_path, monkeypatch, wrong):
    monkeypatch.setattr(tables, "BLOCK_BYTES", 64)
    for bad in (f"{wrong},,0", f"{wrong},1"):
        lines = [bad if number == wrong else f"{number},{number},0" for number in range(100)]
        path = written(tmp_path, "clicks_train", ["display_id,ad_id,clicked", *lines])
        with pytest.raises(DataError, match=f"^{path}, line {wrong + 2}: "):
            list(read_blocks(path, tables.CLICKS))


def test_endless_line_is_rejected_early(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_BYTES", 64)
    path = written(tmp_path, "clicks_train", ["display_id,ad_id,clicked", "1,2," + "0" * 1000])
    with pytest.raises(DataError, match="one row per line"):
        list(read_blocks(path, tables.CLICKS))


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".csv.zip"])
@pytest.mark.parametrize("rows", [1, 100, 50_000])
def test_the_number_of_rows_is_estimated_well(tmp_path, ending, rows):
    lines = ["display_id,ad_id,clicked", *(f"{number},{number * 7},{number % 2}" for number in range(rows))]
    estimate = estimated_rows(written(tmp_path, "clicks_train", lines, ending))
    assert rows * 0.8 <= estimate <= rows * 1.3 + 4


def test_an_unpacked_file_is_read_before_a_packed_one(tmp_path):
    for ending in (".csv.zip", ".csv.gz", ".csv"):
        path = written(tmp_path, "events", [HEADER], ending)
        assert find_raw(tmp_path, tables.EVENTS) == path
    assert find_raw(tmp_path, tables.CLICKS) is None
