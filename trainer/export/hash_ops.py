"""The hash functions of `data.encoding.hashing` in TensorFlow operations, with bitwise identical results."""

import numpy as np
import tensorflow as tf
from tensorflow.bitwise import bitwise_xor, right_shift

from data.encoding import hashing


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
