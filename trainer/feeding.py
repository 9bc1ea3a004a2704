"""Conversion of the loader's NumPy batches into the tensors of a step."""

import numpy as np
import tensorflow as tf

from data.loading.batch import Batch
from trainer.step import StepInput
from trainer.tasks.task import Task, restrict_to_sample_space


def step_input(batch: Batch, tasks: tuple[Task, ...]) -> StepInput:
    """Convert a batch to the tensors of a training step."""
    return StepInput(
        ids=tf.convert_to_tensor(id_matrix(batch)),
        numerical=tf.convert_to_tensor(batch.numerical),
        labels=tf.convert_to_tensor(restrict_to_sample_space(batch.labels, tasks)),
        weights=tf.convert_to_tensor(batch.weights),
    )


def id_matrix(batch: Batch) -> np.ndarray:
    """Concatenate one-hot and multi-hot ids, [batch, id columns] int32."""
    # Without a copy if there is only one kind.
    if batch.multihot.shape[1] == 0:
        return batch.onehot
    if batch.onehot.shape[1] == 0:
        return batch.multihot
    return np.concatenate([batch.onehot, batch.multihot], axis=1)
