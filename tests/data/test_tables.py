"""What all tables share: text in blocks, the split, rows on the disk, a fit over several files."""

import gzip
import random

import numpy as np
import pandas as pd
import pytest

from data.errors import DataError
from data.preprocess.columns import YES_OR_NO, Category, Columns, Label, Number
from data.preprocess.prepared import StageLog
from data.preprocess.splits import draw_mappings
from data.preprocess.tables import Source, TableJob, prepare_table, read_raw_values, stage, whole_file
from data.preprocess.text_tables import TextForm, count_lines, read_text_blocks
from tests.data.table_samples import check_features, in_training_order, rows_of, taken, write_lines

pytestmark = pytest.mark.filterwarnings("ignore:Initializing an NVTabular Dataset in CPU mode")

FORM = TextForm("rows.csv", ",", ("color", "size", "weight", "price", "bought"))
COLUMNS = Columns(
    (
        Category("color"),
        Category("size", is_code=True, null="?"),
        Number("weight", null="?"),
        Number("price", log=True),
    ),
    (Label("bought", "bought", YES_OR_NO),),
)


def make_lines(count: int, seed: int) -> list[list[str]]:
    draw = random.Random(seed)
    lines = []
    for row in range(count):
        # A stretch of rows without a single weight, longer than the blocks below.
        weight = "?" if 30 <= row < 60 or draw.random() < 0.2 else repr(draw.uniform(-5, 5))
        color, size = draw.choice(["red", "green", "green", "blue"]), draw.choice(["?", "1", "2", "2"])
        lines.append([color, size, weight, repr(draw.expovariate(0.01)), str(draw.randrange(2))])
    return lines


LINES = make_lines(200, 1)
RAW = {
    "color": [line[0] for line in LINES],
    "size": [None if line[1] == "?" else int(line[1]) for line in LINES],
    "weight": [None if line[2] == "?" else float(line[2]) for line in LINES],
    "price": [float(line[3]) for line in LINES],
}


@pytest.mark.parametrize("block_bytes", [1, 2, 7, 16, 1000])
@pytest.mark.parametrize("end", ["", "\n", "\r\n\n\n"])
@pytest.mark.parametrize("header", ["", "a,b\r\n"])
def test_lines_are_the_same_whatever_the_blocks(tmp_path, block_bytes, end, header):
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress(f"{header}1,one\r\n22,\n3,three hundred{end}".encode()))
    form = TextForm("x.csv", ",", ("a", "b"), has_header=bool(header))
    blocks = list(read_text_blocks(path, form, block_bytes))
    rows = [row for block in blocks for row in block.texts.to_pylist()]
    assert rows == [{"a": "1", "b": "one"}, {"a": "22", "b": ""}, {"a": "3", "b": "three hundred"}]
    lines = [block.line(row) for block in blocks for row in range(block.texts.num_rows)]
    assert lines == [number + bool(header) for number in (1, 2, 3)]
    assert count_lines(path, form, block_bytes) == 3
    assert len(blocks) == 1 or block_bytes < 30


@pytest.mark.parametrize("block_bytes", [3, 10**6])
def test_empty_line_between_others(tmp_path, block_bytes):
    lines = [",".join(line) for line in LINES]
    write_lines(tmp_path / "rows.csv", [*lines[:4], "", *lines[4:]])
    source = Source(tmp_path / "rows.csv", FORM, whole_file("train"))
    with pytest.raises(DataError, match=r"rows\.csv, line 5: color is '', expected a string"):
        stage([source], COLUMNS, tmp_path, StageLog("test"), block_bytes)


def test_quotes_hold_separators_only_where_the_form_says_so(tmp_path):
    write_lines(tmp_path / "x.csv", ['"1,5",2', "3,4"])
    quoted = TextForm("x.csv", ",", ("a", "b"), is_quoted=True)
    assert next(read_text_blocks(tmp_path / "x.csv", quoted)).texts.column("a").to_pylist() == ["1,5", "3"]
    with pytest.raises(DataError, match="line 1: 3 fields, expected 2"):
        list(read_text_blocks(tmp_path / "x.csv", TextForm("x.csv", ",", ("a", "b"))))


def staged(folder, block_bytes):
    write_lines(folder / "rows.csv", [",".join(line) for line in LINES])
    (folder / "staged").mkdir()
    source = Source(folder / "rows.csv", FORM, lambda rows: np.where(rows % 4 == 3, "test", "train").astype(object))
    return stage([source], COLUMNS, folder / "staged", StageLog("test"), block_bytes)


@pytest.mark.parametrize(("block_bytes", "rows_per_range"), [(150, 7), (150, 1000), (10**6, 40)])
def test_rows_are_shuffled_by_hash(tmp_path, block_bytes, rows_per_range):
    rows = staged(tmp_path, block_bytes)
    assert rows.rows == {"train": 150, "valid": 0, "test": 50}
    assert (len(rows.files["train"]) > 20) == (block_bytes == 150)
    parts = list(rows.shuffled("train", 6, rows_per_range))
    assert len(parts) == -(-150 // rows_per_range)
    order = in_training_order([row for row in range(200) if row % 4 < 3], 6)
    assert pd.concat(parts)["price"].tolist() == [RAW["price"][row] for row in order]
    test = pd.concat(map(read_raw_values, rows.files["test"]))
    assert test["price"].tolist() == [price for row, price in enumerate(RAW["price"]) if row % 4 == 3]


def test_a_fit_over_many_blocks_is_that_of_the_whole_file(tmp_path):
    """Ids, exact medians over blocks of which some know none, and scales, against plain Python."""
    write_lines(tmp_path / "rows.csv", [",".join(line) for line in LINES])
    write_lines(tmp_path / "test.csv", [",".join(line) for line in make_lines(20, 2)] + ["pink,9,?,0,1"])
    sources = [
        Source(tmp_path / f"{name}.csv", FORM, whole_file(to)) for name, to in (("rows", "train"), ("test", "test"))
    ]
    prepare_table(TableJob("table", sources, COLUMNS, ("train", "test"), 6, 2, {}, block_bytes=150), tmp_path / "out")
    order = in_training_order(range(200), 6)
    check_features(
        tmp_path / "out",
        "train",
        RAW,
        taken(RAW, order),
        onehot=["color", "size"],
        numerical=["weight"],
        heavy_tailed=["price"],
        oov_buckets=2,
    )
    assert rows_of(tmp_path / "out", "train")["bought"].tolist() == [float(LINES[row][4]) for row in order]
    assert rows_of(tmp_path / "out", "test")["color"].iloc[-1] in (2, 3)


def test_fractions_that_round_to_one():
    keys = np.arange(1000)
    mappings = draw_mappings(keys, seed=1, test_fraction=0.3, validation_fraction=np.nextafter(0.7, 0))
    assert set(mappings) == {"test", "valid"}
    counts = pd.Series(draw_mappings(keys, seed=1, test_fraction=0.3, validation_fraction=0.2)).value_counts()
    assert 250 < counts["test"] < 350 and 150 < counts["valid"] < 250 and counts["train"] > 400
