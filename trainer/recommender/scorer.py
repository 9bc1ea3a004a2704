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
from trainer.layout import CategoricalInput
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
        ids = tf.TensorSpec([None, saved.layout.id_columns], tf.int32)
        numerical = tf.TensorSpec([None, len(saved.layout.numerical)], tf.float32)
        # The row dimension is None, so that the function is traced only once.
        self._forward = tf.function(
            lambda ids, numerical: saved.model.call(ids, numerical), input_signature=[ids, numerical], autograph=False
        )

    def matrices(self, features: Mapping[str, Values] | pd.DataFrame, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Assembles the model's input matrices from features.

        Columns of features that are not given are 0, so the matrices of disjoint sets of features can be added up.

        Args:
            features: some or all input features of the model by name, each [rows] ids, lists of ids, or numbers.
            rows: number of rows.

        Returns:
            ids [rows, id columns] int32 and numerical [rows, numerical features] float32.

        Raises:
            DataError: if an id is out of range, or a number is not finite.
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
        return ids, numerical

    def predict(self, ids: np.ndarray, numerical: np.ndarray) -> np.ndarray:
        """Predicts for input matrices as returned by `matrices`.

        Returns:
            Predictions [rows, tasks] float64: probabilities of binary tasks, values of the others.
        """
        outputs = sum(task.width for task in self._tasks)
        blocks = [np.zeros((0, outputs), np.float32)]  # so that zero rows can be concatenated, too
        for start in range(0, len(ids), ROWS_AT_ONCE):
            block = slice(start, start + ROWS_AT_ONCE)
            blocks.append(self._forward(tf.constant(ids[block]), tf.constant(numerical[block])).numpy())
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
