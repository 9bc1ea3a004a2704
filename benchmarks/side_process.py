"""Sides of a comparison that run in processes, and if need be in environments, of their own."""

import json
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from benchmarks.harness import ROOT

# Linux counts the memory of the process that starts a program as the program's, too, so a small process starts it.
STARTER = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, usage = os.wait4(process.pid, 0)  # with the largest of the processes that it waited for
print(usage.ru_maxrss * 1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def peak_bytes(command: Sequence[str | Path]) -> int:
    """Run a command, which prints to stderr; return the peak resident set size of the largest of its processes.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    starter = [sys.executable, "-c", STARTER, *map(str, command)]
    return int(subprocess.run(starter, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)


class SideProcess:
    """A process that prints a JSON line when it is ready, then one for every JSON line that it is sent.

    Args:
        name: name of the side, for errors.
        command: program and arguments.
        environment: environment variables; None for those of this process.

    Attributes:
        ready: the first line.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None):
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.ready = self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for the answer."""
        with suppress(BrokenPipeError):  # it has ended, which `_answer` reports
            print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def peak_gb(self) -> float:
        """Return the peak resident set size so far, in GB."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        (peak,) = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
        return int(peak) * 1024 / 1e9

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise RuntimeError(f"{self.name} ended with {self._process.wait()}, see above")
        return json.loads(line)


def python_of(environment: Path) -> Path:
    """Return the interpreter of a virtual environment."""
    return environment / "bin" / "python"


def make_environment(environment: Path, packages: Sequence[str]) -> None:
    """Make a virtual environment with packages, which pip takes from where its own settings say."""
    venv.create(environment, with_pip=True, symlinks=True)
    subprocess.run([python_of(environment), "-m", "pip", "install", *packages], check=True)
