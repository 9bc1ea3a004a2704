import copy
import gzip
import json
import re
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from data.outbrain import preproc, raw_tables
from data.spec.feature_spec import FeatureSpec
from tests.data.outbrain.sample_data import HEADERS, SampleTables, make_sample, write_sample
from tests.data.outbrain.test_preproc import prepared, rows
from tests.data.scalar_hash import scalar_row_hash
from tests.helpers import run_program

SAMPLE = make_sample(40, seed=4)
PROGRESS = re.compile(r"outbrain: +\d+\.\d s  ")
PLAIN = [name for name in HEADERS if name != "clicks_test"]
FIRST_CLICK = SAMPLE.tables["clicks_train"][0]


def arguments(folder: Path, output: Path, *flags: str) -> list[str]:
    return ["--data_path", str(folder), "--metadata_path", str(output), "--recipe", "published", *flags]


def refusal(capsys, folder: Path, output: Path, *flags: str) -> str:
    """The one line that tells what is wrong: no traceback, exit code 2, and nothing left in the output."""
    capsys.readouterr()
    assert preproc.main(arguments(folder, output, *flags)) == 2
    assert not output.exists()
    [line] = [line for line in capsys.readouterr().err.splitlines() if not PROGRESS.match(line)]
    assert line.startswith("outbrain: ")
    return line.removeprefix("outbrain: ")


@pytest.fixture
def sample() -> SampleTables:
    return copy.deepcopy(SAMPLE)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return write_sample(tmp_path_factory.mktemp("good"), SAMPLE)


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_sample(tmp_path / "raw", SAMPLE)


def lines_of(folder: Path, table: str) -> list[str]:
    return (folder / f"{table}.csv").read_text().splitlines()


def write_lines(folder: Path, table: str, lines: list[str]) -> None:
    (folder / f"{table}.csv").write_text("".join(line + "\n" for line in lines))


def set_cell(folder: Path, table: str, line: int, column: str, cell: str) -> None:
    lines = lines_of(folder, table)
    cells = lines[line - 1].split(",")
    cells[HEADERS[table].split(",").index(column)] = cell
    lines[line - 1] = ",".join(cells)
    write_lines(folder, table, lines)


def test_sample_data_is_valid(good, tmp_path):
    assert preproc.main(arguments(good, tmp_path / "out")) == 0
    assert len(rows(tmp_path / "out", "train")) + len(rows(tmp_path / "out", "valid")) == len(
        SAMPLE.tables["clicks_train"]
    )


def test_a_folder_that_is_not_there_is_rejected(tmp_path, capsys):
    message = refusal(capsys, tmp_path / "nowhere", tmp_path / "out")
    assert message == f"{tmp_path / 'nowhere'}: is not a folder; pass the one that holds the unpacked Outbrain tables"


@pytest.mark.parametrize("table", PLAIN)
def test_a_missing_table_is_rejected(folder, tmp_path, capsys, table):
    (folder / f"{table}.csv").unlink()
    message = refusal(capsys, folder, tmp_path / "out")
    assert message.startswith(f"{folder}: {table}.csv missing") and "Download the tables" in message


def test_all_missing_tables_are_reported(folder, tmp_path, capsys):
    for table in ("events", "documents_meta"):
        (folder / f"{table}.csv").unlink()
    assert "events.csv, documents_meta.csv missing" in refusal(capsys, folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("table", "column"), [(table, column) for table in PLAIN for column in HEADERS[table].split(",")]
)
def test_missing_or_repeated_column(folder, tmp_path, capsys, table, column):
    header, *lines = lines_of(folder, table)
    for wrong in (header.replace(column, f"{column}_", 1), f"{header},{column}"):
        write_lines(folder, table, [wrong, *lines])
        message = refusal(capsys, folder, tmp_path / "out")
        assert message.startswith(f"{folder / table}.csv, line 1: ") and f"['{column}']" in message


@pytest.mark.parametrize("table", PLAIN)
@pytest.mark.parametrize(("content", "message"), [("", "is empty"), ("header", "no rows"), ("\n\n", "is empty")])
def test_a_file_without_rows_is_rejected(folder, tmp_path, capsys, table, content, message):
    (folder / f"{table}.csv").write_text(HEADERS[table] + "\n" if content == "header" else content)
    line = refusal(capsys, folder, tmp_path / "out")
    assert line.startswith(f"{folder / table}.csv") and message in line


WHOLE_NUMBERS = [
    (table, column)
    for table in PLAIN
    for column in HEADERS[table].split(",")
    if column not in ("uuid", "geo_location", "entity_id", "confidence_level", "publish_time")
]


@pytest.mark.parametrize(("table", "column"), WHOLE_NUMBERS)
def test_non_integer_cell(folder, tmp_path, capsys, table, column):
    for line, cell in ((2, "abc"), (4, "1.5"), (3, "99999999999999999999")):
        before = lines_of(folder, table)
        set_cell(folder, table, line, column, cell)
        message = refusal(capsys, folder, tmp_path / "out")
        assert message.startswith(f"{folder / table}.csv, line {line}: ") and f"'{cell}'" in message
        write_lines(folder, table, before)


def test_a_hexadecimal_number_is_rejected(folder, tmp_path, capsys):
    set_cell(folder, "promoted_content", 3, "campaign_id", "0x1F")
    assert "line 3" in refusal(capsys, folder, tmp_path / "out")


def test_non_integer_cell_names_column_and_fix(folder, tmp_path, capsys):
    set_cell(folder, "events", 3, "timestamp", "abc")
    message = refusal(capsys, folder, tmp_path / "out")
    assert "timestamp" in message and ("correct" in message or "download" in message)


@pytest.mark.parametrize(
    ("table", "column"),
    [
        (table, column)
        for table in PLAIN
        for column in HEADERS[table].split(",")
        if column not in ("platform", "geo_location", "source_id", "publisher_id", "publish_time")
    ],
)
def test_an_empty_cell_is_rejected_where_a_value_must_be(folder, tmp_path, capsys, table, column):
    set_cell(folder, table, 3, column, "")
    message = refusal(capsys, folder, tmp_path / "out")
    assert message.startswith(f"{folder / table}.csv, line 3: {column} is missing") and "every row needs one" in message


@pytest.mark.parametrize("table", PLAIN)
@pytest.mark.parametrize(
    "change", [lambda line: f"{line},7", lambda line: line.rpartition(",")[0]], ids=["more", "less"]
)
def test_a_row_of_another_length_is_rejected_with_its_line(folder, tmp_path, capsys, table, change):
    lines = lines_of(folder, table)
    lines[4] = change(lines[4])
    write_lines(folder, table, lines)
    message = refusal(capsys, folder, tmp_path / "out")
    columns = HEADERS[table].count(",") + 1
    assert message.startswith(f"{folder / table}.csv, line 5: ") and f"Expected {columns} columns" in message


# Table, line, column, cell, and what is message beside file and line.
WRONG_CELLS = [
    ("clicks_train", 4, "clicked", "2", "clicked is 2, expected 0 or 1"),
    ("clicks_train", 4, "clicked", "-1", "clicked is -1, expected 0 or 1"),
    ("documents_meta", 3, "publish_time", "yesterday", "'yesterday'"),
    ("documents_meta", 3, "publish_time", "2016-13-01 00:00:00", "'2016-13-01 00:00:00'"),
    ("documents_topics", 3, "confidence_level", "much", "'much'"),
]


@pytest.mark.parametrize(("table", "line", "column", "cell", "expected"), WRONG_CELLS)
def test_impossible_value_names_its_line(folder, tmp_path, capsys, table, line, column, cell, expected):
    set_cell(folder, table, line, column, cell)
    message = refusal(capsys, folder, tmp_path / "out")
    assert message.startswith(f"{folder / table}.csv, line {line}: ") and expected in message


@pytest.mark.parametrize("table", ["documents_categories", "documents_topics", "documents_entities"])
@pytest.mark.parametrize("cell", ["-0.1", "nan", "NaN", "inf", "-inf"])
def test_a_confidence_that_is_no_weight_is_rejected(folder, tmp_path, capsys, table, cell):
    set_cell(folder, table, 3, "confidence_level", cell)
    message = refusal(capsys, folder, tmp_path / "out")
    assert message.startswith(f"{folder / table}.csv, line 3: confidence_level") and "correct it" in message


def test_an_ad_twice_in_a_display_is_rejected(sample, tmp_path, capsys):
    display, ad, _ = FIRST_CLICK
    sample.tables["clicks_train"].append((display, ad, 0))
    message = refusal(capsys, write_sample(tmp_path / "raw", sample), tmp_path / "out")
    assert f"ad_id {ad} twice in display_id {display}" in message and "keep one row of each" in message


def test_an_event_twice_is_rejected(sample, tmp_path, capsys):
    [event] = [row for row in sample.tables["events"] if row[0] == FIRST_CLICK[0]]
    sample.tables["events"].append(event)
    message = refusal(capsys, write_sample(tmp_path / "raw", sample), tmp_path / "out")
    assert f"events.csv: has display_id {event[0]} twice" in message and "keep one of them" in message


def test_a_display_without_event_is_rejected(sample, tmp_path, capsys):
    display = FIRST_CLICK[0]
    sample.tables["events"] = [row for row in sample.tables["events"] if row[0] != display]
    message = refusal(capsys, write_sample(tmp_path / "raw", sample), tmp_path / "out")
    assert f"events.csv: has no row for display_id {display}" in message and "download the whole table" in message


@pytest.mark.parametrize("table", ["clicks_train", "events"])
def test_repeated_row_of_clicks_or_events(sample, tmp_path, capsys, table):
    chosen = [row for row in sample.tables[table] if row[0] == FIRST_CLICK[0]]
    sample.tables[table].append(chosen[0])
    folder = write_sample(tmp_path / "raw", sample)
    assert f"{folder / table}.csv" in refusal(capsys, folder, tmp_path / "out")


@pytest.mark.parametrize(("table", "key"), [("promoted_content", "ad_id"), ("documents_meta", "document_id")])
def test_repeated_key_of_a_side_table(sample, tmp_path, capsys, table, key):
    repeated = sample.tables[table][1]
    sample.tables[table].append((repeated[0], 1, 1, None if table == "documents_meta" else 1))
    folder = write_sample(tmp_path / "raw", sample)
    message = refusal(capsys, folder, tmp_path / "out")
    last = len(sample.tables[table]) + 1
    assert message.startswith(f"{folder / table}.csv, line {last}: {key} {repeated[0]} ")
    assert "after line 3" in message and "keep one of them" in message


def test_bytes_that_are_no_text_are_rejected(folder, tmp_path, capsys):
    lines = (folder / "events.csv").read_bytes().splitlines()
    lines[2] = lines[2].rpartition(b",")[0] + b",US\xff\xfe"
    (folder / "events.csv").write_bytes(b"\n".join([*lines, b""]))
    message = refusal(capsys, folder, tmp_path / "out")
    assert message.startswith(f"{folder / 'events'}.csv") and "line" in message and "UTF8" in message


def test_a_table_in_utf_16_is_rejected(folder, tmp_path, capsys):
    (folder / "events.csv").write_bytes(lines_of(folder, "events")[0].encode("utf-16"))
    assert refusal(capsys, folder, tmp_path / "out").startswith(f"{folder / 'events'}.csv, line 1: ")


def pack(folder: Path, table: str, content: bytes, ending: str) -> Path:
    (folder / f"{table}.csv").unlink()
    path = folder / (table + ending)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("table", PLAIN)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_gzip_file_that_is_cut_short_is_rejected(folder, tmp_path, capsys, table, share):
    packed = gzip.compress((folder / f"{table}.csv").read_bytes())
    path = pack(folder, table, packed[: int(len(packed) * share)], ".csv.gz")
    message = refusal(capsys, folder, tmp_path / "out")
    assert message.startswith(f"{path}: cannot be read") and "download it again" in message


@pytest.mark.parametrize("ending", [".csv.gz", ".csv.zip"])
@pytest.mark.parametrize("table", ["documents_topics", "events", "clicks_train"])
def test_file_compressed_differently_from_its_name(folder, tmp_path, capsys, table, ending):
    path = pack(folder, table, (folder / f"{table}.csv").read_bytes(), ending)
    assert refusal(capsys, folder, tmp_path / "out").startswith(f"{path}: cannot be read")


@pytest.mark.parametrize("table", ["documents_topics", "events", "clicks_train"])
def test_an_empty_gzip_file_is_rejected(folder, tmp_path, capsys, table):
    path = pack(folder, table, b"", ".csv.gz")
    assert refusal(capsys, folder, tmp_path / "out").startswith(f"{path}: is empty")


def test_a_gzip_file_of_nothing_is_rejected(folder, tmp_path, capsys):
    path = pack(folder, "events", gzip.compress(b""), ".csv.gz")
    assert refusal(capsys, folder, tmp_path / "out").startswith(f"{path}: is empty")


def zipped(folder: Path, table: str, names: list[str]) -> Path:
    content = (folder / f"{table}.csv").read_bytes()
    path = pack(folder, table, b"", ".csv.zip")
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("names", [["events.csv", "old/events.csv"], ["other.csv"], []])
def test_a_zip_file_without_exactly_one_table_is_rejected(folder, tmp_path, capsys, names):
    path = zipped(folder, "events", names)
    message = refusal(capsys, folder, tmp_path / "out")
    assert message.startswith(f"{path}: expected one file events.csv in it") and str(names) in message


def test_zip_file_with_another_table(folder, tmp_path, capsys):
    zipped(folder, "events", ["my_events.csv"])
    assert "expected one file" in refusal(capsys, folder, tmp_path / "out")


@pytest.mark.parametrize("recipe", preproc.RECIPES)
def test_output_with_a_dataset_is_rejected_and_kept(good, tmp_path, capsys, recipe):
    output = prepared(good, tmp_path / "out", "--recipe", "published")
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert preproc.main([*arguments(good, output), "--recipe", recipe]) == 2
    assert f"{output}: already contains a dataset (feature_spec.yaml)" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}


def test_output_that_is_a_file_is_rejected_and_unchanged(good, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert preproc.main(arguments(good, tmp_path / "out")) == 2
    assert f"{tmp_path / 'out'}: is a file, the output must be a folder" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def test_an_output_below_a_file_is_rejected(good, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert preproc.main(arguments(good, tmp_path / "file" / "out")) == 2
    assert str(tmp_path / "file" / "out") in capsys.readouterr().err


def test_other_files_of_the_output_stay(folder, tmp_path, capsys):
    output = tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    set_cell(folder, "clicks_train", 3, "clicked", "7")
    assert preproc.main(arguments(folder, output)) == 2
    assert [path.name for path in output.iterdir()] == ["notes.txt"]


def leftover(output: Path) -> Path:
    (output / "train").mkdir(parents=True)
    (output / "train" / "part_0.parquet").write_text("old")
    return output


def test_parts_of_an_older_dataset_are_not_mixed(good, tmp_path, capsys):
    output = leftover(tmp_path / "out")
    assert preproc.main(arguments(good, output)) == 2
    assert str(output / "train") in capsys.readouterr().err
    assert [path.relative_to(output).as_posix() for path in output.rglob("*")] == ["train", "train/part_0.parquet"]


def test_parts_of_an_older_dataset_are_noticed_early(good, tmp_path, capsys):
    assert preproc.main(arguments(good, leftover(tmp_path / "out"))) == 2
    assert "read documents_meta.csv" not in capsys.readouterr().err


@pytest.mark.parametrize("size", ["100MiB", "0.1GB"])
def test_a_memory_limit_that_nothing_fits_in_is_rejected(good, tmp_path, capsys, size):
    message = refusal(capsys, good, tmp_path / "out", "--memory_limit", size)
    assert message.startswith("--memory_limit") and "1 processes need at least" in message and "raise it" in message


def test_memory_limit_needing_too_many_parts(good, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("data.outbrain.pipeline.estimated_rows", lambda _: 10**9)
    message = refusal(capsys, good, tmp_path / "out", "--memory_limit", "1GB")
    assert message.startswith("--memory_limit") and "1,000,000,000 rows would need" in message and "raise it" in message


# Flags that argparse refuses, and what it tells.
WRONG_FLAGS = [
    (["--memory_limit", "lots"], "expected a size such as 4GB"),
    (["--memory_limit", "4XB"], "expected a size such as 4GB"),
    (["--use_dask", "--dask_scheduler", "tcp://host:8786"], "give one of them"),
    (["--recipe", "secret"], "choose from"),
    (["--output_files", "0"], "whole number from 1"),
    (["--seed", "-1"], "whole number from 0"),
    (["--memory_limit", "1e999"], "expected a size such as 4GB"),
    (["--memory_limit", "1"], "expected a size with its unit"),
    (["--memory_limit", "0"], "expected a size with its unit"),
]


@pytest.mark.parametrize(("flags", "message"), WRONG_FLAGS)
def test_wrong_flags_are_rejected_before_anything_is_read(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as stopped:
        preproc.main(arguments(tmp_path / "nowhere", tmp_path / "out", *flags))
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


# In a process of its own: a client that has not connected may stay Dask's default.
CONNECTS = """
import sys
from pathlib import Path
from data.outbrain import preproc
from data.preprocess import workers
workers.CONNECT_SECONDS = 1
folder, output, *addresses = sys.argv[1:]
for address in addresses:
    code = preproc.main(["--data_path", folder, "--metadata_path", output, "--dask_scheduler", address])
    print(code, Path(output).exists())
"""


def test_a_scheduler_that_nobody_answers_at_is_rejected(good, tmp_path):
    addresses = ["tcp://127.0.0.1:9", "nonsense://x:1"]
    done = run_program(["-c", CONNECTS, good, tmp_path / "out", *addresses], timeout=60)
    assert done.stdout.splitlines() == ["2 False"] * 2, done.stderr
    message = [line for line in done.stderr.splitlines() if not PROGRESS.match(line)]
    for line, address in zip(message, addresses, strict=True):
        assert line.startswith(f"outbrain: --dask_scheduler {address}: cannot be reached")
        assert "start it, or correct the address" in line


LEFT_BEHIND = """
import sys
from pathlib import Path
import dask
from data.errors import DataError
from data.preprocess import workers
try:
    with workers.start_workers(use_dask=False, scheduler="nonsense://x:1", folder=Path(sys.argv[1])):
        pass
except DataError:
    print(dask.config.get("scheduler", None))
"""


def test_a_wrong_address_leaves_no_client_behind(tmp_path):
    assert run_program(["-c", LEFT_BEHIND, tmp_path], timeout=60).stdout == "None\n"


def unknown_of(output: Path) -> dict[str, int]:
    return json.loads((output / "manifest.json").read_text())["unknown"]


def everything(output: Path) -> pd.DataFrame:
    return pd.concat([rows(output, mapping) for mapping in ("train", "valid")], ignore_index=True)


BEFORE = {"promoted_content, ad_id": 0, "documents_meta, document_id": 0, "documents_meta, document_id_promo": 0}


@pytest.fixture
def known(sample) -> SampleTables:
    """A sample in which every ad and every document is known."""
    listed = {row[0] for row in sample.tables["promoted_content"]}
    shown = {row[1] for row in sample.tables["clicks_train"]} - listed
    pages = sorted({row[2] for row in sample.tables["events"]})
    sample.tables["promoted_content"] += [(ad, pages[0], 1, 1) for ad in sorted(shown)]
    described = {row[0] for row in sample.tables["documents_meta"]}
    wanted = {*pages, *(row[1] for row in sample.tables["promoted_content"])}
    sample.tables["documents_meta"] += [(page, 1, 1, None) for page in sorted(wanted - described)]
    return sample


def test_unknown_counts_are_zero_without_gaps(known, tmp_path):
    output = prepared(write_sample(tmp_path / "raw", known), tmp_path / "out")
    assert unknown_of(output) == BEFORE


def test_ad_without_promotion_is_null_and_counted(known, tmp_path):
    ad = FIRST_CLICK[1]
    number = sum(row[1] == ad for row in known.tables["clicks_train"])
    known.tables["promoted_content"] = [row for row in known.tables["promoted_content"] if row[0] != ad]
    output = prepared(write_sample(tmp_path / "raw", known), tmp_path / "out")
    assert unknown_of(output) == BEFORE | {
        "promoted_content, ad_id": number,
        "documents_meta, document_id_promo": number,
    }
    found = everything(output)
    names = ("document_id_promo", "campaign_id", "advertiser_id", "source_id_promo", "publisher_id_promo")
    null = (found[list(names[:3])] == 1).all(axis=1)
    assert null.sum() == number and (found.loc[null, list(names)] == 1).all(axis=None)
    assert (found.loc[null, "topic_id_promo_list"].map(len) == 0).all()
    similarities = [name for name in found if "_sim_" in name]
    assert len(similarities) == 3 and (found.loc[null, similarities] == 0).all(axis=None)


def test_document_without_meta_is_null_and_counted(known, tmp_path):
    events = {row[0]: row[2] for row in known.tables["events"]}
    promoted = {row[0]: row[1] for row in known.tables["promoted_content"]}
    page = promoted[FIRST_CLICK[1]]
    # A page that is landed on, and promoted, so that both are counted apart.
    [event] = [number for number, row in enumerate(known.tables["events"]) if row[0] == FIRST_CLICK[0]]
    row = known.tables["events"][event]
    known.tables["events"][event] = (*row[:2], page, *row[3:])
    events[FIRST_CLICK[0]] = page
    shown = [(events[display], promoted[ad]) for display, ad, _ in known.tables["clicks_train"]]
    known.tables["documents_meta"] = [row for row in known.tables["documents_meta"] if row[0] != page]
    landing, promoting = (sum(pair[side] == page for pair in shown) for side in (0, 1))
    output = prepared(write_sample(tmp_path / "raw", known), tmp_path / "out")
    assert landing and promoting
    assert unknown_of(output) == BEFORE | {
        "documents_meta, document_id": landing,
        "documents_meta, document_id_promo": promoting,
    }


# Columns that may be empty.
NULLABLE = {"events": ["platform", "geo_location"], "documents_meta": ["source_id", "publisher_id", "publish_time"]}


@pytest.mark.parametrize("recipe", preproc.RECIPES)
def test_columns_of_nothing_but_nulls_give_a_dataset(sample, tmp_path, recipe):
    for table, columns in NULLABLE.items():
        kept = [name not in columns for name in HEADERS[table].split(",")]
        sample.tables[table] = [
            tuple(cell if keep else None for cell, keep in zip(row, kept, strict=True)) for row in sample.tables[table]
        ]
    output = prepared(write_sample(tmp_path / "raw", sample), tmp_path / "out", "--recipe", recipe)
    spec = FeatureSpec.read(output / "feature_spec.yaml")
    found = everything(output)
    assert len(found) == len(sample.tables["clicks_train"])
    assert not found[[feature.name for feature in (*spec.onehot, *spec.numerical)]].isna().any(axis=None)


@pytest.mark.parametrize("recipe", preproc.RECIPES)
def test_ads_of_which_none_is_promoted_give_a_dataset(sample, tmp_path, recipe):
    sample.tables["promoted_content"] = [(10**6, 1, 1, 1)]
    output = prepared(write_sample(tmp_path / "raw", sample), tmp_path / "out", "--recipe", recipe)
    number = len(sample.tables["clicks_train"])
    assert unknown_of(output)["promoted_content, ad_id"] == len(everything(output)) == number


def test_no_training_or_no_validation_rows(sample, tmp_path, capsys):
    time = HEADERS["events"].split(",").index("timestamp")
    for day, message in ((12, "is in train"), (None, "is in valid")):
        changed = copy.deepcopy(sample)
        if day is None:
            changed.tables["clicks_train"] = clicks_of_one_training_display(sample)
        moment = (12 if day else 1) * 86_400_000
        changed.tables["events"] = [(*row[:time], moment, *row[time + 1 :]) for row in sample.tables["events"]]
        folder = write_sample(tmp_path / f"raw{day}", changed)
        assert message in refusal(capsys, folder, tmp_path / "out")


def clicks_of_one_training_display(sample: SampleTables) -> list[tuple]:
    displays = [row[0] for row in sample.tables["clicks_train"] if scalar_row_hash(0, 0, row[0]) >= 0.2 * 2**64]
    return [row for row in sample.tables["clicks_train"] if row[0] == displays[0]]


def test_line_numbers_beyond_the_first_block(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(raw_tables, "BLOCK_BYTES", 100)
    set_cell(folder, "clicks_train", 60, "clicked", "3")
    assert refusal(capsys, folder, tmp_path / "out").startswith(f"{folder / 'clicks_train'}.csv, line 60: clicked is 3")
