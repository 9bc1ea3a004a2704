"""Encoders in TensorFlow operations, which convert raw columns to the model's inputs inside a graph."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from data.encoding.encoders import FIRST_OOV_ID, NULL_ID, HashedIds, HashedRanks, IdEncoder, Numerical
from data.loading.batch import PAD
from trainer.export.graph import matrices, predictions
from trainer.export.hash_ops import buckets, hash_integers, hash_texts
from trainer.export.raw_columns import NULL_INTEGER, NULL_TEXT, RawColumn, encoders_of, keys_of, raw_columns
from trainer.saved_model import SavedModel

UNSEEN = -1


class RawEncoding(tf.Module):
    """The encoders of a model's features, with their vocabularies as lookup tables.

    Args:
        saved: the model.

    Attributes:
        encoders: encoders by feature name.
        columns: raw columns that the encoders read, by column name.
        tables: lookup tables from raw values to vocabulary positions, by feature name.

    Raises:
        NotFromRaw: if the features cannot be encoded from raw columns (see `encoders_of` and `raw_columns`).
    """

    def __init__(self, saved: SavedModel):
        super().__init__()
        self._layout, self.encoders = saved.layout, encoders_of(saved.layout, saved.encoders)
        self.columns = raw_columns(saved.layout, self.encoders)
        known = {feature: keys_of(encoder) for feature, encoder in self.encoders.items()}
        self.tables = {feature: _positions(keys) for feature, keys in known.items() if keys is not None}

    def features(self, raw: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Encodes raw columns, the inputs of `raw_function`, to features, the inputs of `encoded_function`."""
        made = {}
        for feature, encoder in self.encoders.items():
            column, values = self.columns[encoder.column], raw[encoder.column]
            if isinstance(encoder, Numerical):
                made[feature] = self._numbers(feature, encoder, column, values)
            else:
                made[feature] = tf.cast(self._ids(feature, encoder, column, values), tf.int32)
        for columns in self._layout.categorical:
            if columns.multihot:
                column = self.columns[self.encoders[columns.name].column]
                # Nulls in lists are padding, which the encoder has mapped to an id like any other value.
                pads = _is_null(column, raw[column.name])
                made[columns.name] = _cut(tf.where(pads, PAD, made[columns.name]), columns.hotness)
        return made

    def _ids(self, feature: str, encoder: IdEncoder, column: RawColumn, values: tf.Tensor) -> tf.Tensor:
        """Returns the ids of raw values, int64 of the same shape."""
        if isinstance(encoder, HashedIds):
            return tf.where(_is_null(column, values), tf.constant(0, tf.int64), _hashed(values, encoder.num_buckets))
        positions = self._look_up(feature, column, values)
        if isinstance(encoder, HashedRanks):
            # Ranks start at 1; unseen values and null (UNSEEN = -1) get rank 0.
            return _hashed(positions + 1, encoder.num_buckets)
        unseen = FIRST_OOV_ID + _hashed(values, encoder.oov_buckets)
        ids = tf.where(positions == UNSEEN, unseen, positions + encoder.first_known_id)
        return tf.where(_is_null(column, values), tf.constant(NULL_ID, tf.int64), ids)

    def _numbers(self, feature: str, encoder: Numerical, column: RawColumn, values: tf.Tensor) -> tf.Tensor:
        """Returns standardized numbers of raw values, float32 of the same shape."""
        if encoder.table is not None:
            positions = self._look_up(feature, column, values)
            # Unseen values are looked up at the last position, which holds the default.
            known = tf.constant(np.append(encoder.table.numbers, encoder.table.default), tf.float64)
            last = tf.constant(len(encoder.table.numbers), tf.int64)
            numbers = tf.gather(known, tf.where(positions == UNSEEN, last, positions))
        else:
            missing = tf.constant(np.nan, tf.float64)
            numbers = tf.where(_is_null(column, values), missing, tf.cast(values, tf.float64))
        # float64 like the NumPy encoders; only the result is rounded to float32.
        numbers = tf.where(tf.math.is_nan(numbers), tf.constant(encoder.fill, tf.float64), numbers)
        if encoder.log:
            numbers = tf.math.log(numbers + 1)
        return tf.cast((numbers - encoder.mean) / (encoder.std if encoder.std > 0 else 1.0), tf.float32)

    def _look_up(self, feature: str, column: RawColumn, values: tf.Tensor) -> tf.Tensor:
        """Returns positions among the encoder's keys, int64; UNSEEN for unknown values and null."""
        unseen = tf.constant(UNSEEN, tf.int64)
        if feature not in self.tables:
            return tf.fill(tf.shape(values), unseen)
        return tf.where(_is_null(column, values), unseen, self.tables[feature].lookup(values))


def raw_function(saved: SavedModel, encoding: RawEncoding) -> tf.types.experimental.PolymorphicFunction:
    """Creates the function that predicts from raw columns.

    Returns:
        A tf.function with an input signature, from a dictionary of the inputs in `encoding.columns` to a dictionary of
        predictions [batch, width] float32 by task name.
    """
    signature = {
        column.name: tf.TensorSpec([None, None if column.is_list else 1], column.dtype, name=column.name)
        for column in encoding.columns.values()
    }

    def serve(raw: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return predictions(saved, *matrices(saved.layout, encoding.features(raw)))

    return tf.function(serve, input_signature=[signature])


def _positions(keys: np.ndarray) -> tf.lookup.StaticHashTable:
    is_text = keys.dtype == object
    known = tf.constant(np.array([key.encode() for key in keys], object) if is_text else keys)
    values = tf.range(len(keys), dtype=tf.int64)
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(known, values), UNSEEN)


def _cut(ids: tf.Tensor, hotness: int) -> tf.Tensor:
    """Truncates or pads rows of ids to [batch, hotness]."""
    # Padding by `hotness` makes rows of any length long enough for the slice.
    padded = tf.pad(ids, [[0, 0], [0, hotness]], constant_values=PAD)
    return tf.ensure_shape(padded[:, :hotness], [None, hotness])


def _is_null(column: RawColumn, values: tf.Tensor) -> tf.Tensor:
    if column.dtype == "float64":
        return tf.math.is_nan(values)
    if column.dtype == "int64":
        return values == NULL_INTEGER
    return tf.zeros_like(values, tf.bool) if column.has_empty else values == NULL_TEXT


def _hashed(values: tf.Tensor, num_buckets: int) -> tf.Tensor:
    """Returns hash buckets of integers or strings, int64 of the same shape."""
    if num_buckets == 1:
        return tf.zeros(tf.shape(values), tf.int64)
    flat = tf.reshape(values, [-1])
    hashes = hash_texts(flat) if values.dtype == tf.string else hash_integers(flat)
    return tf.reshape(buckets(hashes, num_buckets), tf.shape(values))
