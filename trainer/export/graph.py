"""The forward pass as a TensorFlow function of named features."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from trainer.checkpoint.load_model import LoadedModel
from trainer.export.ports import inputs_of
from trainer.layout import InputSchema, ModelInputs
from trainer.tasks.score import predicted_in_graph


def encoded_function(saved: LoadedModel) -> tf.types.experimental.PolymorphicFunction:
    """Create the function that predicts from encoded features.

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
    """Predict from the model's input matrices.

    Returns:
        Predictions [batch, width] float32 by task name, and the score [batch, 1] float32 if there is one.
    """
    return predicted_in_graph(saved.tasks, saved.score, saved.model.call(*inputs), inputs.numerical)


def matrices(layout: InputSchema, features: Mapping[str, tf.Tensor]) -> ModelInputs:
    """Concatenate the inputs of `inputs_of`, by name, to the model's input matrices."""
    rows = tf.shape(next(iter(features.values())))[0]
    ids = [features[columns.name] for columns in layout.categorical] or [tf.zeros([rows, 0], tf.int32)]
    numerical = [features[name] for name in layout.numerical] or [tf.zeros([rows, 0])]
    weights = [features[columns.weights] for columns in layout.weighted] or [tf.zeros([rows, 0])]
    numbers = [features[name] for name in layout.sequence_numbers] or [tf.zeros([rows, 0])]
    vectors = [features[vector.name] for vector in layout.vectors] or [tf.zeros([rows, 0])]
    joined = (tf.concat(columns, axis=1) for columns in (ids, numerical, weights, numbers, vectors))
    return _with_known_ids(layout, ModelInputs(*joined))


def _with_known_ids(layout: InputSchema, inputs: ModelInputs) -> ModelInputs:
    """Replace ids out of range by those of unseen values, in all columns at once.

    Without an id of unseen values, the lookup has to fail. The model treats all negative ids as padding, which is
    invalid for single-id features: they become the id after the last one.
    """
    limits, columns = np.iinfo(np.int32), layout.categorical
    per_feature = [
        (
            limits.min if own.multihot else 0,
            limits.max if own.unseen_id is None else own.cardinality - 1,
            own.cardinality if own.unseen_id is None else own.unseen_id,
        )
        for own in columns
    ]
    table = np.array(per_feature, np.int32).reshape(-1, 3)
    lowest, highest, unseen = np.repeat(table, [own.hotness for own in columns], axis=0).T
    is_known = (inputs.ids >= lowest) & (inputs.ids <= highest)
    return inputs._replace(ids=tf.where(is_known, inputs.ids, unseen))
