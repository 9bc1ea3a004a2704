"""Variables that may fill the memory: made, read and written without a second copy."""

import numpy as np
import tensorflow as tf


def initial_value(shape: tuple[int, ...] | tf.TensorShape, value: float, *, overwritten: bool) -> tf.Tensor:
    """Returns the initial value of a float32 variable: `value` everywhere, or, if it is overwritten, anything.

    Args:
        shape: shape of the variable.
        value: value of all elements.
        overwritten: whether all elements will be set before they are read. Memory is then reserved, but not touched.
    """
    return tf.raw_ops.Empty(shape=shape, dtype=tf.float32, init=False) if overwritten else tf.fill(shape, value)


def assign_rows(variable: tf.Variable, first: int, rows: np.ndarray) -> None:
    """Overwrites the rows of a variable from `first` on. Threads may assign to the same variable at once.

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
    """Returns rows start to stop of a variable of rank 1 or more, without copying them if TensorFlow can avoid it.

    While the result exists, an update of the variable copies all of the variable first, so drop it before training
    goes on.
    """
    return variable.read_value_no_copy()[start:stop]


def release(variable: tf.Variable) -> None:
    """Frees the memory of a variable that is not used any more."""
    tf.raw_ops.AssignVariableOp(resource=variable.handle, value=tf.zeros([0], variable.dtype))
