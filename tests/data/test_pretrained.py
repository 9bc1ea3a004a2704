"""Pretrained vectors: what a specification says of them, their files, and raw values that become ids."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import check_dataset
import gen_csv
import preprocess
from data.encoding.encoder_files import load_encoders
from data.encoding.hashing import hash_values
from data.errors import DataError
from data.files import pretrained
from data.files.pretrained import FirstOfIds, VectorFile, blocks_by_id, write_vectors
from data.files.transcode import transcode
from data.spec.feature_spec import FeatureSpec
from tests.data import csv_documents
from tests.data.raw_spec_samples import raw_problems
from tests.data.sample_specs import GONE, changed, check_only_problem, problems_of
from tests.helpers import ROOT, must

NAN, INF = float("nan"), float("inf")
TEXT = "feature_spec.text"
VALID: dict[str, Any] = {
    TEXT: {"pretrained": "texts.parquet", "of": "user", "dimension": 4, "dtype": "float16"},
    "channel_spec.vector": ["text"],
}


# The specification.


def test_vectors_that_are_looked_up_are_no_columns(tmp_path: Path) -> None:
    spec = FeatureSpec.from_dict(changed(VALID | {f"{TEXT}.trained": True}), tmp_path)
    (text,) = spec.pretrained
    assert (text.name, text.pretrained, text.of, text.dimension) == ("text", "texts.parquet", "user", 4)
    assert (text.trained, text.table_dtype) == (True, "float16")
    assert not spec.vectors and text not in spec.inputs and spec.channel_of["text"] == "vector"
    assert FeatureSpec.from_dict(spec.to_dict(), tmp_path) == spec
    plain = FeatureSpec.from_dict(changed(VALID | {f"{TEXT}.dtype": GONE, f"{TEXT}.of": "genres"}), tmp_path)
    assert (plain.pretrained[0].trained, plain.pretrained[0].table_dtype) == (False, "float32")


ONE_PROBLEM: list[tuple[str, dict[str, Any], str]] = [
    (f"{TEXT}.dimension", {f"{TEXT}.dimension": GONE}, "is missing; write how many numbers each vector has"),
    (f"{TEXT}.of", {f"{TEXT}.of": GONE}, "is missing; write the feature of onehot_categorical or multihot_categorical"),
    (f"{TEXT}.of", {f"{TEXT}.of": "usr"}, "'usr' is not in feature_spec; did you mean 'user'?"),
    (f"{TEXT}.of", {f"{TEXT}.of": "age"}, "'age' is in numerical; name a feature of onehot_categorical or multi"),
    (f"{TEXT}.of", {f"{TEXT}.of": "note"}, "'note' is in no channel; name a feature of onehot_categorical or multi"),
    (f"{TEXT}.of", {"feature_spec.user.serve": 3}, "'user' has `serve`, so that predictions do not know it"),
    (f"{TEXT}.dtype", {f"{TEXT}.dtype": "float64"}, "is float64, and a pretrained vector is float16 or float32"),
    (f"{TEXT}.pretrained", {f"{TEXT}.pretrained": 7}, "is the number 7; write the path of a file in quotes"),
    (f"{TEXT}.pretrained", {f"{TEXT}.pretrained": "../a.parquet"}, "leads out of the folder"),
    (f"{TEXT}.pretrained", {f"{TEXT}.pretrained": "s3://b/a.parquet"}, "is a URL; copy the file into the"),
    (f"{TEXT}.trained", {f"{TEXT}.trained": "yes"}, "write true or false, without quotes"),
    (f"{TEXT}.max_hotness", {f"{TEXT}.max_hotness": 3}, "is only for multihot_categorical"),
    ("feature_spec.age.of", {"feature_spec.age.of": "user"}, "is only for vector and the feature is in numerical"),
    ("source_spec.test[0].features[8]", {"source_spec.test[0].features[8]": "text"},
     "'text' is looked up in its file `pretrained`, not read from rows; remove it"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "changes", "words"), ONE_PROBLEM, ids=[words for _, _, words in ONE_PROBLEM])
def test_mistakes(tmp_path: Path, path: str, changes: dict[str, Any], words: str) -> None:
    check_only_problem(problems_of(changed(VALID | changes), tmp_path), path, words)


@pytest.mark.parametrize("key", ["of", "trained"])
def test_only_vectors_of_a_file_say_how_they_are_looked_up(tmp_path: Path, key: str) -> None:
    value = {"of": "user", "trained": True}[key]
    problems = problems_of(changed(VALID | {TEXT: {"dimension": 4, key: value}}), tmp_path)
    assert any(f"{TEXT}.{key}: is for vectors that are looked up; write `pretrained`" in line for line in problems)


# Files.

KINDS = {"list": pa.ListArray, "large": pa.LargeListArray}


def lists_of(vectors: list[list[float]], item: str, kind: str = "fixed") -> pa.Array:
    """Vectors of equal lengths as an array of lists; PyArrow takes float16 from NumPy only."""
    flat = pa.array(np.ravel(vectors).astype(item))
    if kind == "fixed":
        return pa.FixedSizeListArray.from_arrays(flat, len(vectors[0]))
    return KINDS[kind].from_arrays(np.arange(len(vectors) + 1) * len(vectors[0]), flat)


@st.composite
def files(draw: Any) -> tuple[str, str, bool, int, list[Any], list[list[float]]]:
    dimension, rows = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    keys = draw(st.sampled_from([st.integers(-9, 10**12), st.text(max_size=3)]))
    values = st.integers(-2000, 2000).map(lambda number: number / 8)
    return (
        draw(st.sampled_from(["list", "large", "fixed"])),
        draw(st.sampled_from(["float16", "float32", "float64"])),
        draw(st.booleans()),
        draw(st.integers(1, 5)),
        draw(st.lists(keys, min_size=rows, max_size=rows)),
        draw(st.lists(st.lists(values, min_size=dimension, max_size=dimension), min_size=rows, max_size=rows)),
    )


@given(file=files(), dtype=st.sampled_from(["float16", "float32"]), block=st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_files_are_read_as_they_are(file, dtype, block, tmp_path_factory):
    """Whatever the type of lists, the row groups, the size of blocks and the order of the columns."""
    kind, item, is_first, group, keys, vectors = file
    path = tmp_path_factory.mktemp("vectors") / "v.parquet"
    stored = lists_of(vectors, item, kind)
    columns = {"item": pa.array(keys), "v": stored} if is_first else {"v": stored, "item": pa.array(keys)}
    pq.write_table(pa.table(columns), path, row_group_size=group)
    opened = VectorFile.open(path, ["user", "item"])
    assert (opened.key, opened.vector, opened.dimension, opened.stored) == ("item", "v", len(vectors[0]), item)
    found_keys, found = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "BLOCK_VALUES", block)
        for row, own, values in opened.blocks(dtype):
            assert row == len(found_keys) and values.dtype == dtype
            assert 1 <= len(own) <= max(1, block // len(vectors[0]))
            found_keys += own.to_pylist()
            found += values.tolist()
    assert found_keys == keys and found == vectors  # multiples of 1/8 below 256 are exact in every type


def spec_with(folder: Path, **text: Any) -> FeatureSpec:
    return FeatureSpec.from_dict(changed(VALID | {f"{TEXT}.{key}": value for key, value in text.items()}), folder)


def write(folder: Path, ids: Any, vectors: Any, *, item: Any = None, **others: Any) -> FeatureSpec:
    columns = {"user": pa.array(ids), "vector": pa.array(vectors, pa.list_(item or pa.float32()))} | others
    pq.write_table(pa.table(columns), folder / "texts.parquet", row_group_size=2)
    return spec_with(folder)


def read(spec: FeatureSpec) -> dict[int, list[float]]:
    (feature,) = spec.pretrained
    return {
        number: row
        for ids, vectors in blocks_by_id(spec, feature)
        for number, row in zip(ids.tolist(), vectors.tolist(), strict=True)
    }


def test_vectors_by_id(tmp_path: Path) -> None:
    rows = [[0.5, 1, 2, 3], [4, 5, 6, 7], [-1, -2, -3, -4]]
    assert read(write(tmp_path, [99, 0, 7], rows)) == {99: rows[0], 0: rows[1], 7: rows[2]}


FOUR = [1.0, 2.0, 3.0, 4.0]
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unequal lengths": ({"vectors": [FOUR, FOUR, [1.0, 2.0, 3.0]]}, "row 2: its vector has 3 values, and that"),
    "no vector": ({"vectors": [FOUR, None, FOUR]}, "row 1: its vector has 0 values, and that of row 0 has 4"),
    "no value": ({"vectors": [FOUR, FOUR, [1.0, None, 3.0, 4.0]]}, "row 2: its vector has a value that is null"),
    "NaN": ({"vectors": [FOUR, [1, 2, 3, NAN], FOUR]}, "row 1: its vector has a value that is not a finite float16"),
    "infinity": ({"vectors": [FOUR, FOUR, [INF, 2, 3, 4]]}, "row 2: its vector has a value that is not a finite"),
    "beyond float16": ({"vectors": [[1, 2, 3, 7e4], FOUR, FOUR]}, "row 0: its vector has a value that is not a finite"),
    "another dimension": ({"vectors": [[1.0], [2.0], [3.0]]}, "its vectors have 1 values, and `dimension` is 4"),
    "null": ({"ids": [1, None, 2]}, "row 1: its user is null; remove the row"),
    "a second time": ({"ids": [1, 2, 1]}, "row 2: user 1 occurs a second time; remove one of the rows"),
    "a second time at once": ({"ids": [1, 1, 2]}, "row 1: user 1 occurs a second time; remove one of the rows"),
    "too large": ({"ids": [1, 100, 2]}, "row 1: user is 100, and the ids of user lie in [0, 100); remove the row"),
    "negative": ({"ids": [1, 2, -1]}, "row 2: user is -1, and the ids of user lie in [0, 100)"),
    "texts": ({"ids": ["a", "b", "c"]}, "column 'user' is stored as string; expected the ids of user"),
    "no rows": ({"ids": pa.array([], pa.int64()), "vectors": []}, "has no rows; write a vector for at least one value"),
    "integers": ({"vectors": [[1, 2, 3, 4]] * 3, "item": pa.int32()}, "is stored as list<element: int32>; expected"),
    "two lists": (
        {"other": pa.array([[1.0]] * 3)}, "its columns are user, vector, other; expected one of lists, the vectors"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("parts", "words"), BAD.values(), ids=BAD)
def test_bad_files(tmp_path: Path, capsys: Any, parts: dict[str, Any], words: str) -> None:
    spec = write(tmp_path, **{"ids": [3, 1, 2], "vectors": [FOUR] * 3} | parts)
    with pytest.raises(DataError) as caught:
        read(spec)
    assert str(caught.value).startswith(str(tmp_path / "texts.parquet")) and words in str(caught.value)
    spec.write(tmp_path / "feature_spec.yaml")
    assert check_dataset.main([str(tmp_path)]) == 1
    assert f"error: {tmp_path / 'texts.parquet'}: vectors that cannot be used" in capsys.readouterr().out


def test_files_that_cannot_be_read(tmp_path: Path, capsys: Any) -> None:
    spec = spec_with(tmp_path)
    with pytest.raises(DataError, match=r"texts\.parquet: no such file; correct `pretrained`"):
        read(spec)
    spec.write(tmp_path / "feature_spec.yaml")
    check_dataset.main([str(tmp_path)])
    assert "warning: " in capsys.readouterr().out.split("missing file of vectors")[0]
    (tmp_path / "texts.parquet").write_bytes(b"PAR1 and more")
    with pytest.raises(DataError, match=r"texts\.parquet: cannot be read as parquet"):
        read(spec)
    pq.write_table(pa.table({"a": [1], "b": [2], "v": [[1.0]]}), tmp_path / "texts.parquet")
    with pytest.raises(DataError, match="its columns are a, b, v; expected one of what they belong to, called user"):
        read(spec)


def test_written_files_have_checksums(tmp_path: Path) -> None:
    vectors = np.arange(24, dtype=np.float16).reshape(6, 4)
    blocks = [(np.array([5, 1]), vectors[:2]), (np.array([9, 0, 2, 7]), vectors[2:])]
    write_vectors(tmp_path / "texts.parquet", "user", "text", "float16", blocks)
    assert read(spec_with(tmp_path)) == dict(zip([5, 1, 9, 0, 2, 7], vectors.tolist(), strict=True))
    assert pq.read_schema(tmp_path / "texts.parquet").field("text").type == pa.list_(pa.float16(), 4)
    damaged = bytearray((tmp_path / "texts.parquet").read_bytes())
    damaged[damaged.index(vectors[3].tobytes())] ^= 1
    (tmp_path / "texts.parquet").write_bytes(damaged)
    with pytest.raises(DataError, match="checksum"):
        read(spec_with(tmp_path))


@given(blocks=st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=6))
@settings(max_examples=50, deadline=None)
def test_the_first_rows_of_ids(blocks: list[list[int]]) -> None:
    seen, first = set[int](), FirstOfIds(10)
    for block in blocks:
        expected = []
        for number in block:
            expected.append(number not in seen)
            seen.add(number)
        assert first.add(np.array(block, np.int64)).tolist() == expected
    assert first.count == len(seen)


def test_transcoding_copies_the_files(tmp_path: Path) -> None:
    document = csv_documents.document()
    (name,) = [name for name in document["channel_spec"]["onehot_categorical"][:1]]
    document |= {
        "feature_spec": document["feature_spec"] | {"text": {"pretrained": "v.parquet", "of": name, "dimension": 2}},
        "channel_spec": document["channel_spec"] | {"vector": ["text"]},
    }
    pq.write_table(pa.table({name: [0, 1], "v": [[1.0, 2.0], [3.0, 4.0]]}), tmp_path / "v.parquet")
    lines = {"train.csv": csv_documents.GOOD_LINE + "\n", "test.csv": csv_documents.GOOD_LINE + "\n"}
    path = csv_documents.write_csv_dataset(tmp_path, lines, document)
    spec = transcode(path, tmp_path / "out", rows_per_file=9, min_files=1, report=[].append)
    assert read(spec) == {0: [1.0, 2.0], 1: [3.0, 4.0]}


def test_labels_depend_on_random_vectors(tmp_path: Path) -> None:
    """A linear model of the vectors that the rows look up predicts the label that depends on them."""
    document = {
        "feature_spec": {
            "item": {"dtype": "int32", "cardinality": 5000, "wide": "no"},
            "text": {"pretrained": "texts/items.parquet", "of": "item", "dimension": 6, "dtype": "float16"},
            "click": {"dtype": "float32"},
        },
        "source_spec": {name: [csv_documents.chunk(["item", "click"], [f"{name}.csv"])] for name in ("train", "test")},
        "channel_spec": {"onehot_categorical": ["item"], "vector": ["text"], "label": ["click"]},
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(document))
    flags = ["--feature_spec_in", str(tmp_path / "spec.yaml"), "--output", str(tmp_path / "csv"), "--signal", "4"]
    must(gen_csv.main([*flags, "--size", "8000"]))
    assert gen_csv.main([*flags[:3], str(tmp_path / "csv"), "--size", "8000"]) == 2  # it overwrites nothing
    spec = transcode(tmp_path / "csv" / "feature_spec.yaml", tmp_path / "out", rows_per_file=10**4, min_files=1)
    vectors = read(spec)
    assert sorted(vectors) == list(range(5000))
    rows = pq.read_table(spec.files("train")[0]).to_pydict()
    x = np.array([[*vectors[item], 1] for item in rows["item"]])
    labels = np.array(rows["click"])
    assert abs(x[:, 0].mean()) < 0.1 and abs(x[:, 0].std() - 1) < 0.1
    slopes = np.linalg.lstsq(x[:4000], labels[:4000], rcond=None)[0]
    assert np.mean((x[4000:] @ slopes > 0.5) == labels[4000:]) > 0.65
    assert check_dataset.main([str(tmp_path / "out")]) == 0


# Raw values.

RAW: dict[str, Any] = {
    "feature_spec": {
        "click": {"dtype": "float32"},
        "item": {"column": "item_id"},
        "item_text": {"pretrained": "items.parquet", "of": "item"},
    },
    "source_spec": {"logs": [{"type": "parquet", "files": ["logs.parquet"]}]},
    "split": {"from": "logs", "last": {"test": 0.25}},
    "channel_spec": {"onehot_categorical": ["item"], "vector": ["item_text"], "label": ["click"]},
}


def raw_dataset(
    folder: Path, items: list[Any], keys: Any, vectors: Any, changes: dict[str, Any] | None = None, key: str = "item_id"
) -> int:
    """Writes raw rows with these items and a file of vectors, and runs preprocess.py; returns its exit status."""
    clicks = [float(number % 2) for number in range(len(items))]
    pq.write_table(pa.table({"click": clicks, "item_id": items}), folder / "logs.parquet")
    pq.write_table(pa.table({"vector": vectors, key: keys}), folder / "items.parquet")
    (folder / "feature_spec.yaml").write_text(yaml.safe_dump(changed(changes or {}, copy.deepcopy(RAW))))
    return preprocess.main(["--input", str(folder), "--output", str(folder / "data")])


def spec_of(folder: Path) -> FeatureSpec:
    return FeatureSpec.read(folder / "data" / "feature_spec.yaml")


def vectors_by_value(folder: Path) -> dict[Any, list[float]]:
    """The vector of each item of the rows of the dataset, by its raw value, without those of zeros."""
    spec, by_id = spec_of(folder), read(spec_of(folder))
    raw = pq.read_table(folder / "logs.parquet").column("item_id").to_pylist()
    ids = [
        number
        for mapping in ("train", "test")
        for file in spec.files(mapping)
        for number in pq.read_table(file).column("item").to_pylist()
    ]
    return {value: by_id[number] for value, number in zip(raw, ids, strict=True) if number in by_id}


WAYS = [("vocabulary", True), ("vocabulary", False), ({"hash": 100_000}, True), ({"hash": 100_000}, False)]


@pytest.mark.parametrize(("encode", "is_text"), [*WAYS, ("identity", False)], ids=str)
def test_raw_values_become_ids(tmp_path: Path, capsys: Any, encode: Any, is_text: bool) -> None:
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 40, 200).tolist()
    name = (lambda number: f"item {number}") if is_text else int
    keys = [name(number) for number in rng.permutation(50)]
    vectors = (rng.integers(-2000, 2000, (50, 3)) / 8).astype(np.float16)
    changes: dict[str, Any] = {"feature_spec.item.encode": encode, "feature_spec.item_text.dtype": "float16"}
    changes |= {"feature_spec.item.dtype": "string" if is_text else "int64"}
    changes |= {"feature_spec.item.cardinality": 50} if encode == "identity" else {}
    stored = pa.array(vectors.astype(float).tolist(), pa.list_(pa.float32(), 3))
    must(raw_dataset(tmp_path, [name(number) for number in numbers], keys, stored, changes))
    by_key = dict(zip(keys, vectors.tolist(), strict=True))
    train = [name(number) for number in numbers[:150]]
    known = set(train) if encode == "vocabulary" else set(keys)
    assert vectors_by_value(tmp_path) == {
        value: by_key[value] for value in map(name, numbers) if encode != "vocabulary" or value in known
    }
    (feature,) = spec_of(tmp_path).pretrained
    assert (feature.of, feature.dimension, feature.dtype, feature.trained) == ("item", 3, "float16", False)
    log = capsys.readouterr().err
    cardinality = spec_of(tmp_path).features["item"].cardinality
    assert f"item_text: vectors for {len(known)} of {cardinality:,} ids of item" in log
    assert ("12 values of the file are not in its vocabulary" in log) == (encode == "vocabulary" and len(known) == 38)
    assert check_dataset.main([str(tmp_path / "data")]) == 0


def test_types_are_those_of_the_file(tmp_path: Path) -> None:
    for item, expected in (("float16", "float16"), ("float32", "float32"), ("float64", "float32")):
        folder = tmp_path / item
        folder.mkdir()
        must(raw_dataset(folder, ["a", "b"] * 20, ["a", "b"], lists_of([[1.0, 2.0], [3.0, 4.0]], item, "list")))
        assert spec_of(folder).pretrained[0].dtype == expected
        assert vectors_by_value(folder) == {"a": [1.0, 2.0], "b": [3.0, 4.0]}


def test_of_values_with_the_same_hash_the_first_counts(tmp_path: Path, capsys: Any) -> None:
    keys = [f"item {number}" for number in range(60)]
    vectors = [[float(number)] for number in range(60)]
    must(raw_dataset(tmp_path, keys, keys, vectors, {"feature_spec.item.encode": {"hash": 20}}))
    hashes, expected = (hash_values(pa.array(keys)) % np.uint64(20)).tolist(), {}
    for bucket, vector in zip(hashes, vectors, strict=True):
        expected.setdefault(bucket + 2, vector)
    assert read(spec_of(tmp_path)) == expected and len(expected) < 20 + 1
    assert (
        f"{60 - len(expected)} values have the hash of an earlier one, whose vector counts" in capsys.readouterr().err
    )


def test_lists_are_looked_up_by_their_items(tmp_path: Path) -> None:
    """By the encoder of another feature, too."""
    changes = {
        "feature_spec.tags": {"separator": " ", "encode": {"vocabulary_of": "item"}, "max_hotness": 3},
        "channel_spec.multihot_categorical": ["tags"],
        "feature_spec.item_text.of": "tags",
    }
    pq.write_table(pa.table({"vector": [[1.0], [2.0]], "tags": ["a", "b"]}), tmp_path / "items.parquet")
    clicks = [0.0, 1.0] * 10
    logs = pa.table({"click": clicks, "item_id": ["a", "b"] * 10, "tags": [["a", "b"], ["b"]] * 10})
    pq.write_table(logs, tmp_path / "logs.parquet")
    raw = changed(changes, copy.deepcopy(RAW))
    del raw["feature_spec"]["tags"]["separator"]
    (tmp_path / "feature_spec.yaml").write_text(yaml.safe_dump(raw))
    must(preprocess.main(["--input", str(tmp_path), "--output", str(tmp_path / "data")]))
    encoder = load_encoders(tmp_path / "data" / "workflow")["item"]
    assert read(spec_of(tmp_path)) == dict(zip(encoder.encode(["a", "b"]).tolist(), [[1.0], [2.0]], strict=True))


BAD_RAW: dict[str, tuple[dict[str, Any], str]] = {
    "a second time": ({"keys": ["a", "c", "a"]}, "row 2: a occurs a second time; remove one of the rows"),
    "none known": ({"keys": ["x", "y", "z"]}, "none of its values in column 'item_id' is a value of item in the"),
    "null": ({"keys": ["a", None, "b"]}, "row 1: its item_id is null; remove the row"),
    "another column": ({"key": "name"}, ""),
    "another dimension": (
        {"changes": {"feature_spec.item_text.dimension": 5}}, "its vectors have 2 values, and `dimension` is 5"
    ),
    "a wrong type": (
        {"changes": {"feature_spec.item.dtype": "int64"}, "items": [1, 2] * 20}, "column 'item_id' is 'a'"
    ),
    "a damaged vector": ({"vectors": [[1.0, 2.0], [3.0, NAN], [5.0, 6.0]]}, "row 1: its vector has a value that is"),
}  # fmt: skip


@pytest.mark.parametrize(("parts", "words"), BAD_RAW.values(), ids=BAD_RAW)
def test_bad_files_of_raw_values(tmp_path: Path, capsys: Any, parts: dict[str, Any], words: str) -> None:
    good = {"items": ["a", "b"] * 20, "keys": ["a", "c", "b"], "vectors": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]}
    status = raw_dataset(tmp_path, **good | parts)
    assert (status == 0) == (not words)  # another name than `of` is fine for the only column
    assert words in capsys.readouterr().err
    assert (tmp_path / "data").exists() == (not words)


def test_the_documented_example(tmp_path: Path, capsys: Any) -> None:
    page = (ROOT / "docs" / "features.md").read_text()
    raw = yaml.safe_load(page.split("### Vectors of a file")[1].split("```yaml")[1].split("```")[0])
    raw["source_spec"] = {"logs": [{"type": "csv", "header": True, "files": ["logs.csv"]}]}
    raw["split"] = {"from": "logs", "last": {"test": 0.5}}
    (tmp_path / "feature_spec.yaml").write_text(yaml.safe_dump(raw))
    (tmp_path / "logs.csv").write_text("click,item,bought\n" + "1,a,b c\n0,b,a\n0,c,\n1,a,c\n")
    pq.write_table(pa.table({"v": [[1.0], [2.0], [3.0]], "item": ["c", "d", "a"]}), tmp_path / "item_vectors.parquet")
    must(preprocess.main(["--input", str(tmp_path), "--output", str(tmp_path / "data")]))
    encoder, spec = load_encoders(tmp_path / "data" / "workflow")["item"], spec_of(tmp_path)
    expected = dict(zip(encoder.encode(["c", "a"]).tolist(), [[1.0], [3.0]], strict=True))
    looked_up = {(own.name, own.of, own.trained) for own in spec.pretrained}
    assert looked_up == {("item_text", "item", False), ("bought_text", "bought", True)}
    for feature in spec.pretrained:
        assert {
            n: v for ids, rows in blocks_by_id(spec, feature) for n, v in zip(ids, rows.tolist(), strict=True)
        } == expected
    assert "1 values of the file are not in its vocabulary" in capsys.readouterr().err


def test_new_rows_need_no_file(tmp_path: Path) -> None:
    must(raw_dataset(tmp_path, ["a", "b"] * 20, ["a", "b"], [[1.0, 2.0], [3.0, 4.0]]))
    (tmp_path / "items.parquet").unlink()
    workflow, new = tmp_path / "data" / "workflow", tmp_path / "new"
    must(
        preprocess.main(["--workflow", str(workflow), "--input", str(tmp_path / "logs.parquet"), "--output", str(new)])
    )
    (feature,) = FeatureSpec.read(new / "feature_spec.yaml").pretrained
    assert feature == spec_of(tmp_path).pretrained[0]
    assert check_dataset.main([str(new)]) == 0


def write_day(folder: Path, vectors: dict[str, list[float]]) -> Path:
    """Writes rows of the items that have vectors, and these, into one folder."""
    folder.mkdir()
    items = list(vectors) * 20
    pq.write_table(pa.table({"click": [0.0, 1.0] * (len(items) // 2), "item_id": items}), folder / "logs.parquet")
    keys = pa.table({"item_id": list(vectors), "vector": list(vectors.values())})
    pq.write_table(keys, folder / "items.parquet")
    return folder


@pytest.mark.parametrize("given", ["", "logs.parquet", "l*.parquet"])
def test_files_of_vectors_are_no_raw_files(tmp_path: Path, given: str) -> None:
    """Where all files of a folder are raw files, those of its vectors are not: on the next day, and of new rows.

    If files of the day are given, its vectors are beside them.
    """
    must(raw_dataset(tmp_path, ["a", "b"] * 20, ["a", "b"], [[1.0, 2.0], [3.0, 4.0]]))
    workflow = tmp_path / "data" / "workflow"
    day = write_day(tmp_path / "day", {"a": [5.0, 6.0], "c": [7.0, 8.0]})
    must(preprocess.main(["--extend", str(workflow), "--input", str(day / given), "--output", str(tmp_path / "two")]))
    spec = FeatureSpec.read(tmp_path / "two" / "feature_spec.yaml")
    ids = load_encoders(tmp_path / "two" / "workflow")["item"].encode(["a", "c"]).tolist()
    assert read(spec) == dict(zip(ids, [[5.0, 6.0], [7.0, 8.0]], strict=True))
    must(preprocess.main(["--workflow", str(workflow), "--input", str(day), "--output", str(tmp_path / "new")]))
    new = FeatureSpec.read(tmp_path / "new" / "feature_spec.yaml")
    assert sum(pq.read_metadata(file).num_rows for file in new.files("test")) == 40


def test_vectors_are_beside_the_specification(tmp_path: Path) -> None:
    """Wherever the files are that --input names."""
    must(raw_dataset(tmp_path, ["a", "b"] * 20, ["a", "b"], [[1.0, 2.0], [3.0, 4.0]]))
    (tmp_path / "logs").mkdir()
    logs = (tmp_path / "logs.parquet").rename(tmp_path / "logs" / "0.parquet")
    spec, output = tmp_path / "feature_spec.yaml", tmp_path / "again"
    must(preprocess.main(["--input", str(logs), "--feature_spec_in", str(spec), "--output", str(output)]))
    assert read(FeatureSpec.read(output / "feature_spec.yaml")) == read(spec_of(tmp_path))


RAW_PROBLEMS: dict[str, tuple[dict[str, Any], str, str]] = {
    "a column": ({"feature_spec.item_text.column": "x"}, "item_text.column", "has no meaning for a vector that is"),
    "encode": ({"feature_spec.item_text.encode": ["log1p"]}, "item_text.encode", "has no meaning for a vector that"),
    "boundaries": (
        {"feature_spec.item.encode": {"boundaries": [1, 2]}},
        "item_text.of",
        "'item' has no id per raw value; name a",
    ),
    "of": ({"feature_spec.item_text.of": "click"}, "item_text.of", "'click' is in label; name a feature of onehot"),
    "no file": (
        {"feature_spec.item_text": {"dimension": 3, "of": "item"}},
        "item_text.of",
        "is for vectors that are looked up; write `pretrained`",
    ),
    "a cross": (
        {
            "feature_spec.both": {"encode": {"cross": ["item", "item_text"]}},
            "channel_spec.onehot_categorical[1]": "both",
        },
        "both.encode.cross[1]",
        "'item_text' has no ids",
    ),
    "elsewhere": ({"feature_spec.item_text.pretrained": "/a.parquet"}, "item_text.pretrained", "is an absolute path"),
}


@pytest.mark.parametrize(("changes", "path", "words"), RAW_PROBLEMS.values(), ids=RAW_PROBLEMS)
def test_mistakes_of_raw_specifications(tmp_path: Path, changes: dict[str, Any], path: str, words: str) -> None:
    problems = raw_problems(changed(changes, copy.deepcopy(RAW)), tmp_path)
    check_only_problem(problems, f"feature_spec.{path}", words)
