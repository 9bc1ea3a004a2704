"""All variables of a run by name, and their transfer to and from checkpoints."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

from data.errors import DataError
from data.storage.arrays import ArraySource, row_blocks, rows_per_block
from data.storage.checksummed_dir import ChecksummedDir
from trainer.comm import Comm, SingleWorker
from trainer.embeddings.tables import TableRows


@dataclass(frozen=True)
class TrainState:
    """The variables of a run over all workers.

    Checkpoints do not depend on the number of workers: sharded tables are saved whole.

    Attributes:
        variables: variables by name, and embedding tables with their optimizer state, which are rows of variables.
        comm: collectives over the workers.
        unknown: names of the variables in which NaN means "not known yet".
    """

    variables: Mapping[str, tf.Variable | TableRows]
    comm: Comm = field(default_factory=SingleWorker)
    unknown: frozenset[str] = frozenset()

    @property
    def sharded(self) -> dict[str, TableRows]:
        """The tables of which this worker holds only a part of the rows."""
        return {
            name: table for name, table in self.variables.items() if isinstance(table, TableRows) and table.is_sharded
        }

    def sources(self) -> list[ArraySource]:
        """Returns the variables as array sources that yield copies in blocks of rows.

        Reading a block of a sharded variable is a collective.
        """
        return [
            ArraySource(name, tuple(variable.shape), variable.dtype.as_numpy_dtype, self._blocks(name))
            for name, variable in self.variables.items()
        ]

    def tensors(self, name: str) -> Iterator[tf.Tensor]:
        """Yields this worker's rows of a variable in order: a large one in blocks, so that no read copies all of it."""
        variable, rows = self._own_rows_of(name)
        if rows is None:
            yield tf.convert_to_tensor(variable)
            return
        shape = (rows.stop - rows.start, *variable.shape[1:])
        ranges = [*_row_ranges(shape, np.dtype(variable.dtype.as_numpy_dtype))]
        if shape == tuple(variable.shape) and len(ranges) < 2:
            yield tf.convert_to_tensor(variable)
            return
        for start, stop in ranges:
            yield variable.sparse_read(tf.range(rows.start + start, rows.start + stop))

    def take_part_in_save(self) -> None:
        """Reads the blocks of all sharded variables and drops them, while rank 0 saves. A collective."""
        for source in self.sources():
            if source.name in self.sharded:
                for _ in source.blocks():
                    pass

    def restore(self, checkpoint: ChecksummedDir | None) -> None:
        """Overwrites the variables of all workers with a checkpoint's arrays, block by block. A collective.

        Args:
            checkpoint: the checkpoint or model folder on rank 0; None on the other workers.

        Raises:
            DataError: An array is missing or has another shape, for example because the model flags or the
                specification have changed since.
        """
        if checkpoint is not None:
            _check_shapes({name: tuple(variable.shape) for name, variable in self.variables.items()}, checkpoint)
            for name in self.variables:
                if name not in self.sharded:
                    _assign(*self._own_rows_of(name), checkpoint.blocks(name))
        self.share()
        for name in self.sharded:
            self._restore_sharded(name, checkpoint)

    def share(self) -> None:
        """Overwrites all but the sharded variables with rank 0's values. A collective."""
        replicated = (self._own_rows_of(name)[0] for name in self.variables if name not in self.sharded)
        self.comm.broadcast_variables({id(variable): variable for variable in replicated}.values())

    def _own_rows_of(self, name: str) -> tuple[tf.Variable, slice | None]:
        """Returns a variable and this worker's rows in it; None for a scalar, which has no rows."""
        table = self.variables[name]
        if not isinstance(table, TableRows):
            return table, slice(0, table.shape[0]) if table.shape.rank else None
        return table.variable, self._own_slice(table, 0, table.rows)

    def _own_slice(self, table: TableRows, start: int, stop: int) -> slice:
        """Returns this worker's rows among [start, stop) of the whole table, in the table's variable."""
        begin, end = table.first + start, table.first + stop
        if not table.is_sharded:
            return slice(begin, end)
        # ceil((row - rank) / size) rows of this worker come before `row`.
        return slice(*(-((self.comm.rank - row) // self.comm.size) for row in (begin, end)))

    def _blocks(self, name: str) -> Callable[[], Iterator[np.ndarray]]:
        if name in self.sharded:
            return lambda: self._sharded_blocks(name)
        return lambda: (block for tensor in self.tensors(name) for block in row_blocks(tensor.numpy()))

    def _sharded_blocks(self, name: str) -> Iterator[np.ndarray]:
        table = self.sharded[name]
        for start, stop in self._block_ranges(table):
            own = self._own_slice(table, start, stop)
            # [stop - start, ...], grouped by worker; a stable sort by owner maps that order back to the table's.
            received = self.comm.gather_rows(table.variable.sparse_read(tf.range(own.start, own.stop)).numpy())
            block = np.empty_like(received)
            block[np.argsort(self._owners(table, start, stop), kind="stable")] = received
            yield block

    def _restore_sharded(self, name: str, checkpoint: ChecksummedDir | None) -> None:
        blocks = None if checkpoint is None else checkpoint.blocks(name)
        table, size = self.sharded[name], self.comm.size
        for start, stop in self._block_ranges(table):
            sent, counts = np.empty((0, *table.shape[1:]), table.dtype.as_numpy_dtype), [0] * size
            # Rank 0 alone sends: each block's rows, grouped by the worker that owns them.
            if blocks is not None:
                owners = self._owners(table, start, stop)
                sent = next(blocks)[np.argsort(owners, kind="stable")]
                counts = np.bincount(owners, minlength=size).tolist()
            own = self._own_slice(table, start, stop)
            table.variable[own].assign(self.comm.exchange_rows(sent, counts))

    def _owners(self, table: TableRows, start: int, stop: int) -> np.ndarray:
        """Returns the worker that holds each of the table's rows [start, stop)."""
        return np.arange(table.first + start, table.first + stop) % self.comm.size

    @staticmethod
    def _block_ranges(table: TableRows) -> Iterator[tuple[int, int]]:
        """Yields start and end of each block of the whole table."""
        return _row_ranges(table.shape, np.dtype(table.dtype.as_numpy_dtype))


def _check_shapes(shapes: Mapping[str, tuple[int, ...]], checkpoint: ChecksummedDir) -> None:
    problems = []
    for name, expected in shapes.items():
        stored = checkpoint.arrays.get(name)
        if stored is None:
            problems.append(f"it lacks {name}")
        elif stored[0] != expected:
            problems.append(f"{name} has shape {list(stored[0])} there and {list(expected)} here")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise DataError(
            f"{checkpoint.path} was saved by another model: {'; '.join(problems[:5])}{more}. "
            "Use the flags and the feature specification that it was trained with, or another --model_dir."
        )


def _assign(variable: tf.Variable, rows: slice | None, blocks: Iterator[np.ndarray]) -> None:
    """Assigns blocks of rows to a variable, or to some of its rows."""
    start = 0 if rows is None else rows.start
    for block in blocks:
        if rows is None:  # a scalar
            variable.assign(block)
            continue
        variable[start : start + len(block)].assign(block)
        start += len(block)


def _row_ranges(shape: tuple[int, ...], dtype: np.dtype) -> Iterator[tuple[int, int]]:
    """Yields start and end of each block of rows."""
    rows = rows_per_block(shape, dtype)
    for start in range(0, shape[0], rows):
        yield start, min(start + rows, shape[0])
