"""supervise.py over a fake launcher, whose workers end in every way that real ones do."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervise import main as supervise_main
from tests.helpers import ROOT, environment
from trainer.lifecycle import processes
from trainer.lifecycle.errors import DONE, FAILURE, HANG, NO_CHECKPOINT, STOPPED, WRONG_INPUT
from trainer.lifecycle.signals import ONE_REQUEST_SECONDS

JOB = [sys.executable, "-m", "tests.fake_job"]
TRAINS = "begin wait"
LEFT_ALONE = "begin outlive:{} end:1:another_worker_is_gone_(shut_down)"
IS_DONE = "begin end:0:"


def restore_signals() -> None:
    """Restores handlers that are inherited as ignored when tests run in the background or under nohup."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def wait_for_file(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.05)


class Supervised:
    """A call of supervise.py that may still be running."""

    def __init__(self, folder: Path, plan: list, *own: str, **variables: str):
        self.folder, self.mark = folder, f"FAKE_JOB_TEST={uuid.uuid4().hex}"
        paths = ["--model_dir", str(folder / "models"), f"--results_dir={folder / 'results'}"]
        name, value = self.mark.split("=")
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "supervise.py"), *own, "--", *JOB, *paths],
            env=environment(FAKE_JOB_PLAN=json.dumps(plan), **{name: value}, **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=restore_signals,
        )

    def end(self, timeout: float = 60) -> tuple[int, str]:
        """Waits; returns the exit code and the output, and checks that no process is left."""
        _, message = self.process.communicate(timeout=timeout)
        assert all(line.startswith("supervise.py: ") for line in message.splitlines()), message
        assert self.left() == []
        return self.process.returncode, message

    def pids(self) -> list[int]:
        """Live processes of the call, including itself."""
        pids = map(int, filter(str.isdecimal, os.listdir("/proc")))
        return [pid for pid in pids if processes.carries(pid, self.mark)]

    def left(self) -> list[str]:
        """The command lines of these processes."""
        found = []
        for pid in self.pids():
            try:
                found.append(Path(f"/proc/{pid}/cmdline").read_text())
            except OSError:
                continue
        return found

    def until(self, event: str, count: int = 1) -> None:
        """Waits until the timeline contains an event."""
        deadline = time.monotonic() + 30
        while len(self.events(event)) < count:
            assert time.monotonic() < deadline and self.process.poll() is None, self.events()
            time.sleep(0.05)

    def events(self, event: str = "") -> list[dict]:
        path = self.folder / "results" / "supervise.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in map(json.loads, lines) if event in ("", line["event"])]

    def starts(self) -> list[list[str]]:
        """The arguments of each start, without the paths."""
        return [json.loads(line)[3:] for line in (self.folder / "starts.jsonl").read_text().splitlines()]

    def kill(self) -> None:
        self.process.kill()
        processes.kill_marked(self.mark)


@pytest.fixture
def supervise(tmp_path) -> Iterator:
    calls = []

    def start(plan: list, *own: str, **more) -> Supervised:
        calls.append(Supervised(tmp_path, plan, *own, **more))
        return calls[-1]

    yield start
    for call in calls:
        call.kill()


@pytest.mark.parametrize(
    ("plan", "code", "message"),
    [
        ([[IS_DONE, IS_DONE]], 0, "all workers are done"),
        ([["end:2:no_such_file", "wait:5"]], 2, "worker 0: no such file"),
        ([[TRAINS, "begin end:4:no_checkpoint"]], 4, "worker 1: no checkpoint"),
        ([["begin meet:1 end:75:stopped", "begin outlive:0 end:75:stopped"]], 75, "worker 0: stopped"),
        ([0], 0, "the command ended with code 0"),
    ],
    ids=["done", "rejected", "no checkpoint", "stopped", "done without records"],
)
def test_intended_ends_are_final(supervise, plan, code, message):
    call = supervise(plan, "--max_restarts", "5")
    assert call.end() == (code, f"supervise.py: {message}\n")
    assert len(call.starts()) == 1
    assert call.events()[-1]["event"] == "finished" and call.events()[-1]["code"] == code


def test_crashed_job_resumes_at_its_last_checkpoint(supervise):
    """After any kind of failure: five of them, all but the first with a new checkpoint."""
    deaths = [
        ([LEFT_ALONE.format(1), "begin meet:0 end:1:the_disk_is_full"], "worker 1: the disk is full"),
        (["begin save:20 meet:1 end:1:the_loss_is_nan", LEFT_ALONE.format(0)], "worker 0: the loss is nan"),
        ([LEFT_ALONE.format(1), "begin save:40 meet:0 die"], "worker 1 ended without a record"),
        (["begin save:60 meet:1 end:70:no_step", "begin outlive:0 end:70:no_step"], "worker 0: no step"),
        (["begin save:80 meet:1 kill_launcher wait", TRAINS], "the command was killed by signal 9"),
    ]
    call = supervise([*(actions for actions, _ in deaths), [IS_DONE, IS_DONE]], "--max_restarts", "5")
    code, message = call.end(120)
    *restarts, end = message.splitlines()
    assert (code, end) == (0, "supervise.py: all workers are done")
    for number, (line, (_, cause)) in enumerate(zip(restarts, deaths, strict=True)):
        assert line.startswith(f"supervise.py: {cause}") and f"restart {number + 1} of 5" in line
        assert line.endswith(f"from step {20 * number}")
        assert ("in 1 s, as there is no new checkpoint" in line) == (number == 0)
    on = ["--use_checkpoint", "--checkpoint", "last"]
    assert call.starts() == [[], [], on, on, on, on]
    assert [event["step"] for event in call.events("started")] == [0, 0, 20, 40, 60, 80]
    assert [event["code"] for event in call.events("died")] == [1, 1, 1, 70, 1]
    pauses = [event["seconds_without_training"] for event in call.events("registered")]
    assert len(pauses) == 6 and pauses[0] is None and all(0 < pause < 30 for pause in pauses[1:])
    # The same command again, after the job has completed or was stopped.
    again = supervise([[IS_DONE]])
    assert again.end()[0] == 0
    assert again.starts()[-1] == ["--use_checkpoint"]


@pytest.mark.parametrize("code", [1, 70])
def test_last_failure_decides_the_exit_code(supervise, code):
    call = supervise([[f"begin end:{code}:boom"]], "--max_restarts", "0")
    assert call.end() == (code, "supervise.py: worker 0: boom; no restart: 0 of 0 made\n")
    assert len(call.starts()) == 1


def test_stubborn_workers_are_killed(supervise):
    """Also if the launcher keeps waiting, and within the seconds it has to end by itself."""
    plan = [["begin leave_a_child deaf wait", "begin freeze", "begin meet:0 meet:1 wait:0.2 die"], [IS_DONE]]
    begin = time.monotonic()
    call = supervise(plan, FAKE_JOB_PATIENT="1")
    call.until("died")
    assert time.monotonic() - begin < 30
    assert call.end()[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_is_forwarded_and_job_ends_saved(supervise, number):
    call = supervise([["begin obey wait", TRAINS]])
    call.until("registered")
    time.sleep(0.2)
    call.process.send_signal(number)
    code, message = call.end()
    assert code == 75
    assert f"{number.name}: asked worker 0 to stop" in message and "worker 0: stopped after step 7" in message
    assert len(call.starts()) == 1


def test_second_signal_kills_immediately(supervise):
    call = supervise([["begin obey_slowly wait"]])
    call.until("registered")
    time.sleep(0.2)
    call.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    call.process.send_signal(signal.SIGTERM)  # within a second: part of the first
    time.sleep(ONE_REQUEST_SECONDS)
    assert call.process.poll() is None
    call.process.send_signal(signal.SIGTERM)
    assert call.end(timeout=10)[0] == 128 + signal.SIGTERM


def test_job_is_killed_after_the_grace_period(supervise):
    call = supervise([["begin obey_slowly wait"]], "--grace_seconds", "0.5")
    call.until("registered")
    time.sleep(0.2)
    call.process.send_signal(signal.SIGHUP)
    assert call.end(timeout=10)[0] == 128 + signal.SIGHUP


def test_job_killed_by_the_signal_is_not_restarted(supervise):
    call = supervise([["begin wait"]])
    call.until("registered")
    call.process.send_signal(signal.SIGTERM)
    assert call.end()[0] == 128 + signal.SIGTERM
    assert len(call.starts()) == 1


def test_signal_before_training_ends_the_job(supervise):
    call = supervise([["wait", "wait"]])
    call.until("started")
    call.process.send_signal(signal.SIGTERM)
    code, message = call.end(timeout=10)
    assert code == 75 and "no worker had started" in message


def test_signal_between_two_starts_ends_the_wait(supervise):
    call = supervise([["begin end:1:a"], ["begin end:1:b"]], "--max_restarts", "9")
    call.until("died", 2)
    call.process.send_signal(signal.SIGTERM)
    assert call.end(timeout=10)[0] == 75
    assert len(call.starts()) == 2


def until_nothing_is_left(call: Supervised) -> None:
    deadline = time.monotonic() + 20
    while call.left():
        assert time.monotonic() < deadline, call.left()
        time.sleep(0.05)


def test_killed_supervisor_takes_its_job_along(supervise):
    call = supervise([["begin leave_a_child deaf wait", "begin freeze"]], FAKE_JOB_PATIENT="1")
    call.until("registered")
    assert len(call.left()) >= 5  # the supervisor, the launcher, two workers, a child in a session of its own
    call.process.kill()
    until_nothing_is_left(call)


def test_the_same_command_continues_after_a_kill(supervise):
    """At once, while the first job is still being ended, and with no restart left."""
    plan = [["begin save:20 deaf wait", "begin deaf wait"], [IS_DONE, IS_DONE]]
    killed = supervise(plan, "--max_restarts", "0")
    killed.until("registered")
    wait_for_file(killed.folder / "models" / "checkpoints" / "step-20" / "manifest.json")
    killed.process.kill()
    again = supervise(plan, "--max_restarts", "0")
    assert again.end() == (0, "supervise.py: all workers are done\n")
    assert again.starts() == [[], ["--use_checkpoint"]]
    assert killed.left() == []


def test_leftover_processes_are_killed(supervise):
    """The process that guards the job was killed as well, so nothing has ended the job."""
    plan = [["begin deaf wait", "begin leave_a_child freeze"], [IS_DONE, IS_DONE]]
    killed = supervise(plan, FAKE_JOB_PATIENT="1")
    killed.until("registered")
    for pid in killed.pids():
        if Path(processes.__file__).name in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGKILL)
    killed.process.kill()
    killed.process.wait()
    time.sleep(0.5)
    assert len(killed.left()) >= 4
    assert supervise(plan).end()[0] == 0
    assert killed.left() == []


def test_two_supervisors_do_not_share_a_folder(supervise):
    first = supervise([["begin obey wait", "begin wait"]])
    first.until("registered")
    second = supervise([[IS_DONE]])
    code, message = second.end()
    assert code == 1 and message.count("\n") == 1
    assert "another supervisor is running there: process " in message and "give another --results_dir" in message
    assert len(first.starts()) == 1 and first.process.poll() is None
    time.sleep(0.2)
    first.process.terminate()
    assert first.end()[0] == 75


def test_records_of_another_job_are_ignored(supervise, tmp_path):
    """From an earlier job, and from a run that was started meanwhile and rejected by the lock."""
    workers = tmp_path / "results" / "workers"
    workers.mkdir(parents=True)
    state = {"rank": 0, "size": 1, "host": "vm", "pid": 1, "started": 1, "job": None, "code": 2, "cause": "rejected"}
    (workers / "worker-0.json").write_text(json.dumps(state | {"ended": 1.0}))
    (workers / "worker-7.json").write_text("{")
    call = supervise([["begin wait:1.5 end:0:"]])
    call.until("registered")
    (workers / "worker-0.json").write_text(json.dumps(state | {"job": "another", "ended": 2.0}))
    assert call.end() == (0, "supervise.py: all workers are done\n")


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        ([], "after two dashes"),
        (["--"], "after two dashes"),
        (["--max_restarts", "many", "--", "true"], "whole number"),
        (["--grace_seconds", "0", "--", "true"], "seconds above 0"),
        (["--max_restart", "1", "--", "true"], "unrecognized"),
        (["--", "/no/such/launcher"], "cannot be started"),
    ],
)
def test_mistyped_command_is_rejected(tmp_path, monkeypatch, capsys, words, fragment):
    monkeypatch.chdir(tmp_path)
    try:
        code = supervise_main(words)
    except SystemExit as leaving:
        code = leaving.code
    assert code == 2
    assert fragment in capsys.readouterr().err


def test_help_explains_exit_codes_without_tensorflow():
    program = "import sys, supervise; print('tensorflow' in sys.modules); supervise.main(['--help'])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    first, _, message = done.stdout.partition("\n")
    assert first == "False"
    for code in (DONE, FAILURE, WRONG_INPUT, NO_CHECKPOINT, HANG, STOPPED):
        assert f"\n  {code} " in message
