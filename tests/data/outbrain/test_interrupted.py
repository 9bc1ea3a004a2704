"""Real processes that are killed, stopped, run beside each other, or run out of disk."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.data.outbrain.sample_data import make_sample, write_sample
from tests.data.outbrain.test_preproc import prepared, rows
from tests.helpers import ROOT, environment, left_to_all

SAMPLE = make_sample(displays=60)


def start(raw: Path, output: Path) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "data.outbrain.preproc",
        "--data_path",
        raw,
        "--metadata_path",
        output,
        "--seed",
        "5",
    ]
    return subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what it runs in the background with Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def stop_when_told(process: subprocess.Popen, line: str, number: int) -> str:
    message = ""
    for said in process.stderr:
        message += said
        if line in said:
            process.send_signal(number)
            break
    return message + process.communicate(timeout=60)[1]


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    return write_sample(tmp_path_factory.mktemp("outbrain") / "raw", SAMPLE)


@pytest.mark.parametrize("stage", left_to_all(["divided clicks_train", "fitted", "write train"], ["write train"]))
def test_killed_run_does_not_look_finished(tmp_path, raw, stage):
    output = tmp_path / "out"
    process = start(raw, output)
    stop_when_told(process, stage, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert [path.name for path in output.iterdir() if not path.name.startswith(".unfinished-")] == []
    prepared(raw, output)
    assert sorted(path.name for path in output.iterdir()) == [
        "embedding_sizes.json",
        "feature_spec.yaml",
        "manifest.json",
        "train",
        "valid",
        "workflow",
    ]


def test_a_stopped_run_leaves_nothing(tmp_path, raw):
    process = start(raw, tmp_path / "out")
    message = stop_when_told(process, "divided clicks_train", signal.SIGINT)
    assert process.returncode == 1
    assert "interrupted" in message and "Traceback" not in message
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_runs_beside_each_other_do_not_meet(tmp_path, raw):
    processes = [start(raw, tmp_path / name) for name in ("one", "two")]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    for mapping in ("train", "valid"):
        assert rows(tmp_path / "one", mapping).equals(rows(tmp_path / "two", mapping))


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own; only root can mount one."""
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]).returncode:
        pytest.skip("no file system can be mounted here, so no disk can be filled")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_full_disk_is_one_message_and_leaves_nothing(tmp_path, raw):
    with small_disk(tmp_path / "disk", "200k") as disk:
        process = start(raw, disk / "out")
        message = process.communicate(timeout=120)[1]
        assert process.returncode == 1
        assert "the disk of the output is full" in message.splitlines()[-1]
        assert "Traceback" not in message
        assert list(disk.iterdir()) == []
