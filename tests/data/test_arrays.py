"""Allocation of arrays of rows."""

from pathlib import Path

import numpy as np
import pytest

from data.loading.arrays import LARGE_BYTES, empty_array, joined_array


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


@pytest.mark.parametrize("rows", [3, LARGE_BYTES // 8])
def test_joined_arrays(rows):
    parts = [np.full((count, 2), count, np.float32) for count in (rows, 0, 2)]
    joined = joined_array(parts)
    assert joined.dtype == np.float32 and joined.shape == (rows + 2, 2)
    assert (joined[:rows] == rows).all() and (joined[rows:] == 2).all()
