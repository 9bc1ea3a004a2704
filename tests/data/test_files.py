"""Only regular files are opened, whatever reads them; every other kind is named."""

import gzip
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

import check_dataset
from data.encoding.encoder_files import load_encoders
from data.errors import DataError, LostInputError
from data.files.csv import count_lines, read_csv_blocks
from data.files.new_dataset import SPEC_FILE, new_dataset
from data.files.parquet import read_footer
from data.loading.parquet import ParquetFile
from data.movielens.text_tables import TextForm, find_file, read_text_table
from data.outbrain.raw_tables import RawTable, find_raw, read_blocks
from data.outbrain.recipes import load_workflow
from data.spec.embedding_sizes import read_sizes
from data.spec.yaml_reader import read_yaml
from data.storage import files
from data.storage.checksummed_dir import DamagedError, read_manifest
from data.storage.files import open_regular, reading
from tests.data.sample_data import write_dataset
from tests.helpers import ROOT, environment
from trainer.lifecycle.records import FOLDER, read_records
from trainer.logging.log import read_log
from trainer.report.runs import read_run


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


KINDS: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a socket": make_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
}
FORM = TextForm("x.csv", ",", ("a",))
TABLE = RawTable("x", {"a": pa.int64()}, frozenset())


def folder_of(path: Path, name: str) -> Path:
    """The folder of a link with another name: readers of folders look for names of their own."""
    folder = path.parent / f"with-{name}"
    folder.mkdir()
    (folder / name).symlink_to(path)
    return folder


READERS: dict[str, Callable[[Path], object]] = {
    "any": open_regular,
    "yaml": read_yaml,
    "embedding widths": read_sizes,
    "a parquet footer": read_footer,
    "a parquet file": ParquetFile.open,
    "csv lines": count_lines,
    "csv blocks": lambda path: list(read_csv_blocks(path, [])),
    "a text table": lambda path: read_text_table(path, FORM),
    "a raw table": lambda path: list(read_blocks(path, TABLE)),
    "encoders": lambda path: load_encoders(folder_of(path, "manifest.json")),
    "an outbrain workflow": lambda path: load_workflow(folder_of(path, "manifest.json")),
    "a manifest": lambda path: read_manifest(folder_of(path, "manifest.json")),
    "a log": read_log,
    "a run's log": lambda path: read_run(folder_of(path, "log.json"), "run"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_named_and_not_waited_for(reader, kind, tmp_path):
    KINDS[kind](tmp_path / "x")
    with pytest.raises((DataError, DamagedError), match=f"is {kind}; expected"):
        READERS[reader](tmp_path / "x")


def test_a_worker_record_that_is_a_pipe_is_passed_over(tmp_path):
    (tmp_path / FOLDER).mkdir()
    os.mkfifo(tmp_path / FOLDER / "worker-0.json")
    assert read_records(tmp_path, "job") == {}


def test_a_pipe_in_an_abandoned_draft_is_passed_over(tmp_path):
    (tmp_path / ".unfinished-1").mkdir()
    files.mark_draft(tmp_path / ".unfinished-1")
    os.mkfifo(tmp_path / ".unfinished-1" / ".moving.json")
    with new_dataset(tmp_path) as draft:
        (draft / SPEC_FILE).touch()
    assert [path.name for path in tmp_path.iterdir()] == [SPEC_FILE]


def test_a_file_that_becomes_a_pipe_before_it_opens(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.touch()
    checked = os.stat(path)
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(files.os, "stat", lambda _: checked)
    with pytest.raises(DataError, match="is a pipe"):
        open_regular(path)


def test_reads_of_an_open_file_block_as_usual(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    with open_regular(tmp_path / "x") as file:
        assert os.get_blocking(file.fileno()) and not os.get_inheritable(file.fileno())
        assert file.read() == b"abc"


def test_a_raw_file_of_another_kind_is_found_to_be_named(tmp_path):
    os.mkfifo(tmp_path / "x.csv")
    assert find_file(tmp_path, ["x.csv"]) == find_raw(tmp_path, TABLE) == tmp_path / "x.csv"
    with gzip.open(tmp_path / "x.csv.gz", "wb") as file:
        file.write(b"a\n1\n")
    assert find_file(tmp_path, ["x.csv"]) == find_raw(tmp_path, TABLE) == tmp_path / "x.csv.gz"
    assert find_file(tmp_path, ["y.csv"]) is None


def test_a_system_error_while_reading_is_no_wrong_input(tmp_path):
    (tmp_path / "x").touch()
    with (
        pytest.raises(LostInputError, match="x: can no longer be read: Stale file handle"),
        reading(tmp_path / "x", "hint"),
    ):
        raise OSError(116, "Stale file handle")
    with pytest.raises(OSError, match="^damaged$"), reading(tmp_path / "x", "hint"):
        raise OSError("damaged")
    with pytest.raises(DataError, match="nothing: no such file; hint"), reading(tmp_path / "nothing", "hint"):
        pass


@pytest.mark.parametrize("kind", ["a pipe", "a socket", "a folder"])
def test_check_dataset_names_what_is_no_file(kind, tmp_path, capsys):
    spec, _ = write_dataset(tmp_path, [[3]])
    spec.write(tmp_path / SPEC_FILE)
    (tmp_path / "part_0.parquet").unlink()
    KINDS[kind](tmp_path / "part_0.parquet")
    assert check_dataset.main([str(tmp_path)]) == 1
    found = capsys.readouterr().out
    assert f"part_0.parquet: not a regular file; is {kind}" in found and "missing" not in found


def test_standard_input_is_rejected_as_a_specification(tmp_path):
    command = [sys.executable, "gen_embedding_sizes.py", "--feature_spec_in", "/dev/stdin", "--output", "x.json"]
    done = subprocess.run(
        command, input="{}", cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2 and "/dev/stdin: is a pipe; expected a YAML file" in done.stderr
