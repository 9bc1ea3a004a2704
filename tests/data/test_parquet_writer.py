import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.errors import DataError
from data.files import parquet as parquet_writer
from data.files.new_dataset import MOVING_FILE, SPEC_FILE, UNFINISHED, _moving, new_dataset
from data.files.parquet import DatasetWriter, parquet_schema
from data.spec.feature_spec import FeatureSpec
from tests.data.csv_documents import FEATURES, document

SCHEMA = pa.schema([("id", pa.int32()), ("ids", pa.list_(pa.int64())), ("x", pa.float32())])


def rows(first, count):
    numbers = range(first, first + count)
    return pa.table({"id": list(numbers), "ids": [[n] * (n % 3) for n in numbers], "x": [n / 4 for n in numbers]})


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_columns_have_their_declared_types_or_the_defaults(tmp_path):
    spec = FeatureSpec.from_dict(document(), tmp_path)
    assert parquet_schema(spec, list(FEATURES)) == pa.schema(
        [
            ("clicked", pa.int8()),
            ("bought", pa.float32()),
            ("user", pa.int32()),
            ("genres", pa.list_(pa.int16())),
            ("age", pa.float32()),
            ("price", pa.float64()),
            ("weight", pa.float32()),
            ("note", pa.string()),
            ("session", pa.int64()),
        ]
    )
    bare = document()
    bare["feature_spec"] = FEATURES | {name: {} for name in ("age", "session")}
    bare["feature_spec"] |= {name: {"cardinality": 9} for name in ("user", "note")}
    bare["feature_spec"]["genres"] = {"cardinality": 8, "max_hotness": 3}
    spec = FeatureSpec.from_dict(bare, tmp_path)
    assert parquet_schema(spec, ["user", "genres", "age", "session", "note"]).types == [
        pa.int64(), pa.list_(pa.int64()), pa.float32(), pa.int64(), pa.int64()
    ]  # fmt: skip


@pytest.mark.parametrize("rows_per_file", [1, 7, 10, 11, 100])
@pytest.mark.parametrize("pieces", [[33], [1] * 33, [5, 20, 0, 8]])
def test_rows_keep_their_order(tmp_path, monkeypatch, rows_per_file, pieces):
    monkeypatch.setattr(parquet_writer, "ROWS_PER_ROW_GROUP", 4)
    with DatasetWriter(tmp_path, "train", SCHEMA, rows_per_file) as writer:
        for first, count in zip(np.cumsum([0, *pieces[:-1]]), pieces, strict=True):
            writer.write(rows(int(first), count))
    assert writer.rows == 33
    assert writer.chunk.features == ("id", "ids", "x")
    assert writer.chunk.type == "parquet"
    assert list(writer.chunk.files) == [f"train_{index}.parquet" for index in range(-(-33 // rows_per_file))]
    assert names(tmp_path) == sorted(writer.chunk.files)
    parts = [pq.ParquetFile(tmp_path / name) for name in writer.chunk.files]
    assert [part.metadata.num_rows for part in parts[:-1]] == [rows_per_file] * (len(parts) - 1)
    groups = [part.metadata.row_group(index) for part in parts for index in range(part.num_row_groups)]
    assert max(group.num_rows for group in groups) <= 4
    assert len(groups) <= sum(-(-part.metadata.num_rows // 4) for part in parts)
    assert {group.column(0).compression for group in groups} == {"SNAPPY"}
    assert pa.concat_tables([part.read() for part in parts]).equals(rows(0, 33).cast(SCHEMA))


def test_frames_are_stored_by_column_name(tmp_path):
    frame = pd.DataFrame(
        {"x": [0.5, 1.5], "extra": ["a", "b"], "ids": [np.array([1, 2]), []], "id": np.array([3, 4], np.int64)},
        index=[7, 9],
    )
    with DatasetWriter(tmp_path, "train", SCHEMA) as writer:
        writer.write(frame)
        writer.write(pa.table({"x": [2.5], "ids": [[3]], "id": [5]}))
    table = pq.read_table(tmp_path / "train_0.parquet")
    assert table.to_pydict() == {"id": [3, 4, 5], "ids": [[1, 2], [], [3]], "x": [0.5, 1.5, 2.5]}
    assert table.schema == SCHEMA
    assert table.schema.metadata is None


def test_a_flipped_bit_in_a_page_is_found_on_reading(tmp_path):
    with DatasetWriter(tmp_path, "train", pa.schema([("id", pa.int64())])) as writer:
        writer.write(pa.table({"id": np.random.default_rng(0).integers(0, 2**62, 1000)}))
    path = tmp_path / "train_0.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match="CRC"):
        pq.ParquetFile(path, page_checksum_verification=True).read()


def test_a_part_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    events = []
    replace, sync = os.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (events.append(os.fstat(file).st_ino), sync(file)))
    monkeypatch.setattr(os, "replace", lambda source, target: (events.append(target.name), replace(source, target)))
    with DatasetWriter(tmp_path, "train", SCHEMA, 5) as writer:
        writer.write(rows(0, 10))
    for name in writer.chunk.files:
        assert events.index((tmp_path / name).stat().st_ino) < events.index(name)


def test_nothing_is_left_when_writing_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_writer, "ROWS_PER_ROW_GROUP", 4)
    with pytest.raises(KeyboardInterrupt), DatasetWriter(tmp_path, "train", SCHEMA, 10) as writer:
        writer.write(rows(0, 25))
        assert len(names(tmp_path)) == 3
        raise KeyboardInterrupt
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"id": [1], "x": [1.0]}), r"test: columns \['ids'\] are missing; found \['id', 'x'\]"),
        (pd.DataFrame({"id": [1], "x": [1.0]}), r"test: columns \['ids'\] are missing"),
        (pa.table({"id": [2**40], "ids": [[1]], "x": [1.0]}), "test: rows do not fit the specification's types"),
        (pa.table({"id": ["a"], "ids": [[1]], "x": [1.0]}), "test: rows do not fit the specification's types"),
        (pd.DataFrame({"id": [1.5], "ids": [[1]], "x": [1.0]}), "test: rows do not fit the specification's types"),
        (pd.DataFrame({"id": [1], "ids": [3], "x": [1.0]}), "test: rows do not fit the specification's types"),
        (rows(0, 0), "test: no rows to write"),
    ],
)
def test_rows_that_do_not_fit(tmp_path, table, message):
    with pytest.raises(DataError, match=message), DatasetWriter(tmp_path, "test", SCHEMA) as writer:
        writer.write(table)
    assert names(tmp_path) == []


def write_draft(draft):
    with DatasetWriter(draft, "train", SCHEMA, 10) as writer:
        writer.write(rows(0, 25))
    (draft / "vocabulary").mkdir()
    (draft / "vocabulary" / "user.txt").write_text("a\n")
    (draft / SPEC_FILE).write_text("feature_spec: {}\n")


WRITTEN = [SPEC_FILE, "train_0.parquet", "train_1.parquet", "train_2.parquet", "vocabulary", "vocabulary/user.txt"]


def test_a_dataset_appears_with_its_specification_last(tmp_path, monkeypatch):
    order = []
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda source, target: (order.append(target.name), rename(source, target)))
    with new_dataset(tmp_path / "deep" / "out") as draft:
        write_draft(draft)
        assert [name for name in names(tmp_path / "deep" / "out") if "/" not in name] == [draft.name]
    assert names(tmp_path / "deep" / "out") == WRITTEN
    assert order[-1] == SPEC_FILE


def test_a_failure_leaves_the_output_folder_as_it_was(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "README").write_text("mine")
    for folder in (tmp_path / "there", tmp_path / "not" / "there"):
        with pytest.raises(RuntimeError), new_dataset(folder) as draft:
            write_draft(draft)
            raise RuntimeError
    assert names(tmp_path) == ["there", "there/README"]


@pytest.mark.parametrize("failing", [0, 2, 4])
def test_failed_rename_is_undone(tmp_path, monkeypatch, failing):
    rename, calls = os.rename, []

    def fail_once(source, target):
        calls.append(target)
        if len(calls) == failing + 1:
            raise OSError("disk")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_once)
    with pytest.raises(OSError, match="disk"), new_dataset(tmp_path / "out") as draft:
        write_draft(draft)
    assert names(tmp_path) == []


@pytest.mark.parametrize("text", ["[1]", "3", "null", '{"a": 1}', "[" * 200_000, '["../x"]'])
def test_a_killed_run_that_names_no_files_moved_none(tmp_path, text):
    (tmp_path / MOVING_FILE).write_text(text)
    assert _moving(tmp_path) == []


def test_killed_run(tmp_path):
    child = os.fork()
    if child == 0:
        with new_dataset(tmp_path / "out") as draft:
            (draft / "train_0.parquet").write_text("")
            (draft / SPEC_FILE).write_text("")
            os._exit(9)
    os.waitpid(child, 0)
    assert not (tmp_path / "out" / SPEC_FILE).exists()
    assert list((tmp_path / "out").glob("*.parquet")) == []
    assert len(list((tmp_path / "out").glob(f"{UNFINISHED}*"))) == 1
    with new_dataset(tmp_path / "out") as draft:
        write_draft(draft)
    assert names(tmp_path / "out") == WRITTEN


@pytest.mark.parametrize("calls_before", range(5))  # three parts, the vocabulary, the specification
def test_run_killed_while_moving(tmp_path, calls_before):
    child = os.fork()
    if child == 0:
        rename, calls = os.rename, []

        def die(source, target):
            if len(calls) == calls_before:
                os._exit(9)
            calls.append(target)
            rename(source, target)

        os.rename = die
        with new_dataset(tmp_path / "out") as draft:
            write_draft(draft)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not (tmp_path / "out" / SPEC_FILE).exists()
    with new_dataset(tmp_path / "out") as draft:
        write_draft(draft)
    assert names(tmp_path / "out") == WRITTEN


def test_second_run_into_the_same_folder(tmp_path):
    with new_dataset(tmp_path / "out") as draft:
        with pytest.raises(DataError, match="another run is writing here"), new_dataset(tmp_path / "out"):
            pytest.fail("was entered")
        write_draft(draft)
    assert names(tmp_path / "out") == WRITTEN


@pytest.mark.parametrize(
    ("existing", "message"),
    [
        ("out/feature_spec.yaml", r"out: already contains a dataset \(feature_spec.yaml\); choose another folder"),
        ("out/old.parquet", r"out: already contains 1 parquet files \(old.parquet"),
        ("out", "out: is a file, the output must be a folder"),
    ],
)
def test_dataset_is_never_overwritten(tmp_path, existing, message):
    path = tmp_path / existing
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(DataError, match=message), new_dataset(tmp_path / "out"):
        pytest.fail("was entered")
    assert path.read_text() == "mine"


def test_a_draft_without_specification_is_not_kept(tmp_path):
    with pytest.raises(DataError, match="lost its feature_spec.yaml"), new_dataset(tmp_path / "out") as draft:
        (draft / "part.parquet").write_text("")
    assert names(tmp_path) == []


def test_an_output_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DataError, match=r"file/out: cannot write here \(Not a directory\)"),
        new_dataset(tmp_path / "file" / "out"),
    ):
        pytest.fail("was entered")
