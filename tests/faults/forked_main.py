"""Runs `python main.py ARGUMENTS` many times in unusual environments, with one import of TensorFlow.

This program imports all that main.py does and then forks a process per request, which sets up the
environment and runs main.py as a program. TensorFlow allows this if the first process runs no operation. A request is a
line of JSON on stdin, the fields of `Request`; the answer is a line with the exit code.
"""

import ctypes
import importlib
import json
import os
import resource
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.helpers import ROOT
from trainer.checkpoint.manager import CheckpointManager


@dataclass(frozen=True)
class Request:
    """One run.

    Attributes:
        arguments: arguments of main.py.
        stdout, stderr: files for what it prints.
        conditions: names in CONDITIONS, applied at the start.
        after_first_save: names in EVENTS, called with model_dir and results_dir once a checkpoint exists.
        environment: variables to set, or to remove if the value is None.
    """

    arguments: list[str]
    stdout: str
    stderr: str
    conditions: list[str]
    after_first_save: list[str]
    environment: dict[str, str | None]


# Conditions: set before the run starts.


def closed_stdin() -> None:
    os.close(0)
    sys.stdin = None


def closed_stdout() -> None:
    """As Python comes up under `>&-`."""
    os.close(1)
    sys.stdout = sys.__stdout__ = None


def closed_stderr() -> None:
    os.close(2)
    sys.stderr = sys.__stderr__ = None


def stdout_without_reader() -> None:
    reading, writing = os.pipe()
    os.dup2(writing, 1)
    os.close(reading)
    os.close(writing)


def full_stdout() -> None:
    device = os.open("/dev/full", os.O_WRONLY)
    os.dup2(device, 1)
    os.close(device)


def no_terminal() -> None:
    os.setsid()


def umask_077() -> None:
    os.umask(0o077)


def umask_000() -> None:
    os.umask(0)


def permissions_count() -> None:
    """Drops the capabilities that let root write to read-only files; does nothing for others."""
    if os.geteuid() == 0:
        version, nothing = 0x20080522, [0, 0, 0]
        header, data = (ctypes.c_uint32 * 2)(version, 0), (ctypes.c_uint32 * 6)(*nothing, *nothing)
        if ctypes.CDLL(None, use_errno=True).capset(header, data):
            raise OSError(ctypes.get_errno(), "capset")


CONDITIONS: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (
        *(closed_stdin, closed_stdout, closed_stderr, stdout_without_reader, full_stdout),
        *(no_terminal, umask_077, umask_000, permissions_count),
    )
}

# Events: happen once the first checkpoint exists.


def model_dir_vanishes(model_dir: Path, results_dir: Path) -> None:
    shutil.rmtree(model_dir)


def results_dir_vanishes(model_dir: Path, results_dir: Path) -> None:
    shutil.rmtree(results_dir)


def model_dir_becomes_read_only(model_dir: Path, results_dir: Path) -> None:
    (model_dir / "checkpoints").chmod(0o555)


def results_dir_becomes_read_only(model_dir: Path, results_dir: Path) -> None:
    for path in (*results_dir.iterdir(), results_dir):
        path.chmod(0o555)


def files_cannot_grow(model_dir: Path, results_dir: Path) -> None:
    # Enough for printed output, too little for a manifest.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))


def model_disk_is_full(model_dir: Path, results_dir: Path) -> None:
    fill_disk(model_dir)


def results_disk_is_full(model_dir: Path, results_dir: Path) -> None:
    fill_disk(results_dir)


def fill_disk(folder: Path) -> None:
    # The log's last page may have room for some more lines.
    for path in (folder / "filling", folder / "log.json"):
        with open(path, "ab", buffering=0) as file, suppress(OSError):
            while file.write(b"\n" * 512):
                pass


EVENTS: dict[str, Callable[[Path, Path], None]] = {
    function.__name__: function
    for function in (
        *(model_dir_vanishes, results_dir_vanishes, model_dir_becomes_read_only, results_dir_becomes_read_only),
        *(files_cannot_grow, model_disk_is_full, results_disk_is_full),
    )
}


def trigger_events(names: list[str], arguments: list[str]) -> None:
    """Patches saving so that these events happen once, between the first checkpoint and the next step."""
    save, left = CheckpointManager.save, list(names)
    folders = [Path(arguments[arguments.index(flag) + 1]) for flag in ("--model_dir", "--results_dir")]

    def save_then_trigger(saver: CheckpointManager, *given, **options):
        save(saver, *given, **options)
        if left:
            saver.finish()
        while left:
            EVENTS[left.pop()](*folders)

    CheckpointManager.save = save_then_trigger  # type: ignore[method-assign]


def become_main(request: Request) -> None:
    """Runs main.py in this process, killed by SIGALRM after five minutes."""
    signal.alarm(300)
    for descriptor, path in ((1, request.stdout), (2, request.stderr)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    for name, value in request.environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    time.tzset()
    tempfile.tempdir = None
    # As the interpreter would decode them in this environment.
    arguments = [os.fsdecode(argument.encode()) for argument in request.arguments]
    trigger_events(request.after_first_save, arguments)
    sys.argv = ["main.py", *arguments]
    for name in request.conditions:
        CONDITIONS[name]()
    runpy.run_path(str(ROOT / "main.py"), run_name="__main__")


def main() -> None:
    # main.py imports the second one late.
    for module in ("main", "trainer.trainer"):
        importlib.import_module(module)
    requests, answers = os.dup(0), os.dup(1)
    with open(requests) as lines:
        for line in lines:
            child = os.fork()
            if child == 0:
                os.close(answers)
                become_main(Request(**json.loads(line)))
                sys.exit(0)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            os.write(answers, f"{code}\n".encode())


if __name__ == "__main__":
    main()
