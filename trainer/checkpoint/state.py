"""All variables of a run by name, and their transfer to and from checkpoints."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

from data.errors import DataError
from data.storage.arrays import ArraySource, row_blocks, rows_per_block
from data.storage.checksummed_dir import ChecksummedDir
from trainer.comm import Comm, SingleWorker


@dataclass(frozen=True)
class TrainState:
    """The variables of a run over all workers.

    Checkpoints do not depend on the number of workers: sharded tables are saved whole.

    Attributes:
        variables: variables by name.
        comm: collectives over the workers.
        sharded: number of rows over all workers of each sharded variable. Row r of the whole is row r // workers of
            worker r % workers.
        unknown: names of the variables in which NaN means "not known yet".
    """

    variables: Mapping[str, tf.Variable]
    comm: Comm = field(default_factory=SingleWorker)
    sharded: Mapping[str, int] = field(default_factory=dict)
    unknown: frozenset[str] = frozenset()

    def sources(self) -> list[ArraySource]:
        """Returns the variables as array sources that yield copies in blocks of rows.

        Reading a block of a sharded variable is a collective.
        """
        return [
            ArraySource(name, self._whole_shape(name), variable.dtype.as_numpy_dtype, self._blocks(name))
            for name, variable in self.variables.items()
        ]

    def tensors(self, name: str) -> Iterator[tf.Tensor]:
        """Yields this worker's rows of a variable in order: a large one in blocks, so that no read copies all of it."""
        variable = self.variables[name]
        shape, dtype = tuple(variable.shape), np.dtype(variable.dtype.as_numpy_dtype)
        if not shape or shape[0] <= rows_per_block(shape, dtype):
            yield tf.convert_to_tensor(variable)
            return
        for start, stop in _row_ranges(shape, dtype):
            yield variable.sparse_read(tf.range(start, stop))

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
            _check_shapes({name: self._whole_shape(name) for name in self.variables}, checkpoint)
            for name, variable in self._replicated.items():
                _assign(variable, checkpoint.blocks(name))
        self.comm.broadcast_variables(self._replicated.values())
        for name in self.sharded:
            self._restore_sharded(name, checkpoint)

    def share(self) -> None:
        """Overwrites all but the sharded variables with rank 0's values. A collective."""
        self.comm.broadcast_variables(self._replicated.values())

    @property
    def _replicated(self) -> dict[str, tf.Variable]:
        return {name: variable for name, variable in self.variables.items() if name not in self.sharded}

    def _whole_shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(self.variables[name].shape)
        return (self.sharded[name], *shape[1:]) if name in self.sharded else shape

    def _blocks(self, name: str) -> Callable[[], Iterator[np.ndarray]]:
        if name in self.sharded:
            return lambda: self._sharded_blocks(name)
        return lambda: (block for tensor in self.tensors(name) for block in row_blocks(tensor.numpy()))

    def _sharded_blocks(self, name: str) -> Iterator[np.ndarray]:
        for start, stop, own in self._own_rows(name):
            # [stop - start, ...], grouped by worker; a stable sort by owner maps that order back to the table's.
            received = self.comm.gather_rows(self.variables[name].sparse_read(tf.range(own.start, own.stop)).numpy())
            owners = np.arange(start, stop) % self.comm.size
            block = np.empty_like(received)
            block[np.argsort(owners, kind="stable")] = received
            yield block

    def _restore_sharded(self, name: str, checkpoint: ChecksummedDir | None) -> None:
        blocks = None if checkpoint is None else checkpoint.blocks(name)
        variable, size = self.variables[name], self.comm.size
        for start, stop, own in self._own_rows(name):
            sent, counts = np.empty((0, *variable.shape[1:]), variable.dtype.as_numpy_dtype), [0] * size
            # Rank 0 alone sends: each block's rows, grouped by the worker that owns them.
            if blocks is not None:
                owners = np.arange(start, stop) % size
                sent = next(blocks)[np.argsort(owners, kind="stable")]
                counts = np.bincount(owners, minlength=size).tolist()
            variable[own].assign(self.comm.exchange_rows(sent, counts))

    def _own_rows(self, name: str) -> Iterator[tuple[int, int, slice]]:
        """Yields start and end of each block of the whole variable, and the slice of this worker's rows in it."""
        size, dtype = self.comm.size, np.dtype(self.variables[name].dtype.as_numpy_dtype)
        for start, stop in _row_ranges(self._whole_shape(name), dtype):
            # ceil((row - rank) / size) rows of this worker come before `row`.
            yield start, stop, slice(*(-((self.comm.rank - row) // size) for row in (start, stop)))


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


def _assign(variable: tf.Variable, blocks: Iterator[np.ndarray]) -> None:
    start = 0
    for block in blocks:
        if not variable.shape.rank:  # a scalar has no rows to slice
            variable.assign(block)
            continue
        variable[start : start + len(block)].assign(block)
        start += len(block)


def _row_ranges(shape: tuple[int, ...], dtype: np.dtype) -> Iterator[tuple[int, int]]:
    """Yields start and end of each block of rows."""
    rows = rows_per_block(shape, dtype)
    for start in range(0, shape[0], rows):
        yield start, min(start + rows, shape[0])
