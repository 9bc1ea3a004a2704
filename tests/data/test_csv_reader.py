import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.files import csv as csv_reader
from data.files.csv import count_lines, read_csv_blocks
from data.spec.columns import describe_column
from data.spec.feature_spec import FeatureSpec
from tests.data.csv_documents import CHANNELS, FEATURES, GOOD_LINE, chunk

COLUMNS = ["clicked", "user", "genres", "age", "note"]


@pytest.fixture(scope="module")
def columns(tmp_path_factory):
    return describe_all(tmp_path_factory.mktemp("spec"), COLUMNS)


def describe_all(folder, names):
    held = [name for name in FEATURES if name != "session"]
    sources = {"train": [chunk(held, ["a.csv"])], "test": [chunk([*held, "session"], ["b.csv"])]}
    spec = FeatureSpec.from_dict(
        {"feature_spec": FEATURES, "source_spec": sources, "channel_spec": CHANNELS, "metadata": {}}, folder
    )
    return [describe_column(spec, name) for name in names]


# Cells of the columns clicked, user, genres, age and note: first the good ones, then what looks like them.
CELLS = [
    ["1", "0", '"1"', " 1", "", "0x1", '"1"0', "+1", "300", "2", "1_0", "\u0661", "1.0"],
    ["42", "7", "007", "1 ", "", "0x1F", '"4"2', "-3", "9" * 25, "4e1", "\t5", '""'],
    ['"[1, 2]"', '"[]"', '"[3]"', '" [4 ,5 ] "', "[6]", "[]", "", '"[1,,2]"', '"[1 2]"', '"[1"', '"1]"', '"[1]"]'],
    ["0.5", "-1", "1e3", "7.", ".5", "", "1e60", "1e999", "nan", "inf", "-Infinity", "1,5", "0x1p3", "+2", "1e"],
    ["text", "", '"a,b"', '"a ""b"""', "é", '"a\nb"', 'a"b', ' "a"', '"a', "a\rb", "x", "\x00", "\n", "\udcff"],
]  # fmt: skip


@st.composite
def almost_good_files(draw):
    """One to three lines of good cells, of which up to two are replaced."""
    lines = [[draw(st.sampled_from(cells[:2])) for cells in CELLS] for _ in range(draw(st.integers(1, 3)))]
    for _ in range(draw(st.integers(0, 2))):
        column = draw(st.integers(0, len(CELLS) - 1))
        draw(st.sampled_from(lines))[column] = draw(st.sampled_from(CELLS[column]))
    return "".join(",".join(cells) + "\n" for cells in lines).encode(errors="surrogateescape")


@given(almost_good_files())
@settings(max_examples=500, deadline=None)
def test_arrow_agrees_with_the_slow_path(columns, data):
    fast, problems = csv_reader._parse(data, columns)
    slow, slow_problems = csv_reader._parse_slowly(data, columns)
    assert fast.num_rows == data.count(b"\n")
    assert bool(problems) == bool(slow_problems)
    assert str(fast.to_pylist()) == str(slow.to_pylist())
    assert fast.schema == slow.schema


@given(st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_as_many_rows_as_lines(tmp_path_factory, columns, content):
    path = tmp_path_factory.getbasetemp() / "any_bytes.csv"
    path.write_bytes(content)
    rows = sum(block.table.num_rows for block in read_csv_blocks(path, columns))
    if rows:
        assert rows == count_lines(path)
    else:
        with pytest.raises(DataError, match="is empty"):
            count_lines(path)


def test_blocks_of_any_size_give_the_same_rows(tmp_path, columns, monkeypatch):
    lines = [f'{row % 2},{row % 50},"[{row % 8}]",{row / 4},t{row}' for row in range(200)]
    lines[120] = '0,50,"[1]",1,t'
    path = tmp_path / "a.csv"
    path.write_text("\n".join(lines))
    whole = [block.table for block in read_csv_blocks(path, columns)]
    monkeypatch.setattr(csv_reader, "BLOCK_BYTES", 64)
    blocks = list(read_csv_blocks(path, columns))
    assert len(blocks) > 10
    assert pa.concat_tables([block.table for block in blocks]).equals(pa.concat_tables(whole))
    found = [block.first_line + int(row) for block in blocks for problem in block.problems for row in problem.rows]
    assert found == [121]


def test_endless_line_is_rejected_before_memory_is_full(tmp_path, columns, monkeypatch):
    monkeypatch.setattr(csv_reader, "BLOCK_BYTES", 64)
    monkeypatch.setattr(csv_reader, "MAX_LINE_BYTES", 1000)
    path = tmp_path / "a.csv"
    path.write_bytes(b"1" * 2000)
    with pytest.raises(DataError, match=r"a\.csv: has a line of more than 1,000 bytes"):
        list(read_csv_blocks(path, columns))


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("last", [True, False])
def test_byte_order_mark_and_line_ends(tmp_path, line_end, mark, last):
    path = tmp_path / "a.csv"
    text = mark + line_end.join([GOOD_LINE, GOOD_LINE.replace("some text", "")]) + (line_end if last else "")
    path.write_bytes(text.encode())
    blocks = list(read_csv_blocks(path, describe_all(tmp_path, list(FEATURES))))
    assert not any(block.problems for block in blocks)
    assert sum(block.table.num_rows for block in blocks) == count_lines(path) == 2
    assert blocks[0].table.to_pylist()[0] == {
        "clicked": 1, "bought": None, "user": 49, "genres": [0, 7], "age": 0.5, "price": 1e-3, "weight": 2.0,
        "note": "some text", "session": 7,
    }  # fmt: skip


def test_empty_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("1\n\n0\n")
    (block,) = read_csv_blocks(path, describe_all(tmp_path, ["bought"]))
    assert block.problems == ()
    assert block.table.column("bought").to_pylist() == [1.0, None, 0.0]
    path.write_text("1,0.5\n\n")
    (block,) = read_csv_blocks(path, describe_all(tmp_path, ["clicked", "age"]))
    (problem,) = block.problems
    assert (problem.column, problem.rows.tolist(), problem.expected) == (None, [1], "2 cells, found 0")


def test_float16_cells_round_to_the_nearest_half(tmp_path):
    features = {"x": {"dtype": "float16"}, "y": {}}
    sources = {name: [chunk(["x", "y"], [f"{name}.csv"])] for name in ("train", "test")}
    channels = {"numerical": ["x"], "label": ["y"]}
    spec = FeatureSpec.from_dict({"feature_spec": features, "source_spec": sources, "channel_spec": channels}, tmp_path)
    columns = [describe_column(spec, name) for name in ("x", "y")]
    path = tmp_path / "a.csv"
    path.write_text("0.1,1\n65504,0\n")
    (block,) = read_csv_blocks(path, columns)
    assert block.table.column("x").to_pylist() == [np.float16(0.1), np.float16(65504)]
    path.write_text("0.1,1\n70000,0\n")
    (block,) = read_csv_blocks(path, columns)
    (problem,) = block.problems
    assert (problem.rows.tolist(), problem.values, problem.column) == ([1], ("70000",), "x")
