"""Weights of the ids in lists, in CSV files: read, written and drawn."""

import csv
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import check_dataset
import gen_csv
from data.errors import DataError
from data.files import csv as csv_reader
from data.files.csv import read_csv_blocks, write_csv_chunks
from data.files.random_rows import random_tables
from data.files.transcode import transcode
from data.spec.columns import describe_column
from data.spec.feature_spec import FeatureSpec
from tests.data.csv_documents import CHANNELS, FEATURES, chunk, document, write_csv_dataset

WEIGHTED = FEATURES | {"genres": FEATURES["genres"] | {"weights": "shares"}, "shares": {}}
NAMES = list(WEIGHTED)
LINE = '1,,49,"[0, 7]",0.5,1e-3,2,some text,7,"[0.5, 1]"'


def weighted(sources: dict[str, list[dict[str, Any]]] | None = None, dtype: str | None = None) -> dict[str, Any]:
    sources = sources or {name: [chunk(NAMES, [f"{name}.csv"])] for name in ("train", "test")}
    shares = {} if dtype is None else {"dtype": dtype}
    return document(sources) | {"feature_spec": WEIGHTED | {"shares": shares}, "channel_spec": CHANNELS}


def convert(path: Path, output: Path, lines: list[str] | None = None) -> FeatureSpec:
    report = ([] if lines is None else lines).append
    return transcode(path, output, rows_per_file=65536, min_files=1, report=report)


def dataset(folder: Path, text: str, **options: Any) -> Path:
    return write_csv_dataset(folder, {"train.csv": text, "test.csv": LINE + "\n"}, weighted(**options))


def stored(spec: FeatureSpec, mapping: str = "train") -> pa.Table:
    return pa.concat_tables([pq.read_table(file) for file in spec.files(mapping)])


PAIRS = st.lists(st.tuples(st.integers(0, 7), st.floats(0, 2.0**127, width=32)), max_size=5)


@given(rows=st.lists(PAIRS, min_size=1, max_size=5), dtype=st.sampled_from(["float32", "float64", None]))
@settings(max_examples=30, deadline=None)
def test_weights_become_parquet_as_they_are_written(rows, dtype, tmp_path_factory):
    folder, text = tmp_path_factory.mktemp("rows"), io.StringIO()
    cells = [[[first for first, _ in row], [second for _, second in row]] for row in rows]
    lines = [LINE.split(",")[:3] + [str(ids), "0.5", "1", "1", "x", "7", str(weights)] for ids, weights in cells]
    csv.writer(text, lineterminator="\n").writerows(lines)
    table = stored(convert(dataset(folder, text.getvalue(), dtype=dtype), folder / "out"))
    item = pa.float64() if dtype == "float64" else pa.float32()
    assert table.schema.field("shares").type.value_type == item
    assert [
        [ids, weights]
        for ids, weights in zip(*(table.column(n).to_pylist() for n in ("genres", "shares")), strict=True)
    ] == cells


def test_integer_and_half_weights(tmp_path):
    for dtype, cell, expected in (
        ("int8", '"[3, 127]"', [3, 127]),
        ("float16", '"[0.1, 65504]"', np.array([0.1, 65504], np.float16).tolist()),
    ):
        text = LINE.replace('"[0.5, 1]"', cell)
        spec = write_csv_dataset(tmp_path / dtype, {"train.csv": text, "test.csv": text}, weighted(dtype=dtype))
        assert stored(convert(spec, tmp_path / dtype / "out")).column("shares").to_pylist() == [expected]


CELLS = [
    "[1, 2]",
    "[]",
    "[0.5]",
    " [4 ,.5 ] ",
    "[6.]",
    "[1e3]",
    "[1e999]",
    "[nan]",
    "[-inf]",
    "[0x1p3]",
    "[+2]",
    "[1,,2]",
]
CELLS += ["[1 2]", "[1", "1]", "[1]]", "", "[1, ]", "[,]", "[ ]", "[-0.5]", "[1e]", "[1_0]", "[\u0661]", "[1e39, 2]"]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int16"])
@given(cells=st.lists(st.sampled_from(CELLS), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_arrow_agrees_with_the_slow_path(tmp_path_factory, dtype, cells):
    columns = [describe_column(FeatureSpec.from_dict(weighted(dtype=dtype), tmp_path_factory.getbasetemp()), "shares")]
    data = "".join(f'"{cell}"\n' for cell in cells).encode()
    fast, problems = csv_reader._parse(data, columns)
    slow, slow_problems = csv_reader._parse_slowly(data, columns)
    assert bool(problems) == bool(slow_problems)
    assert str(fast.to_pylist()) == str(slow.to_pylist())
    assert fast.schema == slow.schema


# The cells of genres and shares in line 2, and what is wrong with the second.
BAD = {
    "no brackets": ("[0]", "0.5", "cell that cannot be read: '0.5'"),
    "no number": ("[0]", "[x]", "cell that cannot be read: '[x]'"),
    "an empty cell": ("[]", "", "missing value: 'None'"),
    "a negative weight": ("[0]", "[-0.5]", "not a weight: '[-0.5]'"),
    "NaN": ("[0, 1]", "[0.5, nan]", "not a weight: '[0.5, nan]'"),
    "infinity": ("[0]", "[inf]", "not a weight: '[inf]'"),
    "beyond float32": ("[0]", "[1e39]", "cell that cannot be read: '[1e39]'"),
    "a weight too few": ("[0, 1]", "[0.5]", "more or fewer weights than ids: '2 ids, 1 weights'"),
    "a weight too many": ("[]", "[0.5]", "more or fewer weights than ids: '0 ids, 1 weights'"),
}


@pytest.mark.parametrize(("genres", "shares", "words"), BAD.values(), ids=BAD)
def test_bad_weights(tmp_path, capsys, genres, shares, words):
    line = LINE.replace("[0, 7]", genres).replace("[0.5, 1]", shares)
    path = dataset(tmp_path, f"{LINE}\n{line}\n{LINE}\n")
    with pytest.raises(DataError) as caught:
        convert(path, tmp_path / "out")
    assert f"train.csv, line 2, column 10 (shares): {words}; expected a " in str(caught.value)
    assert check_dataset.main([str(tmp_path)]) == 1
    what = words.partition(":")[0]
    assert re.search(rf"error: .*train\.csv, shares: {what}; in 1 lines \(2\); found ", capsys.readouterr().out)


def test_unequal_lists_in_two_chunks(tmp_path, capsys):
    sources = {
        "train": [chunk(list(FEATURES), ["a_0.csv", "a_1.csv"]), chunk(["shares"], ["b.csv"])],
        "test": [chunk(NAMES, ["test.csv"])],
    }
    own, others = '"[0.5, 1]"\n', LINE.rpartition(',"')[0] + "\n"
    files = {"a_0.csv": others * 2, "a_1.csv": others, "b.csv": own + own + '"[1]"\n', "test.csv": LINE}
    path = write_csv_dataset(tmp_path, files, weighted(sources))
    with pytest.raises(DataError) as caught:
        convert(path, tmp_path / "out")
    assert "mapping 'train', line 3 of all its files, column shares: more or fewer weights than ids: " in str(
        caught.value
    )
    assert "'2 ids, 1 weights'; expected a weight for each id of 'genres'" in str(caught.value)
    assert check_dataset.main([str(tmp_path)]) == 1
    assert (
        "error: train, shares: more or fewer weights than ids; in 1 rows of the mapping (2)" in capsys.readouterr().out
    )
    (tmp_path / "b.csv").write_text(own * 3)
    assert check_dataset.main([str(tmp_path)]) == 0
    assert stored(convert(path, tmp_path / "good")).column("shares").to_pylist() == [[0.5, 1.0]] * 3


def test_random_weights(tmp_path):
    spec = FeatureSpec.from_dict(weighted(), tmp_path)
    rows = pa.concat_tables(random_tables(spec, "train", 500)).to_pylist()
    assert [len(row["shares"]) for row in rows] == [len(row["genres"]) for row in rows]
    weights = [weight for row in rows for weight in row["shares"]]
    assert 0 <= min(weights) < 0.05 and 0.95 < max(weights) <= 1 and 0.4 < np.mean(weights) < 0.6


def test_weights_change_no_other_column(tmp_path):
    """Labels follow from other draws than weights in a mapping whose rows fit into one block."""
    plain = pa.concat_tables(random_tables(FeatureSpec.from_dict(document(), tmp_path), "train", 50))
    drawn = pa.concat_tables(random_tables(FeatureSpec.from_dict(weighted(), tmp_path), "train", 50))
    for name in ("user", "genres", "age", "price", "weight", "note"):
        assert drawn.column(name).equals(plain.column(name))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8"])
def test_random_weights_survive_csv(tmp_path, dtype):
    spec = FeatureSpec.from_dict(weighted(dtype=dtype), tmp_path)
    table = pa.concat_tables(random_tables(spec, "train", 60))
    write_csv_chunks(spec.chunks("train"), tmp_path, [table], 60)
    columns = [describe_column(spec, name) for name in NAMES]
    blocks = list(read_csv_blocks(tmp_path / "train.csv", columns))
    assert not any(block.problems for block in blocks)
    read = pa.concat_tables([block.table for block in blocks])
    assert read.column("shares").to_pylist() == table.column("shares").to_pylist()


def test_ids_that_a_mapping_lacks_have_no_weights(tmp_path):
    names = [name for name in NAMES if name != "genres"]
    channels = CHANNELS | {"multihot_categorical": []}
    sources = {name: [chunk(names, [f"{name}.csv"])] for name in ("train", "test")}
    spec = FeatureSpec.from_dict(weighted(sources) | {"channel_spec": channels}, tmp_path)
    drawn = pa.concat_tables(random_tables(spec, "train", 20))
    assert drawn.schema.field("shares").type == pa.list_(pa.float32())
    assert drawn.column("shares").to_pylist() == [[]] * 20


def test_lists_with_weights_need_twice_the_memory(tmp_path, monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(gen_csv, "check_fits", lambda size, *_: asked.append(size))
    for made in (document(), weighted()):
        gen_csv._check_sizes(FeatureSpec.from_dict(made, tmp_path), tmp_path, 100)
    assert asked == [100 * 3 // 2 * 8, 2 * (100 * 3 // 2 * 8)]
