"""Encoders in TensorFlow operations: from raw columns to what the model takes, inside a graph."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from data.encoding.encoders import FIRST_OOV_ID, NULL_ID, HashedIds, HashedRanks
from data.loading.batch import PAD
from trainer.export.graph import Function, matrices, predictions
from trainer.export.hash_ops import buckets, hash_integers, hash_texts
from trainer.export.raw_columns import NULL_INTEGER, NULL_TEXT, RawColumn, keys_of, raw_columns
from trainer.saved_model import SavedModel

UNSEEN = -1


class RawEncoding(tf.Module):
    """The encoders of a model's features, with their vocabularies as tables.

    Args:
        saved: the model.

    Attributes:
        columns: what is read, by name.

    Raises:
        NotFromRaw: see `raw_columns`.
    """

    def __init__(self, saved: SavedModel):
        super().__init__()
        self._saved, self.columns = saved, raw_columns(saved.layout, saved.encoders)
        self.tables = {
            feature: _positions(keys)
            for feature in saved.encoders
            if (keys := keys_of(saved.encoders[feature])) is not None
        }

    def features(self, raw: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Encoded features as `encoded_function` takes them, from raw columns as `raw_function` takes them."""
        layout, encoders = self._saved.layout, self._saved.encoders
        made = {}
        for columns in layout.categorical:
            column = self.columns[encoders[columns.name].column]
            values = raw[column.name]
            ids = tf.cast(self._ids(columns.name, column, values), tf.int32)
            if columns.multihot:
                ids = tf.where(_is_null(column, values), PAD, ids)[:, : columns.hotness]
                ids = tf.pad(ids, [[0, 0], [0, columns.hotness - tf.shape(ids)[1]]], constant_values=PAD)
                ids = tf.ensure_shape(ids, [None, columns.hotness])
            made[columns.name] = ids
        for name in layout.numerical:
            column = self.columns[encoders[name].column]
            made[name] = self._numbers(name, column, raw[column.name])
        return made

    def _ids(self, feature: str, column: RawColumn, values: tf.Tensor) -> tf.Tensor:
        """Ids of raw values, int64 in the shape of the values."""
        encoder = self._saved.encoders[feature]
        if isinstance(encoder, HashedIds):
            return tf.where(_is_null(column, values), tf.constant(0, tf.int64), _hashed(values, encoder.num_buckets))
        positions = self._look_up(feature, column, values)
        if isinstance(encoder, HashedRanks):
            return _hashed(positions + 1, encoder.num_buckets)
        unseen = FIRST_OOV_ID + _hashed(values, encoder.oov_buckets)
        ids = tf.where(positions == UNSEEN, unseen, positions + encoder.first_known_id)
        return tf.where(_is_null(column, values), tf.constant(NULL_ID, tf.int64), ids)

    def _numbers(self, feature: str, column: RawColumn, values: tf.Tensor) -> tf.Tensor:
        """Standardised numbers of raw values, [batch, 1] float32."""
        encoder = self._saved.encoders[feature]
        if encoder.table is not None:
            positions = self._look_up(feature, column, values)
            # UNSEEN is the last.
            known = tf.constant(np.append(encoder.table.numbers, encoder.table.default), tf.float64)
            numbers = tf.gather(known, tf.where(positions == UNSEEN, len(encoder.table.numbers), positions))
        else:
            missing = tf.constant(np.nan, tf.float64)
            numbers = tf.where(_is_null(column, values), missing, tf.cast(values, tf.float64))
        numbers = tf.where(tf.math.is_nan(numbers), tf.constant(encoder.fill, tf.float64), numbers)
        if encoder.log:
            numbers = tf.math.log(numbers + 1)
        return tf.cast((numbers - encoder.mean) / (encoder.std if encoder.std > 0 else 1.0), tf.float32)

    def _look_up(self, feature: str, column: RawColumn, values: tf.Tensor) -> tf.Tensor:
        """Positions among the encoder's keys, int64; UNSEEN for null as well."""
        unseen = tf.constant(UNSEEN, tf.int64)
        if feature not in self.tables:
            return tf.fill(tf.shape(values), unseen)
        return tf.where(_is_null(column, values), unseen, self.tables[feature].lookup(values))


def raw_function(saved: SavedModel, encoding: RawEncoding) -> Function:
    """Predictions of raw columns: a function of one dictionary, with an input signature."""
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


def _is_null(column: RawColumn, values: tf.Tensor) -> tf.Tensor:
    if column.dtype == "float64":
        return tf.math.is_nan(values)
    if column.dtype == "int64":
        return values == NULL_INTEGER
    return tf.zeros_like(values, tf.bool) if column.has_empty else values == NULL_TEXT


def _hashed(values: tf.Tensor, num_buckets: int) -> tf.Tensor:
    """Buckets of the hashes of integers or texts, int64 in the shape of the values."""
    if num_buckets == 1:
        return tf.zeros(tf.shape(values), tf.int64)
    flat = tf.reshape(values, [-1])
    hashes = hash_texts(flat) if values.dtype == tf.string else hash_integers(flat)
    return tf.reshape(buckets(hashes, num_buckets), tf.shape(values))
