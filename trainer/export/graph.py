"""The forward pass as a TensorFlow function of named features."""

from collections.abc import Mapping

import tensorflow as tf

from trainer.checkpoint.load_model import LoadedModel
from trainer.export.ports import inputs_of
from trainer.layout import InputSchema, ModelInputs
from trainer.tasks.task import logit_columns


def encoded_function(saved: LoadedModel) -> tf.types.experimental.PolymorphicFunction:
    """Creates the function that predicts from encoded features.

    An id outside [0, cardinality) counts as an unseen value; without an id for these, it makes the embedding lookup
    fail. In multi-hot rows, negative ids are padding.

    Returns:
        A tf.function with an input signature, from a dictionary of the inputs in `inputs_of` to a dictionary of the
        outputs in `outputs_of`.
    """
    inputs = inputs_of(saved.layout)
    signature = {port.name: tf.TensorSpec([None, port.width], port.dtype, name=port.name) for port in inputs}

    def serve(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return predictions(saved, matrices(saved.layout, features))

    return tf.function(serve, input_signature=[signature], autograph=False)


def predictions(saved: LoadedModel, inputs: ModelInputs) -> dict[str, tf.Tensor]:
    """Predicts from the model's input matrices.

    Returns:
        Predictions [batch, width] float32 by task name.
    """
    return predictions_of(saved, saved.model.call(*inputs))


def predictions_of(saved: LoadedModel, logits: tf.Tensor) -> dict[str, tf.Tensor]:
    """Converts logits [batch, outputs] float32 to predictions [batch, width] float32 by task name."""
    places = zip(saved.tasks, logit_columns(saved.tasks), strict=True)
    return {task.name: task.activation(logits[:, columns]) for task, columns in places}


def matrices(layout: InputSchema, features: Mapping[str, tf.Tensor]) -> ModelInputs:
    """Concatenates the inputs of `inputs_of`, by name, to the model's input matrices."""
    rows = tf.shape(next(iter(features.values())))[0]
    ids = [tf.zeros([rows, 0], tf.int32)] if not layout.categorical else []
    for columns in layout.categorical:
        values = features[columns.name]
        # The model treats all negative ids as padding, which is invalid for single-id features. Without an id of unseen
        # values, replace them by an id out of range, so that the lookup fails.
        if not columns.multihot:
            out_of_range = columns.cardinality if columns.unseen_id is None else columns.unseen_id
            values = tf.where(values < 0, out_of_range, values)
        if columns.unseen_id is not None:
            values = tf.where(values >= columns.cardinality, columns.unseen_id, values)
        ids.append(values)
    numerical = [features[name] for name in layout.numerical] or [tf.zeros([rows, 0])]
    weights = [features[columns.weights] for columns in layout.weighted] or [tf.zeros([rows, 0])]
    numbers = [features[name] for name in layout.sequence_numbers] or [tf.zeros([rows, 0])]
    vectors = [features[vector.name] for vector in layout.vectors] or [tf.zeros([rows, 0])]
    return ModelInputs(*(tf.concat(columns, axis=1) for columns in (ids, numerical, weights, numbers, vectors)))
