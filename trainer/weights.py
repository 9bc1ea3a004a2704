"""A model's weights by name, and the subsets that loss weighting and regularization act on."""

import keras
import tensorflow as tf

from data.errors import DataError
from trainer.models.ranking import RankingModel
from trainer.tasks.loss_weighting import LossWeighting


def shared_weights(model: RankingModel, weighting: LossWeighting) -> dict[str, tf.Variable]:
    """Return the weights, by name, for which the loss weighting needs each task's gradient.

    Raises:
        DataError: the loss weighting needs such weights, but the model's tasks share none.
    """
    if weighting.wants == "nothing":
        return {}
    shared = named(model.shared_weights)
    if not shared:
        raise DataError(
            f"--loss_weighting: {model.name} has no dense weights that tasks share, which gradnorm and pcgrad compare "
            "the tasks' gradients of; take another method, or another model"
        )
    kernels = [name for name in shared if name.endswith("kernel")]
    return shared if weighting.wants == "all" else {kernels[-1]: shared[kernels[-1]]}


def kernel_names(model: RankingModel) -> list[str]:
    """Return the dense weights under L2 regularization: kernels, not biases or batch normalization's scales."""
    return [name for name in named(model.deep_weights) if name.endswith("kernel")]


def named(variables: list[keras.Variable]) -> dict[str, tf.Variable]:
    """Return the TensorFlow variables of Keras variables by path.

    Raises:
        ValueError: two variables have the same path, so that one of them would be lost.
    """
    by_path = {variable.path: variable.value for variable in variables}
    if len(by_path) < len(variables):
        raise ValueError(f"weights must have names of their own, got {[variable.path for variable in variables]}")
    return by_path
