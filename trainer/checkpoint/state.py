"""All variables of a run by name, and their transfer to and from checkpoints."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from typing import Protocol, TypeAlias

import numpy as np
import tensorflow as tf

from data.errors import DataError
from data.parallel import in_parallel
from data.storage.arrays import ArraySource, row_ranges
from data.storage.checksummed_dir import ChecksummedDir
from trainer.comm import Comm, SingleWorker
from trainer.logging.progress import byte_progress
from trainer.optimizers.optimizer import AVERAGE
from trainer.variables import TableRows, assign_rows, rows_of

# Key of tables (see `TableRows`) -> ascending numbers of some of their rows, [n] int64.
ChosenRows: TypeAlias = Mapping[str, np.ndarray]


class RowSource(Protocol):
    """Gives variables their values, block by block."""

    def read(self, name: str, start: int, stop: int, initial: np.ndarray) -> np.ndarray:
        """Return rows start to stop of a variable, or all of it if it is a scalar.

        Args:
            name: name of the variable.
            start, stop: the rows.
            initial: the rows before; of an average, those of its weight, which has its values already.
        """


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
    def tables(self) -> dict[str, TableRows]:
        """The embedding tables and their optimizer state."""
        return {name: table for name, table in self.variables.items() if isinstance(table, TableRows)}

    @property
    def row_numbers(self) -> dict[str, str]:
        """Name of each table -> name of the array with the numbers of its rows, if only some of them are saved."""
        return {name: _row_numbers(table.key) for name, table in self.tables.items()}

    @property
    def sharded(self) -> dict[str, TableRows]:
        """The tables of which this worker holds only a part of the rows."""
        return {name: table for name, table in self.tables.items() if table.is_sharded}

    def sources(self, chosen: ChosenRows | None = None) -> list[ArraySource]:
        """Return the variables as array sources that yield copies in blocks of rows.

        Reading a block of a sharded variable is a collective. Other variables may be read by any thread.

        Args:
            chosen: the rows to save of each table, whose numbers are added as arrays (see `row_numbers`); None for all.
        """
        values = [
            ArraySource(name, _shape(variable, chosen), variable.dtype.as_numpy_dtype, self._blocks(name, chosen))
            for name, variable in self.variables.items()
        ]
        numbers = [ArraySource.from_array(_row_numbers(name), rows) for name, rows in (chosen or {}).items()]
        return values + numbers

    def tensors(self, name: str, chosen: ChosenRows | None = None) -> Iterator[tf.Tensor]:
        """Yield this worker's rows of a variable in blocks, in order, without copying them if possible.

        Args:
            name: name of the variable.
            chosen: the rows to yield of each table; None for all.
        """
        table = self.variables[name]
        if chosen is not None and isinstance(table, TableRows):
            for start, stop in row_ranges(_shape(table, chosen), _dtype(table)):
                yield table.take(chosen[table.key][start:stop])
            return
        variable, rows = _rows_in(table)
        if rows is None:
            yield tf.convert_to_tensor(variable)
            return
        shape = (rows.stop - rows.start, *variable.shape[1:])
        for start, stop in row_ranges(shape, _dtype(variable)):
            yield rows_of(variable, rows.start + start, rows.start + stop)

    def take_part_in_save(self, chosen: ChosenRows | None = None) -> None:
        """Read the blocks of all sharded variables and drop them, while rank 0 saves. A collective.

        Args:
            chosen: the rows that are saved of each table; None for all.
        """
        for source in self.sources(chosen):
            if source.name in self.sharded:
                for _ in source.blocks():
                    pass

    def restore(self, checkpoint: ChecksummedDir | None) -> None:
        """Overwrite the variables of all workers with a checkpoint's arrays, block by block. A collective.

        Args:
            checkpoint: the checkpoint or model folder on rank 0; None on the other workers.

        Raises:
            DataError: An array is missing or has another shape, for example because the model flags or the
                specification have changed since.
        """
        if checkpoint is not None:
            _check_shapes({name: tuple(variable.shape) for name, variable in self.variables.items()}, checkpoint)
            self._restore_replicated(checkpoint)
        self.share()
        for name in self.sharded:
            self._fill_sharded(name, repeat(None) if checkpoint is None else checkpoint.blocks(name))

    def start_from(self, source: RowSource | None) -> None:
        """Overwrite the variables of all workers, block by block, with what a source makes of them. A collective.

        Args:
            source: on rank 0, what gives each block its values; None on the other workers.
        """
        # Averages last: those of new rows begin with the weights.
        for name in sorted(self.variables, key=lambda name: name.endswith(f".{AVERAGE}")):
            initial = self._own_or_weight(name)
            blocks = row_ranges(_shape(self.variables[name], None), _dtype(self.variables[name]))
            if name in self.sharded:
                before = zip(blocks, self._sharded_blocks(self.sharded[initial], None), strict=True)
                self._fill_sharded(
                    name, (source.read(name, *block, rows) if source is not None else None for block, rows in before)
                )
            elif source is not None:
                self._fill_replicated(name, initial, blocks, source)
        self.share()

    def _own_or_weight(self, name: str) -> str:
        """Return the name of what a variable begins with: an average with its weight, others with themselves."""
        weight = name.removesuffix(f".{AVERAGE}")
        return weight if weight in self.variables and weight != name else name

    def _fill_replicated(self, name: str, initial: str, blocks: list[tuple[int, int]], source: RowSource) -> None:
        variable, rows = _rows_in(self.variables[name])
        first = 0 if rows is None else rows.start
        own, own_rows = _rows_in(self.variables[initial])
        own_first = 0 if own_rows is None else own_rows.start

        def fill(block: tuple[int, int]) -> None:
            start, stop = block
            before = own.read_value() if own_rows is None else rows_of(own, own_first + start, own_first + stop)
            assign_rows(variable, first + start, source.read(name, start, stop, before.numpy()))

        in_parallel(fill, blocks)

    def share(self) -> None:
        """Overwrite all but the sharded variables with rank 0's values. A collective."""
        variables = (_rows_in(variable)[0] for variable in self._replicated.values())
        # Several tables may have their rows in the same variable.
        self.comm.broadcast_variables({id(variable): variable for variable in variables}.values())

    @property
    def _replicated(self) -> dict[str, tf.Variable | TableRows]:
        return {name: variable for name, variable in self.variables.items() if name not in self.sharded}

    def _blocks(self, name: str, chosen: ChosenRows | None) -> Callable[[], Iterator[np.ndarray]]:
        if name in self.sharded:
            return lambda: self._sharded_blocks(self.sharded[name], chosen)
        # Only the copies are kept: as long as a tensor is, an update of the variable copies all of it.
        return lambda: (tensor.numpy() for tensor in self.tensors(name, chosen))

    def _sharded_blocks(self, table: TableRows, chosen: ChosenRows | None) -> Iterator[np.ndarray]:
        for start, stop in row_ranges(_shape(table, chosen), _dtype(table)):
            if chosen is None:
                own, owners = table.own(start, stop), self._owners(table, np.arange(start, stop))
                mine = rows_of(table.variable, own.start, own.stop)
            else:
                numbers = chosen[table.key][start:stop]
                mine, owners = table.take(numbers), self._owners(table, numbers)
            # [stop - start, ...], grouped by worker; a stable sort by owner maps that order back to the table's.
            received = self.comm.gather_rows(mine.numpy())
            block = np.empty_like(received)
            block[np.argsort(owners, kind="stable")] = received
            yield block

    def _restore_replicated(self, checkpoint: ChecksummedDir) -> None:
        """Read the replicated variables on rank 0, with all cores."""
        shapes = {name: (tuple(variable.shape), _dtype(variable)) for name, variable in self._replicated.items()}
        blocks = [(name, *block) for name, about in shapes.items() for block in row_ranges(*about)]
        total = sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes.values())
        with byte_progress(f"reading {checkpoint.path.name}", total) as done:

            def read(block: tuple[str, int, int]) -> None:
                name, start, stop = block
                values = checkpoint.read_rows(name, start, stop)
                variable, rows = _rows_in(self.variables[name])
                assign_rows(variable, start if rows is None else rows.start + start, values)
                done(values.nbytes)

            in_parallel(read, blocks)

    def _fill_sharded(self, name: str, blocks: Iterator[np.ndarray | None]) -> None:
        """Send the blocks of a sharded table from rank 0 to the workers that hold their rows. A collective.

        Args:
            name: name of the table.
            blocks: on rank 0 its rows, in blocks of `row_ranges`; None for each of them on the other workers.
        """
        table, size = self.sharded[name], self.comm.size
        for start, stop in row_ranges(table.shape, _dtype(table)):
            sent, counts = np.empty((0, *table.shape[1:]), table.dtype.as_numpy_dtype), [0] * size
            # Rank 0 alone sends: each block's rows, grouped by the worker that owns them.
            if (block := next(blocks)) is not None:
                owners = self._owners(table, np.arange(start, stop))
                sent = block[np.argsort(owners, kind="stable")]
                counts = np.bincount(owners, minlength=size).tolist()
            own = table.own(start, stop)
            assign_rows(table.variable, own.start, self.comm.exchange_rows(sent, counts))

    def _owners(self, table: TableRows, numbers: np.ndarray) -> np.ndarray:
        """Return the worker that holds each of these rows of the table."""
        return (table.first + numbers) % self.comm.size


def _row_numbers(key: str) -> str:
    return f"row_numbers/{key}"


def _rows_in(variable: tf.Variable | TableRows) -> tuple[tf.Variable, slice | None]:
    """Return the variable that holds this worker's rows, and these; None for a scalar, which has no rows."""
    if isinstance(variable, TableRows):
        return variable.variable, variable.own(0, variable.rows)
    return variable, slice(0, variable.shape[0]) if variable.shape.rank else None


def _shape(variable: tf.Variable | TableRows, chosen: ChosenRows | None) -> tuple[int, ...]:
    """Return the shape of a variable, or of the chosen rows of a table."""
    shape = tuple(variable.shape)
    if chosen is None or not isinstance(variable, TableRows):
        return shape
    return len(chosen[variable.key]), *shape[1:]


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


def _dtype(variable: tf.Variable | TableRows) -> np.dtype:
    return np.dtype(variable.dtype.as_numpy_dtype)
