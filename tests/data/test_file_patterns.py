"""Folders, patterns and Hive partitions of `files:`, against glob, pathlib and pyarrow.dataset."""

import os
from fnmatch import fnmatchcase
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.loading.parquet import ParquetReader
from data.raw.files import list_files, partition_keys, read_raw
from data.spec.feature_spec import FeatureSpec, FeatureSpecError
from data.spec.raw.spec import RawChunk, Reading
from data.storage.file_patterns import find_files

names = st.text("ab._-", min_size=1, max_size=3).filter(lambda name: name not in (".", ".."))
trees = st.lists(st.tuples(st.lists(names, max_size=2), names, st.sampled_from(["", ".csv", ".parquet"])), max_size=12)
parts = st.sampled_from(["a", "b", "*", "**", "a*", "?", "[ab]*", "*.csv", "*.parquet", "_*", ".*", "*b"])


def make_tree(folder: Path, tree) -> None:
    for folders, name, suffix in tree:
        path = folder.joinpath(*folders, name + suffix)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.touch()
        except OSError:  # a file has the name of a folder
            pass


@settings(max_examples=200, deadline=None)
@given(tree=trees, pattern=st.lists(parts, min_size=1, max_size=3))
def test_patterns_match_as_by_brute_force(tree, pattern, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    make_tree(folder, tree)
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    expected = sorted(name for name in files if any(fits(name.split("/"), parts) for parts in without_stars(pattern)))
    assert find_files("/".join(pattern), folder, "csv") == expected


def without_stars(pattern: list[str]) -> list[list[str]]:
    """Returns the pattern with up to three folders in place of each `**`."""
    expanded: list[list[str]] = [[]]
    for part in pattern:
        choices = [["FOLDER"] * count for count in range(4)] if part == "**" else [[part]]
        expanded = [[*before, *choice] for before in expanded for choice in choices]
    # What the last `**` stands for are folders, so that files are below them.
    return [[*parts, "BELOW"] if pattern[-1] == "**" else parts for parts in expanded]


def fits(name: list[str], pattern: list[str]) -> bool:
    if len(name) < len(pattern):
        return False
    if pattern[-1] == "BELOW":
        pattern = pattern[:-1]
    matched, below = name[: len(pattern)], name[len(pattern) :]
    for part, wanted in zip(matched, pattern, strict=True):
        own_prefix = part[0] not in "._" or wanted[0] == part[0]
        if not own_prefix or not (wanted == "FOLDER" or fnmatchcase(part, wanted)):
            return False
    if not below and not pattern[-1].endswith("*"):
        return True
    return not any(part[0] in "._" for part in below) and not name[-1].endswith(".parquet")


@settings(max_examples=100, deadline=None)
@given(tree=trees, pattern=st.lists(parts.filter(lambda part: part[0] not in "._"), max_size=2))
def test_patterns_match_as_pathlib_does(tree, pattern, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    make_tree(folder, [entry for entry in tree if not any(part[0] in "._" for part in (*entry[0], entry[1]))])
    pattern = "/".join([*pattern, "*.csv"])
    expected = {path.relative_to(folder).as_posix() for path in folder.glob(pattern) if path.is_file()}
    assert find_files(pattern, folder, "csv") == sorted(expected)


@settings(max_examples=60, deadline=None)
@given(
    keys=st.lists(
        st.tuples(st.sampled_from(["2026-01-01", "a b", "ü/=%", "x"]) | st.none(), st.integers(0, 3)),
        min_size=1,
        max_size=6,
        unique=True,
    )
)
def test_partitions_are_those_of_pyarrow(keys, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hive")
    schema = pa.schema([("day", pa.string()), ("n", pa.int8())])
    table = pa.table({"day": [day for day, _ in keys], "n": pa.array([n for _, n in keys], pa.int8())}, schema=schema)
    table = table.append_column("value", pa.array(range(len(keys)), pa.int64()))
    ds.write_dataset(
        table,
        folder / "logs",
        format="parquet",
        partitioning=ds.partitioning(schema, flavor="hive"),
        existing_data_behavior="overwrite_or_ignore",
    )
    (folder / "logs" / "_SUCCESS").touch()
    (folder / "logs" / "_temporary").mkdir()
    (folder / "logs" / "_temporary" / "part-0.parquet").write_text("unfinished")
    chunk = RawChunk("parquet", ("logs/",))
    readings = [Reading("value", "value", "int64"), Reading("day", "day"), Reading("n", "n", "int8")]
    blocks = [block.table for block in read_raw(chunk, folder, readings, block_rows=9)]
    found = [row for block in blocks for row in block.to_pylist()]
    assert sorted(found, key=lambda row: row["value"]) == [
        {"value": value, "day": day, "n": n} for value, (day, n) in enumerate(keys)
    ]
    assert list_files(chunk, folder) == sorted(
        Path(path).relative_to(folder).as_posix() for path in ds.dataset(folder / "logs", format="parquet").files
    )


def test_a_key_that_is_a_column_too(tmp_path):
    for day in ("1", "2"):
        (tmp_path / f"day={day}").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "day=1/part.parquet")
    pq.write_table(pa.table({"a": [1], "day": ["9"]}), tmp_path / "day=2/part.parquet")
    chunk = RawChunk("parquet", ("*/",))
    with pytest.raises(DataError, match=r"day=2/part.parquet: has a column 'day', which is also a key of its folder"):
        list(read_raw(chunk, tmp_path, [Reading("a", "a", "int64"), Reading("day", "day")], block_rows=9))
    (tmp_path / "day=2/part.parquet").unlink()
    (tmp_path / "day=1/part.parquet").rename(tmp_path / "day=1/part.pq")
    (tmp_path / "day=1/part.csv").write_text("day,a\n9,1\n")
    with pytest.raises(DataError, match=r"day=1/part.csv: has a column 'day'"):
        list(read_raw(RawChunk("csv", ("*/",), has_header=True), tmp_path, [Reading("day", "day")], block_rows=9))


def test_a_folder_stands_for_files_of_the_kind(tmp_path):
    for name in ("a.csv", "b.CSV.gz", "c.tsv", "d.parquet", "e.pq", "f", "g.json", "_SUCCESS", ".h.csv"):
        (tmp_path / name).touch()
    assert find_files("./", tmp_path, "csv") == ["a.csv", "b.CSV.gz", "c.tsv", "f"]
    assert find_files("./", tmp_path, "parquet") == ["d.parquet", "e.pq", "f"]
    assert find_files("*", tmp_path, "parquet") == ["d.parquet", "e.pq", "f"]
    assert find_files("*.csv", tmp_path, "parquet") == ["a.csv"]
    assert find_files("_S*", tmp_path) == ["_SUCCESS"]
    assert find_files("a.csv/", tmp_path) == []


def test_links(tmp_path):
    inside, outside = tmp_path / "spec", tmp_path / "outside"
    for folder in (inside / "train", outside):
        folder.mkdir(parents=True)
        (folder / "a.csv").touch()
    (inside / "copy").symlink_to(inside / "train")
    assert find_files("copy/", inside) == ["copy/a.csv"]
    (inside / "train" / "out").symlink_to(outside)
    for entry in ("train/", "train/*/a.csv", "train/out/", "**/*.csv", "train/out/a.csv"):
        with pytest.raises(DataError, match="is a link that leads out of the folder"):
            find_files(entry, inside)
        assert "train/out/a.csv" in find_files(entry, inside, allow_outside_paths=True)
    (inside / "train" / "out").unlink()
    (inside / "train" / "up").symlink_to(inside)
    with pytest.raises(DataError, match="train/up: is a link to a folder that contains it; remove the link"):
        find_files("train/", inside)


# Encoded specifications


def document(*files: str, kind: str = "parquet", test: str = "test.parquet") -> dict:
    chunk = {"type": kind, "features": ["click", "item"], "files": list(files)}
    return {
        "feature_spec": {"click": {}, "item": {"cardinality": 100}},
        "source_spec": {"train": [chunk], "test": [chunk | {"files": [test]}]},
        "channel_spec": {"onehot_categorical": ["item"], "label": ["click"]},
    }


@pytest.fixture
def dataset(tmp_path):
    """A folder with files of a row each in Hive folders, whose item is their number."""
    for number, name in enumerate(
        ("train/date=2026-01-02/part-0", "train/date=2026-01-01/part-1", "train/date=2026-01-01/part-0", "test")
    ):
        path = tmp_path / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"click": [1.0], "item": [number]}), path)
    (tmp_path / "train/_SUCCESS").touch()
    (tmp_path / "train/date=2026-01-01/.part-0.parquet.crc").touch()
    return tmp_path


IN_ORDER = ("train/date=2026-01-01/part-0.parquet", "train/date=2026-01-01/part-1.parquet")
LATER = "train/date=2026-01-02/part-0.parquet"


def read(folder: Path, *files: str, **more: str) -> FeatureSpec:
    (folder / "feature_spec.yaml").write_text(yaml.safe_dump(document(*files, **more)))
    return FeatureSpec.read(folder / "feature_spec.yaml")


@pytest.mark.parametrize("entry", ["train/", "train/*/*.parquet", "train/date=*/", "train/**/*.parquet", "./train/**"])
def test_an_encoded_dataset_is_the_same_however_its_files_are_named(dataset, entry):
    found, listed = read(dataset, entry), read(dataset, *IN_ORDER, LATER)
    assert found == listed
    assert found.sources["train"][0].files == (*IN_ORDER, LATER)
    checksums = {ParquetReader(spec, "train").identity.checksum for spec in (found, listed)}
    assert len(checksums) == 1
    items = [pq.read_table(path).column("item")[0].as_py() for path in found.files("train")]
    assert items == [2, 1, 0]


def test_entries_follow_in_their_order(dataset):
    spec = read(dataset, "train/date=2026-01-02/", "train/date=2026-01-01/*.parquet")
    assert spec.sources["train"][0].files == (LATER, *IN_ORDER)
    assert spec.sources["test"][0].files == ("test.parquet",)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (("train/*.parquet",), "files[0]: 'train/*.parquet' matches no file; "),
        (("train/", "none/"), "files[1]: 'none/' matches no file; the folder holds "),
        (("train/", IN_ORDER[0]), "files[1]: '" + IN_ORDER[0] + "' is also in source_spec.train[0].files[0]; keep"),
        (("../*.parquet",), "files[0]: '../*.parquet' leads out of the folder"),
        (("s3://bucket/train/",), "files[0]: 's3://bucket/train/' is a URL; write a path relative"),
    ],
)
def test_mistakes_in_encoded_specifications(dataset, entries, message):
    with pytest.raises(FeatureSpecError) as caught:
        read(dataset, *entries)
    assert f"source_spec.train[0].{message}" in str(caught.value)
    assert len(caught.value.problems) == 1


def test_a_file_with_wildcards_in_its_name(dataset):
    os.rename(dataset / "test.parquet", dataset / "test[1]?.parquet")
    spec = read(dataset, "train/", test="test[1]?.parquet")
    assert spec.sources["test"][0].files == ("test[1]?.parquet",)
    (dataset / "test[1]?.parquet").unlink()
    assert FeatureSpec.read(dataset / "feature_spec.yaml", has_files=False).sources["test"] == spec.sources["test"]


def test_files_of_the_other_kind_only(dataset):
    os.rename(dataset / "test.parquet", dataset / "train" / "test.csv")
    with pytest.raises(FeatureSpecError, match=r"source_spec.test\[0\].files\[0\]: 'train/date=\*/' matches no file"):
        read(dataset, "train/", kind="csv", test="train/date=*/")


def test_keys_of_a_path():
    assert partition_keys("a=1/b%3D=%C3%BC%2F/c=__HIVE_DEFAULT_PARTITION__/d=4.csv") == {
        "a": "1",
        "b=": "ü/",
        "c": None,
    }
