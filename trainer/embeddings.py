"""Embedding tables, read by row and never as a whole.

A step gathers the rows that a batch names, and everything behind (pooling, the model, the loss) is
differentiated with respect to these rows: no gradient has the size of a table.
"""

from typing import NamedTuple

import keras
import tensorflow as tf

from trainer.layout import InputLayout


class Rows(NamedTuple):
    """The table rows of a batch, float32.

    Attributes:
        deep: one [batch, hotness, width] tensor per categorical feature.
        wide: [batch, id columns, outputs], of the one table of the wide part; none without a wide part.
    """

    deep: tuple[tf.Tensor, ...]
    wide: tuple[tf.Tensor, ...]


class EmbeddingTables(keras.layers.Layer):
    """One deep table per categorical feature; and for a wide part, one in which all features stand one below the other.

    Deep tables start as Glorot normal of their own shape (or with a given deviation), the wide table at zero. Pads
    (ids below 0) read row 0 and are masked out of every sum, so that they never touch the result.

    Args:
        layout: the features.
        outputs: number of logits of the wide part; 0 for no wide part.
        combiner: how the deep part pools the ids of a multi-hot feature; the wide part always sums.
        seed: of the initial weights.
        init_std: deviation of the deep tables' normal start; None for Glorot's.
    """

    def __init__(self, layout: InputLayout, *, outputs: int, combiner: str, seed: int, init_std: float | None = None):
        super().__init__(name="embeddings", dtype="float32")
        self.layout, self.combiner = layout, combiner
        self.deep_tables = [
            self.add_weight(
                shape=(columns.cardinality, columns.width),
                initializer=_start(init_std, seed + index),
                name=f"deep.{columns.name}",
            )
            for index, columns in enumerate(layout.categorical)
        ]
        offsets, total = [], 0
        for columns in layout.categorical:
            offsets += [total] * columns.hotness
            total += columns.cardinality
        self.wide_offsets = tf.constant([offsets], tf.int32, shape=(1, layout.id_columns))
        # One row even without a categorical feature: an empty tensor cannot be summed over workers.
        self.wide_tables = (
            [self.add_weight(shape=(max(total, 1), outputs), initializer="zeros", name="wide")] if outputs else []
        )
        self.built = True

    def gather(self, ids: tf.Tensor) -> Rows:
        """The rows of every table that ids [batch, id columns] int32 name."""
        return Rows(
            deep=tuple(
                tf.gather(table.value, deep_ids)
                for table, deep_ids in zip(self.deep_tables, self.deep_ids(ids), strict=True)
            ),
            wide=tuple(tf.gather(table.value, self.wide_ids(ids)) for table in self.wide_tables),
        )

    def deep_ids(self, ids: tf.Tensor) -> list[tf.Tensor]:
        """Row numbers in each deep table, [batch, hotness] int32; pads become 0."""
        return [tf.maximum(ids[:, columns.start : columns.stop], 0) for columns in self.layout.categorical]

    def wide_ids(self, ids: tf.Tensor) -> tf.Tensor:
        """Row numbers in the wide table, [batch, id columns] int32."""
        return tf.maximum(ids, 0) + self.wide_offsets

    def pool_deep(self, rows: Rows, ids: tf.Tensor) -> list[tf.Tensor]:
        """One [batch, width] embedding per feature."""
        pooled = []
        for columns, feature_rows in zip(self.layout.categorical, rows.deep, strict=True):
            if not columns.multihot:
                pooled.append(feature_rows[:, 0, :])
                continue
            present = tf.cast(ids[:, columns.start : columns.stop] >= 0, feature_rows.dtype)
            total = tf.einsum("bhw,bh->bw", feature_rows, present)
            if self.combiner == "mean":
                total = tf.math.divide_no_nan(total, tf.reduce_sum(present, axis=1, keepdims=True))
            pooled.append(total)
        return pooled

    def pool_wide(self, rows: Rows, ids: tf.Tensor) -> tf.Tensor:
        """Sum of the wide weights of a row's ids, [batch, outputs]."""
        present = tf.cast(ids >= 0, tf.float32)
        return tf.einsum("bct,bc->bt", rows.wide[0], present)


def _start(init_std: float | None, seed: int) -> keras.Initializer:
    if init_std is None:
        return keras.initializers.GlorotNormal(seed=seed)
    return keras.initializers.RandomNormal(stddev=init_std, seed=seed)
