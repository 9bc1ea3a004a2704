"""Rows of a ranking request, of which all candidates share some columns: these are held and computed once."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf


class Parts(NamedTuple):
    """A matrix with a row for each candidate, in two parts: the columns that all rows share, and the others.

    Attributes:
        shared: the columns that are equal in all rows, [1, shared columns, ...] float32.
        own: the other columns, [candidates, own columns, ...] float32.
        shared_places: [shared columns] int64, where the shared columns are in the matrix.
        own_places: [own columns] int64, likewise.
    """

    shared: tf.Tensor
    own: tf.Tensor
    shared_places: np.ndarray
    own_places: np.ndarray

    @property
    def columns(self) -> int:
        """The number of columns of the matrix."""
        return len(self.shared_places) + len(self.own_places)

    def whole(self) -> tf.Tensor:
        """Return the matrix, [candidates, columns, ...] float32."""
        shared = tf.broadcast_to(self.shared, [tf.shape(self.own)[0], *self.shared.shape[1:]])
        order = np.argsort(np.concatenate([self.shared_places, self.own_places]))
        return tf.gather(tf.concat([shared, self.own], axis=1), order, axis=1)

    def times(self, factor: float) -> "Parts":
        """Return the product of all values and a factor."""
        return self._replace(shared=self.shared * factor, own=self.own * factor)


# Columns of a matrix: whether each candidate has its own, the values [1 or candidates, columns, ...], and their places.
Columns = tuple[bool, tf.Tensor, np.ndarray]


def parts_of(columns: Sequence[Columns], rows: tf.Tensor, tail: Sequence[int] = ()) -> Parts:
    """Assemble a matrix.

    Args:
        columns: the columns of the matrix, in any order.
        rows: number of candidates, a scalar int32.
        tail: shape of a value: a number, or an embedding [width].
    """
    tensors, places = [], []
    for is_own, count in ((False, 1), (True, rows)):
        side = [(values, place) for own, values, place in columns if own == is_own and len(place)]
        tensors.append(tf.concat([values for values, _ in side], axis=1) if side else tf.zeros([count, 0, *tail]))
        places.append(np.concatenate([np.zeros(0, np.int64), *(place for _, place in side)]))
    return Parts(*tensors, *places)


def whole(x: tf.Tensor | Parts) -> tf.Tensor:
    """Return a matrix as one tensor."""
    return x.whole() if isinstance(x, Parts) else x


def side_by_side(deep: Sequence[tf.Tensor | Parts], numerical: tf.Tensor | Parts) -> tf.Tensor | Parts:
    """Return all embeddings and numerical features, [batch, embedding width + numerical] float32.

    Args:
        deep: embeddings of each group of tables, [batch, features, width] float32.
        numerical: [batch, numerical] float32; in parts if the embeddings are.
    """
    in_parts = [matrix for matrix in (*deep, numerical) if isinstance(matrix, Parts)]
    if in_parts:
        return _parts_side_by_side(in_parts)
    flat = [tf.reshape(pooled, [-1, pooled.shape[1] * pooled.shape[2]]) for pooled in map(whole, deep)]
    return tf.concat([*flat, numerical], axis=1)


def _parts_side_by_side(matrices: Sequence[Parts]) -> Parts:
    blocks, start = list[Columns](), 0
    for matrix in matrices:
        width = matrix.own.shape[2] if matrix.own.shape.rank == 3 else 1
        for is_own, values, places in (
            (False, matrix.shared, matrix.shared_places),
            (True, matrix.own, matrix.own_places),
        ):
            columns = start + (places[:, np.newaxis] * width + np.arange(width)).reshape(-1)
            blocks.append((is_own, tf.reshape(values, [-1, len(columns)]) if len(columns) else values, columns))
        start += matrix.columns * width
    return parts_of(blocks, tf.shape(matrices[0].own)[0])
