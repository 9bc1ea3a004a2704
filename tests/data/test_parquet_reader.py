import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError, LostInputError
from data.files.parquet import DatasetWriter, read_footer
from data.loading.batch import Batch, slice_rows
from data.loading.identity import DataIdentity
from data.loading.lists import join_rows
from data.loading.parquet import ParquetReader
from data.spec.feature_spec import FeatureSpec
from tests.data.sample_data import (
    FEATURES,
    arrays_of,
    arrow_table,
    check_rows,
    dataset_spec,
    decoded,
    nested,
    random_rows,
    table_of,
    write_dataset,
    write_file,
    write_files,
)


def read_all(reader: ParquetReader) -> Batch:
    """Every row, unit after unit."""
    batch = reader.allocate(reader.rows)
    for array in (*batch[:-1], *batch.extra):
        if isinstance(array, np.ndarray) and array.dtype != object:
            array[...] = 77
    start, lists = 0, []
    for unit, rows in enumerate(reader.row_group_rows.tolist()):
        end = start + rows
        lists.append(table_of(reader.decode(unit, 0, rows, slice_rows(batch, start, end)).id_lists, rows))
        start = end
    return batch._replace(id_lists=join_rows(lists))


def test_columns_equal_an_independent_reading(tmp_path):
    spec, frame = write_dataset(tmp_path, [[5, 3], [], [0, 4097, 4096]])
    reader = ParquetReader(spec, "train", with_group=True)
    assert reader.rows == 8201
    assert reader.row_group_rows.tolist() == [5, 3, 4097, 4096]
    batch = read_all(reader)
    assert batch.rows.tolist() == list(range(8201))
    check_rows(batch, pd.concat([pd.read_parquet(path) for path in spec.files("train")], ignore_index=True))
    check_rows(batch, frame)
    dtypes = [str(array.dtype) for array in batch[:-1] if isinstance(array, np.ndarray)]
    assert dtypes == ["int32", *["float32"] * 4, "int64", "int64", "float32"]
    assert (batch.id_lists.values.dtype, batch.id_lists.lengths.dtype) == (np.int32, np.int32)


def test_a_part_of_a_row_group_can_be_decoded_alone(tmp_path):
    spec, frame = write_dataset(tmp_path, [[10], [30]])
    reader = ParquetReader(spec, "train", with_group=True)
    batch = decoded(reader, 1, 4, 11)
    assert batch.rows.tolist() == list(range(14, 21))
    check_rows(batch, frame)


@pytest.mark.parametrize("layout", [[[40]], [[7, 13], [20]], [[1] * 40], [[0, 39], [1]]])
def test_column_groups_split_differently(tmp_path, layout):
    frame = random_rows(40)
    table = arrow_table(frame)
    first, second = ["user", "tags", "price", "click", "session"], ["item", "topics", "age", "stars", "kind"]
    names = [*first, *second, "importance"]
    chunks = [
        (first, write_files(tmp_path, "a", table.select(first), [[10, 10], [15, 5]])),
        (second, write_files(tmp_path, "b", table.select(second), layout)),
        (["importance"], write_files(tmp_path, "c", table.select(["importance"]), [[3, 37]])),
    ]
    assert sorted(names) == sorted(FEATURES)
    reader = ParquetReader(dataset_spec(tmp_path, chunks), "train", with_group=True)
    assert len(reader.row_group_rows) == min(sum(map(len, layout)), 2)
    batch = read_all(reader)
    assert batch.rows.tolist() == list(range(40))
    check_rows(batch, frame)


def test_cut_lists_in_overlapping_row_groups(tmp_path):
    frame = random_rows(40)
    frame["tags"] = [[1, 2]] * 40
    table = arrow_table(frame)
    others = [name for name in FEATURES if name != "tags"]
    chunks = [
        (others, write_files(tmp_path, "a", table.select(others), [[40]])),
        (["tags"], write_files(tmp_path, "b", table.select(["tags"]), [[10, 10], [20]])),
    ]
    reader = ParquetReader(dataset_spec(tmp_path, chunks, tags={"cardinality": 50, "max_hotness": 1}), "train")
    assert reader.decode(0, 5, 40, reader.allocate(35)).cut == {"tags": 35, "topics": 0}


@pytest.mark.parametrize("stored", [pa.list_(pa.uint8()), pa.large_list(pa.int16()), pa.list_(pa.int32(), 2)])
def test_lists_of_every_kind_are_read_and_cut(tmp_path, stored):
    frame = random_rows(5000)
    frame["tags"] = [[row % 50, 3] for row in range(5000)]
    spec, _ = write_dataset(tmp_path, [[2000, 3000]], frame=frame, types={"tags": stored})
    check_rows(read_all(ParquetReader(spec, "train")), frame)
    narrow, _ = write_dataset(
        tmp_path, [[2000, 3000]], frame=frame, types={"tags": stored}, tags={"cardinality": 50, "max_hotness": 1}
    )
    reader = ParquetReader(narrow, "train")
    assert nested(read_all(reader).id_lists.select([0])) == [[[row % 50]] for row in range(5000)]
    assert reader.decode(0, 100, 400, reader.allocate(300)).cut == {"tags": 300, "topics": 0}


def test_only_long_lists_are_cut(tmp_path):
    frame = random_rows(9000)
    rng = np.random.default_rng(1)
    frame["tags"] = [rng.integers(0, 50, rng.integers(0, 9)).tolist() for _ in range(9000)]
    spec, _ = write_dataset(tmp_path, [[9000]], frame=frame)
    reader = ParquetReader(spec, "train")
    assert reader.decode(0, 0, 9000, reader.allocate(9000)).cut == {
        "tags": sum(len(tags) > 3 for tags in frame.tags),
        "topics": 0,
    }
    check_rows(decoded(reader, 0, 0, 9000), frame)


def test_numbers_of_every_stored_type_are_read(tmp_path):
    frame = random_rows(20)
    frame["price"] = np.float32(np.arange(20) * 0.5)
    frame["age"] = np.arange(20) % 3
    for types in (
        {"user": pa.uint16(), "item": pa.uint64(), "price": pa.float64(), "age": pa.uint8(), "click": pa.float32()},
        {"user": pa.int32(), "item": pa.int16(), "age": pa.int64(), "click": pa.uint8(), "kind": pa.float64()},
    ):
        spec, _ = write_dataset(tmp_path, [[20]], frame=frame, types=types)
        check_rows(read_all(ParquetReader(spec, "train")), frame)
    halves = [pa.array(np.float16(frame["price"])) if name == "price" else arrow_table(frame)[name] for name in frame]
    write_file(tmp_path / "part_0.parquet", pa.table(halves, names=list(frame)), [20])
    check_rows(read_all(ParquetReader(spec, "train")), frame)


@pytest.mark.parametrize(
    "dropped", [["user", "item"], ["tags", "topics"], ["price", "age"], ["session"], ["importance"], ["topics", "age"]]
)
def test_channels_may_be_empty(tmp_path, dropped):
    spec, frame = write_dataset(tmp_path, [[30]], **dict.fromkeys(dropped))
    batch = read_all(ParquetReader(spec, "train"))
    assert batch.onehot.shape == (30, 0 if "user" in dropped else 2)
    assert batch.id_lists.lengths.shape == (30, 2 - ("tags" in dropped) - ("topics" in dropped))
    assert batch.numerical.shape == (30, 2 - ("price" in dropped) - ("age" in dropped))
    assert batch.group is None if "session" in dropped else batch.group is not batch
    weights = np.ones(30) if "importance" in dropped else np.float32(frame.importance)
    assert np.array_equal(batch.weights, weights)


def test_a_missing_label_is_nan_where_that_is_allowed(tmp_path):
    frame = random_rows(6)
    frame["stars"] = pd.Series([1.0, None, 3.0, float("nan"), None, 6.0], dtype=object)
    for stored in (pa.float64(), pa.float32()):
        spec, _ = write_dataset(tmp_path, [[6]], frame=frame, types={"stars": stored})
        assert np.isnan(read_all(ParquetReader(spec, "train")).labels[:, 1]).tolist() == [0, 1, 0, 1, 1, 0]
    table = arrow_table(frame).set_column(7, "stars", pa.array([1, None, 3, None, None, 6], pa.int16()))
    write_file(tmp_path / "part_0.parquet", table, [6])
    labels = read_all(ParquetReader(spec, "train")).labels[:, 1]
    np.testing.assert_array_equal(labels, np.float32([1, np.nan, 3, np.nan, np.nan, 6]))


def test_extra_columns(tmp_path):
    spec, frame = write_dataset(tmp_path, [[4], [3, 2]])
    reader = ParquetReader(spec, "train", extra_columns=["note", "user", "importance"])
    note, user, importance = read_all(reader).extra
    assert note.tolist() == frame.note.tolist()
    assert (user.dtype, user.tolist()) == (np.int64, frame.user.tolist())
    assert (importance.dtype, importance.tolist()) == (np.float64, frame.importance.tolist())


def test_a_file_may_have_columns_that_are_not_read(tmp_path):
    frame = random_rows(5).assign(other=[[{"a": 1}]] * 5)
    table = arrow_table(frame.drop(columns="other")).append_column("other", pa.array([[{"a": 1}]] * 5))
    table = table.append_column("user.list", pa.array(["x"] * 5))
    write_file(tmp_path / "part_0.parquet", table, [5])
    check_rows(read_all(ParquetReader(dataset_spec(tmp_path, [(list(FEATURES), ["part_0.parquet"])]), "train")), frame)


def test_identity(tmp_path):
    def identity(layout: list[list[int]], seed: int = 0, reverse: bool = False, prefix: str = "part") -> DataIdentity:
        table = arrow_table(random_rows(20, seed))
        names = write_files(tmp_path, prefix, table, layout)
        for at, name in enumerate(names):
            os.utime(tmp_path / name, (at, at))
        chunk = (list(FEATURES), names[::-1] if reverse else names)
        return ParquetReader(dataset_spec(tmp_path, [chunk]), "train").identity

    first = identity([[10], [10]])
    assert (first.files, first.rows, first.newest) == (2, 20, "1970-01-01T00:00:01+00:00")
    others = [identity(layout) for layout in ([[11], [9]], [[20]], [[5, 5], [10]])]
    others += [identity([[10], [10]], seed=1), identity([[10], [10]], reverse=True)]
    assert len({one.checksum for one in (first, *others)}) == 6 and not any(first.is_same(one) for one in others)
    # Under other names it is the same data.
    assert first.is_same(identity([[10], [10]], prefix="moved"))
    assert not first.is_same(first.part(20, b"x", True)) and first.part(5, b"x", True) == first.part(5, b"x", True)
    assert not first.part(5, b"x", True).is_same(first.part(5, b"y", True))


def test_identity_covers_values_that_statistics_do_not_show(tmp_path):
    """The files of this project have checksums of their column chunks: the same footer does not hide other values."""
    schema = pa.schema([("user", pa.int64())])
    found = []
    for number, values in enumerate(([1, 2, 3, 9], [1, 3, 2, 9])):
        (folder := tmp_path / str(number)).mkdir()
        with DatasetWriter(folder, "train", schema) as writer:
            writer.write(pa.table({"user": values}))
        found.append(read_footer(folder / "train_0.parquet"))
    assert found[0].metadata.row_group(0).column(0).statistics == found[1].metadata.row_group(0).column(0).statistics
    assert found[0].sha256 != found[1].sha256


# Mistakes in files and columns, reported when the loader is created.


def refused(spec: FeatureSpec, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        ParquetReader(spec, "train", **options)
    return str(error.value)


def test_a_missing_file_is_named(tmp_path):
    spec, _ = write_dataset(tmp_path, [[3], [3]])
    (tmp_path / "part_1.parquet").unlink()
    assert refused(spec).startswith(f"{tmp_path / 'part_1.parquet'}: no such file")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"user,item\n1,2\n" * 20])
def test_a_file_that_is_not_parquet_is_named(tmp_path, content):
    spec, _ = write_dataset(tmp_path, [[3], [3]])
    (tmp_path / "part_1.parquet").write_bytes(content)
    assert refused(spec).startswith(f"{tmp_path / 'part_1.parquet'}: cannot be read as parquet")


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    spec, _ = write_dataset(tmp_path, [[3]])
    (tmp_path / "part_0.parquet").unlink()
    (tmp_path / "part_0.parquet").mkdir()
    assert refused(spec).startswith(f"{tmp_path / 'part_0.parquet'}: is a folder")


def test_wrong_columns_are_listed_together(tmp_path):
    table = arrow_table(random_rows(3)).drop_columns(["age"])
    for name, values in {
        "user": pa.array(["0", "1", "2"]),
        "tags": pa.array([1, 2, 3]),
        "topics": pa.array([["0"]] * 3),
        "price": pa.array(["1", "2", "3"]),
        "click": pa.array(["1", "0", "1"]),
        "session": pa.array([1.0, 2, 3]),
    }.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    write_file(tmp_path / "part_0.parquet", table, [3])
    message = refused(dataset_spec(tmp_path, [(list(FEATURES), ["part_0.parquet"])]), with_group=True)
    path = tmp_path / "part_0.parquet"
    assert [line.partition(";")[0] for line in message.splitlines()] == [
        f"{path}: column 'user' is stored as string, expected integers",
        f"{path}: column 'tags' is stored as int64, expected lists of integers",
        f"{path}: column 'topics' is stored as list<element: string>, expected lists of integers",
        f"{path}: column 'price' is stored as string, expected numbers",
        f"{path}: column 'age' is not among {', '.join(table.schema.names)}",
        f"{path}: column 'click' is stored as string, expected numbers",
        f"{path}: column 'session' is stored as double, expected integers",
    ]


def test_only_the_first_of_very_many_problems_are_shown(tmp_path):
    spec, _ = write_dataset(tmp_path, [[1]] * 30)
    for path in spec.files("train"):
        write_file(path, arrow_table(random_rows(1)).drop_columns(["user"]), [1])
    lines = refused(spec).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "... and 10 more"


def test_a_column_that_is_there_twice_is_rejected(tmp_path):
    table = arrow_table(random_rows(3))
    write_file(tmp_path / "part_0.parquet", table.append_column("user", table["user"]), [3])
    spec = dataset_spec(tmp_path, [(list(FEATURES), ["part_0.parquet"])])
    assert refused(spec).startswith(f"{tmp_path / 'part_0.parquet'}: column 'user' is twice; expected once")


def test_column_groups_of_different_lengths(tmp_path):
    table = arrow_table(random_rows(9))
    names = list(FEATURES)
    chunks = [
        (names[:5], write_files(tmp_path, "a", table.select(names[:5]), [[5], [4]])),
        (names[5:], write_files(tmp_path, "b", table.select(names[5:]).slice(0, 8), [[8]])),
    ]
    message = refused(dataset_spec(tmp_path, chunks))
    assert "the chunks of mapping 'train' must have equally many rows" in message
    assert f"9 in chunk 0 ({tmp_path / 'a_0.parquet'}, ...)" in message
    assert f"8 in chunk 1 ({tmp_path / 'b_0.parquet'})" in message


def test_a_mapping_without_rows_is_rejected(tmp_path):
    spec, _ = write_dataset(tmp_path, [[], [0]])
    assert refused(spec) == "mapping 'train' has no rows: all its files are empty"


def test_unreadable_mappings(tmp_path):
    spec, _ = write_dataset(tmp_path, [[3]], session=None)
    assert "the map channel of the feature specification is empty" in refused(spec, with_group=True)
    assert "mapping 'train' has no column 'nowhere'" in refused(spec, extra_columns=["nowhere"])
    with pytest.raises(DataError, match="no mapping 'trian' in source_spec"):
        ParquetReader(spec, "trian")
    document = spec.to_dict()
    for chunk in (*document["source_spec"]["train"], *document["source_spec"]["test"]):
        chunk["type"] = "csv"
    assert "turn them into parquet with transcode.py" in refused(FeatureSpec.from_dict(document, tmp_path))


def test_a_mapping_without_the_map_feature_has_no_groups(tmp_path):
    spec, _ = write_dataset(tmp_path, [[3]])
    document = spec.to_dict()
    document["source_spec"]["train"][0]["features"].remove("session")
    spec = FeatureSpec.from_dict(document, tmp_path)
    assert "mapping 'train' has no column 'session'" in refused(spec, with_group=True)
    assert read_all(ParquetReader(spec, "train")).group is None


@pytest.mark.parametrize("stored", [pa.int64(), pa.float64()])
@pytest.mark.parametrize("policy", ["unseen", "clip"])
def test_a_onehot_feature_can_also_be_the_group(tmp_path, stored, policy):
    frame = random_rows(8).assign(user=[5, 5, 999, 1000, 7_000_000, 7_000_000, -3, 0])
    spec, _ = write_dataset(
        tmp_path, [[5, 3]], frame=frame, types={"user": stored}, user={**FEATURES["user"], "unseen_id": 2}
    )
    document = spec.to_dict()
    document["channel_spec"]["map"] = ["user"]
    spec = FeatureSpec.from_dict(document, tmp_path)
    batch = read_all(ParquetReader(spec, "train", with_group=True, oov_policy=policy))
    np.testing.assert_array_equal(batch.group, frame["user"])  # ids outside of the table are groups of their own
    others = [2, 2, 2, 2] if policy == "unseen" else [999, 999, 999, 0]
    np.testing.assert_array_equal(batch.onehot[:, 0], [5, 5, 999, *others, 0])
    with pytest.raises(DataError, match="column 'user' has 2 unusable values, the first 1000"):
        read_all(ParquetReader(spec, "train", with_group=True))


def test_rows_to_predict_need_neither_labels_nor_weights(tmp_path):
    spec, frame = write_dataset(tmp_path, [[5], [4]])
    document = spec.to_dict()
    for name in ("click", "importance"):
        document["source_spec"]["test"][0]["features"].remove(name)
    spec = FeatureSpec.from_dict(document, tmp_path)
    with pytest.raises(DataError, match="mapping 'test' has no column 'click'; add it to the features of a chunk"):
        ParquetReader(spec, "test")
    types = {"kind": pa.float64()}
    write_file(tmp_path / "part_1.parquet", arrow_table(frame[5:].assign(kind=[None, np.nan, 3, 0]), types), [4])
    batch = read_all(ParquetReader(spec, "test", needs_labels=False))
    assert np.isnan(batch.labels[:, 0]).all()
    np.testing.assert_array_equal(batch.labels[:, 1], frame["stars"].astype(np.float32))
    np.testing.assert_array_equal(batch.labels[:, 2], [*frame["kind"][:5], np.nan, np.nan, 3, 0])
    assert (batch.weights == 1).all()
    np.testing.assert_array_equal(batch.onehot[:, 0], frame["user"])


def test_types_of_extra_columns(tmp_path):
    spec, frame = write_dataset(tmp_path, [[3], [3]])
    write_file(tmp_path / "part_1.parquet", arrow_table(frame[3:], {"user": pa.int32()}), [3])
    assert "column 'user' has several types (int64 in " in refused(spec, extra_columns=["user"])
    assert "column 'tags' is stored as list" in refused(spec, extra_columns=["tags"])


# Mistakes in values, reported when their row group is decoded.


def refused_value(tmp_path: Path, name: str, row: int, value: Any, stored: pa.DataType | None = None) -> str:
    """The message for 30 rows in two row groups, one value of which is replaced."""
    frame = random_rows(30).assign(session=1).astype({name: object})
    frame.at[row, name] = value
    spec, _ = write_dataset(tmp_path, [[20, 10]], frame=frame, types={name: stored} if stored else None)
    reader = ParquetReader(spec, "train", with_group=True)
    reader.decode(0, 0, 20, reader.allocate(20))
    with pytest.raises(DataError) as error:
        reader.decode(1, 1, 10, reader.allocate(9))
    assert str(error.value).endswith("check_dataset.py lists them all.")
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "stored", "found", "expected"),
    [
        ("user", 1000, None, "1000", r"an id in \[0, 1000\)"),
        ("user", -1, None, "-1", r"an id in \[0, 1000\)"),
        ("user", 2**32, None, str(2**32), r"an id in \[0, 1000\)"),
        ("user", 2**63, pa.uint64(), str(2**63), r"an id in \[0, 1000\)"),
        ("item", -128, pa.int8(), "-128", r"an id in \[0, 7\)"),
        ("tags", [1, 50], None, "50", r"a list of ids in \[0, 50\)"),
        ("tags", [1, 2, 3, 4, -1], None, "-1", r"a list of ids in \[0, 50\)"),
        ("topics", [9], None, "9", r"a list of ids in \[0, 9\)"),
        ("price", float("nan"), pa.float64(), "nan", "a finite number"),
        ("price", float("-inf"), None, "-inf", "a finite number"),
        ("price", 1e300, pa.float64(), r"1e\+300", "a finite number, float32"),
        ("click", 2, None, "2", "0 or 1"),
        ("click", 0.5, pa.float32(), "0.5", "0 or 1"),
        ("click", float("nan"), pa.float64(), "nan", "0 or 1"),
        ("kind", 4, None, "4", r"a class in \[0, 4\)"),
        ("kind", -1, None, "-1", r"a class in \[0, 4\)"),
        ("kind", 1.5, pa.float64(), "1.5", r"a class in \[0, 4\)"),
        ("stars", float("inf"), None, "inf", "a finite number"),
        ("stars", 1e39, None, r"1e\+39", r"a finite number \(or nothing\), float32"),
        ("importance", -0.5, None, "-0.5", "a finite number of at least 0"),
        ("importance", float("inf"), None, "inf", "a finite number of at least 0"),
        ("importance", float("nan"), None, "nan", "a finite number of at least 0"),
        ("session", 2**63, pa.uint64(), str(2**63), "an integer"),
    ],
)
def test_an_impossible_value_is_located(tmp_path, name, value, stored, found, expected):
    message = refused_value(tmp_path, name, 25, value, stored)
    assert message.startswith(f"{tmp_path / 'part_0.parquet'}, row group 1: column {name!r} has 1 unusable values, ")
    assert re.search(rf"the first {found} in row 25 of the file; expected .*{expected}", message), message


def test_invalid_values_are_counted(tmp_path):
    frame = random_rows(40)
    frame.loc[[33, 35, 38], "user"] = [5000, -7, 1000]
    spec, _ = write_dataset(tmp_path, [[10], [20, 10]], frame=frame)
    reader = ParquetReader(spec, "train")
    with pytest.raises(DataError, match=r"part_1.parquet, row group 1: column 'user' has 3 .* first 5000 in row 23 of"):
        reader.decode(2, 0, 10, reader.allocate(10))


@pytest.mark.parametrize("name", ["user", "tags", "topics", "price", "age", "click", "kind", "importance", "session"])
def test_a_null_is_located(tmp_path, name):
    message = refused_value(tmp_path, name, 27, None)
    assert f"row group 1: column {name!r} has 1 missing values (null), the first in row 27 of the file" in message


def test_a_null_within_a_list_is_located(tmp_path):
    message = refused_value(tmp_path, "tags", 21, [4, None, 5])
    assert "row group 1: column 'tags' has 1 missing values (null), the first in row 21 of the file" in message


def test_a_null_in_an_extra_column_of_numbers_is_located(tmp_path):
    spec, frame = write_dataset(tmp_path, [[3]])
    extra = pa.array([1, None, 3])
    write_file(tmp_path / "part_0.parquet", arrow_table(frame).append_column("extra", extra), [3])
    reader = ParquetReader(spec, "train", extra_columns=["extra"])
    with pytest.raises(DataError, match="column 'extra' has 1 missing values .* in row 1 of the file"):
        read_all(reader)


# Damage.


def test_a_file_lost_after_it_was_opened_is_a_failure(tmp_path):
    spec, frame = write_dataset(tmp_path, [[3]])
    reader = ParquetReader(spec, "train")
    write_file(tmp_path / "part_0.parquet", arrow_table(frame), [3])
    os.utime(tmp_path / "part_0.parquet", (1, 1))
    with pytest.raises(LostInputError, match="part_0.parquet: was changed while it was in use"):
        read_all(reader)
    (tmp_path / "part_0.parquet").unlink()
    with pytest.raises(LostInputError, match="part_0.parquet, row group 0: can no longer be read"):
        read_all(reader)


def same(left: Batch, right: Batch) -> bool:
    pairs = zip(arrays_of(left), arrays_of(right), strict=True)
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)


@pytest.fixture(scope="module")
def sound_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureSpec, bytes, Batch]:
    folder = tmp_path_factory.mktemp("damaged")
    spec, _ = write_dataset(folder, [[300, 200]])
    return spec, (folder / "part_0.parquet").read_bytes(), read_all(ParquetReader(spec, "train"))


def read_or_error(spec: FeatureSpec) -> Batch | str:
    try:
        return read_all(ParquetReader(spec, "train"))
    except DataError as error:
        return str(error)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_flipped_bit_is_rejected_or_without_effect(sound_file, data):
    spec, sound, expected = sound_file
    position = data.draw(st.integers(0, 8 * len(sound) - 1))
    damaged = bytearray(sound)
    damaged[position // 8] ^= 1 << position % 8
    path = spec.files("train")[0]
    path.write_bytes(damaged)
    result = read_or_error(spec)
    assert str(path) in result if isinstance(result, str) else same(result, expected)


def test_flipped_bit_in_a_page(sound_file):
    spec, sound, _ = sound_file
    path = spec.files("train")[0]
    column = pq.read_metadata(pa.BufferReader(sound)).row_group(1).column(0)
    damaged = bytearray(sound)
    damaged[column.data_page_offset + column.total_compressed_size // 2] ^= 4
    path.write_bytes(damaged)
    reader = ParquetReader(spec, "train")
    reader.decode(0, 0, 300, reader.allocate(300))
    with pytest.raises(DataError) as error:
        reader.decode(1, 0, 200, reader.allocate(200))
    assert str(error.value).startswith(f"{path}, row group 1: cannot be decoded (")
    assert "restore it, or write it again" in str(error.value)


@pytest.mark.parametrize("keep", [0.999, 0.5, 0.01])
def test_a_file_cut_short_is_rejected(sound_file, keep):
    spec, sound, _ = sound_file
    path = spec.files("train")[0]
    path.write_bytes(sound[: int(len(sound) * keep)])
    assert str(path) in str(read_or_error(spec))
