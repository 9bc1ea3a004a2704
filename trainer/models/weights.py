"""The weights of a model by name."""

from collections.abc import Iterable

import keras
import tensorflow as tf


def named(variables: Iterable[keras.Variable]) -> dict[str, tf.Variable]:
    """Return the TensorFlow variables of Keras variables by path.

    Raises:
        ValueError: two variables have the same path, so that one of them would be lost.
    """
    variables = list(variables)
    by_path = {variable.path: variable.value for variable in variables}
    if len(by_path) < len(variables):
        raise ValueError(f"weights must have distinct names, got {[variable.path for variable in variables]}")
    return by_path


def kernels(weights: Iterable[str]) -> list[str]:
    """Return the names of kernels, as opposed to biases or the scales of batch normalization."""
    return [name for name in weights if name.endswith("kernel")]
