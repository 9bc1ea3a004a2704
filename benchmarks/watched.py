"""Run a command and watch its time and memory."""

import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_SECONDS = 0.1
KIB_PER_MIB = 1024


@dataclass(frozen=True)
class Watched:
    """A finished command.

    Attributes:
        seconds: wall clock.
        peak_mib: largest sum of the proportional memory (PSS) of the process and its children; pages that several
            processes share count once. It includes pages of mapped files, which the system can drop at any time.
        peak_own_mib: the same without pages of files.
        output, log: text that it wrote to stdout and stderr.
    """

    seconds: float
    peak_mib: float
    peak_own_mib: float
    output: str
    log: str


def run_watched(command: Sequence[str], folder: Path | None = None) -> Watched:
    """Run a command and sample the memory of its processes ten times a second.

    Args:
        command: program and arguments.
        folder: working folder.

    Raises:
        SystemExit: with what it wrote to stderr, if it fails.
    """
    with tempfile.TemporaryFile("w+") as output_file, tempfile.TemporaryFile("w+") as log_file:
        begin, peak, peak_own = time.perf_counter(), 0, 0
        process = subprocess.Popen(command, cwd=folder, stdout=output_file, stderr=log_file, text=True)
        while process.poll() is None:
            total, files = _proportional_kib(process.pid)
            peak, peak_own = max(peak, total), max(peak_own, total - files)
            time.sleep(SAMPLE_SECONDS)
        seconds = time.perf_counter() - begin
        texts = []
        for file in (output_file, log_file):
            file.seek(0)
            texts.append(file.read())
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{texts[1]}")
    return Watched(seconds, peak / KIB_PER_MIB, peak_own / KIB_PER_MIB, *texts)


def _proportional_kib(pid: int) -> tuple[int, int]:
    """Return the proportional memory of a process and its children, and its part in pages of files."""
    total = files = 0
    members: list[int] = [pid]
    with suppress(psutil.Error):
        members += [child.pid for child in psutil.Process(pid).children(recursive=True)]
    for member in members:
        with suppress(OSError):  # it ended
            sizes = dict(
                line.split(":", 1) for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()[1:]
            )
            total += int(sizes["Pss"].split()[0])
            files += int(sizes["Pss_File"].split()[0])
    return total, files
