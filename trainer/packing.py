"""A batch as two tensors: its arrays lie one after the other in one buffer, which a graph cuts into tensors again.

A batch has about ten arrays and nine for each group of embedding tables, often more than a hundred. Converting an array
to a tensor and passing it to a graph takes TensorFlow as long as copying some hundred kilobytes, and a GPU gets each
tensor in a copy of its own. Cutting a buffer is one operation, which copies few of the tensors.

The buffer is a sequence of 4-byte words, float32 for TensorFlow, which splits them on every device. It has two parts:

    whole   arrays whose size is known when the graph is built, and a multiple of BLOCK_WORDS, so that each of them
            begins at one: their tensors share the memory of the buffer
    loose   all others without gaps, those of int64 first, and unused words up to the next multiple of BLOCK_WORDS:
            their tensors are copies

A number of an int64 array takes two words, whose bits nothing computes with. int32 arrays are not in the buffer, since
TensorFlow keeps int32 in host memory: they follow the lengths of the loose arrays in a tensor of their own.
"""

import math
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from data.loading.arrays import empty_array
from trainer.process.device import on_gpu

WORD_BYTES = 4
BLOCK_WORDS = 16  # TensorFlow computes with tensors that begin at multiples of 64 bytes


class Packed(NamedTuple):
    """The tensors of packed arrays.

    Attributes:
        words: the buffer, [words] float32.
        counts: the length of each loose array and the number of unused words, then the values of the int32 arrays,
            [counts] int32 in host memory.
    """

    words: tf.Tensor
    counts: tf.Tensor


@dataclass(frozen=True)
class _Item:
    """An array among those that are packed.

    Attributes:
        place: its place among them.
        rows: the size of its first axis; None if it varies.
        row_shape: its other sizes.
        dtype: float32, int64 or int32.
    """

    place: int
    rows: int | None
    row_shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def words_per_row(self) -> int:
        """Words for each index of the first axis."""
        return math.prod(self.row_shape) * self.dtype.itemsize // WORD_BYTES

    @property
    def words(self) -> int | None:
        """Words of the array; None if they vary."""
        return None if self.rows is None else self.rows * self.words_per_row

    @property
    def is_whole(self) -> bool:
        """Whether it always takes the same number of blocks."""
        return self.words is not None and self.words % BLOCK_WORDS == 0

    def check(self, array: np.ndarray) -> None:
        """Raise a ValueError if an array has another dtype or shape."""
        rows = array.shape[:1] if self.rows is None else (self.rows,)
        if array.dtype != self.dtype or array.shape != rows + self.row_shape:
            expected = f"{self.dtype} {(self.rows, *self.row_shape)}"
            raise ValueError(f"array {self.place} of a batch has to be {expected}, got {array.dtype} {array.shape}")

    def tensor(self, words: tf.Tensor, rows: tf.Tensor | int | None) -> tf.Tensor:
        """Return the tensor that consists of some words; `rows` is the size of its first axis."""
        # A size that the words tell costs no operation.
        shape = [-1 if self.rows is None and self.words_per_row else rows, *self.row_shape]
        if self.dtype == np.int64:
            return tf.bitcast(tf.reshape(words, [*shape, 2]), tf.int64)
        return tf.reshape(words, shape)


class Packing:
    """Packs nested arrays into two tensors, and unpacks them in a graph.

    Args:
        specs: the types of the arrays in any nested structure, each a `tf.TensorSpec` of float32 or int64, whose first
            size may be unknown, or of int32.

    Attributes:
        signature: the types of the packed tensors, for the signature of a graph: the same for every batch.
    """

    def __init__(self, specs: Any):
        self._specs = specs
        shapes = [(spec.shape.as_list(), np.dtype(spec.dtype.as_numpy_dtype)) for spec in tf.nest.flatten(specs)]
        self._items = [
            _Item(place, rows, tuple(row_shape), dtype) for place, ((rows, *row_shape), dtype) in enumerate(shapes)
        ]
        self._on_host = [item for item in self._items if item.dtype == np.int32]
        in_buffer = [item for item in self._items if item.dtype != np.int32]
        self._whole = [item for item in in_buffer if item.is_whole]
        loose = [item for item in in_buffer if not item.is_whole]
        self._loose = sorted(loose, key=lambda item: item.dtype != np.int64)  # aligned for NumPy
        self._host_sizes = [item.words or 0 for item in self._on_host]
        counts = len(self._loose) + 1 + sum(self._host_sizes)
        self.signature = Packed(tf.TensorSpec([None], tf.float32), tf.TensorSpec([counts], tf.int32))

    def pack(self, arrays: Any) -> Packed:
        """Copy arrays into a new buffer, and this to the device. May run in any thread, ahead of the graph.

        Args:
            arrays: NumPy arrays of the types and in the structure of `specs`.

        Raises:
            ValueError: an array has another dtype or shape.
        """
        flat = [np.asarray(array) for array in tf.nest.flatten(arrays)]
        for item, array in zip(self._items, flat, strict=True):
            item.check(array)
        in_buffer = [flat[item.place] for item in (*self._whole, *self._loose)]
        used = sum(array.nbytes for array in in_buffer) // WORD_BYTES
        unused = -used % BLOCK_WORDS
        lengths = np.array([*(len(flat[item.place]) for item in self._loose), unused], np.int32)
        counts = np.concatenate([lengths, *(flat[item.place].reshape(-1) for item in self._on_host)])
        buffer = _BUFFERS.take(used + unused)
        _join(in_buffer, buffer)
        return Packed(_on_device(buffer), tf.convert_to_tensor(counts))

    def unpack(self, packed: Packed) -> Any:
        """Return the tensors of packed arrays in the structure of `specs`, with all sizes that are known there."""
        lengths, *on_host = tf.split(packed.counts, [len(self._loose) + 1, *self._host_sizes])
        sizes = [item.words for item in self._whole]
        *whole, rest = tf.split(packed.words, [*sizes, -1]) if sizes else [packed.words]
        loose = tf.split(rest, lengths * [*(item.words_per_row for item in self._loose), 1], num=len(self._loose) + 1)
        items = (*self._on_host, *self._whole, *self._loose)
        varying = {item.place: length for item, length in zip(self._loose, tf.unstack(lengths)[:-1], strict=True)}
        found = {
            item.place: item.tensor(own, varying.get(item.place) if item.rows is None else item.rows)
            for item, own in zip(items, [*on_host, *whole, *loose[:-1]], strict=True)
        }
        return tf.nest.pack_sequence_as(self._specs, [found[place] for place in range(len(self._items))])


class _Buffers:
    """Allocates buffers, in memory that is used again once nothing holds the last buffer in it.

    The first writing to memory that is new takes ten times as long as copying.
    """

    def __init__(self) -> None:
        self._free: deque[np.ndarray] = deque()

    def take(self, words: int) -> np.ndarray:
        """Return an array [words] float32, aligned for TensorFlow, with undefined contents."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = empty_array((0,), np.float32)
        if len(memory) < words + BLOCK_WORDS:
            memory = empty_array((words + words // 8 + BLOCK_WORDS,), np.float32)  # the next batch may be larger
        first = -(memory.ctypes.data // WORD_BYTES) % BLOCK_WORDS
        buffer = memory[first : first + words]
        weakref.finalize(buffer, self._free.append, memory).atexit = False
        return buffer


_BUFFERS = _Buffers()  # shared by training and evaluation, which take turns


def _join(arrays: Sequence[np.ndarray], buffer: np.ndarray) -> None:
    """Copy the bytes of arrays to the beginning of a buffer, one array after the other."""
    free = buffer.view(np.uint8)
    for array in arrays:
        own, free = free[: array.nbytes], free[array.nbytes :]
        own.view(array.dtype).reshape(array.shape)[...] = array


def _on_device(buffer: np.ndarray) -> tf.Tensor:
    """Return an aligned array as a tensor on the device; on a CPU it shares the array, which must not change then."""
    shared = tf.experimental.dlpack.from_dlpack(buffer.__dlpack__())  # convert_to_tensor would make two copies
    with tf.device("/GPU:0" if on_gpu() else "/CPU:0"):
        return tf.identity(shared)
