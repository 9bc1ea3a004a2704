"""The forward pass as a function of named features."""

from collections.abc import Mapping

import tensorflow as tf

from trainer.export.ports import inputs_of
from trainer.layout import InputLayout
from trainer.saved_model import SavedModel
from trainer.tasks import logit_columns

ACTIVATIONS = {"binary": tf.math.sigmoid, "multiclass": tf.nn.softmax, "regression": tf.identity}


def encoded_function(saved: SavedModel) -> tf.types.experimental.PolymorphicFunction:
    """Predictions of encoded features: a function of one dictionary, with an input signature.

    It takes `inputs_of` and gives `outputs_of`. An id outside [0, cardinality) makes the look-up fail; only in a
    multi-hot row ids below 0 are pads.
    """
    inputs = inputs_of(saved.layout)
    signature = {port.name: tf.TensorSpec([None, port.width], port.dtype, name=port.name) for port in inputs}

    def serve(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return predictions(saved, *matrices(saved.layout, features))

    return tf.function(serve, input_signature=[signature])


def predictions(saved: SavedModel, ids: tf.Tensor, numerical: tf.Tensor) -> dict[str, tf.Tensor]:
    """Per task [batch, width] float32, of the matrices that the model takes."""
    logits = saved.model.call(ids, numerical)
    places = zip(saved.tasks, logit_columns(saved.tasks), strict=True)
    return {task.name: ACTIVATIONS[task.kind](logits[:, columns]) for task, columns in places}


def matrices(layout: InputLayout, features: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Named features as ids [batch, id columns] int32 and numerical [batch, numerical] float32."""
    rows = tf.shape(next(iter(features.values())))[0]
    ids = [tf.zeros([rows, 0], tf.int32)] if not layout.categorical else []
    for columns in layout.categorical:
        values = features[columns.name]
        # The model takes any id below 0 for a pad, which a single id cannot be: it goes where the look-up fails.
        ids.append(values if columns.multihot else tf.where(values < 0, columns.cardinality, values))
    numerical = [features[name] for name in layout.numerical] or [tf.zeros([rows, 0])]
    return tf.concat(ids, axis=1), tf.concat(numerical, axis=1)
