"""Variables that may fill the memory: made, read and written without a second copy, and tables that share them."""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf


@dataclass(frozen=True)
class TableRows:
    """The rows of one table, or of its optimizer state, in a variable that holds several tables.

    Attributes:
        variable: this worker's rows of all these tables, [own rows, ...]: those with number % workers == rank.
        first: number of the table's first row.
        rows: number of the table's rows, over all workers.
        rank, workers: position of this worker among the workers that share the rows, and their number.
        key: what the table has in common with its optimizer state and with all others of which a step looks up and
            changes the same rows; "" if it is not needed.
    """

    variable: tf.Variable
    first: int
    rows: int
    rank: int = 0
    workers: int = 1
    key: str = ""

    @property
    def is_sharded(self) -> bool:
        """Whether this worker holds only a part of the rows."""
        return self.workers > 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the table over all workers."""
        return (self.rows, *self.variable.shape[1:])

    @property
    def dtype(self) -> tf.DType:
        """Type of the values."""
        return self.variable.dtype

    def own(self, start: int, stop: int) -> slice:
        """Return where `variable` has this worker's share of the table's rows [start, stop)."""
        # ceil((row - rank) / workers) rows of this worker come before `row`.
        return slice(*(-((self.rank - self.first - row) // self.workers) for row in (start, stop)))

    def take(self, numbers: np.ndarray) -> tf.Tensor:
        """Return copies of those of the table's rows that this worker holds, in the order of `numbers` [n] int64."""
        distances = self.first + numbers - self.rank
        return self.variable.sparse_read(distances[distances % self.workers == 0] // self.workers)

    def put(self, numbers: np.ndarray, rows: np.ndarray) -> None:
        """Overwrite those of some of the table's rows that this worker holds.

        Args:
            numbers: [n] int64, the numbers of the rows.
            rows: [n, *row shape], which are cast to the variable's dtype.
        """
        distances = self.first + numbers - self.rank
        own = distances % self.workers == 0
        updates = rows[own].astype(self.dtype.as_numpy_dtype)
        tf.raw_ops.ResourceScatterUpdate(
            resource=self.variable.handle, indices=distances[own] // self.workers, updates=updates
        )

    def numpy(self) -> np.ndarray:
        """Return a copy of this worker's rows."""
        own = self.own(0, self.rows)
        return rows_of(self.variable, own.start, own.stop).numpy()


def initial_value(
    shape: tuple[int, ...] | tf.TensorShape, value: float, *, overwritten: bool, dtype: str = "float32"
) -> tf.Tensor:
    """Return the initial value of a variable: `value` everywhere, or, if it is overwritten, anything.

    Args:
        shape: shape of the variable.
        value: value of all elements.
        overwritten: whether all elements will be set before they are read. Memory is then reserved, but not touched.
        dtype: type of the variable.
    """
    if overwritten:
        return tf.raw_ops.Empty(shape=shape, dtype=dtype, init=False)
    return tf.fill(shape, tf.constant(value, dtype))


def assign_rows(variable: tf.Variable, first: int, rows: np.ndarray) -> None:
    """Overwrite the rows of a variable from `first` on. Threads may assign to the same variable at once.

    Args:
        variable: a variable of any rank.
        first: index of the first row; 0 for a scalar.
        rows: [n, *row shape], of the variable's dtype; [] for a scalar.
    """
    if rows.shape == variable.shape:
        variable.assign(rows)
        return
    # Several times as fast as assigning to a slice of the variable.
    ids = tf.range(first, first + len(rows))
    tf.raw_ops.ResourceScatterUpdate(resource=variable.handle, indices=ids, updates=rows)


def rows_of(variable: tf.Variable, start: int, stop: int) -> tf.Tensor:
    """Return rows start to stop of a variable of rank 1 or more, without copying them if TensorFlow can avoid it.

    While the result exists, an update of the variable copies all of the variable first, so drop it before training
    goes on.
    """
    with tf.device(variable.device):  # rows of a table in host memory stay there
        values = variable.read_value_no_copy()
        # A slice of everything would copy nothing either, but most variables are so small that making it takes longest.
        return values if (start, stop) == (0, variable.shape[0]) else values[start:stop]


def release(variable: tf.Variable) -> None:
    """Free the memory of a variable that is not used any more."""
    tf.raw_ops.AssignVariableOp(resource=variable.handle, value=tf.zeros([0], variable.dtype))
