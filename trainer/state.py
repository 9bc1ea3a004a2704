"""All variables of a run by name, to and from checkpoints."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tensorflow as tf

from data.errors import DataError
from trainer.sealed.arrays import ArraySource, rows_per_block
from trainer.sealed.reader import SealedFolder

Variables = Mapping[str, tf.Variable]


def array_sources(variables: Variables) -> list[ArraySource]:
    """The variables as arrays to be saved, read from the device in blocks of rows."""
    return [
        ArraySource(name, tuple(variable.shape), variable.dtype.as_numpy_dtype, _blocks(variable))
        for name, variable in variables.items()
    ]


def restore(variables: Variables, checkpoint: SealedFolder) -> None:
    """Overwrites the variables with a checkpoint's (or a model folder's) arrays, in blocks of rows.

    Raises:
        DataError: an array is missing or has another shape, as happens when the model's flags or the
            specification have changed since.
    """
    problems = _differences(variables, checkpoint)
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise DataError(
            f"{checkpoint.path} was saved by another model: {'; '.join(problems[:5])}{more}. "
            "Use the flags and the feature specification that it was trained with, or another --model_dir."
        )
    for name, variable in variables.items():
        start = 0
        for block in checkpoint.blocks(name):
            if not variable.shape.rank:
                variable.assign(block)
                continue
            stop = start + len(block)
            variable[start:stop].assign(block)
            start = stop


def _differences(variables: Variables, checkpoint: SealedFolder) -> list[str]:
    problems = []
    for name, variable in variables.items():
        if name not in checkpoint.arrays:
            problems.append(f"it lacks {name}")
            continue
        shape = tuple(checkpoint.arrays[name][0])
        if shape != tuple(variable.shape):
            problems.append(f"{name} has shape {list(shape)} there and {list(variable.shape)} here")
    return problems


def _blocks(variable: tf.Variable) -> Callable[[], Iterator[np.ndarray]]:
    def blocks() -> Iterator[np.ndarray]:
        shape = tuple(variable.shape)
        if not shape or shape[0] == 0:
            yield variable.numpy()
            return
        rows = rows_per_block(shape, np.dtype(variable.dtype.as_numpy_dtype))
        for start in range(0, shape[0], rows):
            yield variable[start : start + rows].numpy()

    return blocks
