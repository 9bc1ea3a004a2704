import csv
import io
import math
import os
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import transcode as command
from data.errors import DataError
from data.files import csv as csv_reader
from data.files import parquet as parquet_writer
from data.files.parquet import DatasetWriter
from data.files.transcode import transcode
from data.spec.feature_spec import FeatureSpec
from tests.data.csv_documents import FEATURES, GOOD_LINE, chunk, document, write_csv_dataset

NAMES = list(FEATURES)


@pytest.fixture(autouse=True, scope="module")
def without_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def silent(line):
    pass


def convert(spec_path, output, *, rows_per_file=65536, min_files=1, report=silent):
    return transcode(spec_path, output, rows_per_file=rows_per_file, min_files=min_files, report=report)


def read_rows(spec, mapping):
    """The rows of a dataset as dictionaries, parts in order, read without our reader."""
    return [row for path in spec.files(mapping) for row in pq.read_table(path).to_pylist()]


def as_csv(rows, names):
    """Rows as Python's csv module writes them, a list as Python prints it.

    A first cell that begins with a byte order mark would pass for the file's own, so the file gets one of its own then.
    """
    text = io.StringIO()
    cells = (["" if row[name] is None else str(row[name]) for name in names] for row in rows)
    csv.writer(text, lineterminator="\n").writerows(cells)
    content = text.getvalue()
    return "\ufeff" + content if content.startswith("\ufeff") else content


def float32s(**limits):
    return st.floats(width=32, allow_nan=False, allow_infinity=False, **limits).map(float)


def rows_strategy(min_size=1):
    row = st.fixed_dictionaries(
        {
            "clicked": st.integers(0, 1),
            "bought": st.sampled_from([None, 0.0, 1.0]),
            "user": st.integers(0, 49),
            "genres": st.lists(st.integers(0, 7), max_size=5),
            "age": float32s(),
            "price": st.floats(-3.4e38, 3.4e38),
            "weight": float32s(min_value=0),
            "note": st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=8),
            "session": st.integers(-(2**63), 2**63 - 1),
        }
    )
    return st.lists(row, min_size=min_size, max_size=12)


@given(train=rows_strategy(), test=rows_strategy(), rows_per_file=st.integers(1, 5), min_files=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_rows_written_as_csv_come_back_from_parquet(tmp_path_factory, train, test, rows_per_file, min_files):
    folder = tmp_path_factory.mktemp("dataset")
    path = write_csv_dataset(folder, {"train.csv": as_csv(train, NAMES), "test.csv": as_csv(test, NAMES)}, document())
    spec = convert(path, folder / "out", rows_per_file=rows_per_file, min_files=min_files)
    assert read_rows(spec, "train") == train
    assert read_rows(spec, "test") == test
    for mapping, rows in (("train", train), ("test", test)):
        counts = [pq.read_metadata(part).num_rows for part in spec.files(mapping)]
        assert max(counts) <= rows_per_file
        assert len(counts) >= min(min_files, len(rows))


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_column_groups_are_joined(tmp_path_factory, data):
    rows = data.draw(rows_strategy(min_size=4))
    groups = [["bought", "user"], ["genres"], ["session", "age", "price"], ["note", "weight", "clicked"]]
    files, chunks = {}, []
    for group, names in enumerate(groups):
        cuts = sorted(data.draw(st.sets(st.integers(1, len(rows) - 1), max_size=2)))
        bounds = [0, *cuts, len(rows)]
        parts = {f"{group}_{part}.csv": as_csv(rows[a:b], names) for part, (a, b) in enumerate(pairwise(bounds))}
        files |= parts
        chunks.append(chunk(names, list(parts)))
    folder = tmp_path_factory.mktemp("dataset")
    path = write_csv_dataset(folder, files, document({"train": chunks, "test": chunks}))
    spec = convert(path, folder / "out")
    for mapping in ("train", "test"):
        assert read_rows(spec, mapping) == rows
        assert spec.chunks(mapping)[0].features == tuple(name for names in groups for name in names)


@pytest.mark.parametrize("note", ["", "a", "\ufeff", "\ufeffa"])
def test_a_byte_order_mark_belongs_to_the_file_only_at_its_start(tmp_path, note):
    names = ["note", *(name for name in NAMES if name != "note")]
    row = {"clicked": 1, "bought": None, "user": 3, "genres": [], "age": 0.5, "price": 0.25, "weight": 1.0,
           "note": note, "session": 4}  # fmt: skip
    content = as_csv([row, row], names)
    chunks = [chunk(names, ["0.csv"])]
    path = write_csv_dataset(tmp_path, {"0.csv": content}, document({"train": chunks, "test": chunks}))
    assert read_rows(convert(path, tmp_path / "out"), "train") == [row, row]


def test_unequal_blocks_stay_aligned(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_reader, "BLOCK_BYTES", 100)
    groups = [["user"], [name for name in NAMES if name != "user"]]
    rows = [
        {"clicked": 1, "bought": None, "user": n % 50, "genres": [n % 8] * (n % 3), "age": n / 2, "price": 0.25,
         "weight": 1.0, "note": f"row {n}", "session": n} for n in range(300)
    ]  # fmt: skip
    files = {f"{index}.csv": as_csv(rows, names) for index, names in enumerate(groups)}
    chunks = [chunk(names, [f"{index}.csv"]) for index, names in enumerate(groups)]
    path = write_csv_dataset(tmp_path, files, document({"train": chunks, "test": chunks}))
    assert read_rows(convert(path, tmp_path / "out"), "train") == rows


def dataset(folder, train, test=GOOD_LINE + "\n"):
    return write_csv_dataset(folder, {"train.csv": train, "test.csv": test}, document())


def test_everything_else_is_kept(tmp_path):
    path = dataset(tmp_path, GOOD_LINE)
    (tmp_path / "embedding_sizes.json").write_text('{"user": 7}')
    spec = convert(path, tmp_path / "out")
    old = FeatureSpec.read(path)
    assert (spec.features, spec.channels, spec.metadata) == (old.features, old.channels, old.metadata)
    assert yaml.safe_load((tmp_path / "out" / "feature_spec.yaml").read_text())["source_spec"] == {
        mapping: [{"type": "parquet", "features": NAMES, "files": [f"{mapping}_0.parquet"]}]
        for mapping in ("train", "test")
    }
    assert (tmp_path / "out" / "embedding_sizes.json").read_text() == '{"user": 7}'


def changed(**cells):
    """The good line with other cells, as text."""
    values = dict(zip(NAMES, next(csv.reader([GOOD_LINE])), strict=True)) | cells
    return as_csv([values], NAMES)


BAD_CELLS = [
    ("clicked", "2", "0 or 1, int8"),
    ("clicked", "300", "0 or 1, int8"),
    ("clicked", "0.5", "0 or 1, int8"),
    ("clicked", "", "0 or 1, int8"),
    ("bought", "0.5", "0 or 1 (or nothing), float32"),
    ("user", "50", "an id in [0, 50), int32"),
    ("user", "-1", "an id in [0, 50), int32"),
    ("user", "7.5", "an id in [0, 50), int32"),
    ("user", "seven", "an id in [0, 50), int32"),
    ("user", "0x1F", "an id in [0, 50), int32"),
    ("user", "1_0", "an id in [0, 50), int32"),
    ("user", "99999999999999999999", "an id in [0, 50), int32"),
    ("user", "", "an id in [0, 50), int32"),
    ("genres", "[1, x, 3]", "a list of ids in [0, 8)"),
    ("genres", "[1, 2", "a list of ids in [0, 8)"),
    ("genres", "[1 2]", "a list of ids in [0, 8)"),
    ("genres", "[1,, 2]", "a list of ids in [0, 8)"),
    ("genres", "[1.01]", "a list of ids in [0, 8)"),
    ("genres", "[8]", "a list of ids in [0, 8)"),
    ("genres", "[-1]", "a list of ids in [0, 8)"),
    ("genres", "5", "a list of ids in [0, 8)"),
    ("genres", "", "a list of ids in [0, 8)"),
    ("age", "nan", "a finite number, float32"),
    ("age", "-inf", "a finite number, float32"),
    ("age", "", "a finite number, float32"),
    ("price", "1e39", "a finite number within the range of float32, float64"),
    ("age", "12 years", "a finite number, float32"),
    ("age", "1;5", "a finite number, float32"),
    ("weight", "-0.5", "a finite number of at least 0, float32"),
    ("session", "1.5", "an integer, int64"),
    ("session", "", "an integer, int64"),
]


@pytest.mark.parametrize(("name", "text", "expected"), BAD_CELLS)
def test_bad_cell(tmp_path, name, text, expected):
    lines = GOOD_LINE + "\n" + GOOD_LINE + "\n" + changed(**{name: text}) + changed(**{name: text})
    path = dataset(tmp_path, lines)
    with pytest.raises(DataError) as error:
        convert(path, tmp_path / "out")
    message = str(error.value)
    position = NAMES.index(name) + 1
    assert message.startswith(f"{tmp_path / 'train.csv'}, line 3, column {position} ({name}): ")
    assert expected in message
    found = {"": "None", "[8]": "[8]", "1e39": "1e+39"}.get(text, text)
    assert found in message
    assert not (tmp_path / "out").exists()


BAD_LINES = [
    (GOOD_LINE + ",1", "9 cells, found 10"),
    (GOOD_LINE.rpartition(",")[0], "9 cells, found 8"),
    (GOOD_LINE.replace('"', ""), 'found 10 (a list is one cell and needs quotes: "[1, 2]")'),
    ("", "9 cells, found 0"),
    (GOOD_LINE.replace('7]"', "7]"), "quotes only around whole cells"),
    (GOOD_LINE.replace('"[0', ' "[0'), "quotes only around whole cells"),
    (GOOD_LINE.replace("some text", 'some "text"'), "quotes only around whole cells"),
    (GOOD_LINE.replace("some", "some\rtext"), "a line without a carriage return"),
    (GOOD_LINE.encode().replace(b"some", b"s\xff"), "UTF-8 text"),
    (GOOD_LINE.encode("utf-16"), "UTF-8 text"),
]


@pytest.mark.parametrize(("line", "expected"), BAD_LINES, ids=range(len(BAD_LINES)))
def test_bad_line(tmp_path, line, expected):
    good, line = GOOD_LINE.encode(), line if isinstance(line, bytes) else line.encode()
    path = dataset(tmp_path, b"\n".join([good, good, good, line, good]))
    with pytest.raises(DataError) as error:
        convert(path, tmp_path / "out")
    assert str(error.value).startswith(f"{tmp_path / 'train.csv'}, line 4")
    assert expected in str(error.value)
    assert not (tmp_path / "out").exists()


def test_first_mistake_is_reported(tmp_path):
    path = dataset(tmp_path, changed(session="x") + changed(user="50") + changed(clicked="7"))
    with pytest.raises(DataError, match=r"line 1, column 9 \(session\)"):
        convert(path, tmp_path / "out")
    path = dataset(tmp_path, GOOD_LINE + "\n" + changed(user="50") + changed(clicked="7"))
    with pytest.raises(DataError, match=r"line 2, column 3 \(user\): id out of range: '50'"):
        convert(path, tmp_path / "out")


def test_long_cells_are_shortened_in_messages(tmp_path):
    path = dataset(tmp_path, changed(user="9" * 5000))
    with pytest.raises(DataError) as error:
        convert(path, tmp_path / "out")
    assert "999..." in str(error.value)
    assert len(str(error.value)) < 400


def test_missing_labels(tmp_path):
    path = dataset(tmp_path, changed(bought="") + changed(bought="NaN") + changed(bought="1"))
    first, second, third = (row["bought"] for row in read_rows(convert(path, tmp_path / "out"), "train"))
    assert first is None
    assert math.isnan(second)
    assert third == 1.0


def test_an_empty_list_is_no_missing_value(tmp_path):
    path = dataset(tmp_path, changed(genres="[]") + changed(genres=" [ ] "))
    assert [row["genres"] for row in read_rows(convert(path, tmp_path / "out"), "train")] == [[], []]


def test_long_lists_are_kept_with_a_warning(tmp_path):
    path = dataset(tmp_path, GOOD_LINE + "\n" + changed(genres="[0, 1, 2, 3]") + changed(genres="[7, 6, 5, 4, 3]"))
    lines = []
    spec = convert(path, tmp_path / "out", report=lines.append)
    assert [row["genres"] for row in read_rows(spec, "train")] == [[0, 7], [0, 1, 2, 3], [7, 6, 5, 4, 3]]
    (warning,) = [line for line in lines if "warning" in line]
    assert "genres: list longer than max_hotness 3 in 2 rows" in warning
    assert "train.csv, line 2" in warning


def test_column_groups_of_unequal_rows(tmp_path):
    groups = [NAMES[:3], NAMES[3:]]
    chunks = [chunk(groups[0], ["a.csv", "b.csv"]), chunk(groups[1], ["c.csv"])]
    first, second = "1,,49\n", '"[0]",0.5,1,2,text,7\n'
    path = write_csv_dataset(
        tmp_path,
        {"a.csv": first * 3, "b.csv": first * 2, "c.csv": second * 4},
        document({"train": chunks, "test": chunks}),
    )
    with pytest.raises(DataError, match=r"'train' differ in rows \(a.csv, b.csv: 5; c.csv: 4\)"):
        convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_an_empty_file_is_rejected(tmp_path, content):
    path = dataset(tmp_path, GOOD_LINE, test=content)
    with pytest.raises(DataError, match=r"test\.csv: is empty"):
        convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_named(tmp_path):
    path = dataset(tmp_path, GOOD_LINE)
    (tmp_path / "test.csv").unlink()
    with pytest.raises(DataError, match=r"test\.csv: no such file; see `files` in source_spec"):
        convert(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("rows", "chunk_size", "minimum", "parts"),
    [(24, 3, 8, 8), (24, 10, 8, 8), (25, 10, 8, 9), (5, 10, 8, 5), (24, 2, 8, 12), (10, 4, 1, 3)],
)
def test_minimum_number_of_files(tmp_path, rows, chunk_size, minimum, parts):
    path = dataset(tmp_path, (GOOD_LINE + "\n") * rows)
    lines = []
    spec = convert(path, tmp_path / "out", rows_per_file=chunk_size, min_files=minimum, report=lines.append)
    assert len(spec.files("train")) == parts
    lowered = [line for line in lines if line.startswith("train: ") and "instead of" in line]
    assert bool(lowered) == (-(-rows // chunk_size) < minimum)


def test_a_dataset_in_the_output_folder_is_left_alone(tmp_path):
    path = dataset(tmp_path, GOOD_LINE)
    convert(path, tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    with pytest.raises(DataError, match="already contains a dataset"):
        convert(path, tmp_path / "out")
    with pytest.raises(DataError, match="already contains a dataset"):
        convert(path, tmp_path)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("stage", ["write", "_finish", "_close_file"])
def test_stopping_at_any_stage_leaves_no_dataset(tmp_path, monkeypatch, stage):
    monkeypatch.setattr(parquet_writer, "ROWS_PER_ROW_GROUP", 2)
    path = dataset(tmp_path, (GOOD_LINE + "\n") * 9)
    original, calls = getattr(DatasetWriter, stage), []

    def stop_at_the_second_call(self, *args):
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(DatasetWriter, stage, stop_at_the_second_call)
    with pytest.raises(KeyboardInterrupt):
        convert(path, tmp_path / "out", rows_per_file=4)
    assert not (tmp_path / "out").exists()


def test_a_parquet_dataset_is_not_transcoded(tmp_path):
    spec = convert(dataset(tmp_path, GOOD_LINE), tmp_path / "out")
    with pytest.raises(DataError, match=r"source_spec.train\[0\] has type parquet; only csv is transcoded"):
        convert(spec.folder / "feature_spec.yaml", tmp_path / "again")


MUTATIONS = st.lists(
    st.tuples(st.integers(0, 10**6), st.sampled_from(["set", "insert", "delete"]), st.binary(min_size=1, max_size=3)),
    min_size=1,
    max_size=4,
)


@given(mutations=MUTATIONS, likely=st.booleans())
@settings(max_examples=100, deadline=None)
def test_mutated_csv_files(tmp_path_factory, mutations, likely):
    content = bytearray(changed(note="") * 3 + changed(genres="[]") * 3, "utf-8")
    for place, what, piece in mutations:
        at = place % (len(content) + 1)
        piece = bytes(b'",\n\r[] 0-.ex\x00'[byte % 13] for byte in piece) if likely else piece
        content[at : at + (0 if what == "insert" else len(piece))] = b"" if what == "delete" else piece
    folder = tmp_path_factory.mktemp("fuzz")
    path = dataset(folder, bytes(content))
    try:
        spec = convert(path, folder / "out")
    except DataError as error:
        assert str(folder) in str(error)
        assert not (folder / "out").exists()
    else:
        rows = read_rows(spec, "train")
        assert len(rows) == len(bytes(content).removesuffix(b"\n").split(b"\n"))
        assert all(0 <= row["user"] < 50 and math.isfinite(row["age"]) and row["clicked"] in (0, 1) for row in rows)


def test_the_command_takes_the_public_flags(tmp_path, capsys):
    path = dataset(tmp_path / "in", (GOOD_LINE + "\n") * 20)
    path.rename(tmp_path / "in" / "mine.yaml")
    flags = ["--input", tmp_path / "in", "--feature_spec_in", "mine.yaml", "--output", tmp_path / "out"]
    flags += ["--feature_spec_out", "theirs.yaml", "--chunk_size", 5, "--minimum_partition_number", 2]
    assert command.main([str(flag) for flag in flags]) == 0
    spec = FeatureSpec.read(tmp_path / "out" / "theirs.yaml")
    assert len(spec.files("train")) == 4
    assert len(read_rows(spec, "train")) == 20
    output = capsys.readouterr()
    assert output.out == ""
    assert "transcode: train: 20 rows in 4 files" in output.err


def test_a_mistake_is_one_message_and_exit_code_2(tmp_path, capsys):
    dataset(tmp_path, GOOD_LINE + "\n" + changed(user="50"))
    assert command.main(["--input", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.splitlines(keepends=True)[-1] == (
        f"transcode: {tmp_path / 'train.csv'}, line 2, column 3 (user): id out of range: '50'; "
        "expected an id in [0, 50), int32\n"
    )
    assert command.main(["--input", str(tmp_path / "nowhere"), "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"transcode: {tmp_path / 'nowhere' / 'feature_spec.yaml'}: no such file")


@pytest.mark.parametrize("flags", [["--chunk_size", "0"], ["--chunk_size", "many"], ["--feature_spec_out", "a/b.yaml"]])
def test_wrong_arguments_end_with_exit_code_2(flags, capsys):
    with pytest.raises(SystemExit) as error:
        command.main(flags)
    assert error.value.code == 2
    assert flags[0] in capsys.readouterr().err


def test_full_disk(tmp_path, monkeypatch, capsys):
    dataset(tmp_path, GOOD_LINE)

    def full(self, rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DatasetWriter, "write", full)
    assert command.main(["--input", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_extreme_ids_of_every_integer_type(tmp_path):
    for dtype in (np.int8, np.int16, np.int32, np.int64):
        name = np.dtype(dtype).name
        features = FEATURES | {"session": {"dtype": name}}
        bounds = np.iinfo(dtype)
        folder = tmp_path / name
        lines = changed(session=str(bounds.min)) + changed(session=str(bounds.max))
        path = write_csv_dataset(
            folder, {"train.csv": lines, "test.csv": lines}, document() | {"feature_spec": features}
        )
        assert [row["session"] for row in read_rows(convert(path, folder / "out"), "test")] == [bounds.min, bounds.max]
        (folder / "train.csv").write_text(changed(session=str(int(bounds.max) + 1)))
        with pytest.raises(DataError, match=rf"column 9 \(session\).*{int(bounds.max) + 1}.*{name}"):
            convert(path, folder / "too_large")


def test_whole_numbers_written_as_doubles_are_ids(tmp_path):
    path = dataset(tmp_path, GOOD_LINE + "\n" + changed(user="7.0", genres="[1.0, 2., +3.00]", session="-5.0"))
    row = read_rows(convert(path, tmp_path / "out"), "train")[1]
    assert (row["user"], row["genres"], row["session"]) == (7, [1, 2, 3], -5)


@pytest.mark.parametrize("rows", [3, 4])
def test_labels_of_type_bool_are_transcoded(rows, tmp_path):
    # The fourth row has blanks, which only the slow reader takes.
    lines = ["true,1.0", "False,2.0", "1,3.0", " 0 , 4.0"][:rows]
    specification = {
        "feature_spec": {"label": {"dtype": "bool"}, "x": {}},
        "source_spec": {name: [chunk(["label", "x"], ["rows.csv"])] for name in ("train", "test")},
        "channel_spec": {"label": ["label"], "numerical": ["x"]},
    }
    path = write_csv_dataset(tmp_path, {"rows.csv": "\n".join(lines) + "\n"}, specification)
    spec = convert(path, tmp_path / "out")
    table = pa.concat_tables([pq.read_table(file) for file in spec.files("train")])
    assert table.column("label").type == pa.bool_()
    assert table.column("label").to_pylist() == [True, False, True, False][:rows]
    (tmp_path / "rows.csv").write_text("true,1.0\n2,1.0\n")
    with pytest.raises(DataError, match=r"line 2, column 1 \(label\): cell that cannot be read: '2'; expected 0 or 1"):
        convert(path, tmp_path / "other")


def test_progress_is_reported_in_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("data.progress.SECONDS_BETWEEN_LINES", 0.0)
    path, lines = dataset(tmp_path, changed() * 4), []
    convert(path, tmp_path / "out", report=lines.append)
    assert any(line.startswith("train: 100%") and "rows/s" in line for line in lines)
    assert all(line.isprintable() for line in lines)
