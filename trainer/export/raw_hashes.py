"""The hash of `data.encoding.hashing` in TensorFlow operations."""

import numpy as np
import tensorflow as tf
from tensorflow.bitwise import bitwise_xor, right_shift

from data.encoding import hashing

# Bytes of every text that one pass of the loop hashes: fewer passes, whose overhead dominates for a few texts.
UNROLLED = 8


def hash_integers(values: tf.Tensor) -> tf.Tensor:
    """Hash integers, int64 to uint64 of the same shape."""
    return mix(tf.bitcast(values, tf.uint64))


def hash_texts(texts: tf.Tensor) -> tf.Tensor:
    """Hash byte strings, [n] string to [n] uint64."""
    lengths = tf.strings.length(texts)
    longest = tf.reduce_max(tf.concat([lengths, [1]], axis=0))  # at least 1: decode_raw needs a positive length
    passes = -(-longest // UNROLLED)
    # [passes, UNROLLED, n]: byte i of all strings in row i, zero-padded.
    matrix = tf.io.decode_raw(texts, tf.uint8, fixed_length=passes * UNROLLED)
    columns = tf.reshape(tf.transpose(tf.cast(matrix, tf.uint64)), [passes, UNROLLED, -1])

    def step(number: tf.Tensor, hashes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        for place, column in enumerate(tf.unstack(columns[number], UNROLLED)):
            longer = bitwise_xor(hashes, column) * word(hashing.FNV_FACTOR)
            hashes = tf.where(number * UNROLLED + place < lengths, longer, hashes)  # skips the zero padding
        return number + 1, hashes

    start = tf.fill(tf.shape(lengths), word(hashing.FNV_START))
    shapes = (tf.TensorShape([]), tf.TensorShape([None]))
    _, hashes = tf.while_loop(lambda number, _: number < passes, step, (tf.constant(0), start), shape_invariants=shapes)
    return mix(hashes)


def buckets(hashes: tf.Tensor, num_buckets: int | tf.Tensor) -> tf.Tensor:
    """Map hashes, uint64, to buckets, int64 in [0, num_buckets) of the same shape."""
    return tf.cast(hashes % tf.cast(num_buckets, tf.uint64), tf.int64)


def mix(words: tf.Tensor) -> tf.Tensor:
    """Apply the SplitMix64 finalizer to uint64 of any shape."""
    words = words + word(hashing.STEP)
    words = bitwise_xor(words, right_shift(words, word(30))) * word(hashing.FIRST_FACTOR)
    words = bitwise_xor(words, right_shift(words, word(27))) * word(hashing.SECOND_FACTOR)
    return bitwise_xor(words, right_shift(words, word(31)))


def word(value: int | np.uint64) -> tf.Tensor:
    """Return a constant uint64."""
    return tf.constant(value, tf.uint64)
