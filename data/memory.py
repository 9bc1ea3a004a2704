"""How much memory this process can still get."""

import resource
from collections.abc import Iterator
from pathlib import Path

import psutil

from data.errors import DataError

PROCESS = Path("/proc/self")
CONTROL_GROUPS = Path("/sys/fs/cgroup")
# Limit and usage of a control group, and what its caches of files are called in memory.stat.
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
_VERSION_2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))


def available_memory(processes: int = 1) -> int:
    """Bytes that this process can allocate: what the machine, its control groups and its resource limits leave.

    Caches of files count as available, because the kernel gives them up first. Swap does not: training out of it
    takes hours for what takes minutes.

    Args:
        processes: how many like this one share the machine and its control groups evenly.
    """
    used = psutil.Process().memory_info()
    left = [bytes_left // processes for bytes_left in (psutil.virtual_memory().available, *_left_in_control_groups())]
    for limit, taken in ((resource.RLIMIT_AS, used.vms), (resource.RLIMIT_DATA, used.data)):
        allowed = resource.getrlimit(limit)[0]
        if allowed != resource.RLIM_INFINITY:
            left.append(allowed - taken)
    return max(0, min(left))


def check_fits(needed: int, what: str, fix: str, processes: int = 1) -> None:
    """Refuses what needs more memory than there is, before any of it is allocated.

    Args:
        needed: bytes that are allocated for certain; there may be more.
        what: needs them, for the message: the beginning of a sentence.
        fix: what to do about it.
        processes: how many need as much each on this machine.

    Raises:
        DataError: naming both figures.
    """
    available = available_memory(processes)
    if needed > available:
        each = f" to each of {processes} workers on this host" if processes > 1 else ""
        raise DataError(
            f"{what} needs {in_gibibytes(needed)} of memory, and {in_gibibytes(available)} are available{each}; {fix}"
        )


def in_gibibytes(count: int) -> str:
    """A number of bytes for a message."""
    return f"{count / 2**30:,.2f} GiB" if count >= 2**27 else f"{count / 2**20:,.1f} MiB"


def _left_in_control_groups() -> Iterator[int]:
    """Bytes left in each limited control group of this process and in the groups around it."""
    for line in _text(PROCESS / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _left_on_path(CONTROL_GROUPS, path, _VERSION_2)
        elif "memory" in controllers.split(","):
            yield from _left_on_path(CONTROL_GROUPS / "memory", path, _VERSION_1)


def _left_on_path(root: Path, path: str, names: tuple[str, str, tuple[str, str]]) -> Iterator[int]:
    """Bytes left in each group from `path` up to the root; in a container only the root may be visible."""
    limit_file, usage_file, caches = names
    group = root / path.lstrip("/")
    for folder in (group, *group.parents):
        limit, usage = _text(folder / limit_file).strip(), _text(folder / usage_file).strip()
        if limit.isdecimal() and usage.isdecimal():
            stat = dict(line.split(maxsplit=1) for line in _text(folder / "memory.stat").splitlines())
            yield int(limit) - int(usage) + sum(int(stat.get(name, 0)) for name in caches)
        if folder == root:
            return


def _text(path: Path) -> str:
    """Content of a file of the kernel's; empty where there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""
