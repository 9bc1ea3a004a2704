"""Encoded features in, predictions out: one compiled forward pass for any number of rows."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from data.errors import DataError
from data.loading.batch import PAD
from trainer.layout import IdColumns
from trainer.metrics.calibration import probability
from trainer.saved_model import SavedModel

ROWS_AT_ONCE = 65_536


class Scorer:
    """Predicts with a model.

    Args:
        saved: the model; its tasks are binary or regressions.
    """

    def __init__(self, saved: SavedModel):
        self._layout, self._tasks = saved.layout, saved.tasks
        ids = tf.TensorSpec([None, saved.layout.id_columns], tf.int32)
        numerical = tf.TensorSpec([None, len(saved.layout.numerical)], tf.float32)
        # One trace for any number of rows.
        self._forward = tf.function(
            lambda ids, numerical: saved.model.call(ids, numerical), input_signature=[ids, numerical]
        )

    def matrices(self, features: Mapping[str, np.ndarray], rows: int) -> tuple[np.ndarray, np.ndarray]:
        """The model's inputs with the given features in their places and 0 elsewhere: parts of one row add up.

        Args:
            features: some or all of the model's, [rows] ids, lists of ids or numbers.
            rows: how many.

        Returns:
            ids [rows, id columns] int32, numerical [rows, numbers] float32.

        Raises:
            DataError: an id is out of its range.
        """
        ids = np.zeros((rows, self._layout.id_columns), np.int32)
        numerical = np.zeros((rows, len(self._layout.numerical)), np.float32)
        for columns in self._layout.categorical:
            if columns.name in features:
                values = features[columns.name]
                ids[:, columns.start : columns.stop] = _padded(columns, values) if columns.multihot else values[:, None]
                _check_ids(columns, ids[:, columns.start : columns.stop])
        for index, name in enumerate(self._layout.numerical):
            if name in features:
                numerical[:, index] = features[name]
        return ids, numerical

    def predict(self, ids: np.ndarray, numerical: np.ndarray) -> np.ndarray:
        """Predictions [rows, tasks] float64: a probability, or the value of a regression."""
        blocks = [np.zeros((0, len(self._tasks)), np.float32)]
        for start in range(0, len(ids), ROWS_AT_ONCE):
            block = slice(start, start + ROWS_AT_ONCE)
            blocks.append(self._forward(tf.constant(ids[block]), tf.constant(numerical[block])).numpy())
        predictions = np.concatenate(blocks).astype(np.float64)
        for index, task in enumerate(self._tasks):
            if task.kind == "binary":
                predictions[:, index] = probability(predictions[:, index].astype(np.float32))
        return predictions


def _padded(columns: IdColumns, lists: np.ndarray) -> np.ndarray:
    """Lists of ids as a matrix [rows, hotness] int32, cut where they are longer and with PAD where they are shorter."""
    lengths = np.fromiter((len(entry) for entry in lists), np.int64, len(lists))
    matrix = np.full((len(lists), columns.hotness), PAD, np.int32)
    if lengths.sum():
        flat = np.concatenate([np.asarray(entry, np.int64) for entry in lists])
        rows = np.repeat(np.arange(len(lists)), lengths)
        places = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        kept = places < columns.hotness
        matrix[rows[kept], places[kept]] = flat[kept]
    return matrix


def _check_ids(columns: IdColumns, ids: np.ndarray) -> None:
    wrong = ids[(ids >= columns.cardinality) | (ids < (PAD if columns.multihot else 0))]
    if len(wrong):
        raise DataError(
            f"column {columns.name!r} holds the id {wrong[0]}; encoded ids lie in [0, {columns.cardinality})"
        )
