"""Parquet files of pretrained vectors: a column with the value or id of each vector, and a column with the vectors."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.errors import DataError, LostInputError, listed
from data.files.parquet import COMPRESSION, add_checksums, arrow_file, read_footer
from data.memory import check_fits
from data.spec.columns import dtype_name, is_list
from data.spec.feature_spec import FeatureSpec
from data.spec.features import FLOAT_DTYPES, MAX_DIMENSION, Feature
from data.storage.files import create_new, is_of_system, reading, sync

# Values of a block, which is all that is held in memory of a file.
BLOCK_VALUES = 1 << 21
_BUFFER_BYTES = 1 << 20
HINT = "correct `pretrained` in the feature specification, or write the file"


def vectors_file(feature: str) -> str:
    """Return the name of a feature's file of vectors in a dataset: none that a file of rows can have."""
    return f"{feature}.vectors.parquet"


class Block(NamedTuple):
    """Consecutive rows of a file.

    Attributes:
        first_row: number of the first row in the file, from 0.
        keys: [rows] the value or id that each vector belongs to, none of them null.
        vectors: [rows, dimension] float16 or float32, all finite.
    """

    first_row: int
    keys: pa.Array
    vectors: np.ndarray


@dataclass(frozen=True)
class VectorFile:
    """A parquet file of vectors, whose columns have been checked.

    Attributes:
        path: path of the file.
        key: name of the column with the values or ids.
        vector: name of the column with the vectors.
        dimension: number of values of each vector.
        stored: NumPy name of the type of the values, float16 to float64.
    """

    path: Path
    key: str
    vector: str
    dimension: int
    stored: str

    @classmethod
    def open(cls, path: Path, names: Sequence[str], dimension: int | None = None) -> "VectorFile":
        """Read the schema of a file, and its first row if that alone tells how long the vectors are.

        The vectors are in the only column of lists. The values or ids are in a column with one of some names or, if the
        file has none, in the only other column.

        Args:
            path: path of the file.
            names: names of the column with the values or ids.
            dimension: expected number of values of each vector; None to take that of the file.

        Raises:
            DataError: The file is missing or damaged, has other columns, no rows, or vectors of another length.
            LostInputError: The file can no longer be read.
        """
        with _opened(path) as file:
            schema = file.schema_arrow
            vector = _only([field.name for field in schema if is_list(field.type)], path, schema, "lists, the vectors")
            scalars = [field.name for field in schema if not is_list(field.type)]
            known = [name for name in names if name in scalars]
            key = known[0] if known else _only(scalars, path, schema, f"what they belong to, called {names[0]}")
            of_values = schema.field(vector).type
            stored = dtype_name(of_values)
            if stored not in FLOAT_DTYPES:
                raise DataError(
                    f"{path}: column {vector!r} is stored as {of_values}; expected lists of {', '.join(FLOAT_DTYPES)}"
                )
            if not file.metadata.num_rows:
                raise DataError(f"{path}: has no rows; write a vector for at least one value")
            if pa.types.is_fixed_size_list(of_values):
                found = of_values.list_size
            else:
                first = next(file.iter_batches(1, columns=[vector])).column(0)
                found = len(first[0].values) if first[0].is_valid else 0
        if not 0 < found <= MAX_DIMENSION:
            raise DataError(f"{path}: its first vector has {found} values; expected 1 to {MAX_DIMENSION}")
        if dimension not in (None, found):
            raise DataError(f"{path}: its vectors have {found} values, and `dimension` is {dimension}; correct it")
        return cls(path, key, vector, found, stored)

    def blocks(self, dtype: str) -> Iterator[Block]:
        """Yield the rows in blocks of bounded size.

        Args:
            dtype: type of the vectors, float16 or float32.

        Raises:
            DataError: The file is damaged, a key or vector is missing, or a vector has another length than the first
                one, or a value that is null, not finite or beyond the type; the message names file and row.
            LostInputError: The file can no longer be read.
        """
        row = 0
        with _opened(self.path) as file:
            checksums = read_footer(self.path).checksums
            for group in range(file.num_row_groups):
                if checksums is not None:
                    checksums.check(group, [self.key, self.vector])
                rows = max(1, BLOCK_VALUES // self.dimension)
                for batch in file.iter_batches(rows, row_groups=[group], columns=[self.key, self.vector]):
                    yield self._block(row, batch, dtype)
                    row += batch.num_rows

    def _block(self, row: int, batch: pa.RecordBatch, dtype: str) -> Block:
        keys, lists = batch.column(self.key), batch.column(self.vector)
        self._reject(row, np.asarray(keys.is_null()), f"its {self.key} is null; remove the row")
        lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0))
        is_other = lengths != self.dimension
        if is_other.any():
            number = int(is_other.argmax())
            message = f"its vector has {lengths[number]} values, and that of row 0 has {self.dimension}; correct it"
            raise self.error(row + number, f"{message}, or remove the row")
        items, shape = lists.flatten(), (len(lists), self.dimension)
        is_null = np.asarray(items.is_null()).reshape(shape)
        self._reject(row, np.any(is_null, axis=1), "its vector has a value that is null; write a number")
        with np.errstate(over="ignore"):
            values = items.to_numpy(zero_copy_only=False).astype(dtype, copy=False).reshape(shape)
        message = f"its vector has a value that is not a finite {dtype}; correct or scale it, or state another dtype"
        self._reject(row, np.any(~np.isfinite(values), axis=1), message)
        return Block(row, keys, values)

    def _reject(self, first_row: int, is_wrong: np.ndarray, message: str) -> None:
        """Raise a DataError for the first row that is flagged, [rows] bool."""
        if is_wrong.any():
            raise self.error(first_row + int(is_wrong.argmax()), message)

    def error(self, row: int, message: str) -> DataError:
        """Return an error about a row, numbered from 0."""
        return DataError(f"{self.path}, row {row}: {message}")


class FirstOfIds:
    """Which rows are the first ones with their ids, over consecutive blocks of rows.

    Args:
        cardinality: number of ids, each of which takes a byte.

    Raises:
        DataError: The ids do not fit into memory.
    """

    def __init__(self, cardinality: int):
        check_fits(cardinality, f"looking for ids that occur twice among {cardinality:,}", "lower the cardinality")
        self._seen = np.zeros(cardinality, bool)

    @property
    def count(self) -> int:
        """Number of distinct ids so far."""
        return int(np.count_nonzero(self._seen))

    def add(self, ids: np.ndarray) -> np.ndarray:
        """Return which of the ids [n] of the next rows have not occurred before, [n] bool."""
        is_first = np.zeros(len(ids), bool)
        is_first[np.unique(ids, return_index=True)[1]] = True
        is_first &= ~self._seen[ids]
        self._seen[ids] = True
        return is_first


def blocks_by_id(spec: FeatureSpec, feature: Feature) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the vectors of a feature of an encoded specification, in blocks of bounded size.

    Args:
        spec: the specification.
        feature: one of its `pretrained`.

    Yields:
        Ids [rows] int64, each at most once over all blocks, and vectors [rows, dimension] of the feature's type.

    Raises:
        DataError: As for `VectorFile`, or an id is no integer in [0, cardinality) or occurs twice.
        LostInputError: The file can no longer be read.
    """
    of = spec.features[str(feature.of)]
    cardinality = of.cardinality or 0
    file = VectorFile.open(spec.folder / str(feature.pretrained), [of.name], feature.dimension)
    seen = FirstOfIds(cardinality)
    for row, keys, vectors in file.blocks(feature.table_dtype):
        if not pa.types.is_integer(keys.type):
            raise DataError(f"{file.path}: column {file.key!r} is stored as {keys.type}; expected the ids of {of.name}")
        ids = keys.to_numpy(zero_copy_only=False)
        outside = (ids < 0) | (ids >= cardinality)
        if outside.any():
            place = int(outside.argmax())
            message = f"{file.key} is {ids[place]}, and the ids of {of.name} lie in [0, {cardinality}); remove the row"
            raise file.error(row + place, message)
        ids = ids.astype(np.int64)
        is_first = seen.add(ids)
        if not is_first.all():
            place = int(is_first.argmin())
            raise file.error(row + place, f"{file.key} {ids[place]} occurs a second time; remove one of the rows")
        yield ids, vectors


def write_vectors(
    path: Path, key: str, vector: str, dtype: str, blocks: Iterable[tuple[np.ndarray, np.ndarray]]
) -> None:
    """Write a file of vectors by id, with checksums.

    Args:
        path: path of the new file.
        key, vector: names of its columns.
        dtype: type of the vectors, float16 or float32.
        blocks: at least one block of ids [rows] int64 and vectors [rows, dimension], which become row groups.
    """
    writer = None
    with create_new(path) as file:
        for ids, vectors in blocks:
            flat = pa.array(np.ascontiguousarray(vectors, dtype).reshape(-1))
            lists = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
            table = pa.table({key: ids, vector: lists})
            # Vectors hardly repeat: a dictionary of their values only takes memory.
            writer = writer or pq.ParquetWriter(
                file, table.schema, compression=COMPRESSION, use_dictionary=False, write_page_checksum=True
            )
            writer.write_table(table)
        if writer is not None:
            writer.close()
    add_checksums(path)
    sync(path)


def _only(names: Sequence[str], path: Path, schema: pa.Schema, what: str) -> str:
    """Return the only one of some columns, or raise a DataError that says which was expected."""
    if len(names) != 1:
        found = listed(schema.names, len(schema.names)) or "none"
        raise DataError(f"{path}: its columns are {found}; expected one of {what}")
    return names[0]


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a parquet file; errors that damage can cause become a DataError."""
    with reading(path, HINT) as file:
        try:
            metadata = read_footer(path).metadata
            # A buffer, because a row group may be larger than the memory.
            with arrow_file(file) as source:
                options = {"buffer_size": _BUFFER_BYTES, "pre_buffer": False, "page_checksum_verification": True}
                with pq.ParquetFile(source, metadata=metadata, **options) as opened:
                    yield opened
        except (OSError, ValueError, pa.ArrowException, MemoryError) as error:
            if isinstance(error, DataError | LostInputError) or (isinstance(error, OSError) and is_of_system(error)):
                raise
            raise DataError(f"{path}: cannot be read as parquet ({error}); write it again") from error
