"""check_dataset.py and transcode.py on datasets in an object store: the same output as on the local disk."""

import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import check_dataset
import transcode
from data.files.parquet import add_checksums
from data.storage import range_cache, remote
from tests.data.csv_documents import GOOD_LINE, document, write_csv_dataset
from tests.helpers import ROOT, make_dataset
from tests.object_store import SECRET, Faults, proxy


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("made"), ROOT / "feature_specs" / "tiny.yaml", rows=300)


@pytest.fixture
def local(made, tmp_path) -> Path:
    """A dataset with an id out of range, and with a file of which a byte is wrong."""
    folder = tmp_path / "local"
    shutil.copytree(made, folder)
    path = folder / "train_1.parquet"
    rows = pq.read_table(path)
    ids = rows.column("user_id").to_pylist()
    ids[5] = 99
    at = rows.schema.get_field_index("user_id")
    pq.write_table(rows.set_column(at, rows.schema.field(at), pa.array(ids, rows.schema.field(at).type)), path)
    add_checksums(path)
    damaged = folder / "train_2.parquet"
    content = bytearray(damaged.read_bytes())
    content[40] ^= 1
    damaged.write_bytes(content)
    return folder


def check(place: Path | str, capsys, *flags: str) -> tuple[int, str]:
    """Returns the exit code and the output, in which the place of the dataset is DATA."""
    capsys.readouterr()
    code = check_dataset.main([str(place), *flags])
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err
    mirror = str(remote.mirror_of(place)) if isinstance(place, str) else str(place)
    return code, (printed.out + printed.err).replace(mirror, "DATA").replace(str(place), "DATA")


def test_findings_are_those_of_the_local_copy(store, local, capsys):
    expected = check(local, capsys)
    assert expected[0] == 1
    assert "DATA/train_1.parquet, row group 0, user_id: id out of range; in 1 rows (5); found '99'" in expected[1]
    assert "DATA/train_2.parquet, row group 0: unreadable row group" in expected[1]
    remote.push_folder(local, store, "feature_spec.yaml")
    assert check(store, capsys) == expected
    # Rows are read by row group, and never as whole files.
    assert not list(remote.mirror_of(store).rglob("*.parquet"))


def test_a_damaged_copy_is_downloaded_again(store, made, capsys):
    remote.push_folder(made, store, "feature_spec.yaml")
    sound = check(store, capsys)
    assert sound[0] == 0
    for part in (remote.cache_dir() / range_cache.FOLDER).iterdir():
        content = bytearray(part.read_bytes())
        content[40] ^= 1
        part.write_bytes(content)
    check(store, capsys)
    assert check(store, capsys) == sound


def test_passing_faults_change_nothing(store, server, local, monkeypatch, capsys):
    expected, faults = check(local, capsys), Faults("cut", 5)
    remote.push_folder(local, store, "feature_spec.yaml")
    with proxy(server, faults) as variables:
        monkeypatch.setenv("AWS_ENDPOINT_URL", variables["AWS_ENDPOINT_URL"])
        assert check(store, capsys) == expected
    assert faults.hit


def test_what_the_store_cannot_give_is_named(store, server, made, monkeypatch, capsys):
    code, words = check(store, capsys)
    assert code == 2 and "DATA/feature_spec.yaml: no such object" in words
    remote.push_folder(made, store, "feature_spec.yaml")
    remote.delete(f"{store}/train_0.parquet")
    code, words = check(store, capsys)
    assert code == 1 and "error: DATA/train_0.parquet: missing file; see `files` in source_spec" in words
    monkeypatch.setattr(remote, "REQUEST_TIMEOUT", 1.0)
    monkeypatch.setenv(remote.DEADLINE_VARIABLE, "1")
    with proxy(server, Faults("stall", 1)) as stalled:
        monkeypatch.setenv("AWS_ENDPOINT_URL", stalled["AWS_ENDPOINT_URL"])
        code, words = check(store, capsys)
    assert code == 1 and "DATA/feature_spec.yaml: cannot read after" in words


def test_csv_datasets(store, tmp_path, capsys):
    """Checked and transcoded from a store: with relative names, and with absolute URLs in a local specification."""
    lines = "\n".join([GOOD_LINE, GOOD_LINE.replace(",49,", ",50,"), GOOD_LINE])
    write_csv_dataset(tmp_path / "csv", {"train.csv": lines, "test.csv": GOOD_LINE}, document())
    expected = check(tmp_path / "csv", capsys)
    assert "error: DATA/train.csv, user: id out of range; in 1 lines (2)" in expected[1]
    remote.push_folder(tmp_path / "csv", store, "feature_spec.yaml")
    assert check(store, capsys) == expected
    text = (tmp_path / "csv/feature_spec.yaml").read_text()
    (tmp_path / "urls").mkdir()
    (tmp_path / "urls/feature_spec.yaml").write_text(re.sub(r"(train|test)\.csv", rf"{store}/\1.csv", text))
    assert check(tmp_path / "urls", capsys, "--allow_outside_paths") == (
        expected[0],
        expected[1].replace("DATA/t", f"{store}/t"),
    )

    (tmp_path / "sound.csv").write_text(GOOD_LINE)
    remote.put(tmp_path / "sound.csv", f"{store}/test.csv")
    outputs = {"store": store, "urls": str(tmp_path / "urls")}
    for name, source in outputs.items():
        flags = ["--input", source, "--output", str(tmp_path / name / "out"), "--allow_outside_paths"]
        assert transcode.main(flags) == 2
        assert f"{store}/train.csv, line 2, column" in capsys.readouterr().err
    remote.put(tmp_path / "sound.csv", f"{store}/train.csv")
    for name, source in outputs.items():
        flags = ["--input", source, "--output", str(tmp_path / name / "out"), "--allow_outside_paths"]
        assert transcode.main(flags) == 0
    written = [pq.read_table(tmp_path / name / "out" / "train_0.parquet") for name in outputs]
    assert written[0].num_rows == 1 and written[0].equals(written[1])
