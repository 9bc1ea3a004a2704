"""Determines how much memory this process can still allocate."""

import resource
from collections.abc import Iterator
from pathlib import Path

import psutil

from data.errors import DataError

PROCESS = Path("/proc/self")
CONTROL_GROUPS = Path("/sys/fs/cgroup")
# Files with the limit and the usage of a control group (cgroup v1, v2), and the page cache entries of memory.stat.
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
_VERSION_2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))


def available_memory(processes: int = 1) -> int:
    """Return the bytes this process can still allocate, given physical memory, control groups and resource limits.

    The page cache counts as available, because the kernel reclaims it first. Swap does not: training from swap takes
    hours instead of minutes.

    Args:
        processes: number of processes like this one that share the machine and its control groups evenly.
    """
    used = psutil.Process().memory_info()
    left = [bytes_left // processes for bytes_left in (psutil.virtual_memory().available, *_left_in_control_groups())]
    # Resource limits hold per process, so they are not divided.
    for limit, taken in ((resource.RLIMIT_AS, used.vms), (resource.RLIMIT_DATA, used.data)):
        allowed = resource.getrlimit(limit)[0]
        if allowed != resource.RLIM_INFINITY:
            left.append(allowed - taken)
    return max(0, min(left))


def check_fits(needed: int, what: str, fix: str, processes: int = 1) -> None:
    """Check that an allocation fits in the available memory, before any of it is made.

    Args:
        needed: lower bound of the bytes to allocate.
        what: what needs the memory, as the beginning of the error message.
        fix: what to do about it, as the end of the error message.
        processes: number of processes on this machine that need as much each.

    Raises:
        DataError: `needed` exceeds the available memory; the message states both.
    """
    available = available_memory(processes)
    if needed > available:
        each = f" to each of {processes} workers on this host" if processes > 1 else ""
        raise DataError(
            f"{what} needs {in_gibibytes(needed)} of memory, and {in_gibibytes(available)} are available{each}; {fix}"
        )


def in_gibibytes(count: int) -> str:
    """Format a number of bytes in GiB, or in MiB below 1/8 GiB."""
    return f"{count / 2**30:,.2f} GiB" if count >= 2**27 else f"{count / 2**20:,.1f} MiB"


def _left_in_control_groups() -> Iterator[int]:
    """Yield the bytes left in each limited control group of this process and in its parent groups."""
    for line in _text(PROCESS / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _left_on_path(CONTROL_GROUPS, path, _VERSION_2)
        elif "memory" in controllers.split(","):
            yield from _left_on_path(CONTROL_GROUPS / "memory", path, _VERSION_1)


def _left_on_path(root: Path, path: str, names: tuple[str, str, tuple[str, str]]) -> Iterator[int]:
    """Yield the bytes left in each group from `path` up to the root; in a container only the root may be visible."""
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
    """Return the content of a kernel file, or an empty string if it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
