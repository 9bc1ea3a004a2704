"""Worker records, and whether their processes are alive."""

import json
import os
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from trainer.default_paths import path_in
from trainer.lifecycle.processes import carries, kill_marked, start_time
from trainer.lifecycle.records import (
    FOLDER,
    JOB_FILE,
    JOB_VARIABLE,
    LONGEST_CAUSE,
    WorkerRecord,
    WorkerState,
    last_job,
    prepare_records,
    read_records,
)
from trainer.process.worker_env import WorkerEnv

FIRST, SECOND = WorkerEnv(), WorkerEnv(rank=1, size=2, local_rank=1, local_size=2)


@pytest.fixture(autouse=True)
def job(monkeypatch) -> str:
    monkeypatch.setenv(JOB_VARIABLE, "a job")
    return "a job"


def names(results_dir: Path) -> list[str]:
    return sorted(name for name in os.listdir(results_dir / FOLDER) if name != JOB_FILE)


def test_record_holds_the_worker_and_its_end(tmp_path, job):
    begin = time.time()
    record = WorkerRecord(tmp_path, SECOND)
    record.begin()
    (state,) = read_records(tmp_path, job).values()
    assert (state.rank, state.size, state.pid, state.job, state.code) == (1, 2, os.getpid(), job, None)
    assert state.is_here and state.is_alive()
    record.end(1, "the disk\n  is full")
    (ended,) = read_records(tmp_path, job).values()
    assert (ended.code, ended.cause) == (1, "the disk is full")
    assert begin <= ended.ended <= time.time()
    assert names(tmp_path) == ["worker-1.json"]
    record.end(0, "later")
    assert read_records(tmp_path, job) == {1: ended}


def test_of_many_simultaneous_ends_one_is_recorded(tmp_path, job):
    record = WorkerRecord(tmp_path, FIRST)
    record.begin()
    threads = [threading.Thread(target=record.end, args=(code, "x" * 5000)) for code in range(1, 17)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (state,) = read_records(tmp_path, job).values()
    assert state.code in range(1, 17) and state.cause == "x" * LONGEST_CAUSE
    assert names(tmp_path) == ["worker-0.json"]


def test_rejection_is_recorded_only_for_a_supervisor(tmp_path, job):
    WorkerRecord(tmp_path / "results", FIRST).end(2, "mistyped")
    assert os.listdir(tmp_path) == []
    prepare_records(tmp_path / "results", "job")
    WorkerRecord(tmp_path / "results", FIRST).end(2, "mistyped")
    assert read_records(tmp_path / "results", job)[0].code == 2


@pytest.mark.parametrize(("error", "code"), [(SystemExit(0), 0), (SystemExit(2), 1), (MemoryError("no room"), 1)])
def test_uncaught_exception_is_recorded(tmp_path, job, error, code):
    prepare_records(tmp_path, "job")
    with pytest.raises(type(error)), WorkerRecord(tmp_path, FIRST):
        raise error
    state = read_records(tmp_path, job)[0]
    assert state.code == code
    assert code == 0 or type(error).__name__ in state.cause


def test_unwritable_folder_stops_nothing(tmp_path):
    (tmp_path / "results").write_text("a file")
    record = WorkerRecord(tmp_path / "results", FIRST)
    record.begin()
    record.end(0)
    assert os.listdir(tmp_path) == ["results"]


def test_records_of_larger_and_other_jobs_are_removed(tmp_path, job, monkeypatch):
    for rank in range(3):
        WorkerRecord(tmp_path, WorkerEnv(rank, 3, rank, 3)).begin()
    WorkerRecord(tmp_path, WorkerEnv(0, 2, 0, 2)).begin()
    assert sorted(read_records(tmp_path, job)) == [0, 1]
    assert read_records(tmp_path, "another job") == {}
    monkeypatch.delenv(JOB_VARIABLE)
    WorkerRecord(tmp_path, FIRST).begin()
    assert sorted(read_records(tmp_path, job)) == []
    prepare_records(tmp_path, "job")
    assert names(tmp_path) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "[" * 200_000, '{"rank": 0}', "\xff"])
def test_files_that_are_not_records_are_skipped(tmp_path, job, text):
    record = WorkerRecord(tmp_path, SECOND)
    record.begin()
    (tmp_path / FOLDER / "worker-0.json").write_bytes(text.encode("latin-1"))
    (tmp_path / FOLDER / "worker-x.json").write_text("{}")
    good = json.loads((tmp_path / FOLDER / "worker-1.json").read_text())
    wrong = {"pid": ["1", 10**400, True], "ended": [float("nan"), 10**400, None], "rank": [[2], None], "cause": [{}]}
    for name, values in wrong.items():
        for value in values:
            (tmp_path / FOLDER / "worker-2.json").write_text(json.dumps(good | {name: value}))
            assert sorted(read_records(tmp_path, job)) == [1], (name, value)


def test_process_differs_from_a_later_one_with_its_pid():
    state = WorkerState(0, 1, os.uname().nodename, os.getpid(), start_time(os.getpid()), None)
    assert state.is_alive()
    assert not replace(state, started=state.started - 1).is_alive()
    assert replace(state, started=1, host="elsewhere").is_alive()


def test_dead_stopped_and_live_processes_are_recognized():
    with subprocess.Popen(["sleep", "60"]) as process:
        started = start_time(process.pid)
        clock = os.sysconf("SC_CLK_TCK")
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        assert abs(started / clock - uptime) < 5
        process.send_signal(signal.SIGSTOP)
        assert start_time(process.pid) == started
        process.kill()
        deadline = time.monotonic() + 5
        while start_time(process.pid) is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        # Nobody has waited for it yet: its number is still taken.
        assert Path(f"/proc/{process.pid}").exists() and start_time(process.pid) is None
    assert start_time(process.pid) is None


def test_only_marked_processes_are_killed(monkeypatch):
    with subprocess.Popen(["sleep", "60"]) as other:
        script = "trap '' TERM; setsid sleep 60 & sleep 60 & kill -STOP $$"
        environment = os.environ | {"THE_MARK": "of this test"}
        with subprocess.Popen(["sh", "-c", script], env=environment) as process:
            deadline = time.monotonic() + 5
            while Path(f"/proc/{process.pid}/stat").read_text().split()[2] != "T" and time.monotonic() < deadline:
                time.sleep(0.01)
            assert carries(process.pid, "THE_MARK=of this test")
            assert not carries(process.pid, "THE_MARK=of this")
            assert kill_marked("THE_MARK=of this test") == []
        marked = [path for path in Path("/proc").glob("[0-9]*") if carries(int(path.name), "THE_MARK=of this test")]
        assert marked == []
        assert other.poll() is None
        other.kill()


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["sh", "x", "--results_dir", "r"], "r"),
        (["--results_dir=r", "--results_dir=a=b"], "a=b"),
        (["--results_dir=r", "--results_dir", "s", "--nonsense"], "s"),
        (["--results_dir", "r", "--results_dir"], "r"),
        (["--results_directory", "r"], "results"),
        ([], "results"),
    ],
)
def test_path_flag_is_found_in_any_command(words, place, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert path_in(words, "results_dir") == Path(place)


def test_job_is_recorded_but_replaces_no_other_file(tmp_path):
    assert last_job(tmp_path) is None
    for job in ("0a" * 16, "1b" * 16):
        prepare_records(tmp_path, job)
        assert last_job(tmp_path) == job
    (tmp_path / FOLDER / JOB_FILE).write_text("my notes\n")
    prepare_records(tmp_path, "2c" * 16)
    assert last_job(tmp_path) is None
    assert (tmp_path / FOLDER / JOB_FILE).read_text() == "my notes\n"
