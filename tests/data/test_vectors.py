"""Vectors: what a specification says of them, batches against the stored rows, and what is rejected."""

import copy
import io
import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import check_dataset
import gen_csv
import preprocess
from data.checks.dataset import Finding, MappingSummary, check_mapping
from data.checks.leaks import find_leaks
from data.checks.sample import draw_sample
from data.errors import DataError
from data.files.csv import write_csv_chunks
from data.files.random_rows import random_tables
from data.files.transcode import transcode
from data.loading.batch import PAD, Batch
from data.loading.loader import ParquetLoader
from data.loading.parquet import ParquetReader
from data.loading.part import Part
from data.spec.columns import describe_column
from data.spec.feature_spec import FeatureSpec
from tests.data import csv_documents
from tests.data.raw_spec_samples import raw_problems
from tests.data.sample_data import (
    arrow_table,
    check_pads,
    check_rows,
    dataset_spec,
    random_rows,
    write_chunks,
)
from tests.data.sample_specs import GONE, changed, check_only_problem, problems_of
from tests.data.test_loader import small_windows

NAN, INF = float("nan"), float("inf")
VECTORS: dict[str, Any] = {"title": {"dimension": 5}, "image": {"dimension": 1, "dtype": "float64"}}
TYPES = {"title": pa.list_(pa.float32()), "image": pa.list_(pa.float64(), 1)}
MAPPINGS = (("train", 3), ("test", 8), ("valid", 7))
VALID: dict[str, Any] = {
    "feature_spec.title": {"dimension": 64, "dtype": "float16"},
    "channel_spec.vector": ["title"],
} | {f"source_spec.{mapping}[0].features[{columns}]": "title" for mapping, columns in MAPPINGS}


# The specification.


def test_vectors_of_a_specification(tmp_path: Path) -> None:
    spec = FeatureSpec.from_dict(changed(VALID), tmp_path)
    (title,) = spec.vectors
    assert (title.name, title.dimension) == ("title", 64)
    assert spec.inputs[-1] is title and spec.channel_of["title"] == "vector"
    column = describe_column(spec, "title")
    assert column.type == pa.list_(pa.float16()) and not column.has_ids
    assert FeatureSpec.from_dict(spec.to_dict(), tmp_path) == spec
    without = FeatureSpec.from_dict(changed({}), tmp_path)
    assert not without.vectors and "vector" not in without.to_dict()["channel_spec"]


def test_a_vector_in_no_channel_is_a_list_that_is_not_read(tmp_path: Path) -> None:
    spec = FeatureSpec.from_dict(
        changed({key: value for key, value in VALID.items() if key != "channel_spec.vector"}), tmp_path
    )
    column = describe_column(spec, "title")
    assert (column.kind, column.type) == (None, pa.list_(pa.float16()))


TITLE = "feature_spec.title"
ONE_PROBLEM: list[tuple[str, dict[str, Any], str]] = [
    (f"{TITLE}.dimension", {f"{TITLE}.dimension": GONE}, "is missing; write how many numbers each vector has"),
    (f"{TITLE}.dimension", {f"{TITLE}.dimension": 0}, "is the number 0; write a whole number from 1"),
    (f"{TITLE}.dimension", {f"{TITLE}.dimension": 2**16 + 1}, "write a whole number from 1 to 65536"),
    (f"{TITLE}.dimension", {f"{TITLE}.dimension": "64"}, "write a whole number from 1 to 65536"),
    ("feature_spec.age.dimension", {"feature_spec.age.dimension": 1},
     "is only for vector and the feature is in numerical; remove it or move the feature"),
    ("feature_spec.genres.dimension", {"feature_spec.genres.dimension": 3},
     "is only for vector and the feature is in multihot_categorical"),
    (f"{TITLE}.max_hotness", {f"{TITLE}.max_hotness": 64}, "is only for multihot_categorical"),
    (f"{TITLE}.embedding_dim", {f"{TITLE}.embedding_dim": 64}, "is only for categorical features"),
    (f"{TITLE}.dtype", {f"{TITLE}.dtype": "bool"}, "is bool, which only a binary label can be"),
    ("channel_spec.vector", {"channel_spec.vector": "title"}, "write a list, such as [age, price]"),
    ("channel_spec.vector[0]", {"channel_spec.vector": ["tilte"]},
     "'tilte' is not in feature_spec; did you mean 'title'?"),
    ("channel_spec.vector[1]", {"channel_spec.vector[1]": "age"}, "'age' is already in channel_spec.numerical[0]"),
    ("source_spec.valid", {"source_spec.valid[0].features": ["user", "genres", "age", "click", "buy"]}, "lacks title"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "changes", "words"), ONE_PROBLEM, ids=[words for _, _, words in ONE_PROBLEM])
def test_mistakes(tmp_path: Path, path: str, changes: dict[str, Any], words: str) -> None:
    check_only_problem(problems_of(changed(VALID | changes), tmp_path), path, words)


# The loader.


def rows_of(rows: int, seed: int = 0) -> pd.DataFrame:
    frame, rng = random_rows(rows, seed), np.random.default_rng(seed + 1)
    # Multiples of 1/8 below 256, which float16 represents exactly.
    frame["title"] = (rng.integers(-2000, 2000, (rows, 5)) / 8).tolist()
    frame["image"] = rng.normal(size=(rows, 1)).tolist()
    return frame


def write_vectors(
    folder: Path,
    files: Sequence[Sequence[int]],
    frame: pd.DataFrame,
    *,
    types: dict[str, pa.DataType] | None = None,
    apart: Sequence[Sequence[int]] | None = None,
    **changes: Any,
) -> FeatureSpec:
    """A dataset of the rows; `title` is in files of its own, if their row groups are given."""
    table = arrow_table(frame, TYPES | (types or {}))
    chunks = write_chunks(folder, table, files, ["title"], apart)
    document = dataset_spec(folder, chunks, **(VECTORS | changes)).to_dict()
    document["channel_spec"]["vector"] = ["image", "title"]
    return FeatureSpec.from_dict(document, folder)


def check_vectors(batch: Batch, frame: pd.DataFrame) -> None:
    """Every row has its vectors side by side, in the order of the channel; padding has zeros."""
    assert batch.vectors.dtype == np.float32 and batch.vectors.shape == (len(batch.rows), 6)
    for row, values in zip(batch.rows.tolist(), batch.vectors.tolist(), strict=True):
        cells = [0] * 6 if row == PAD else [*frame.image[row], *frame.title[row]]
        assert values == np.float32(cells).tolist()


def batches_of(spec: FeatureSpec, epoch: int = 0, first_step: int = 0, **options: Any) -> list[Batch]:
    loader = ParquetLoader(spec, "train", **({"global_batch_size": 7, "shuffle": True} | options))
    with closing(loader.epoch(epoch, first_step)) as batches:
        return list(batches)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_batches_have_the_vectors_of_their_rows(tmp_path_factory, data):
    groups = st.lists(st.lists(st.integers(0, 20), max_size=3), min_size=1, max_size=4)
    files = data.draw(groups.filter(lambda drawn: sum(map(sum, drawn)) > 0))
    rows = sum(map(sum, files))
    frame = rows_of(rows, seed=data.draw(st.integers(0, 99)))
    cut = data.draw(st.integers(0, rows))
    apart = data.draw(st.sampled_from([None, [[rows]], [[cut], [rows - cut]], [[1] * rows]]))
    number = data.draw(st.sampled_from([pa.float16(), pa.float32(), pa.float64()]))
    kind = data.draw(st.sampled_from([pa.list_, pa.large_list, lambda item: pa.list_(item, 5)]))
    types = {"title": kind(number)}
    is_narrow = number == pa.float16() and data.draw(st.booleans())
    if number == pa.float16():
        frame["title"] = [np.float16(cell) for cell in frame.title]
    if is_narrow:  # all vectors are: so are the loader's buffers
        frame["image"], types["image"] = [np.float16(cell) for cell in frame.image], pa.list_(pa.float16())
    spec = write_vectors(tmp_path_factory.mktemp("vectors"), files, frame, types=types, apart=apart)
    assert ParquetReader(spec, "train").allocate(2).vectors.dtype == (np.float16 if is_narrow else np.float32)
    options: dict[str, Any] = {"workers": data.draw(st.integers(1, 3)), "shuffle": data.draw(st.booleans())}
    seen = []
    with small_windows(data.draw(st.integers(1, 50))):
        for worker in range(options["workers"]):
            batches = batches_of(spec, epoch=1, worker=worker, **options)
            for batch in batches:
                check_vectors(batch, frame)
                check_rows(batch, frame)
                check_pads(batch)
            first = data.draw(st.integers(0, len(batches)))
            resumed = batches_of(spec, epoch=1, first_step=first, worker=worker, **options)
            for batch, again in zip(batches[first:], resumed, strict=True):
                assert np.array_equal(batch.vectors, again.vectors)
            seen += [row for batch in batches for row in batch.rows.tolist() if row != PAD]
    assert sorted(seen) == list(range(rows))


def test_vectors_of_whole_groups(tmp_path):
    frame = rows_of(60)
    frame["session"] = [row * row % 13 for row in range(60)]
    spec = write_vectors(tmp_path, [[20, 10], [30]], frame)
    for batch in batches_of(spec, global_batch_size=20, with_group=True, whole_groups=True):
        check_vectors(batch, frame)


@pytest.mark.parametrize("apart", [None, [[25], [35]]])
def test_vectors_of_a_part(tmp_path, apart):
    frame, mask = rows_of(60), np.arange(60) % 3 == 0
    spec = write_vectors(tmp_path, [[20, 10], [30]], frame, apart=apart)
    batches = batches_of(spec, part=Part(np.packbits(mask), True))
    for batch in batches:
        check_vectors(batch, frame)
    rows = [row for batch in batches for row in batch.rows.tolist() if row != PAD]
    assert sorted(rows) == np.flatnonzero(mask).tolist()


@pytest.mark.parametrize(("value", "words"), [(INF, "inf"), (NAN, "nan")])
def test_float16_may_be_unusable(tmp_path, value, words):
    frame = rows_of(40)
    frame["title"] = [np.float16(cell) for cell in frame.title]
    frame["image"] = [np.float16([value if row == 25 else row]) for row in range(40)]
    narrow = {"title": pa.list_(pa.float16(), 5), "image": pa.list_(pa.float16())}
    spec = write_vectors(tmp_path, [[20, 20]], frame, types=narrow)
    with pytest.raises(DataError, match=f"'image' has 1 unusable values, the first {words} in row 25 of the file"):
        batches_of(spec)


def test_memory_counts_vectors(tmp_path, monkeypatch):
    spec = write_vectors(tmp_path, [[20]], rows_of(20))
    document = spec.to_dict()
    del document["channel_spec"]["vector"]
    without = ParquetReader(FeatureSpec.from_dict(document, tmp_path), "train")
    assert ParquetReader(spec, "train").row_bytes == without.row_bytes + 4 * 6
    assert ParquetReader(spec, "train").buffer_row_bytes == without.buffer_row_bytes + 4 * 6
    frame, narrow = rows_of(20), {"title": pa.list_(pa.float16()), "image": pa.list_(pa.float16())}
    for name in narrow:
        frame[name] = [np.float16(cell) for cell in frame[name]]
    (tmp_path / "narrow").mkdir()
    reader = ParquetReader(write_vectors(tmp_path / "narrow", [[20]], frame, types=narrow), "train")
    assert reader.row_bytes == without.row_bytes + 4 * 6 and reader.buffer_row_bytes == without.row_bytes + 2 * 6
    monkeypatch.setattr("data.memory.available_memory", lambda *_: 1000)
    with pytest.raises(DataError, match="use fewer features or shorter vectors, or more workers"):
        ParquetLoader(spec, "train", global_batch_size=1, shuffle=True)


def test_a_sample_of_rows(tmp_path):
    frame = rows_of(60)
    spec = write_vectors(tmp_path, [[20, 10], [30]], frame)
    sample = draw_sample(ParquetReader(spec, "train"), 25)
    check_vectors(sample, frame)
    assert list(find_leaks(spec, sample)) == []


# What row 25 of 40 has instead, the words of the loader and the rule that check_dataset.py reports.
LENGTH = "vector of another length than dimension 5"
BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "a number too few": (
        {"title": [1.0] * 4},
        "row group 1: column 'title' has 1 vectors of another length than its dimension, the first of 4 numbers in row "
        '25 of the file; expected a list of 5 finite numbers such as "[0.5, -1, ...]", float32: write the file again, '
        "or correct the dimension in the feature specification. check_dataset.py lists them all.",
        LENGTH,
    ),
    "a number too many": ({"title": [1.0] * 6}, "the first of 6 numbers in row 25 of the file", LENGTH),
    "an empty vector": ({"title": []}, "the first of 0 numbers in row 25 of the file", LENGTH),
    "no vector": ({"title": None}, "column 'title' has 1 missing values (null), the first in row 25", "missing value"),
    "no number": (
        {"title": [1.0, None, 2.0, 3.0, 4.0]}, "column 'title' has 1 missing values (null), the first in row 25",
        "missing value",
    ),
    "NaN": ({"title": [1.0] * 4 + [NAN]}, "has 1 unusable values, the first nan in row 25 of the file", "not finite"),
    "infinity": ({"image": [-INF]}, "has 1 unusable values, the first -inf in row 25 of the file", "not finite"),
    "beyond float32": (
        {"image": [1e39]},
        "the first 1e+39 in row 25 of the file; expected a list of 1 finite numbers such as "
        '"[0.5, -1, ...]" within the range of float32, float64.', "not finite",
    ),
}  # fmt: skip


def findings(spec: FeatureSpec) -> list[Finding]:
    return [one for one in check_mapping(spec, "train", MappingSummary()) if not one.is_warning]


@pytest.mark.parametrize(("cells", "words", "rule"), BAD.values(), ids=BAD)
def test_bad_vectors(tmp_path, cells, words, rule):
    frame = rows_of(40)
    for name, value in cells.items():
        frame.at[25, name] = value
    spec = write_vectors(tmp_path, [[20, 20]], frame)
    with pytest.raises(DataError) as caught:
        batches_of(spec)
    assert words in str(caught.value)
    (finding,) = findings(spec)
    assert (finding.what, finding.count, finding.rows) == (rule, 1, (25,))


def test_lengths_are_compared_row_by_row(tmp_path):
    """Lengths that agree in sum only are wrong."""
    frame = rows_of(40)
    frame.at[3, "title"], frame.at[4, "title"] = [1.0] * 4, [1.0] * 6
    spec = write_vectors(tmp_path, [[20], [20]], frame)
    with pytest.raises(DataError, match="has 2 vectors of another length than its dimension, the first of 4 numbers"):
        batches_of(spec)
    (finding,) = findings(spec)
    assert (finding.what, finding.count, finding.rows) == (LENGTH, 2, (3, 4))


def test_a_sound_dataset_has_no_finding(tmp_path):
    for apart in (None, [[13], [27]]):
        assert findings(write_vectors(tmp_path, [[20], [20]], rows_of(40), apart=apart)) == []


WRONG_TYPES = {
    "numbers": (pa.float64(), 0.5),
    "lists of texts": (pa.list_(pa.string()), ["a"] * 5),
    "fixed lists of another size": (pa.list_(pa.float32(), 4), [0.5] * 4),
}


@pytest.mark.parametrize(("stored", "cell"), WRONG_TYPES.values(), ids=WRONG_TYPES)
def test_another_type(tmp_path, stored, cell):
    frame = rows_of(4)
    frame["title"] = [cell] * 4
    spec = write_vectors(tmp_path, [[4]], frame, types={"title": stored})
    with pytest.raises(DataError) as caught:
        ParquetReader(spec, "train")
    assert "column 'title' is stored as " in str(caught.value)
    assert ", expected lists of 5 numbers; cast it" in str(caught.value)
    assert [finding.what for finding in findings(spec)] == ["column type"]


# CSV files.

NAMES = [*csv_documents.FEATURES, "title", "image"]
LINE = csv_documents.GOOD_LINE + ',"[0.5, -1, 2]","[1e-3]"'


def csv_document() -> dict[str, Any]:
    sources = {name: [csv_documents.chunk(NAMES, [f"{name}.csv"])] for name in ("train", "test")}
    features = {"title": {"dimension": 3, "dtype": "float16"}, "image": {"dimension": 1, "dtype": "float64"}}
    return csv_documents.document(sources) | {
        "feature_spec": csv_documents.FEATURES | features,
        "channel_spec": csv_documents.CHANNELS | {"vector": ["title", "image"]},
    }


def convert(folder: Path, text: str) -> FeatureSpec:
    path = csv_documents.write_csv_dataset(folder, {"train.csv": text, "test.csv": LINE + "\n"}, csv_document())
    return transcode(path, folder / "out", rows_per_file=65536, min_files=1, report=[].append)


def stored(spec: FeatureSpec) -> pa.Table:
    return pa.concat_tables([pq.read_table(file) for file in spec.files("train")])


@given(rows=st.lists(st.tuples(*[st.integers(-2000, 2000)] * 3, st.floats(-1e38, 1e38)), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_vectors_become_parquet_as_they_are_written(rows, tmp_path_factory):
    text = io.StringIO()
    for *title, image in rows:
        text.write(f'{csv_documents.GOOD_LINE},"{title}","[{image}]"\n')
    spec = convert(tmp_path_factory.mktemp("rows"), text.getvalue())
    table = stored(spec)
    assert table.column("title").to_pylist() == [list(row[:3]) for row in rows]
    assert table.column("image").to_pylist() == [[row[3]] for row in rows]
    assert [table.schema.field(name).type.value_type for name in ("title", "image")] == [pa.float16(), pa.float64()]
    assert [feature.dimension for feature in spec.vectors] == [3, 1]


BAD_CELLS = {
    "a number too few": ("[1, 2]", "vector of another length than dimension 3: '[1.0, 2.0]'"),
    "no number": ("[]", "vector of another length than dimension 3: '[]'"),
    "an empty cell": ("", "missing value: 'None'"),
    "NaN": ("[1, 2, nan]", "not finite: '[1.0, 2.0, nan]'"),
    "no brackets": ("1", "cell that cannot be read: '1'"),
    "beyond float16": ("[1, 2, 70000]", "cell that cannot be read: '[1, 2, 70000]'"),
}


@pytest.mark.parametrize(("cell", "words"), BAD_CELLS.values(), ids=BAD_CELLS)
def test_bad_cells(tmp_path, capsys, cell, words):
    line = f'{csv_documents.GOOD_LINE},"{cell}","[1]"'
    with pytest.raises(DataError) as caught:
        convert(tmp_path, f"{LINE}\n{line}\n{LINE}\n")
    assert f"train.csv, line 2, column 10 (title): {words}; expected a list of 3 finite numbers" in str(caught.value)
    assert check_dataset.main([str(tmp_path)]) == 1
    what = words.partition(":")[0]
    assert re.search(rf"error: .*train\.csv, title: {what}; in 1 lines \(2\); found ", capsys.readouterr().out)


def test_random_vectors_survive_csv(tmp_path):
    document = csv_document()
    spec = FeatureSpec.from_dict(document, tmp_path)
    rows = pa.concat_tables(random_tables(spec, "train", 300, seed=3, block_rows=90))
    titles = np.array(rows.column("title").to_pylist(), np.float64)
    assert titles.shape == (300, 3) and abs(titles.mean()) < 0.15 and abs(titles.std() - 1) < 0.15
    write_csv_chunks(spec.chunks("train"), tmp_path, [rows], 300)
    again = stored(convert(tmp_path / "new", (tmp_path / "train.csv").read_text()))
    assert again.column("title").to_pylist() == rows.column("title").to_pylist()
    assert again.column("image").to_pylist() == rows.column("image").to_pylist()
    assert check_dataset.main([str(tmp_path / "new" / "out")]) == 0


def test_labels_depend_on_vectors(tmp_path):
    """A linear model of the normalized vector alone predicts the label that depends on it."""
    names = ["title", "click"]
    sources = {name: [csv_documents.chunk(names, [f"{name}.csv"])] for name in ("train", "test")}
    document = csv_documents.document(sources) | {
        "feature_spec": {"title": {"dimension": 16}, "click": {}},
        "channel_spec": {"vector": ["title"], "label": ["click"]},
    }
    rows = pa.concat_tables(random_tables(FeatureSpec.from_dict(document, tmp_path), "train", 4000, signal=4.0))
    values, labels = np.array(rows.column("title").to_pylist()), np.array(rows.column("click").to_pylist())
    values = (values - values.mean(axis=1, keepdims=True)) / values.std(axis=1, keepdims=True)
    design = np.concatenate([values, np.ones((4000, 1))], axis=1)
    slopes = np.linalg.lstsq(design[:2000], labels[:2000], rcond=None)[0]
    assert np.mean((design[2000:] @ slopes > 0.5) == labels[2000:]) > 0.75


def test_random_vectors_need_memory(tmp_path, monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(gen_csv, "check_fits", lambda size, *_: asked.append(size))
    gen_csv._check_sizes(FeatureSpec.from_dict(csv_document(), tmp_path), tmp_path, 100)
    assert asked[-2:] == [100 * 3 * 8, 100 * 8]


# Raw logs.

RAW: dict[str, Any] = {
    "feature_spec": {"click": {"dtype": "float32"}, "item": {}, "title": {"dimension": 3}},
    "source_spec": {"logs": [{"type": "parquet", "files": ["logs.parquet"]}]},
    "split": {"from": "logs", "last": {"test": 0.25}},
    "channel_spec": {"onehot_categorical": ["item"], "vector": ["title"], "label": ["click"]},
}


def raw_document(kind: str, **title: Any) -> dict[str, Any]:
    raw = copy.deepcopy(RAW)
    raw["feature_spec"]["title"] |= title
    if kind == "csv":
        raw["source_spec"]["logs"] = [{"type": "csv", "header": True, "files": ["logs.csv"]}]
        raw["feature_spec"]["title"] |= {"separator": " "}
    return raw


def preprocess_raw(folder: Path, kind: str, titles: list[Any]) -> int:
    """Writes raw rows, and runs preprocess.py on them; returns its exit status."""
    frame = pd.DataFrame({"click": [0.0, 1.0] * (len(titles) // 2), "item": ["a", "b"] * (len(titles) // 2)})
    if kind == "csv":
        frame["title"] = [" ".join(map(str, title)) for title in titles]
        frame.to_csv(folder / "logs.csv", index=False)
    else:
        stored = pa.list_(pa.float32(), 3) if kind == "fixed" else pa.list_(pa.float64())
        table = pa.Table.from_pandas(frame, preserve_index=False)
        pq.write_table(table.append_column("title", pa.array(titles, stored)), folder / "logs.parquet")
    (folder / "feature_spec.yaml").write_text(yaml.safe_dump(raw_document(kind)))
    return preprocess.main(["--input", str(folder), "--output", str(folder / "data")])


@pytest.mark.parametrize("kind", ["csv", "parquet", "fixed"])
def test_raw_vectors_are_taken_as_they_are(tmp_path, kind):
    titles = (np.random.default_rng(0).integers(-2000, 2000, (40, 3)) / 8).tolist()
    assert preprocess_raw(tmp_path, kind, titles) == 0
    spec = FeatureSpec.read(tmp_path / "data" / "feature_spec.yaml")
    assert [(feature.name, feature.dimension, feature.max_hotness) for feature in spec.vectors] == [("title", 3, None)]
    for mapping, part in (("train", titles[:30]), ("test", titles[30:])):
        table = pa.concat_tables([pq.read_table(file) for file in spec.files(mapping)])
        assert sorted(table.column("title").to_pylist()) == sorted(part)
    assert check_dataset.main([str(tmp_path / "data")]) == 0


BAD_RAW = {
    "a number too few": ([1.0, 2.0], "row 6: column 'title' has a vector of 2 numbers; expected 3, as its `dimension`"),
    "no vector": (None, "has a vector of 0 numbers; expected 3"),
    "no number": (
        [1.0, None, 2.0],
        "row 6: column 'title' has a vector with a missing number; expected fin",
    ),
    "infinity": ([1.0, 2.0, INF], "row 6: column 'title' has the item inf; expected a finite number"),
}


@pytest.mark.parametrize(("title", "words"), BAD_RAW.values(), ids=BAD_RAW)
def test_bad_raw_vectors(tmp_path, capsys, title, words):
    titles: list[Any] = [[1.0, 2.0, 3.0]] * 8
    titles[5] = title
    assert preprocess_raw(tmp_path, "parquet", titles) != 0
    assert words in capsys.readouterr().err


RAW_PROBLEMS = {
    "encode": ({"encode": ["log1p"]}, "encode", "changes values, and those of a vector are taken as they are; remove"),
    "max_hotness": (
        {"max_hotness": 3},
        "max_hotness",
        "is only for multihot_categorical, and the feature is in vec",
    ),
    "keep": ({"keep": "last"}, "keep", "is only for multihot_categorical, and the feature is in vec"),
    "dimension": ({"dimension": 0}, "dimension", "is the number 0; write a whole number from 1 to 65536"),
}


@pytest.mark.parametrize(("keys", "key", "words"), RAW_PROBLEMS.values(), ids=RAW_PROBLEMS)
def test_mistakes_of_raw_vectors(tmp_path, keys, key, words):
    check_only_problem(raw_problems(raw_document("parquet", **keys), tmp_path), f"feature_spec.title.{key}", words)


def test_raw_vectors_have_a_dimension(tmp_path):
    raw = raw_document("parquet")
    del raw["feature_spec"]["title"]["dimension"]
    check_only_problem(raw_problems(raw, tmp_path), "feature_spec.title.dimension", "is missing; write how many")
    raw = raw_document("parquet")
    raw["feature_spec"]["item"]["dimension"] = 3
    words = "is only for vector and the feature is in onehot_categorical"
    check_only_problem(raw_problems(raw, tmp_path), "feature_spec.item.dimension", words)
