"""One training run per model folder."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from data.errors import DataError
from tests.helpers import ROOT, environment
from trainer.lifecycle.run_lock import MODEL_DIR, FolderInUse, RunLock

HOLD = """
import sys, time
from pathlib import Path
from trainer.lifecycle.run_lock import RunLock

with RunLock(Path(sys.argv[1]), print):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def warnings() -> list[str]:
    return []


@contextmanager
def holder(folder):
    """A process that holds the lock until its standard input ends."""
    command = [sys.executable, "-c", HOLD, str(folder), "--num_epochs", "a b"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=ROOT, env=environment(), text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_second_run_is_shown_the_holder(tmp_path, warnings):
    with holder(tmp_path) as process, pytest.raises(FolderInUse) as error, RunLock(tmp_path, warnings.append):
        pass
    message = str(error.value)
    for fragment in (f"--model_dir {tmp_path}", f"process {process.pid} on {os.uname().nodename}", "since 20", "'a b'"):
        assert fragment in message


def test_lock_file_content_cannot_control_a_terminal(tmp_path, warnings):
    with open(tmp_path / MODEL_DIR.file, "w") as file:
        json.dump({"host": "h", "pid": 1, "since": "now", "command": "\x1b]0;owned\x07\nmain.py: done"}, file)
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(FolderInUse) as error, RunLock(tmp_path, warnings.append):
            pass
    assert str(error.value).isprintable() and r"\x1b]0;owned\x07\nmain.py: done" in str(error.value)


def test_lock_of_a_killed_process_is_taken_over(tmp_path, warnings):
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / MODEL_DIR.file).exists()
        with RunLock(tmp_path, warnings.append):
            assert f'"pid": {os.getpid()}' in (tmp_path / MODEL_DIR.file).read_text()
    assert warnings == []


def test_lock_file_is_removed_at_the_end(tmp_path, warnings):
    folder = tmp_path / "a" / "b"
    with holder(folder) as process:
        process.stdin.close()
        process.wait()
    assert os.listdir(tmp_path) == []
    with RunLock(folder, warnings.append):
        (folder / "checkpoints").mkdir()
    assert os.listdir(folder) == ["checkpoints"]


def test_removed_lock_file_does_not_count(tmp_path, warnings, monkeypatch):
    """The second has opened the file of the first, who then leaves: a lock on that file keeps nobody out."""
    flock, first = fcntl.flock, RunLock(tmp_path, warnings.append)
    first.__enter__()

    def leave_first(descriptor, operation):
        monkeypatch.setattr("fcntl.flock", flock)
        first.__exit__(None, None, None)
        flock(descriptor, operation)

    monkeypatch.setattr("fcntl.flock", leave_first)
    with (
        RunLock(tmp_path, warnings.append),
        pytest.raises(FolderInUse, match="another run"),
        RunLock(tmp_path, warnings.append),
    ):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_it_warns_once_and_continues(tmp_path, warnings, monkeypatch, number):
    def fail(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", fail)
    with RunLock(tmp_path / "new", warnings.append):
        pass
    assert len(warnings) == 1 and "does not support locks" in warnings[0]
    assert os.listdir(tmp_path) == []


def test_impossible_folder_is_rejected(tmp_path, warnings):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="--model_dir .*file/models: cannot be written"):
        RunLock(tmp_path / "file" / "models", warnings.append).__enter__()


def test_full_disk_is_reported_and_leaves_no_folder(tmp_path, warnings, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, pytest.raises(DataError, match="No space left"):
        patched.setattr("os.open", full)
        RunLock(tmp_path / "models", warnings.append).__enter__()
    assert os.listdir(tmp_path) == []
