"""Raw columns inside a graph: a function that encodes them to the model's inputs and predicts.

For one row, a graph spends its time on starting operations, not in them. Features with encoders of the same kind are
therefore encoded together, as the columns of one matrix, and only known values are looked up feature by feature.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from data.encoding.encoders import (
    BucketizedIds,
    CrossedIds,
    Encoder,
    HashedIds,
    HashedRanks,
    IdentityIds,
    MissingIndicator,
    Numerical,
    TimestampIds,
    Vocabulary,
)
from data.encoding.hashing import NULL_HASH
from data.loading.batch import PAD
from trainer.checkpoint.load_model import LoadedModel
from trainer.export.graph import predictions
from trainer.export.ports import inputs_of
from trainer.export.raw_columns import (
    INTEGER,
    NULL_INTEGER,
    NULL_TEXT,
    NUMBER,
    TEXT,
    TICKS_PER_SECOND,
    RawInput,
    RawLayout,
    columns_of,
    makes_lists,
)
from trainer.export.raw_encoders import (
    RawValues,
    encoded_numbers,
    hashed_ids,
    identity_ids,
    interval_ids,
    joined,
    look_up_table,
    missing_indicators,
    rank_ids,
    split,
    timestamp_ids,
    vocabulary_ids,
)
from trainer.export.raw_hashes import hash_integers, hash_texts, mix, word
from trainer.layout import ModelInputs

# Encoders of kinds that look nothing up.
_ENCODE: dict[type, Callable[[Any, RawValues], tf.Tensor]] = {
    HashedIds: hashed_ids,
    IdentityIds: identity_ids,
    BucketizedIds: interval_ids,
    TimestampIds: timestamp_ids,
    MissingIndicator: missing_indicators,
}
_LOOK_UP = (Vocabulary, HashedRanks, Numerical)


class RawEncoding(tf.Module):
    """The encoders of a model's features, with their vocabularies as lookup tables.

    Args:
        layout: features, encoders and raw columns.
        tables: lookup tables of an encoding of these features and others, to use again; None creates them.

    Attributes:
        layout: the same.
        tables: lookup tables of known values, by feature name.
    """

    def __init__(self, layout: RawLayout, tables: Mapping[str, Any] | None = None):
        super().__init__()
        self.layout = layout
        self._widths = {port.name: port.width for port in inputs_of(layout.model)}
        readers = {feature: _value_encoder(encoder) for feature, encoder in layout.encoders.items()}
        self.tables = (
            dict(tables)
            if tables is not None
            else {
                feature: table
                for feature, encoder in readers.items()
                if isinstance(encoder, _LOOK_UP) and (table := look_up_table(encoder)) is not None
            }
        )

    def matrices(self, raw: Mapping[str, tf.Tensor]) -> ModelInputs:
        """Encode raw columns, the inputs of `raw_function`, to the model's input matrices."""
        made, singles, ends = _Made(), _Singles(self.layout, raw), self._ends(raw)
        for features in self.layout.groups:
            encoder = self.layout.encoders[features[0]]
            if isinstance(encoder, CrossedIds):
                values = self._crossed(encoder, raw, singles, made)
            elif makes_lists(encoder):
                values = self._list(encoder.column, raw)
            else:
                values = singles.select([name for one in features for name in columns_of(self.layout.encoders[one])])
            encoded = self._encode(features, values)
            if makes_lists(encoder):
                padding = ends[features[0]] if features[0] in ends else self._padding(encoder, values, raw)
                self._add_list(features[0], encoded, padding, made)
            else:
                made.add(features, encoded)
        model, rows = self.layout.model, tf.shape(next(iter(raw.values())))[0]
        ids = made.matrix([columns.name for columns in model.categorical], rows, tf.int64)
        weights = [columns.weights for columns in model.weighted]
        numerical, of_ids, of_steps = (
            made.matrix(names, rows, tf.float32) for names in (model.numerical, weights, [*model.sequence_numbers])
        )
        vectors = [raw[column] for vector in model.vectors for column in columns_of(self.layout.encoders[vector.name])]
        vector = joined(vectors or [tf.zeros([rows, 0])])
        return ModelInputs(tf.cast(ids, tf.int32), numerical, of_ids, of_steps, vector)

    def _encode(self, features: Sequence[str], raw: RawValues) -> tf.Tensor:
        """Encode the values of features with encoders of one kind: int64 ids or float32 numbers of their shape."""
        encoders: list[Any] = [_value_encoder(self.layout.encoders[feature]) for feature in features]
        kind = type(encoders[0])
        if kind is Numerical:
            has_table = encoders[0].table is not None
            return encoded_numbers(encoders, raw, self._look_up(features, raw.values) if has_table else None)
        if kind in _LOOK_UP:
            found = self._look_up(features, raw.values)
            return vocabulary_ids(encoders, raw, found) if kind is Vocabulary else rank_ids(encoders, raw, found)
        return _ENCODE[kind](encoders, raw)

    def _look_up(self, features: Sequence[str], values: tf.Tensor) -> tf.Tensor:
        """Look values up in the tables of their features; return int64 of the same shape."""
        parts = zip(features, split(values, len(features)), strict=True)
        return joined([self._found(feature, part) for feature, part in parts])

    def _found(self, feature: str, values: tf.Tensor) -> tf.Tensor:
        if feature not in self.tables:  # without known values
            return tf.fill(tf.shape(values), tf.constant(-1, tf.int64))
        return self.tables[feature].lookup(values)

    def _list(self, column: str, raw: Mapping[str, tf.Tensor]) -> RawValues:
        """Return a raw column of lists, [batch, length], padded with nulls."""
        return _raw_values([self.layout.columns[column]], raw[column])

    def _crossed(
        self, encoder: CrossedIds, raw: Mapping[str, tf.Tensor], singles: "_Singles", made: "_Made"
    ) -> RawValues:
        """Return the keys of a cross, [batch, 1] int64, not null; with a list [batch, length], null where that is."""
        hashes, null = tf.constant(0, tf.uint64), tf.constant(False)
        for entry in encoder.inputs:
            is_list = entry.name == encoder.list_input
            if entry.is_feature:
                ids, missing = made.lists[entry.name] if is_list else (made.column(entry.name), null)
                key = hash_integers(ids)
            else:
                read = self._list(entry.name, raw) if is_list else singles.select([entry.name])
                key, missing = tf.where(read.null, word(NULL_HASH), read.hashes), read.null
            hashes, null = mix(tf.bitwise.bitwise_xor(hashes, key)), missing if is_list else null
        keys = tf.bitcast(hashes, tf.int64)
        return RawValues(keys, tf.broadcast_to(null, tf.shape(keys)))

    def _ends(self, raw: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Return which steps of sequences are padding, [batch, length] bool by feature."""
        steps_of = self.layout.steps_of
        made = {columns: self._end(columns, raw) for columns in dict.fromkeys(steps_of.values())}
        return {feature: made[columns] for feature, columns in steps_of.items()}

    def _end(self, columns: Sequence[str], raw: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Return which steps come after the last one that has a value in a column, [batch, length] bool."""
        lengths = [tf.shape(raw[name])[1] for name in columns]
        message = f"the columns {', '.join(columns)} of a sequence need matrices of the same length"
        checks = [tf.debugging.assert_equal(length, lengths[0], message) for length in lengths[1:]]
        with tf.control_dependencies(checks):
            # With the shortest length in all, no operation fails before the check and hides the names.
            length = tf.reduce_min(tf.stack(lengths))
        null = tf.reduce_all(tf.stack([self._list(name, raw).null[:, :length] for name in columns]), axis=0)
        # Null from here to the end: as many nulls follow, this one included, as there are places.
        following = tf.cumsum(tf.cast(null, tf.int32), axis=1, reverse=True)
        return tf.equal(following, tf.range(length, 0, -1))

    def _padding(self, encoder: Encoder, values: RawValues, raw: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Return which items of lists are padding, [batch, length] bool: the nulls, for weights those of their ids."""
        if isinstance(encoder, CrossedIds) or encoder.column not in self.layout.ids_of:
            return values.null
        return self._list(self.layout.ids_of[encoder.column], raw).null

    def _add_list(self, name: str, encoded: tf.Tensor, null: tf.Tensor, made: "_Made") -> None:
        """Add a list feature, whole for crosses, and cut for the model if this has it."""
        made.lists[name] = encoded, null
        if name in self._widths:
            made.add([name], self._cut(name, encoded, null))

    def _cut(self, name: str, encoded: tf.Tensor, null: tf.Tensor) -> tf.Tensor:
        """Return ids of lists, [batch, hotness] int64 padded with PAD, or their weights or numbers, float32."""
        hotness = self._widths[name]
        # Clients pad ids and weights by themselves. Appending `hotness` makes any row long enough for a slice.
        length = tf.maximum(tf.shape(encoded)[1], tf.shape(null)[1]) + hotness
        null = _padded(null, length, True)
        # Nulls in lists are padding, which the encoder maps to an id or weight like any other value.
        padding = tf.constant(PAD if encoded.dtype.is_integer else 0, encoded.dtype)
        encoded = tf.where(null, padding, _padded(encoded, length, padding))
        if name not in self.layout.keeps_last:
            return tf.ensure_shape(encoded[:, :hotness], [None, hotness])
        lengths = tf.reduce_sum(tf.cast(~null, tf.int32), axis=1)
        places = tf.maximum(lengths - hotness, 0)[:, None] + tf.range(hotness)
        return tf.gather(encoded, places, axis=1, batch_dims=1)


class _Singles:
    """The raw columns of single values, as one matrix per type.

    Args:
        layout: features, encoders and raw columns.
        raw: the raw columns by name.
    """

    def __init__(self, layout: RawLayout, raw: Mapping[str, tf.Tensor]):
        self._columns = layout.columns
        self._names = {
            dtype: [name for name, column in self._columns.items() if column.dtype == dtype and not column.is_list]
            for dtype in (TEXT, INTEGER, NUMBER)
        }
        self._matrices = {
            dtype: _raw_values([self._columns[name] for name in names], joined([raw[name] for name in names]))
            for dtype, names in self._names.items()
            if names
        }
        # All strings that have to be hashed, since the loop over their bytes is slow for a single one, too.
        self._hashed = [name for name in self._names[TEXT] if name in layout.hashed]
        if self._hashed:
            texts = _take(self._matrices[TEXT].values, self._places(TEXT, self._hashed))
            self._hashes = tf.reshape(hash_texts(tf.reshape(texts, [-1])), tf.shape(texts))

    def select(self, names: Sequence[str]) -> RawValues:
        """Return columns of one type, [batch, names]."""
        dtype = self._columns[names[0]].dtype
        whole, places = self._matrices[dtype], self._places(dtype, names)
        hashes = None
        if dtype == TEXT and all(name in self._hashed for name in names):
            hashes = _take(self._hashes, [self._hashed.index(name) for name in names])
        return RawValues(_take(whole.values, places), _take(whole.null, places), hashes)

    def _places(self, dtype: str, names: Sequence[str]) -> list[int]:
        place = {name: index for index, name in enumerate(self._names[dtype])}
        return [place[name] for name in names]


class _Made:
    """Encoded features, as blocks of columns.

    Attributes:
        lists: list features by name: all their items, [batch, length], and which of these are padding.
    """

    def __init__(self) -> None:
        self.lists: dict[str, tuple[tf.Tensor, tf.Tensor]] = {}
        self._blocks: list[tuple[Sequence[str], tf.Tensor]] = []

    def add(self, features: Sequence[str], values: tf.Tensor) -> None:
        """Add a block with equally many columns for each feature, [batch, columns]."""
        self._blocks.append((features, values))

    def column(self, feature: str) -> tf.Tensor:
        """Return a feature with one column, [batch, 1]."""
        features, values = next(block for block in self._blocks if feature in block[0])
        return _take(values, [list(features).index(feature)])

    def matrix(self, wanted: Sequence[str], rows: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        """Return the columns of features of a type in the given order, [rows, columns]."""
        blocks = [(features, values) for features, values in self._blocks if values.dtype == dtype]
        if not wanted:
            return tf.zeros([rows, 0], dtype)
        places, start = {}, 0
        for features, values in blocks:
            width = values.shape[1] // len(features)
            for feature in features:
                places[feature] = range(start, start + width)
                start += width
        whole = joined([values for _, values in blocks])
        return _take(whole, [place for feature in wanted for place in places[feature]])


def raw_function(saved: LoadedModel, encoding: RawEncoding) -> tf.types.experimental.PolymorphicFunction:
    """Create the function that predicts from raw columns.

    Returns:
        A tf.function with an input signature, from a dictionary of the raw columns of the layout to a dictionary of
        predictions [batch, width] float32 by task name.
    """
    signature = {
        column.name: tf.TensorSpec([None, column.width], column.dtype, name=column.name)
        for column in encoding.layout.columns.values()
    }

    def serve(raw: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return predictions(saved, encoding.matrices(raw))

    return tf.function(serve, input_signature=[signature], autograph=False)


def _value_encoder(encoder: Encoder) -> Encoder:
    """Return the encoder of single values, for a cross that of its keys."""
    return encoder.encoder if isinstance(encoder, CrossedIds) else encoder


def _raw_values(columns: Sequence[RawInput], values: tf.Tensor) -> RawValues:
    """Return the values of columns of one type, with times in microseconds."""
    if columns[0].dtype == NUMBER:
        return RawValues(values, tf.math.is_nan(values))
    null = values == (NULL_TEXT if columns[0].dtype == TEXT else NULL_INTEGER)
    if any(column.has_empty for column in columns):
        null &= tf.constant([not column.has_empty for column in columns])
    if any(column.is_time for column in columns):
        values *= tf.constant([TICKS_PER_SECOND if column.is_time else 1 for column in columns], tf.int64)
    return RawValues(values, null)


def _take(matrix: tf.Tensor, places: Sequence[int]) -> tf.Tensor:
    """Return columns of a matrix, [batch, columns]."""
    first, number = places[0], len(places)
    if list(places) == list(range(first, first + number)):
        return matrix if number == matrix.shape[1] else matrix[:, first : first + number]
    return tf.gather(matrix, list(places), axis=1)


def _padded(lists: tf.Tensor, length: tf.Tensor, padding: bool | tf.Tensor) -> tf.Tensor:
    """Append padding to rows up to a length."""
    return tf.pad(lists, [[0, 0], [0, length - tf.shape(lists)[1]]], constant_values=padding)
