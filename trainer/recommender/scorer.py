"""Predictions from encoded features, with one compiled forward pass for any number of rows."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import tensorflow as tf

from data.encoding.keys import Values, as_keys, as_lists, as_numbers
from data.errors import DataError
from data.loading.batch import PAD
from data.loading.lists import Lists
from trainer.checkpoint.load_model import LoadedModel
from trainer.layout import CategoricalInput, ModelInputs
from trainer.tasks.task import logit_columns

# Rows per forward pass, which bounds the memory for activations.
ROWS_AT_ONCE = 65_536


class Scorer:
    """Computes predictions with a trained model.

    Args:
        saved: the model, whose tasks predict one number each.
    """

    def __init__(self, saved: LoadedModel):
        self._layout, self._tasks = saved.layout, saved.tasks
        layout = saved.layout
        signature = ModelInputs(
            tf.TensorSpec([None, layout.id_columns], tf.int32),
            tf.TensorSpec([None, len(layout.numerical)], tf.float32),
            tf.TensorSpec([None, layout.weight_columns], tf.float32),
            tf.TensorSpec([None, layout.number_columns], tf.float32),
            tf.TensorSpec([None, layout.vector_columns], tf.float32),
        )
        # The row dimension is None, so that the function is traced only once.
        self._forward = tf.function(
            lambda inputs: saved.model.call(*inputs), input_signature=[signature], autograph=False
        )

    def matrices(self, features: Mapping[str, Values] | pd.DataFrame, rows: int) -> ModelInputs:
        """Assembles the model's input matrices from features.

        Columns of features that are not given are 0, so the matrices of disjoint sets of features can be added up.

        Args:
            features: some or all input features of the model by name, each [rows] ids, lists of ids, or numbers; and
                for ids in lists that have weights, lists of equally many numbers under the name of these.
            rows: number of rows.

        Raises:
            DataError: if an id is out of range, a number is not finite, or a list has more or fewer weights than ids.
        """
        ids = np.zeros((rows, self._layout.id_columns), np.int32)
        numerical = np.zeros((rows, len(self._layout.numerical)), np.float32)
        for columns in self._layout.categorical:
            if columns.name in features:
                values = features[columns.name]
                made = _padded(columns, values) if columns.multihot else _ids(columns, values)[:, None]
                ids[:, columns.start : columns.stop] = made
        for index, name in enumerate(self._layout.numerical):
            if name in features:
                numerical[:, index] = _numbers(name, features[name])
        weights = np.zeros((rows, self._layout.weight_columns), np.float32)
        for columns, places in self._layout.weighted.items():
            if columns.name in features:
                weights[:, places] = _padded_weights(columns, features[columns.weights], features[columns.name])
        # Data frames have no sequences and no vectors.
        widths = self._layout.number_columns, self._layout.vector_columns
        return ModelInputs(ids, numerical, weights, *(np.zeros((rows, width), np.float32) for width in widths))

    def predict(self, inputs: ModelInputs) -> np.ndarray:
        """Predicts for input matrices as returned by `matrices`.

        Returns:
            Predictions [rows, tasks] float64: probabilities of binary tasks, values of the others.
        """
        outputs = sum(task.width for task in self._tasks)
        blocks = [np.zeros((0, outputs), np.float32)]  # so that zero rows can be concatenated, too
        for start in range(0, len(inputs.ids), ROWS_AT_ONCE):
            block = ModelInputs(*(tf.constant(matrix[start : start + ROWS_AT_ONCE]) for matrix in inputs))
            blocks.append(self._forward(block).numpy())
        logits = np.concatenate(blocks)
        columns = zip(self._tasks, logit_columns(self._tasks), strict=True)
        return np.concatenate([task.predictions(logits[:, of_task]) for task, of_task in columns], axis=1)


def _padded(columns: CategoricalInput, values: Values) -> np.ndarray:
    """Converts lists of ids to a matrix [rows, hotness] int32, truncating longer lists and padding others with PAD."""
    lists = as_lists(columns.name, values)
    _check_known(columns.name, np.array([entry is not None for entry in lists], bool))
    lengths = np.fromiter((len(entry) for entry in lists), np.int32, len(lists))
    ids = np.empty(0, np.int64)
    if lengths.any():
        ids = _ids(columns, np.concatenate([np.asarray(entry) for entry in lists if len(entry)]))
    whole = Lists(ids.astype(np.int32), lengths[:, np.newaxis])
    return whole.cut([columns.hotness]).padded([columns.hotness], PAD)


def _padded_weights(columns: CategoricalInput, values: Values, ids: Values) -> np.ndarray:
    """Converts lists of weights to a matrix [rows, hotness] float32 like that of their ids, padded with 0."""
    lists = as_lists(columns.weights, values)
    _check_known(columns.weights, np.array([entry is not None for entry in lists], bool))
    lengths = np.fromiter((len(entry) for entry in lists), np.int32, len(lists))
    numbers = _numbers(columns.weights, np.concatenate([np.empty(0), *map(np.asarray, lists)]))
    of_ids = np.fromiter((len(entry) for entry in as_lists(columns.name, ids)), np.int32, len(lists))
    differs = np.flatnonzero(lengths != of_ids)
    if len(differs):
        row = int(differs[0])
        raise DataError(
            f"column {columns.weights!r} has {lengths[row]} weights in row {row}, and {columns.name!r} has "
            f"{of_ids[row]} ids; each id has one weight"
        )
    return Lists(numbers, lengths[:, np.newaxis]).cut([columns.hotness]).padded([columns.hotness], 0)


def _ids(columns: CategoricalInput, values: Values) -> np.ndarray:
    """Checks that ids lie within the embedding table and returns them as [n] int64."""
    ids = as_keys(columns.name, values)
    wrong = ids if ids.dtype == object else ids[(ids >= columns.cardinality) | (ids < 0)]
    if len(wrong):
        raise DataError(
            f"column {columns.name!r} holds the id {wrong.tolist()[0]!r}; encoded ids lie in [0, {columns.cardinality})"
        )
    return ids


def _numbers(name: str, values: Values) -> np.ndarray:
    """Checks numbers and converts them to [n] float32."""
    numbers = as_numbers(name, values)
    _check_known(name, ~np.isnan(numbers))
    wrong = numbers[np.abs(numbers) > np.finfo(np.float32).max]
    if len(wrong):
        raise DataError(f"column {name!r} holds {wrong[0]:g}, which is beyond float32")
    return numbers.astype(np.float32)


def _check_known(name: str, known: np.ndarray) -> None:
    if not known.all():
        raise DataError(f"column {name!r} is null in row {int(known.argmin())}; encoded rows have no nulls")
