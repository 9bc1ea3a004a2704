"""All variables of a run by name, and their transfer to and from checkpoints."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

from data.errors import DataError
from data.parallel import in_parallel
from data.storage.arrays import ArraySource, row_ranges
from data.storage.checksummed_dir import ChecksummedDir
from trainer.comm import Comm, SingleWorker
from trainer.logging.progress import byte_progress
from trainer.variables import assign_rows, rows_of


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

        Reading a block of a sharded variable is a collective. Other variables may be read by any thread.
        """
        return [
            ArraySource(name, self._whole_shape(name), variable.dtype.as_numpy_dtype, self._blocks(name))
            for name, variable in self.variables.items()
        ]

    def tensors(self, name: str) -> Iterator[tf.Tensor]:
        """Yields this worker's rows of a variable in blocks, in order, without copying them if possible."""
        variable = self.variables[name]
        if not variable.shape.rank:
            yield tf.convert_to_tensor(variable)
            return
        for start, stop in row_ranges(tuple(variable.shape), _dtype(variable)):
            yield rows_of(variable, start, stop)

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
            self._restore_replicated(checkpoint)
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
        # Only the copies are kept: as long as a tensor is, an update of the variable copies all of it.
        return lambda: (tensor.numpy() for tensor in self.tensors(name))

    def _sharded_blocks(self, name: str) -> Iterator[np.ndarray]:
        for start, stop, own in self._own_rows(name):
            # [stop - start, ...], grouped by worker; a stable sort by owner maps that order back to the table's.
            received = self.comm.gather_rows(rows_of(self.variables[name], own.start, own.stop).numpy())
            owners = np.arange(start, stop) % self.comm.size
            block = np.empty_like(received)
            block[np.argsort(owners, kind="stable")] = received
            yield block

    def _restore_replicated(self, checkpoint: ChecksummedDir) -> None:
        """Reads the replicated variables on rank 0, with all cores."""
        shapes = {name: (tuple(variable.shape), _dtype(variable)) for name, variable in self._replicated.items()}
        blocks = [(name, *block) for name, about in shapes.items() for block in row_ranges(*about)]
        total = sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes.values())
        with byte_progress(f"reading {checkpoint.path.name}", total) as done:

            def read(block: tuple[str, int, int]) -> None:
                name, start, stop = block
                rows = checkpoint.read_rows(name, start, stop)
                assign_rows(self.variables[name], start, rows)
                done(rows.nbytes)

            in_parallel(read, blocks)

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
            assign_rows(variable, own.start, self.comm.exchange_rows(sent, counts))

    def _own_rows(self, name: str) -> Iterator[tuple[int, int, slice]]:
        """Yields start and end of each block of the whole variable, and the slice of this worker's rows in it."""
        size = self.comm.size
        for start, stop in row_ranges(self._whole_shape(name), _dtype(self.variables[name])):
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


def _dtype(variable: tf.Variable) -> np.dtype:
    return np.dtype(variable.dtype.as_numpy_dtype)
