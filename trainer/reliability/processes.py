"""Processes of this host, seen through /proc: whether one still lives, and which carry a mark in their environment.

As a program (`processes.py NAME=value`) it is a job's keeper: it waits until its standard input ends, that is, until
the process at the other end of the pipe has closed it or has died, however that happened. Then it kills all processes
that carry the mark.
"""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path


def start_time(pid: int) -> int | None:
    """Clock ticks from the host's boot to the start of a process, which tell it from a later one of its number.

    None where there is no such process, or only what is left of it until its parent asks.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat.rpartition(b")")[2].split()  # the name before may hold anything, blanks and brackets too
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def carries(pid: int, mark: str) -> bool:
    """Whether a process was started with the variable `mark` (NAME=value) in its environment."""
    try:
        return mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def kill_marked(mark: str, patience: float = 10.0) -> list[int]:
    """Kills all processes that carry a mark, whatever their group, session, handlers or stops.

    Args:
        mark: NAME=value.
        patience: seconds until those that still live (in a call to a dead disk, say) are given up.

    Returns:
        The numbers of those.
    """
    until = time.monotonic() + patience
    while marked := [pid for pid in _all() if carries(pid, mark) and start_time(pid) is not None]:
        for pid in marked:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > until:
            break
        time.sleep(0.02)
    return marked


def _all() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


if __name__ == "__main__":
    sys.stdin.buffer.read()
    kill_marked(sys.argv[1])
