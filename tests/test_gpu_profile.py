"""benchmarks/gpu_profile.py on a trace that is written by hand, with the names that the profiler gives to events."""

import pytest

from benchmarks.gpu_parts import Skipped
from benchmarks.gpu_profile import Interval, busy_picoseconds, read_profile

MILLISECOND = 10**9  # in picoseconds


class Trace:
    """A trace with one GPU."""

    def __init__(self):
        from tensorflow.tsl.profiler.protobuf.xplane_pb2 import XSpace

        self.space = XSpace()
        self.plane = self.space.planes.add(name="/device:GPU:0")
        self.plane.stat_metadata[1].name = "memcpy_details"
        self.space.planes.add(name="/host:CPU").lines.add(name="Stream #1 of the host").events.add(metadata_id=1)

    def add(self, line, name, start, duration, details=""):
        """Adds an event, times in milliseconds."""
        number = len(self.plane.event_metadata) + 1
        self.plane.event_metadata[number].name = name
        timed = {"offset_ps": start * MILLISECOND, "duration_ps": duration * MILLISECOND}
        event = self.line(line).events.add(metadata_id=number, **timed)
        if details:
            event.stats.add(metadata_id=1, str_value=details)

    def line(self, name):
        """The line of this name."""
        found = [line for line in self.plane.lines if line.name == name]
        return found[0] if found else self.plane.lines.add(name=name)

    def write(self, folder):
        """Writes it where the profiler writes traces."""
        folder = folder / "plugins" / "profile" / "now"
        folder.mkdir(parents=True)
        (folder / "host.xplane.pb").write_bytes(self.space.SerializeToString())


def test_kernels_copies_and_busy_time_of_a_trace(tmp_path):
    trace = Trace()
    compute, copies = "Stream #14(Compute)", "Stream #15(MemcpyH2D)"
    for start in (0, 10):
        trace.add(compute, "gemm", start, 4)
        trace.add(compute, "relu", start + 4, 1)
    trace.add(compute, "Memset", 5, 1, "value:0")
    trace.add(copies, "MemcpyH2D", 3, 4, "kind_src:pageable kind_dst:device size:3000000 dest:0 async:1")
    trace.add(copies, "MemcpyD2H", 19, 1, "kind_src:device kind_dst:pinned size:4 dest:0 async:1")
    trace.add("TensorFlow Ops", "MatMul", 0, 20)  # derived from the others
    trace.line(copies).timestamp_ns = trace.line(compute).timestamp_ns = 7
    trace.write(tmp_path)
    found = read_profile(tmp_path).per_step(2)
    longest = found.pop("longest_ms")
    assert longest == {"gemm": pytest.approx(4), "relu": pytest.approx(1)}
    # Busy from 0 to 7, 10 to 15 and 19 to 20, of 20 milliseconds.
    assert found == {
        "kernels": 2,
        "to_device": 0.5,
        "to_host": 0.5,
        "to_device_mb": 1.5,
        "to_host_mb": 0,
        "busy_ms": 6.5,
        "busy_share": 0.65,
    }


def test_streams_that_overlap_are_busy_once():
    assert busy_picoseconds([Interval(5, 6), Interval(0, 4), Interval(1, 2), Interval(3, 5), Interval(9, 9)]) == 6
    assert busy_picoseconds([]) == 0


def test_trace_without_a_gpu_says_so(tmp_path):
    with pytest.raises(Skipped, match="wrote no trace"):
        read_profile(tmp_path)
    trace = Trace()
    trace.write(tmp_path)
    with pytest.raises(Skipped, match="has seen no GPU"):
        read_profile(tmp_path)
