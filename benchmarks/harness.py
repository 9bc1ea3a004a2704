"""Shared by the benchmarks: flags, reports of results as JSON lines, files of results, and tables in docs/ pages."""

import argparse
import json
import os
import platform
import re
import shlex
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from trainer.process.worker_env import read_worker_env

Line = dict[str, Any]
System = tuple[str, str]
Measure = Callable[[Path, argparse.Namespace], list[Line]]

ROOT = Path(__file__).resolve().parent.parent
# Package -> names of the distributions that contain it: they differ with and without a GPU.
PACKAGES = {
    "tensorflow": ("tensorflow", "tensorflow-cpu"),
    **{name: (name,) for name in ("keras", "horovod", "numpy", "pyarrow")},
}
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def parser_of(description: str | None, *, takes_flags: bool = False) -> argparse.ArgumentParser:
    """Return a parser with --batch, and with --flags if flags of main.py can be passed on."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16_384, help="rows per step of each worker")
    if takes_flags:
        parser.add_argument(
            "--flags", nargs=argparse.REMAINDER, default=[], help="further flags of main.py; must come last"
        )
    return parser


def measure_and_report(measure: Measure, arguments: argparse.Namespace) -> int:
    """Measure in a temporary folder and let the first worker report; return the exit code."""
    from trainer.process.startup import import_tensorflow

    import_tensorflow()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), arguments)
    if read_worker_env(os.environ).rank == 0:
        for result in results:
            report(result)
    return 0


def report(result: Line) -> None:
    """Print a result as one line, with the entries of `about`."""
    print(json.dumps(about(command()) | result), flush=True)


def about(command: str) -> Line:
    """Return what every line contains besides its result: machine, versions and command."""
    return {"machine": machine(), "versions": versions(), "command": command}


def command() -> str:
    """Return the command that runs this process again from the project's folder."""
    workers = read_worker_env(os.environ).size
    launcher = f"horovodrun -np {workers} " if workers > 1 else ""
    return launcher + shlex.join(["python", *sys.orig_argv[1:]])


@cache
def machine() -> str:
    """Describe processor, available cores and memory, and the GPUs if TensorFlow is imported and sees some."""
    cores, gib = len(psutil.Process().cpu_affinity()), psutil.virtual_memory().total / 2**30
    return ", ".join([_processor(), f"{cores} cores", f"{gib:.0f} GiB", *_gpus()])


def versions() -> dict[str, str]:
    """Return the versions of the installed packages that results depend on."""
    found = {"python": platform.python_version()}
    for package, distributions in PACKAGES.items():
        for distribution in distributions:
            with suppress(PackageNotFoundError):
                found[package] = version(distribution)
    return found


def _processor() -> str:
    """Return the processor's name, with family and model to distinguish generations of the same name."""
    info: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():  # neither platform nor psutil knows the model
        key, _, value = line.partition(":")
        info.setdefault(key.strip(), value.strip())
    return f"{info['model name']} (family {info['cpu family']}, model {info['model']})"


def _gpus() -> list[str]:
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None:
        return []
    details = tensorflow.config.experimental.get_device_details
    return [details(gpu).get("device_name", "GPU") for gpu in tensorflow.config.get_visible_devices("GPU")]


def read_lines(file: Path) -> list[Line]:
    """Read JSON lines; none if there is no file."""
    return [json.loads(text) for text in file.read_text().splitlines()] if file.exists() else []


def write_lines(file: Path, lines: list[Line]) -> None:
    """Write JSON lines."""
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


class RunsFile:
    """Runs of a long benchmark in a file of JSON lines, so that a stopped benchmark continues where it was.

    Args:
        file: path of the file; it is created with its folder if it does not exist.
    """

    def __init__(self, file: Path):
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file
        self.runs = read_lines(file)

    def has(self, **about: Any) -> bool:
        """Return whether there is a run with these entries."""
        return any(about.items() <= run.items() for run in self.runs)

    def add(self, run: Line) -> None:
        """Append a run to the file."""
        self.runs.append(run)
        with self._file.open("a") as file:
            file.write(json.dumps(run) + "\n")


def fill(page: str, tables: dict[str, str]) -> str:
    """Return a page with the tables between its marks; raise KeyError if it marks a table that does not exist."""
    return MARKED.sub(lambda match: f"{match[1]}{tables[match[2]]}\n{match[3]}", page)


def markdown(headings: list[str], rows: list[list[str]]) -> str:
    """Format a table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (headings, ["---"] * len(headings), *rows))


def system_of(line: Line) -> System:
    """Return the machine and the versions that a line was measured with."""
    return line["machine"], ", ".join(f"{package} {version}" for package, version in line["versions"].items())


def systems_of(lines: list[Line]) -> list[System]:
    """Return the distinct systems of lines; tables refer to them by number, from 1."""
    return list(dict.fromkeys(map(system_of, lines)))


def machines_table(systems: list[System]) -> str:
    """Format the systems with their numbers."""
    return markdown(["", "machine", "versions"], [[str(index), *system] for index, system in enumerate(systems, 1)])
