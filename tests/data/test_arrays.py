"""Allocation of arrays of rows."""

from pathlib import Path

import numpy as np
import pytest

from data.loading.arrays import LARGE_BYTES, empty_array


def test_large_arrays_lie_in_private_memory():
    """Which the kernel may map as huge pages, unlike shared memory."""
    array = empty_array((LARGE_BYTES, 2), np.int32)
    for line in Path("/proc/self/maps").read_text().splitlines():
        places, permissions, *_ = line.split()
        begin, end = (int(place, 16) for place in places.split("-"))
        if begin <= array.ctypes.data < end:
            assert permissions == "rw-p"
            return
    pytest.fail("the array is nowhere")
