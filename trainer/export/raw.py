"""Encoders in TensorFlow operations, which convert raw columns to the model's inputs inside a graph."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from tensorflow.bitwise import bitwise_xor, right_shift

from data.loading.batch import PAD
from data.preprocess import hashing
from data.preprocess.encoders import (
    FIRST_OOV_ID,
    NULL_ID,
    Encoder,
    HashedIds,
    HashedRanks,
    IdEncoder,
    Numerical,
    Vocabulary,
)
from trainer.checkpoint.load_model import LoadedModel
from trainer.export.graph import matrices, predictions
from trainer.layout import InputSchema


def hash_integers(values: tf.Tensor) -> tf.Tensor:
    """Hashes integers, [n] int64 to [n] uint64."""
    return _mix(tf.bitcast(values, tf.uint64))


def hash_texts(texts: tf.Tensor) -> tf.Tensor:
    """Hashes byte strings, [n] string to [n] uint64."""
    lengths = tf.strings.length(texts)
    longest = tf.reduce_max(tf.concat([lengths, [1]], axis=0))  # at least 1: decode_raw needs a positive length
    # [longest, n]: byte i of all strings in row i, zero-padded. The loop hashes one byte of every string at a time.
    columns = tf.transpose(tf.cast(tf.io.decode_raw(texts, tf.uint8, fixed_length=longest), tf.uint64))

    def step(position: tf.Tensor, hashes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        longer = bitwise_xor(hashes, columns[position]) * _word(hashing.FNV_FACTOR)
        return position + 1, tf.where(position < lengths, longer, hashes)  # skips the zero padding

    start = tf.fill(tf.shape(lengths), _word(hashing.FNV_START))
    shapes = (tf.TensorShape([]), tf.TensorShape([None]))
    _, hashes = tf.while_loop(
        lambda position, _: position < longest, step, (tf.constant(0), start), shape_invariants=shapes
    )
    return _mix(hashes)


def buckets(hashes: tf.Tensor, num_buckets: int) -> tf.Tensor:
    """Maps hashes [n] uint64 to buckets [n] int64 in [0, num_buckets)."""
    return tf.cast(hashes % tf.constant(num_buckets, tf.uint64), tf.int64)


def _mix(words: tf.Tensor) -> tf.Tensor:
    words = words + _word(hashing.STEP)
    words = bitwise_xor(words, right_shift(words, _word(30))) * _word(hashing.FIRST_FACTOR)
    words = bitwise_xor(words, right_shift(words, _word(27))) * _word(hashing.SECOND_FACTOR)
    return bitwise_xor(words, right_shift(words, _word(31)))


def _word(value: int | np.uint64) -> tf.Tensor:
    return tf.constant(value, tf.uint64)


# Values that represent null: the smallest integer, the empty string, and NaN for floats.
NULL_INTEGER = np.iinfo(np.int64).min
NULL_TEXT = b""


class NotFromRaw(Exception):
    """Raw features cannot be encoded inside a graph. The message gives the reason."""


@dataclass(frozen=True)
class RawInput:
    """A raw column as an input of a graph.

    Attributes:
        name: name of the column.
        dtype: "string", "int64" or "float64".
        is_list: whether the input is [batch, length] with rows padded by nulls at the end; otherwise it is [batch, 1].
        has_empty: whether the vocabulary contains the empty string, which then cannot represent null.
    """

    name: str
    dtype: str
    is_list: bool
    has_empty: bool


def encoders_of(layout: InputSchema, encoders: Mapping[str, Encoder]) -> dict[str, Encoder]:
    """Returns the encoders of a model's features, in the order of its layout.

    Raises:
        NotFromRaw: if a feature has no encoder.
    """
    features = [*(columns.name for columns in layout.categorical), *layout.numerical]
    missing = [name for name in features if name not in encoders]
    if not encoders:
        raise NotFromRaw("the dataset of this model has no vocabularies and scalers")
    if missing:
        raise NotFromRaw(f"the dataset of this model has no encoder for {', '.join(missing)}")
    return {name: encoders[name] for name in features}


def raw_columns(layout: InputSchema, encoders: Mapping[str, Encoder]) -> dict[str, RawInput]:
    """Returns the raw columns that the encoders read, by name.

    Args:
        layout: input layout of the model.
        encoders: encoders of its features (see `encoders_of`).

    Raises:
        NotFromRaw: if an encoder does not match its feature, or the type of a raw column cannot be determined.
    """
    readers: dict[str, list[Encoder]] = {}
    for feature, encoder in encoders.items():
        _check_fits(layout, feature, encoder)
        readers.setdefault(encoder.column, []).append(encoder)
    return {name: _column(name, encoders) for name, encoders in readers.items()}


def keys_of(encoder: Encoder) -> np.ndarray | None:
    """Returns the known raw values, int64 or strings; None for an encoder of plain numbers or without vocabulary."""
    if isinstance(encoder, Vocabulary | HashedRanks):
        return encoder.values if len(encoder.values) else None
    return encoder.table.keys if isinstance(encoder, Numerical) and encoder.table else None


def _check_fits(layout: InputSchema, feature: str, encoder: Encoder) -> None:
    columns = {columns.name: columns for columns in layout.categorical}.get(feature)
    if isinstance(encoder, Numerical):
        fits = columns is None
    else:
        fits = columns is not None and (
            _reads_lists(encoder) == columns.multihot and encoder.cardinality <= columns.cardinality
        )
    if not fits:
        raise NotFromRaw(f"the encoder of {feature} does not produce the model's inputs")


def _column(name: str, readers: list[Encoder]) -> RawInput:
    found = [keys for encoder in readers if (keys := keys_of(encoder)) is not None]
    kinds = {"string" if keys.dtype == object else "int64" for keys in found}
    plain = [isinstance(encoder, Numerical) and encoder.table is None for encoder in readers]
    lists = {_reads_lists(encoder) for encoder in readers}
    if len(lists) > 1 or len(kinds) > 1 or (any(plain) and kinds == {"string"}):
        raise NotFromRaw(f"raw column {name} is read as values of several kinds")
    if not kinds and not all(plain):  # integers and strings hash differently
        raise NotFromRaw(f"raw column {name} is hashed, but whether it holds integers or strings is unknown")
    has_empty = any("" in keys for keys in found) if kinds == {"string"} else False
    if has_empty and lists == {True}:
        raise NotFromRaw(f"raw column {name} has the empty string in its lists, which is reserved for padding")
    if kinds == {"int64"} and any(NULL_INTEGER in keys for keys in found):
        raise NotFromRaw(f"raw column {name} has the value {NULL_INTEGER}, which is reserved for null")
    return RawInput(name, kinds.pop() if kinds else "float64", lists == {True}, has_empty)


def _reads_lists(encoder: Encoder) -> bool:
    return isinstance(encoder, HashedRanks) or (isinstance(encoder, Vocabulary) and encoder.is_list)


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

    def __init__(self, saved: LoadedModel):
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

    def _ids(self, feature: str, encoder: IdEncoder, column: RawInput, values: tf.Tensor) -> tf.Tensor:
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

    def _numbers(self, feature: str, encoder: Numerical, column: RawInput, values: tf.Tensor) -> tf.Tensor:
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

    def _look_up(self, feature: str, column: RawInput, values: tf.Tensor) -> tf.Tensor:
        """Returns positions among the encoder's keys, int64; UNSEEN for unknown values and null."""
        unseen = tf.constant(UNSEEN, tf.int64)
        if feature not in self.tables:
            return tf.fill(tf.shape(values), unseen)
        return tf.where(_is_null(column, values), unseen, self.tables[feature].lookup(values))


def raw_function(saved: LoadedModel, encoding: RawEncoding) -> tf.types.experimental.PolymorphicFunction:
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


def _is_null(column: RawInput, values: tf.Tensor) -> tf.Tensor:
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
