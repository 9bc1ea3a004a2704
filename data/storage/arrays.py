"""Named arrays that are read in blocks of rows and written as .npy files."""

import io
import math
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import DTypeLike

# Small enough for many threads to hold some each.
BLOCK_BYTES = 1 << 22
# Long enough for the longest feature or label name plus the path components around it.
MAX_NAME_LENGTH = 400
DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)


@dataclass(frozen=True)
class ArraySource:
    """An array to save, provided in blocks of rows so that a large table is never copied in memory as a whole.

    Attributes:
        name: printable name of at most 400 characters, with `/` as separator, as in "deep/ad_id/mean_square".
        shape: shape of the whole array.
        dtype: one of DTYPES. bfloat16 is not supported; save the float32 variable instead.
        blocks: function called once per save; yields the rows in order, as blocks [rows, *shape[1:]] of type `dtype`.
            A scalar is a single block of shape [].

    Raises:
        ValueError: if the name or the dtype cannot be stored.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DTypeLike
    blocks: Callable[[], Iterable[np.ndarray]]

    def __post_init__(self) -> None:
        if not is_array_name(self.name):
            raise ValueError(
                f"{self.name!r} cannot name an array: expected 1 to 400 printable characters whose parts between "
                "slashes are neither empty nor '.' nor '..'"
            )
        if np.dtype(self.dtype).name not in DTYPES:
            raise ValueError(f"array {self.name!r} has dtype {np.dtype(self.dtype)}, expected one of {DTYPES}")

    @classmethod
    def from_array(cls, name: str, array: np.ndarray) -> "ArraySource":
        """Create the source of an in-memory array without copying it."""
        return cls(name, array.shape, array.dtype, lambda: row_blocks(array))

    @property
    def nbytes(self) -> int:
        """Size of the whole array in bytes, without the .npy header."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def npy_header(self) -> bytes:
        """Return the header of the .npy file, which precedes the values."""
        return _npy_header(tuple(self.shape), np.dtype(self.dtype).newbyteorder("<"))

    def npy_chunks(self) -> Generator[memoryview, None, None]:
        """Yield the bytes of the .npy file: the header, then one chunk per block.

        Raises:
            ValueError: if the blocks do not add up to an array of this shape and dtype.
        """
        shape, dtype = tuple(self.shape), np.dtype(self.dtype).newbyteorder("<")
        yield memoryview(self.npy_header())
        values = 0
        for block in self.blocks():
            if block.dtype != dtype or block.ndim != len(shape) or block.shape[1:] != shape[1:]:
                raise ValueError(
                    f"array {self.name!r} of shape {shape} and dtype {dtype}: "
                    f"a block of shape {block.shape} and dtype {block.dtype} does not fit"
                )
            values += block.size
            yield np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
        if values != math.prod(shape):
            raise ValueError(f"array {self.name!r} of shape {shape}: its blocks hold {values:,} values")


def is_array_name(name: object) -> bool:
    """Return whether `name` is a valid array name: printable, and harmless when used as a relative path."""
    if not isinstance(name, str) or not name.isprintable() or len(name) > MAX_NAME_LENGTH:
        return False
    return all(part not in ("", ".", "..") for part in name.split("/"))


def rows_per_block(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Return the number of rows per block of BLOCK_BYTES, at least one."""
    return max(1, BLOCK_BYTES // max(1, math.prod(shape[1:]) * dtype.itemsize))


def row_ranges(shape: tuple[int, ...], dtype: np.dtype) -> list[tuple[int, int]]:
    """Return start and end of each block of rows; an empty array and a scalar are one block."""
    count, rows = shape[0] if shape else 1, rows_per_block(shape, dtype)
    return [(start, min(start + rows, count)) for start in range(0, max(1, count), rows)]


def row_blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield views of consecutive rows, one block each; an empty or scalar array is yielded as a whole."""
    if array.ndim == 0 or len(array) == 0:
        yield array
        return
    for start, stop in row_ranges(array.shape, array.dtype):
        yield array[start:stop]


def _npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    header = io.BytesIO()
    described = {"descr": npy_format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy_format.write_array_header_1_0(header, described)
    return header.getvalue()
