"""Allocates arrays of rows."""

import math
import mmap
from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

LARGE_BYTES = 2**20


def empty_array(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Like np.empty, but maps large arrays directly: malloc would keep memory freed by the threads of past epochs."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < LARGE_BYTES or np.dtype(dtype).hasobject:
        return np.empty(shape, dtype)
    # Private, unlike the default: the kernel maps no huge pages of shared memory.
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # fewer page faults while the array is first filled; Linux only
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, dtype).reshape(shape)


def joined_array(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Like np.concatenate of arrays of the same dtype and width, into an array as `empty_array` allocates it."""
    joined = empty_array((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    return np.concatenate(parts, out=joined)
