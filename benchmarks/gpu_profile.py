"""Reads what a GPU did in a trace of TensorFlow's profiler, such as main.py --profile_steps writes."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu_parts import Skipped

# Planes of GPUs have a line per stream, and further lines that the profiler has derived from these.
GPU_PLANE, STREAM = "/device:GPU:", "Stream #"
TO_DEVICE, TO_HOST = "MemcpyH2D", "MemcpyD2H"
NO_KERNELS = re.compile(r"Memcpy|Memset|Memory|Host(Un)?[Rr]egister")
PICOSECONDS_PER_NANOSECOND, PICOSECONDS_PER_SECOND = 1000, 1e12
KERNELS_SHOWN, LONGEST_NAME = 8, 100


class Interval(NamedTuple):
    """A time on a stream, in picoseconds."""

    start: int
    end: int


@dataclass
class DeviceProfile:
    """What GPUs did during a trace.

    Attributes:
        kernels: name of a kernel -> how often it ran.
        kernel_seconds: name of a kernel -> seconds that it took.
        copies: name of a kind of copy, such as TO_DEVICE -> how many there were.
        copied_bytes: likewise the bytes.
        intervals: when kernels and copies ran.
    """

    kernels: Counter[str] = field(default_factory=Counter)
    kernel_seconds: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    copied_bytes: Counter[str] = field(default_factory=Counter)
    intervals: list[Interval] = field(default_factory=list)

    def per_step(self, steps: int) -> dict[str, Any]:
        """Return the means over so many steps, and the kernels that took most of the time."""
        busy = busy_picoseconds(self.intervals)
        span = max(own.end for own in self.intervals) - min(own.start for own in self.intervals)
        longest = self.kernel_seconds.most_common(KERNELS_SHOWN)
        return {
            "kernels": round(self.kernels.total() / steps, 1),
            "to_device": round(self.copies[TO_DEVICE] / steps, 1),
            "to_host": round(self.copies[TO_HOST] / steps, 1),
            "to_device_mb": round(self.copied_bytes[TO_DEVICE] / steps / 1e6, 3),
            "to_host_mb": round(self.copied_bytes[TO_HOST] / steps / 1e6, 3),
            "busy_ms": round(1000 * busy / PICOSECONDS_PER_SECOND / steps, 3),
            "busy_share": round(busy / span, 3),
            "longest_ms": {name[:LONGEST_NAME]: round(1000 * seconds / steps, 3) for name, seconds in longest},
        }


def read_profile(folder: Path) -> DeviceProfile:
    """Read the trace in a folder.

    Raises:
        Skipped: the trace has nothing of a GPU, or there is no trace.
    """
    from tensorflow.tsl.profiler.protobuf.xplane_pb2 import XSpace

    profile = DeviceProfile()
    files = sorted(folder.rglob("*.xplane.pb"))
    for file in files:
        for plane in XSpace.FromString(file.read_bytes()).planes:
            if plane.name.startswith(GPU_PLANE):
                _add(profile, plane)
    if not profile.intervals:
        raise Skipped("the profiler has seen no GPU, or CUPTI is missing" if files else "the profiler wrote no trace")
    return profile


def _add(profile: DeviceProfile, plane: Any) -> None:
    """Add the events of a GPU."""
    for event, start in _stream_events(plane):
        name = plane.event_metadata[event.metadata_id].name
        profile.intervals.append(Interval(start, start + event.duration_ps))
        if not NO_KERNELS.match(name):
            profile.kernels[name] += 1
            profile.kernel_seconds[name] += event.duration_ps / PICOSECONDS_PER_SECOND
        elif name.startswith("Memcpy"):
            profile.copies[name] += 1
            profile.copied_bytes[name] += _size(plane, event)


def _stream_events(plane: Any) -> Iterator[tuple[Any, int]]:
    """Yield the events of all streams, each with its start in picoseconds."""
    for line in plane.lines:
        if line.name.startswith(STREAM):
            for event in line.events:
                yield event, line.timestamp_ns * PICOSECONDS_PER_NANOSECOND + event.offset_ps


def _size(plane: Any, event: Any) -> int:
    """Return the bytes of a copy, which the profiler describes as `kind_src:... size:4096 dest:0`."""
    for stat in event.stats:
        if plane.stat_metadata[stat.metadata_id].name == "memcpy_details":
            text = stat.str_value or plane.stat_metadata[stat.ref_value].name
            found = re.search(r"\bsize:(\d+)", text)
            return int(found[1]) if found else 0
    return 0


def busy_picoseconds(intervals: Iterable[Interval]) -> int:
    """Return how long at least one of the intervals lasts."""
    busy, until = 0, 0
    for start, end in sorted(intervals):
        busy += max(0, end - max(start, until))
        until = max(until, end)
    return busy
