"""Reading and verification of checksummed folders."""

import hashlib
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format

from data.errors import DataError
from data.files import open_regular
from trainer.sealed.arrays import BLOCK_BYTES, ArraySource, rows_per_block
from trainer.sealed.errors import CheckpointError, DamagedError
from trainer.sealed.manifest import ArrayEntry, FileEntry, read_manifest


class SealedFolder:
    """Named arrays and documents on disk. Opening reads the manifest only; `verify` reads every byte.

    Attributes:
        path: path of the folder.
        facts: metadata given by the writer, as JSON values.
        arrays: shape and dtype by array name, in the order of writing.

    Raises:
        DamagedError: if the manifest is missing, damaged or invalid.
    """

    def __init__(self, path: Path) -> None:
        manifest = read_manifest(path)
        self.path = path
        self.facts: dict[str, Any] = manifest.facts
        self.arrays = {name: (entry.shape, np.dtype(entry.dtype)) for name, entry in manifest.arrays.items()}
        self._arrays = manifest.arrays
        self._documents = manifest.documents

    def verify(self) -> None:
        """Verifies the size and SHA-256 checksum of every file and the header of every array.

        Raises:
            DamagedError: if a file differs; the message names the first one.
        """
        # All checksums first: headers are parsed only in files known to be as written.
        for entry in (*self._documents.values(), *self._arrays.values()):
            self._check_file(entry)
        for array in self._arrays.values():
            self._check_header(array)

    def read(self, name: str) -> np.ndarray:
        """Reads the whole array `name`."""
        shape, _ = self._shape_and_dtype(name)
        return next(self._blocks(name, shape[0] if shape else 1))

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        """Yields the rows of array `name` in blocks of about 16 MiB; empty and scalar arrays are one block."""
        return self._blocks(name, rows_per_block(*self._shape_and_dtype(name)))

    def source(self, name: str) -> ArraySource:
        """Returns array `name` as a source for saving it elsewhere."""
        return ArraySource(name, *self._shape_and_dtype(name), lambda: self.blocks(name))

    @property
    def documents(self) -> dict[str, Path]:
        """Path of every document, by name."""
        return {name: self.path / name for name in self._documents}

    def _shape_and_dtype(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        if name not in self.arrays:
            raise CheckpointError(f"{self.path} has no array {name!r}; it has {', '.join(sorted(self.arrays))}")
        return self.arrays[name]

    def _blocks(self, name: str, rows: int) -> Iterator[np.ndarray]:
        shape, dtype = self._shape_and_dtype(name)
        entry = self._arrays[name]
        with self._open(entry) as file:
            file.seek(entry.bytes - math.prod(shape) * dtype.itemsize)  # skip the header
            if not shape or not shape[0]:
                yield self._filled(file, entry, np.empty(shape, dtype))
                return
            for start in range(0, shape[0], rows):
                yield self._filled(file, entry, np.empty((min(rows, shape[0] - start), *shape[1:]), dtype))

    def _filled(self, file: BinaryIO, entry: ArrayEntry, block: np.ndarray) -> np.ndarray:
        if file.readinto(block.reshape(-1).view(np.uint8)) != block.nbytes:  # type: ignore[attr-defined]
            raise DamagedError(f"{self.path / entry.file}: ends too early; it was changed after it was verified")
        return block

    @contextmanager
    def _open(self, entry: FileEntry) -> Iterator[BinaryIO]:
        """Opens a file of the folder; errors are raised as DamagedError."""
        path = self.path / entry.file
        try:
            with open_regular(path) as file:
                yield file
        except DataError as error:
            raise DamagedError(str(error)) from error
        except OSError as error:
            raise DamagedError(f"{path}: {error.strerror}") from error

    def _check_file(self, entry: FileEntry) -> None:
        path = self.path / entry.file
        digest = hashlib.sha256()
        with self._open(entry) as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry.bytes:
                raise DamagedError(f"{path}: {size:,} bytes, expected a file of {entry.bytes:,}")
            while data := file.read(BLOCK_BYTES):
                digest.update(data)
        if digest.hexdigest() != entry.sha256:
            raise DamagedError(f"{path}: its checksum is not the one in the manifest")

    def _check_header(self, entry: ArrayEntry) -> None:
        path = self.path / entry.file
        dtype = np.dtype(entry.dtype).newbyteorder("<")
        with self._open(entry) as file:
            try:
                version = npy_format.read_magic(file)
                found = npy_format.read_array_header_1_0(file) if version == (1, 0) else None
            except ValueError as error:
                raise DamagedError(f"{path}: {error}") from error
            body = entry.bytes - file.tell()
        if found != (entry.shape, False, dtype) or body != math.prod(entry.shape) * dtype.itemsize:
            raise DamagedError(f"{path}: holds {found}, the manifest says {entry.shape} of {dtype}")
