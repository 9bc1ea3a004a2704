"""How horovodrun, as requirements/horovod-0.28.1.patch makes it, ends when a worker fails."""

import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import psutil
import pytest
from horovod.runner import gloo_run
from horovod.runner.common.util.safe_shell_exec import terminate_executor_shell_and_children

from tests.helpers import ROOT, run_program

pytestmark = pytest.mark.horovod


@pytest.fixture(autouse=True)
def patched() -> None:
    assert hasattr(gloo_run, "WorkerFailed"), (
        "the installed Horovod is older than requirements/horovod-0.28.1.patch: run  bash scripts/setup.sh"
    )


ENDED = (":Terminated", ":Killed")


def lines_of(done: "subprocess.CompletedProcess[str]") -> list[str]:
    """Returns the printed lines, without import warnings and a shell's message about a killed worker."""
    assert "Traceback" not in done.stdout + done.stderr
    lines = (done.stdout + done.stderr).splitlines()
    return [line for line in lines if line.strip() and "Warning" not in line and not line.endswith(ENDED)]


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [(["--num_epoch", "1"], 2, "did you mean --num_epochs?"), (["--evaluate"], 4, "checkpoint")],
)
def test_rejection_is_two_lines_and_keeps_its_code(tmp_path, flags, code, said):
    places = ["--model_dir", tmp_path / "models", "--results_dir", tmp_path / "results"]
    done = run_program([ROOT / "main.py", *places, *flags], workers=2)
    rejection, end = lines_of(done)
    assert "main.py: error: " in rejection and said in rejection
    assert end == f"horovodrun: worker 0 on localhost ended with exit code {code}; the other workers were stopped"
    assert done.returncode == code


FAILS = """
import os, sys, time
if os.environ["HOROVOD_RANK"] == "1":
    print("the reason", file=sys.stderr, flush=True)
    {end}
time.sleep(0.7)
sys.exit(1)  # because the first worker is gone
"""


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("os._exit(7)", 7, "ended with exit code 7"),
        ("os.kill(os.getpid(), 9)", 137, "was killed by SIGKILL"),
    ],
    ids=["code", "signal"],
)
def test_the_first_worker_that_fails_counts(end, code, said):
    done = run_program(["-c", FAILS.format(end=end)], workers=2)
    reason, last = lines_of(done)
    assert reason == "[1]<stderr>:the reason"
    assert last == f"horovodrun: worker 1 on localhost {said}; the other workers were stopped"
    assert done.returncode == code


def test_output_of_a_single_worker_is_kept():
    launcher = str(Path(sys.executable).with_name("horovodrun"))
    done = subprocess.run([launcher, "-np", "1", "python", "-c", "1 / 0"], capture_output=True, text=True, check=False)
    assert "ZeroDivisionError: division by zero" in done.stderr
    assert done.stderr.splitlines()[-1] == "horovodrun: worker 0 on localhost ended with exit code 1"
    assert done.returncode == 1


def test_a_shell_may_end_as_soon_as_its_worker_is_stopped():
    shell = subprocess.Popen("sleep 100; true", shell=True)
    while not (children := psutil.Process(shell.pid).children()):
        time.sleep(0.01)
    terminate = psutil.Process.terminate

    def terminated(process: psutil.Process) -> None:
        terminate(process)
        shell.wait(timeout=10)  # as long as the launcher is not scheduled

    with mock.patch.object(psutil.Process, "terminate", terminated):
        terminate_executor_shell_and_children(shell.pid)
    assert not children[0].is_running()
