import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import check_dataset
from data.checks import dataset as dataset_check
from data.checks.dataset import MappingSummary, check_mapping
from data.files.random_rows import random_tables
from data.spec.feature_spec import FeatureSpec
from tests.data.csv_documents import FEATURES, GOOD_LINE, chunk, document, write_csv_dataset

NAMES = list(FEATURES)
ROWS = 40


def parquet_chunk(features, files):
    return chunk(features, files) | {"type": "parquet"}


@pytest.fixture
def good(tmp_path):
    """A sound dataset: two parts of 40 rows in row groups of 16 for train, one part for test."""
    sources = {
        "train": [parquet_chunk(NAMES, ["train_0.parquet", "train_1.parquet"])],
        "test": [parquet_chunk(NAMES, ["test_0.parquet"])],
    }
    spec = FeatureSpec.read(write_csv_dataset(tmp_path, {}, document(sources)))
    for seed, path in enumerate([*spec.files("train"), *spec.files("test")]):
        (rows,) = random_tables(spec, "train", ROWS, seed=seed)
        write(rows, path)
    return spec


def write(rows, path):
    pq.write_table(rows, path, row_group_size=16, write_page_checksum=True)


def change(path, name, values, stored=None):
    """Puts other values into a column of a file, {row: value}, or gives it another type."""
    rows = pq.read_table(path)
    index = rows.schema.get_field_index(name)
    cells = rows.column(name).to_pylist()
    for row, value in values.items():
        cells[row] = value
    write(rows.set_column(index, name, pa.array(cells, stored or rows.schema.field(name).type)), path)


def findings(spec, mapping="train"):
    return list(check_mapping(spec, mapping, MappingSummary()))


def run(spec, *flags):
    return check_dataset.main([str(spec.folder), *map(str, flags)])


def test_a_sound_dataset_has_no_finding(good, capsys):
    assert run(good) == 0
    output = capsys.readouterr().out
    assert "train: 80 rows in 2 files" in output
    assert "test: 40 rows in 1 files" in output
    assert output.splitlines()[-1].startswith("no findings")


def test_values_that_float16_cannot_hold_are_a_warning(tmp_path, capsys):
    features = {
        "age": {"dtype": "float64"},
        "seconds": {"dtype": "int64"},
        "spend": {"task": "regression"},
        "click": {},
    }
    sources = {name: [parquet_chunk(list(features), [f"{name}.parquet"])] for name in ("train", "test")}
    channels = {"numerical": ["age", "seconds"], "label": ["spend", "click"]}
    changed = document(sources) | {"feature_spec": features, "channel_spec": channels}
    spec = FeatureSpec.read(write_csv_dataset(tmp_path, {}, changed))
    usual = {"age": [65504.0] * 40, "seconds": [1] * 40, "spend": [0.5] * 39 + [1.0], "click": [0.0, 1.0] * 20}
    for path in [*spec.files("train"), *spec.files("test")]:
        write(pa.table(usual), path)
    path = spec.files("train")[0]
    change(path, "age", {20: -65_505.0, 33: 1e6})
    change(path, "seconds", {0: 1_600_000_000})
    change(path, "spend", {39: 70_000.0})
    assert run(spec) == 0
    output = capsys.readouterr().out
    expected = {
        "age": ("row group 1", "in 2 rows (20, ...); found '1e+06'"),
        "seconds": ("row group 0", "in 1 rows (0); found '1.6e+09'"),
        "spend": ("row group 2", "in 1 rows (39); found '70000'"),
    }
    for column, (group, where) in expected.items():
        line = f"warning: train, {column}, first in {path}, {group}: value beyond float16's 65,504; {where}"
        assert line in output
    assert output.count("warning: ") == 3 and "--amp_dtype float16" in output


def test_summary_of_a_binary_label(good, capsys):
    rows = pa.concat_tables([pq.read_table(path) for path in good.files("train")])
    clicked, bought = rows.column("clicked").to_numpy(), rows.column("bought").drop_null().to_numpy()
    assert len(bought) < 80
    run(good)
    line = capsys.readouterr().out.splitlines()[0]
    assert f"clicked: {100 * clicked.mean():.4g}% positive of 80" in line
    assert f"bought: {100 * bought.mean():.4g}% positive of {len(bought)}" in line


def test_summary_of_a_multiclass_label(tmp_path, capsys):
    features = {"x": {}, "kind": {"task": "multiclass", "cardinality": 5, "missing": "ignore"}}
    sources = {name: [parquet_chunk(list(features), [f"{name}.parquet"])] for name in ("train", "test")}
    channels = {"numerical": ["x"], "label": ["kind"]}
    spec = FeatureSpec.from_dict({"feature_spec": features, "source_spec": sources, "channel_spec": channels}, tmp_path)
    for kinds, name in (([2, 0, 2, None, 4, 2, 0, 7, 1.5], "train"), ([1, 0], "test")):
        columns = {"x": np.zeros(len(kinds), np.float32), "kind": pa.array(kinds, pa.float32())}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    (tmp_path / "feature_spec.yaml").write_text(yaml.safe_dump(spec.to_dict()))
    assert run(spec) == 1
    output = capsys.readouterr().out
    assert "kind: 3 of 5 classes, most often 2 (50%), least often 4 (16.67%), of 6" in output
    assert "label value; in 2 rows (7, 8); found '7.0', '1.5'; expected a class in [0, 5) (or nothing)" in output


BAD_VALUES = [
    ("user", 50, "id out of range", "an id in [0, 50), int32"),
    ("user", -1, "id out of range", "an id in [0, 50), int32"),
    ("user", None, "missing value", "an id in [0, 50), int32"),
    ("genres", [0, 8], "id out of range", "a list of ids in [0, 8)"),
    ("genres", [-1], "id out of range", "a list of ids in [0, 8)"),
    ("genres", [1, None], "missing value", "a list of ids in [0, 8)"),
    ("genres", None, "missing value", "a list of ids in [0, 8)"),
    ("age", float("nan"), "not finite", "a finite number, float32"),
    ("price", float("-inf"), "not finite", "a finite number within the range of float32, float64"),
    ("price", 1e39, "not finite", "a finite number within the range of float32, float64"),
    ("age", None, "missing value", "a finite number, float32"),
    ("clicked", 2, "label value", "0 or 1, int8"),
    ("clicked", None, "missing value", "0 or 1, int8"),
    ("bought", 0.5, "label value", "0 or 1 (or nothing), float32"),
    ("weight", -1.0, "not a weight", "a finite number of at least 0, float32"),
    ("weight", float("inf"), "not a weight", "a finite number of at least 0, float32"),
    ("session", None, "missing value", "an integer, int64"),
]


@pytest.mark.parametrize(("name", "value", "what", "expected"), BAD_VALUES)
def test_bad_values_are_located(good, name, value, what, expected):
    path = good.files("train")[1]
    change(path, name, {17: value, 18: value, 39: value})
    assert findings(good, "test") == []
    first, second = findings(good)
    assert first.location == f"{path}, row group 1, {name}"
    assert second.location == f"{path}, row group 2, {name}"
    assert (first.what, first.count, first.rows) == (what, 2, (17, 18))
    assert (second.what, second.count, second.rows) == (what, 1, (39,))
    assert first.values == (str(value),) * 2
    assert first.expected.startswith(f"expected {expected}")
    assert not first.is_warning


@given(bad=st.sets(st.integers(0, ROWS - 1), max_size=ROWS), batch_rows=st.integers(1, 20))
@settings(max_examples=25, deadline=None)
def test_all_bad_rows_are_counted_whatever_the_batches(tmp_path_factory, bad, batch_rows):
    folder = tmp_path_factory.mktemp("dataset")
    sources = {name: [parquet_chunk(NAMES, [f"{name}.parquet"])] for name in ("train", "test")}
    spec = FeatureSpec.read(write_csv_dataset(folder, {}, document(sources)))
    (rows,) = random_tables(spec, "train", ROWS)
    path = folder / "train.parquet"
    write(rows, path)
    change(path, "genres", dict.fromkeys(bad, [3, 99]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset_check, "ROWS_PER_ROW_GROUP", batch_rows)
        found = [finding for finding in findings(spec) if finding.what == "id out of range"]
    assert sum(finding.count for finding in found) == len(bad)
    for finding in found:
        group = int(finding.location.split("row group ")[1].split(",")[0])
        in_group = sorted(row for row in bad if row // 16 == group)
        assert finding.count == len(in_group)
        assert finding.rows == tuple(in_group[:5])


@pytest.mark.parametrize(
    ("name", "stored", "value", "found"),
    [
        ("user", pa.string(), "1", "string"),
        ("genres", pa.int32(), 1, "int32"),
        ("genres", pa.list_(pa.string()), ["1"], "list<element: string>"),
        ("age", pa.string(), "1", "string"),
        ("age", pa.list_(pa.float32()), [1.0], "list<element: float>"),
        ("age", pa.bool_(), True, "bool"),
        ("session", pa.float64(), 1.0, "double"),
    ],
)
def test_column_type_against_the_channel(good, name, stored, value, found):
    path = good.files("test")[0]
    change(path, name, dict.fromkeys(range(ROWS), value), stored)
    (finding,) = [finding for finding in findings(good, "test") if not finding.is_warning]
    assert (finding.what, finding.location, finding.values) == ("column type", f"{path}, {name}", (found,))


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("user", pa.int64()),
        ("user", pa.float64()),
        ("age", pa.float64()),
        ("genres", pa.list_(pa.int64())),
        ("clicked", pa.float32()),
    ],
)
def test_a_column_type_other_than_declared_is_a_warning(good, name, stored):
    path = good.files("test")[0]
    change(path, name, {}, stored)
    (finding,) = findings(good, "test")
    assert (finding.what, finding.is_warning) == ("column type", True)
    assert finding.expected == f"declared as {FEATURES[name]['dtype']}"


@pytest.mark.parametrize(
    ("name", "stored", "value"),
    [
        ("genres", pa.large_list(pa.int16()), [1]),
        ("genres", pa.list_(pa.int16(), 2), [1, 2]),
        ("weight", pa.int64(), 1),
        ("note", pa.int8(), 1),
    ],
)
def test_columns_may_be_stored_in_any_type_that_fits(good, name, stored, value):
    change(good.files("test")[0], name, dict.fromkeys(range(ROWS), value), stored)
    assert findings(good, "test") == []


def test_missing_column_among_others(good):
    path = good.files("test")[0]
    change(path, "user", {3: 77})
    write(pq.read_table(path).drop_columns(["age"]), path)
    missing, out_of_range = findings(good, "test")
    assert (missing.what, missing.location) == ("missing column", f"{path}, age")
    assert (out_of_range.what, out_of_range.rows) == ("id out of range", (3,))


def test_file_without_any_of_the_columns(good):
    pq.write_table(pa.table({"other": [1, 2]}), good.files("test")[0])
    assert [finding.what for finding in findings(good, "test")] == ["missing column"] * len(NAMES)


def test_long_lists_are_a_warning(good, capsys):
    change(good.files("test")[0], "genres", {5: [1, 2, 3, 4]})
    (finding,) = findings(good, "test")
    assert (finding.what, finding.rows, finding.is_warning) == ("list longer than max_hotness 3", (5,), True)
    assert run(good) == 0
    assert "findings: list longer than max_hotness 3 (warning): 1" in capsys.readouterr().out


@pytest.mark.parametrize("value", [0, 1])
def test_a_label_with_one_class_only_is_warned_of(good, value):
    change(good.files("test")[0], "clicked", dict.fromkeys(range(ROWS), value))
    change(good.files("test")[0], "bought", {0: 0, 1: 1})
    (finding,) = findings(good, "test")
    assert (finding.what, finding.location, finding.values) == (
        "label with one class only",
        "test, clicked",
        (str(value),),
    )
    assert finding.is_warning


def test_missing_and_unreadable_files(good, capsys):
    first, second = good.files("train")
    first.unlink()
    second.write_bytes(second.read_bytes()[:-20])
    assert [(finding.what, finding.location) for finding in findings(good)] == [
        ("missing file", str(first)),
        ("unreadable file", str(second)),
    ]
    assert run(good) == 1
    assert "test: 40 rows in 1 files" in capsys.readouterr().out


def test_no_flipped_bit_changes_a_value_unnoticed(good):
    path = good.files("test")[0]
    content, rows = path.read_bytes(), pq.read_table(path)
    noticed = 0
    for position in np.random.default_rng(0).integers(0, len(content), 60):
        flipped = bytearray(content)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        if any(not finding.is_warning for finding in findings(good, "test")):
            noticed += 1
        else:  # in a page's header, whose statistics nobody reads
            assert pq.ParquetFile(path).read().equals(rows)
    assert noticed > 20


def test_files_and_mappings_without_rows_are_found(good):
    for path in good.files("train"):
        write(pq.read_table(path).slice(0, 0), path)
    empty, also_empty, mapping = findings(good)
    assert (empty.what, empty.is_warning) == (also_empty.what, also_empty.is_warning) == ("file without rows", True)
    assert (mapping.what, mapping.is_warning) == ("mapping without rows", False)


def test_column_groups_of_unequal_rows_are_found(tmp_path):
    chunks = [parquet_chunk(NAMES[:4], ["a.parquet"]), parquet_chunk(NAMES[4:], ["b.parquet"])]
    spec = FeatureSpec.read(write_csv_dataset(tmp_path, {}, document({"train": chunks, "test": chunks})))
    (rows,) = random_tables(spec, "train", ROWS)
    write(rows.select(NAMES[:4]), tmp_path / "a.parquet")
    write(rows.select(NAMES[4:]).slice(1), tmp_path / "b.parquet")
    (finding,) = findings(spec)
    assert finding.what == "column groups differ in rows"
    assert finding.values == ("a.parquet, ...: 40", "b.parquet, ...: 39")


def test_mapping_without_the_map_feature(tmp_path):
    without = [name for name in NAMES if name != "session"]
    sources = {
        "train": [chunk(without, ["a.csv"])],
        "test": [chunk(without, ["b.csv"])],
        "valid": [chunk(NAMES, ["c.csv"])],
    }
    line = GOOD_LINE.rpartition(",")[0] + "\n" + "0,0" + GOOD_LINE.rpartition(",")[0][2:] + "\n"
    line += GOOD_LINE.rpartition(",")[0].replace("1,,", "1,1,") + "\n"
    files = {"a.csv": line, "b.csv": line, "c.csv": GOOD_LINE}
    spec = FeatureSpec.read(write_csv_dataset(tmp_path, files, document(sources)))
    assert findings(spec) == []
    (finding,) = findings(spec, "test")
    assert finding.what == "map feature 'session' is missing"
    assert finding.is_warning


def test_csv_datasets_are_checked_line_by_line(tmp_path, capsys):
    bad = GOOD_LINE.replace(",49,", ",50,")
    lines = [GOOD_LINE, bad, GOOD_LINE + ",1", bad, GOOD_LINE.replace("0.5", "half"), GOOD_LINE]
    files = {"train.csv": "\n".join(lines), "test.csv": b""}
    spec = FeatureSpec.read(write_csv_dataset(tmp_path, files, document()))
    errors = {finding.what: finding for finding in findings(spec) if not finding.is_warning}
    path = str(tmp_path / "train.csv")
    assert {what: (found.location, found.count, found.rows) for what, found in errors.items()} == {
        "id out of range": (f"{path}, user", 2, (2, 4)),
        "line that cannot be read": (path, 1, (3,)),
        "cell that cannot be read": (f"{path}, age", 1, (5,)),
    }
    assert {finding.what for finding in findings(spec, "test")} == {"file without rows", "mapping without rows"}
    assert run(spec) == 1
    output = capsys.readouterr().out
    assert f"error: {path}, user: id out of range; in 2 lines (2, 4); found '50', '50'; expected an id in" in output


def test_findings_beyond_the_limit_are_counted(good, capsys):
    change(good.files("train")[0], "user", dict.fromkeys(range(ROWS), 99))
    change(good.files("train")[1], "age", {0: None})
    assert run(good, "--max_findings", 2) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 2
    assert lines[0].endswith("in 16 rows (0, 1, 2, 3, 4, ...); found '99', '99', '99', '99', '99', ...; "
                             "expected an id in [0, 50), int32")  # fmt: skip
    assert "... and 2 more findings (--max_findings shows them)" in lines
    assert lines[-1] == "findings: id out of range: 3, missing value: 1"


def test_a_wrong_specification_ends_with_exit_code_2(tmp_path, capsys):
    assert check_dataset.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"check_dataset: {tmp_path / 'feature_spec.yaml'}: no such file")
    write_csv_dataset(tmp_path, {}, document() | {"channel_spec": {}})
    assert check_dataset.main([str(tmp_path)]) == 2
    assert "channel_spec" in capsys.readouterr().err
    with pytest.raises(SystemExit) as error:
        check_dataset.main([])
    assert error.value.code == 2


def test_the_specification_may_have_another_name(good, capsys):
    (good.folder / "feature_spec.yaml").rename(good.folder / "mine.yaml")
    assert run(good, "--fspec_file", "mine.yaml") == 0
