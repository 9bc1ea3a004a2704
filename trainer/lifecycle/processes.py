"""Processes of this host as seen through /proc: liveness checks, and search by a mark in the environment.

Run as a program (`processes.py NAME=value`) it is a job's keeper: it waits for end of file on standard input, which
occurs when the process at the other end of the pipe closes it or dies for any reason. It then kills all processes that
carry the mark. Only the standard library is imported, as the keeper runs isolated from the project.
"""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path


def start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot.

    Together with the process id this identifies a process even if the id is reused later, and even if the clock is set
    (psutil's create_time would then change).

    Returns:
        The start time; None if there is no such process or it is a zombie.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat.rpartition(b")")[2].split()  # the process name in (...) may itself contain spaces and parentheses
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def carries(pid: int, mark: str) -> bool:
    """Return whether a process was started with the variable `mark` (NAME=value) in its environment."""
    try:
        return mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def kill_marked(mark: str, patience: float = 10.0) -> list[int]:
    """Kill all processes that carry a mark, regardless of process group, session, signal handlers or stopped state.

    Args:
        mark: environment variable as NAME=value.
        patience: seconds after which to give up on processes that do not die, for example in uninterruptible I/O.

    Returns:
        The ids of the processes that survived.
    """
    until = time.monotonic() + patience
    # Repeated until none is found: a process may have forked between the listing and the signal.
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
