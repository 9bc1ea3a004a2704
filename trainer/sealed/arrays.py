"""Named arrays in blocks of rows, and the bytes of their .npy files."""

import io
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import DTypeLike

BLOCK_BYTES = 1 << 24
# Room for the longest name of a feature or label, and for what stands around it.
MAX_NAME_LENGTH = 400
DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)


@dataclass(frozen=True)
class ArraySource:
    """An array to be saved, given in blocks of rows so that a large table never stands in memory twice.

    Attributes:
        name: printable text, at most 400 characters; `/` parts it, as in "deep/ad_id/mean_square".
        shape: of the whole array.
        dtype: one of DTYPES. bfloat16 is not among them: save the float32 variable.
        blocks: called once per save; yields the rows in order, [rows, *shape[1:]] each, in `dtype`.
            An array without axes comes as one block of shape [].

    Raises:
        ValueError: a name or a dtype that cannot be stored.
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
        """The source of an array that is in memory already; nothing is copied."""
        return cls(name, array.shape, array.dtype, lambda: row_blocks(array))

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def npy_header(self) -> bytes:
        """What the .npy file begins with, before the values."""
        return _npy_header(tuple(self.shape), np.dtype(self.dtype).newbyteorder("<"))

    def npy_chunks(self) -> Iterator[memoryview]:
        """The bytes of the .npy file, block by block.

        Raises:
            ValueError: the blocks do not make up an array of this shape and dtype.
        """
        shape, dtype = tuple(self.shape), np.dtype(self.dtype).newbyteorder("<")
        yield memoryview(self.npy_header())
        values = 0
        for block in self.blocks():
            if block.dtype != dtype or block.ndim != len(shape) or block.shape[1:] != shape[1:]:
                raise ValueError(
                    f"array {self.name!r} of shape {shape} and dtype {dtype}: "
                    f"a block of shape {block.shape} and dtype {block.dtype} is no part of it"
                )
            values += block.size
            yield np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
        if values != math.prod(shape):
            raise ValueError(f"array {self.name!r} of shape {shape}: its blocks hold {values:,} values")


def is_array_name(name: object) -> bool:
    """Whether `name` can name an array: printable, and harmless should somebody make a path of it."""
    if not isinstance(name, str) or not name.isprintable() or len(name) > MAX_NAME_LENGTH:
        return False
    return all(part not in ("", ".", "..") for part in name.split("/"))


def rows_per_block(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """How many rows make a block of BLOCK_BYTES; at least one."""
    return max(1, BLOCK_BYTES // max(1, math.prod(shape[1:]) * dtype.itemsize))


def row_blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Views of consecutive rows, one block each; an array without rows or axes comes whole."""
    if array.ndim == 0 or len(array) == 0:
        yield array
        return
    rows = rows_per_block(array.shape, array.dtype)
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def _npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    header = io.BytesIO()
    described = {"descr": npy_format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy_format.write_array_header_1_0(header, described)
    return header.getvalue()
