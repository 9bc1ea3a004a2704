"""A model's weights by name, and which of them what concerns."""

import keras
import tensorflow as tf

from data.errors import DataError
from trainer.loss_weighting import LossWeighting
from trainer.models.ranking import RankingModel


def shared_weights(model: RankingModel, weighting: LossWeighting) -> dict[str, tf.Variable]:
    """The weights that the loss weighting wants each task's gradient of, by name.

    Raises:
        DataError: it wants some, and the model's tasks share none.
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
    """The dense weights that L2 regularisation acts on: not biases, nor what batch normalisation scales by."""
    return [name for name in named(model.deep_weights) if name.endswith("kernel")]


def named(variables: list[keras.Variable]) -> dict[str, tf.Variable]:
    """Path -> TensorFlow variable.

    Raises:
        ValueError: two layers have one name, so that one of their weights would be lost.
    """
    by_path = {variable.path: variable.value for variable in variables}
    if len(by_path) < len(variables):
        raise ValueError(f"weights must have names of their own, got {[variable.path for variable in variables]}")
    return by_path
