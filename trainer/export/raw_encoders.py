"""Encoders of `data.encoding.encoders` in TensorFlow operations.

Every function encodes the raw columns of several encoders of one kind at once: values are [batch, encoders], or
[batch, length] for one encoder of lists.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from data.encoding.encoders import (
    CLIP,
    FILL,
    FIRST_OOV_ID,
    FIRST_VALUE_ID,
    LOG1P,
    MICROSECONDS_PER_HOUR,
    NULL_ID,
    SCALE,
    BucketizedIds,
    HashedIds,
    HashedRanks,
    IdentityIds,
    MissingIndicator,
    Numerical,
    Step,
    TimestampIds,
    Vocabulary,
)
from data.encoding.hashing import buckets as numpy_buckets
from data.encoding.hashing import hash_values
from trainer.export.raw_hashes import buckets, hash_integers, hash_texts

# What a lookup table returns for other values than its keys.
UNSEEN = -1
# Outside of every embedding table, so that its lookup fails.
OUTSIDE = 2**31 - 1


@dataclass(frozen=True)
class RawValues:
    """Values of raw columns of one type.

    Attributes:
        values: strings, int64 or float64; times in microseconds.
        null: whether each value is null.
        known_hashes: the hashes of the values, uint64, if they have been computed.
    """

    values: tf.Tensor
    null: tf.Tensor
    known_hashes: tf.Tensor | None = None

    @property
    def numbers(self) -> tf.Tensor:
        """The values as float64, NaN where null."""
        if self.values.dtype == tf.float64:
            return self.values
        return tf.where(self.null, tf.constant(np.nan, tf.float64), tf.cast(self.values, tf.float64))

    @property
    def hashes(self) -> tf.Tensor:
        """The hashes of the values, uint64; unspecified where null."""
        if self.known_hashes is not None:
            return self.known_hashes
        if self.values.dtype != tf.string:
            return hash_integers(self.values)
        return tf.reshape(hash_texts(tf.reshape(self.values, [-1])), tf.shape(self.values))


def look_up_table(encoder: Vocabulary | HashedRanks | Numerical) -> tf.lookup.StaticHashTable | None:
    """Create the lookup table of an encoder: from known values to ids, for `Numerical` to positions in its table.

    Returns:
        The table, whose default is UNSEEN; None for an encoder without known values.
    """
    if isinstance(encoder, Vocabulary):
        keys, ids = encoder.known_values, encoder.known_ids
    elif isinstance(encoder, HashedRanks):
        keys, ids = encoder.values, _rank_ids(np.arange(len(encoder.values)) + 1, encoder)
    else:
        keys = None if encoder.table is None else encoder.table.keys
        ids = np.arange(0 if keys is None else len(keys))
    if keys is None or not len(keys):
        return None
    # Copied by Arrow: a list of Python strings would take many times the memory.
    plain = keys.to_numpy(zero_copy_only=False)
    initializer = tf.lookup.KeyValueTensorInitializer(tf.constant(plain), tf.constant(ids, tf.int64))
    return tf.lookup.StaticHashTable(initializer, UNSEEN)


def vocabulary_ids(encoders: Sequence[Vocabulary], raw: RawValues, found: tf.Tensor) -> tf.Tensor:
    """Return ids, int64.

    Args:
        encoders: the encoders.
        raw: raw values.
        found: ids of the known values, UNSEEN for others.
    """
    is_unseen, unseen = found == UNSEEN, tf.constant(FIRST_OOV_ID, tf.int64)
    if any(encoder.oov_buckets > 1 for encoder in encoders):
        numbers = _settings([encoder.oov_buckets for encoder in encoders], tf.int64)
        # Hashing strings is slow, and most requests have known values only.
        bucket = tf.cond(
            tf.reduce_any(is_unseen & ~raw.null),
            lambda: buckets(raw.hashes, numbers),
            lambda: tf.zeros(tf.shape(found), tf.int64),
        )
        unseen += tf.ensure_shape(bucket, found.shape)
    return tf.where(raw.null, tf.constant(NULL_ID, tf.int64), tf.where(is_unseen, unseen, found))


def rank_ids(encoders: Sequence[HashedRanks], raw: RawValues, found: tf.Tensor) -> tf.Tensor:
    """Return ids, int64, from the ids of known values. Null is not one of these."""
    unseen = [int(_rank_ids(np.zeros(1, np.int64), encoder)[0]) for encoder in encoders]
    return tf.where(found == UNSEEN, _settings(unseen, tf.int64), found)


def hashed_ids(encoders: Sequence[HashedIds], raw: RawValues) -> tf.Tensor:
    """Return ids, int64."""
    first = _settings([encoder.first_id for encoder in encoders], tf.int64)
    null = _settings([min(encoder.first_id, NULL_ID) for encoder in encoders], tf.int64)
    return tf.where(raw.null, null, first + buckets(raw.hashes, _settings([e.num_buckets for e in encoders], tf.int64)))


def identity_ids(encoders: Sequence[IdentityIds], raw: RawValues) -> tf.Tensor:
    """Return ids, int64; OUTSIDE for values outside of the cardinality, which have none."""
    limits = _settings([encoder.cardinality for encoder in encoders], tf.int64)
    is_id = (raw.values >= 0) & (raw.values < limits)
    ids = tf.where(is_id, raw.values, tf.constant(OUTSIDE, tf.int64))
    return tf.where(raw.null, tf.constant(NULL_ID, tf.int64), ids)


def interval_ids(encoders: Sequence[BucketizedIds], raw: RawValues) -> tf.Tensor:
    """Return ids, int64."""
    numbers = raw.numbers
    parts = []
    for encoder, part in zip(encoders, split(numbers, len(encoders)), strict=True):
        bounds = tf.constant([encoder.boundaries], tf.float64)
        found = tf.searchsorted(bounds, tf.reshape(part, [1, -1]), side="right", out_type=tf.int64)
        parts.append(tf.reshape(found, tf.shape(part)))
    ids = FIRST_VALUE_ID + joined(parts)
    return tf.where(tf.math.is_nan(numbers), tf.constant(NULL_ID, tf.int64), ids)


def timestamp_ids(encoders: Sequence[TimestampIds], raw: RawValues) -> tf.Tensor:
    """Return ids, int64, of encoders of the same part."""
    hours, part = raw.values // MICROSECONDS_PER_HOUR, encoders[0].part
    days = hours // 24
    if part == "hour":
        number = hours % 24
    elif part == "weekday":
        number = (days + 3) % 7  # the epoch was a Thursday
    else:
        number = _day_of_month(days) - 1
    return tf.where(raw.null, tf.constant(NULL_ID, tf.int64), FIRST_VALUE_ID + number)


def encoded_numbers(encoders: Sequence[Numerical], raw: RawValues, found: tf.Tensor | None) -> tf.Tensor:
    """Return transformed numbers, float32, of encoders with the same kinds of steps.

    Args:
        encoders: the encoders.
        raw: raw values.
        found: positions in the encoders' tables, UNSEEN for others; None for encoders without tables.
    """
    numbers = raw.numbers if found is None else _table_numbers(encoders, found)
    for steps in zip(*(encoder.steps for encoder in encoders), strict=True):
        numbers = _apply_step(steps, numbers)
    # float64 like the NumPy encoders; only the result is rounded to float32.
    return tf.cast(numbers, tf.float32)


def missing_indicators(encoders: Sequence[MissingIndicator], raw: RawValues) -> tf.Tensor:
    """Return 1 where null, else 0, float32."""
    return tf.cast(raw.null, tf.float32)


def split(values: tf.Tensor, number: int) -> list[tf.Tensor]:
    """Split values into their columns, [batch, 1] each; values of a single encoder stay whole."""
    return [values] if number == 1 else tf.split(values, number, axis=1)


def joined(columns: Sequence[tf.Tensor]) -> tf.Tensor:
    """Join what `split` splits."""
    return columns[0] if len(columns) == 1 else tf.concat(columns, axis=1)


def _settings(values: Sequence[float], dtype: tf.DType) -> tf.Tensor:
    """Return a setting of each encoder, broadcast over rows: a scalar if all are equal."""
    return tf.constant(values[0] if len(set(values)) == 1 else list(values), dtype)


def _rank_ids(ranks: np.ndarray, encoder: HashedRanks) -> np.ndarray:
    return numpy_buckets(hash_values(ranks), encoder.num_buckets)


def _table_numbers(encoders: Sequence[Numerical], found: tf.Tensor) -> tf.Tensor:
    parts = []
    for encoder, positions in zip(encoders, split(found, len(encoders)), strict=True):
        # Unseen values are looked up at the last position, which holds the default.
        numbers = [] if encoder.table is None else [*encoder.table.numbers, encoder.table.default]
        last = tf.constant(len(numbers) - 1, tf.int64)
        parts.append(tf.gather(tf.constant(numbers, tf.float64), tf.where(positions == UNSEEN, last, positions)))
    return joined(parts)


def _apply_step(steps: Sequence[Step], numbers: tf.Tensor) -> tf.Tensor:
    """Apply a step of one kind, with the settings of each encoder."""
    settings: list[list[Any]] = [list(values) for values in zip(*(step[1:] for step in steps), strict=True)]
    kind = steps[0][0]
    if kind == FILL:
        return tf.where(tf.math.is_nan(numbers), _settings(settings[0], tf.float64), numbers)
    if kind == LOG1P:
        return tf.math.log(numbers + 1)
    if kind == CLIP:
        low = _settings([-np.inf if value is None else value for value in settings[0]], tf.float64)
        high = _settings([np.inf if value is None else value for value in settings[1]], tf.float64)
        numbers = tf.where(numbers < low, low, numbers)  # NaN stays NaN
        return tf.where(numbers > high, high, numbers)
    start, other = (np.array(values, np.float64) for values in settings)
    width = other if kind == SCALE else other - start
    divisor = np.where(width > 0, width, 1.0)
    return (numbers - _settings(start.tolist(), tf.float64)) / _settings(divisor.tolist(), tf.float64)


def _day_of_month(days: tf.Tensor) -> tf.Tensor:
    """Return the day of the month, from 1, of days since the epoch in the Gregorian calendar.

    Years are counted from March, so that a leap day is the last day of a year, and months follow a linear formula.
    """
    day = (days + 719_468) % 146_097  # of a cycle of 400 years that begins on 1 March
    year = (day - day // 1460 + day // 36_524 - day // 146_096) // 365
    day_of_year = day - (365 * year + year // 4 - year // 100)
    month = (5 * day_of_year + 2) // 153
    return day_of_year - (153 * month + 2) // 5 + 1
