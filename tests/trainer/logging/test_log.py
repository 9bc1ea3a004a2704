import builtins
import io
import json
import math
import sys
import types
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from trainer.logging.log import JsonLines, RunLog, read_log


class FakeBackend:
    """A fake of dllogger's JSONStreamBackend, which buffers lines until it is flushed."""

    def __init__(self, verbosity, filename, append=False):
        self.verbosity = verbosity
        self.file = open(filename, "a" if append else "w", buffering=1 << 20)  # noqa: SIM115

    def write(self, fields):
        now = datetime.now()
        times = {"timestamp": str(now.timestamp()), "datetime": str(now), "elapsedtime": "0.5"}
        self.file.write(f"DLLL {json.dumps(times | fields)}\n")


class FakeLogger:
    def __init__(self, backends):
        self.backends = backends

    def log(self, step, data, verbosity=1):
        for backend in self.backends:
            if backend.verbosity >= verbosity:
                backend.write({"type": "LOG", "step": step, "data": data})

    def metadata(self, metric, metadata):
        for backend in self.backends:
            backend.write({"type": "METADATA", "metric": metric, "metadata": metadata})

    def flush(self):
        for backend in self.backends:
            backend.file.flush()


def fake_dllogger() -> types.ModuleType:
    module = types.ModuleType("dllogger")
    module.Logger, module.JSONStreamBackend = FakeLogger, FakeBackend
    module.Verbosity = types.SimpleNamespace(OFF=-1, DEFAULT=0, VERBOSE=1)
    return module


@pytest.fixture(params=["our own writer", "the dllogger package"], autouse=True)
def writer(request, monkeypatch):
    """Every test here runs with dllogger installed and without it."""
    monkeypatch.setitem(sys.modules, "dllogger", None if request.param == "our own writer" else fake_dllogger())
    return request.param


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "results é" / "log.json"


def content(record: dict) -> dict:
    """A record without its times."""
    return {key: value for key, value in record.items() if key not in ("timestamp", "datetime", "elapsedtime")}


def test_records_have_the_fields_of_the_format(path):
    log = RunLog(path, append=False)
    log.parameters({"num_epochs": 2, "amp": False, "units": [8, 4], "path": Path("/data"), "file": None})
    log.metadata("auc_roc", {"unit": None})
    log.log((1, 20), {"loss": 0.5})
    log.log((10,), {"auc_roc": 0.75})
    log.log((), {"auc_roc": 0.75})
    log.log(3, {"x": 1})
    parameters = {"num_epochs": 2, "amp": False, "units": [8, 4], "path": "/data", "file": None}
    assert [content(record) for record in read_log(path)] == [
        {"type": "LOG", "step": "PARAMETER", "data": parameters},
        {"type": "METADATA", "metric": "auc_roc", "metadata": {"unit": None}},
        {"type": "LOG", "step": [1, 20], "data": {"loss": 0.5}},
        {"type": "LOG", "step": [10], "data": {"auc_roc": 0.75}},
        {"type": "LOG", "step": [], "data": {"auc_roc": 0.75}},
        {"type": "LOG", "step": 3, "data": {"x": 1}},
    ]


def test_own_writer_matches_the_package_field_by_field(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dllogger", None)
    log = RunLog(path, append=False)
    log.log((1, 2), {"loss": 0.5})
    log.metadata("loss", {"unit": "nats"})
    first, second = path.read_text().splitlines()
    assert first.startswith('DLLL {"timestamp": "') and second.startswith('DLLL {"timestamp": "')
    record, metadata = json.loads(first[5:]), json.loads(second[5:])
    assert list(record) == ["timestamp", "datetime", "elapsedtime", "type", "step", "data"]
    assert list(metadata) == ["timestamp", "elapsedtime", "datetime", "type", "metric", "metadata"]
    for times in (record, metadata):
        assert abs(float(times["timestamp"]) - datetime.fromisoformat(times["datetime"]).timestamp()) < 1e-5
        assert isinstance(times["elapsedtime"], str) and 0 <= float(times["elapsedtime"]) < 60


def test_record_is_on_disk_when_the_call_returns(path):
    log = RunLog(path, append=False)
    for count in range(1, 4):
        log.log((count, 3), {"loss": 0.1})
        assert len(read_log(path)) == count


@given(st.dictionaries(st.text(max_size=5), st.floats(), max_size=5))
@settings(max_examples=50, deadline=None)
def test_numbers_keep_full_precision(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("log") / "log.json"
    log = RunLog(path, append=False)
    log.log((1,), values)
    log.close()
    line = path.read_text().removeprefix("DLLL ")
    data = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["data"]
    assert data == {key: value if math.isfinite(value) else None for key, value in values.items()}


def test_numpy_values_are_converted(path):
    log = RunLog(path, append=False)
    log.log(np.int64(4), {"a": np.float32(0.1), "b": np.array([1.5, np.nan]), "c": np.bool_(True), "d": {"e": (1,)}})
    (record,) = read_log(path)
    assert record["step"] == 4
    assert record["data"] == {"a": float(np.float32(0.1)), "b": [1.5, None], "c": True, "d": {"e": [1]}}


def test_other_values_are_written_as_text(path, capsys):
    log = RunLog(path, append=False)
    log.log((1,), {"object": ValueError("x"), 3: "three", (1, 2): "pair", "half a pair": "\ud800"})
    (record,) = read_log(path)
    assert record["data"] == {"object": "x", "3": "three", "(1, 2)": "pair", "half a pair": "\ud800"}
    assert capsys.readouterr().err == ""


def test_resumed_run_appends(path):
    first = RunLog(path, append=False)
    first.log((1,), {"a": 1})
    first.close()
    RunLog(path, append=True).log((2,), {"a": 2})
    assert [record["step"] for record in read_log(path)] == [[1], [2]]


def test_truncated_last_line_is_ended_first(path):
    RunLog(path, append=False).log((1,), {"a": 1})
    with open(path, "a") as file:
        file.write('DLLL {"timestamp": "17')
    RunLog(path, append=True).log((2,), {"a": 2})
    assert [record["step"] for record in read_log(path)] == [[1], [2]]
    assert path.read_text().count("\n") == 3


def test_new_run_renames_the_old_log(path):
    RunLog(path, append=False).log((1,), {"a": 1})
    RunLog(path, append=False).log((2,), {"a": 2})
    assert [record["step"] for record in read_log(path)] == [[2]]
    assert [record["step"] for record in read_log(path.with_name("log.json.previous"))] == [[1]]


def test_appending_without_a_log_starts_one(path):
    RunLog(path, append=True).log((1,), {})
    assert len(read_log(path)) == 1


def test_unwritable_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file/log.json cannot be written: .*--results_dir"):
        RunLog(tmp_path / "file" / "log.json", append=False)


def test_full_disk_warns_once(path, writer, monkeypatch, capsys):
    log = RunLog(path, append=False)
    log.log((1,), {"a": 1})
    full = FullDisk(path, room=30)
    with monkeypatch.context() as patched:
        if writer == "our own writer":
            patched.setattr(builtins, "open", full.open)
        else:
            patched.setattr(FakeLogger, "flush", full.fail)
        log.log((2,), {"a": 2})
        warning = capsys.readouterr().err
        log.log((3,), {"a": 3})
    assert warning.count("\n") == 1 and str(path) in warning and "No space left" in warning
    log.log((4,), {"a": 4})
    log.close()
    assert read_log(path)[0]["step"] == [1] and read_log(path)[-1]["step"] == [4]
    assert capsys.readouterr().err == ""


class FullDisk:
    """A disk with room for a few more bytes of a file, which cuts the write that exceeds them short."""

    def __init__(self, path, room):
        self.path, self.room, self.really_open = path, room, builtins.open

    def fail(self, *arguments):
        raise OSError(28, "No space left on device")

    def open(self, path, *arguments, **options):
        file = self.really_open(path, *arguments, **options)
        return FullFile(file, self) if Path(path) == self.path else file


class FullFile(io.RawIOBase):
    def __init__(self, file, disk):
        self.file, self.disk = file, disk

    def write(self, data):
        if self.disk.room == 0:
            self.disk.fail()
        written = self.file.write(data[: self.disk.room])
        self.disk.room -= written
        return written

    def seek(self, *arguments):
        return self.file.seek(*arguments)

    def read(self, *arguments):
        return self.file.read(*arguments)

    def close(self):
        self.file.close()
        super().close()


def test_removed_folder_is_recreated_or_reported_once(path, writer, capsys):
    log = RunLog(path, append=False)
    path.unlink()
    path.parent.rmdir()
    for step in range(3):
        log.log((step,), {})
    log.close()
    warning = capsys.readouterr().err
    if writer == "our own writer":
        assert warning == "" and len(read_log(path)) == 3
    else:
        assert warning.count("\n") == 1 and str(path) in warning


def test_removed_file_is_recreated_by_own_writer(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dllogger", None)
    log = RunLog(path, append=False)
    path.unlink()
    log.log((1,), {})
    assert len(read_log(path)) == 1


def test_package_that_cannot_append_is_not_used(path, monkeypatch):
    old = fake_dllogger()
    old.JSONStreamBackend = lambda verbosity, filename: pytest.fail("an old backend would empty the log")
    monkeypatch.setitem(sys.modules, "dllogger", old)
    RunLog(path, append=False).log((1,), {})
    RunLog(path, append=True).log((2,), {})
    assert [record["step"] for record in read_log(path)] == [[1], [2]]


def test_package_is_used_where_installed(path, writer):
    used = RunLog(path)._writer
    assert isinstance(used, FakeLogger if writer == "the dllogger package" else JsonLines)


def test_log_without_a_path_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = RunLog(None)
    log.parameters({"a": 1})
    log.metadata("a", {})
    log.log((1,), {})
    log.close()
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.binary(max_size=30)), st.integers(0, 400))
@settings(max_examples=50, deadline=None)
def test_truncated_or_mixed_log_is_read(tmp_path_factory, lines, cut):
    path = tmp_path_factory.mktemp("log") / "log.json"
    whole = b'DLLL {"type": "LOG", "step": [1], "data": {}}\n'
    other = b"".join(line.replace(b"DLLL", b"").replace(b"\n", b"") + b"\n" for line in lines)
    path.write_bytes(whole + other + whole)
    assert len(read_log(path)) == 2
    path.write_bytes((whole * 10)[:cut])
    assert len(read_log(path)) == (cut + 1) // len(whole) if cut < 10 * len(whole) else 10


def test_lines_that_are_no_records_are_skipped(path):
    path.parent.mkdir()
    path.write_text("DLLL [1]\nDLLL " + "[" * 100_000 + "\nDLLL 3\nDLLL\nDLLL {}\n")
    assert read_log(path) == [{}]


def test_missing_log_is_an_error(path):
    with pytest.raises(DataError, match=r"log\.json cannot be read: No such file"):
        read_log(path)
