"""Embedding tables, of which a step reads single rows and never a whole table.

A step gathers the rows that a batch looks up and differentiates everything after that (pooling, the model, the
loss) with respect to these rows, so differentiation never creates a gradient of a table's size.
"""

from typing import NamedTuple

import keras
import tensorflow as tf

from trainer.embeddings.initialization import NormalTable, draw_tables
from trainer.embeddings.shards import Shards
from trainer.layout import InputSchema
from trainer.seeds import seed_of
from trainer.variables import initial_value


class EmbeddingRows(NamedTuple):
    """Table rows gathered for a batch, float32.

    Attributes:
        deep: one [batch, hotness, width] tensor per categorical feature.
        wide: one [batch, id columns, outputs] tensor from the wide table; empty without a wide part.
    """

    deep: tuple[tf.Tensor, ...]
    wide: tuple[tf.Tensor, ...]


class EmbeddingTables(keras.layers.Layer):
    """One deep table per categorical feature and, for a wide part, a single table of all features' rows, concatenated.

    Deep tables are initialized as Glorot normal for their own shape (or with a given deviation), the wide table with
    zeros. Padding (ids below 0) reads the feature's first row and is masked out of every sum, so it never affects the
    result.

    Each deep table is a variable of its own: merging tables of equal width saves kernel launches where tables are many
    and batches small, but gains nothing for large batches (benchmarks/table_layout.py).

    Args:
        layout: layout of the features.
        outputs: number of logits of the wide part; 0 for no wide part.
        combiner: how the deep part pools the ids of a multi-hot feature; the wide part always sums.
        seed: seed of the initial weights.
        init_std: standard deviation of the deep tables' normal initialization; None for Glorot's.
        shards: how large tables are sharded across workers; None if every worker holds all rows.
        restored: whether a checkpoint overwrites the tables, which then have no initial values.

    Attributes:
        deep_tables, wide_tables: this worker's rows of each table.
    """

    def __init__(
        self,
        layout: InputSchema,
        *,
        outputs: int,
        combiner: str,
        seed: int,
        init_std: float | None = None,
        shards: Shards | None = None,
        restored: bool = False,
    ):
        super().__init__(name="embeddings", dtype="float32")
        self.layout, self.combiner, self.shards = layout, combiner, shards
        self._rows: dict[str, int] = {}
        self.deep_tables = [
            self._table(f"deep.{columns.name}", columns.cardinality, columns.width, overwritten=True)
            for columns in layout.categorical
        ]
        if not restored:
            draw_tables(
                [
                    NormalTable(table.value, rows, init_std, seed_of(seed, columns.name), *self._holders(rows))
                    for table, rows, columns in zip(
                        self.deep_tables, self._rows.values(), layout.categorical, strict=True
                    )
                ]
            )
        offsets, total = [], 0
        for columns in layout.categorical:
            offsets += [total] * columns.hotness
            total += columns.cardinality
        # [1, id columns]: the first row of each column's feature in the wide table.
        self.wide_offsets = tf.constant([offsets], tf.int32, shape=(1, layout.id_columns))
        # At least one row, even without categorical features: an empty tensor cannot be summed over workers.
        self.wide_tables = [self._table("wide", max(total, 1), outputs, overwritten=restored)] if outputs else []
        self.built = True

    @property
    def tables(self) -> list[keras.Variable]:
        """All tables: the deep ones in feature order, then the wide one."""
        return [*self.deep_tables, *self.wide_tables]

    @property
    def whole_rows(self) -> dict[str, int]:
        """Variable path -> number of rows over all workers, for every table."""
        return {table.path: rows for table, rows in zip(self.tables, self._rows.values(), strict=True)}

    @property
    def sharded(self) -> dict[str, int]:
        """Variable path -> number of rows over all workers, for the tables of which this worker holds only a part."""
        return {path: rows for path, rows in self.whole_rows.items() if self.shards and self.shards.holds_part_of(rows)}

    def gather(self, ids: tf.Tensor) -> EmbeddingRows:
        """Looks up ids [batch, id columns] int32 in every table. A collective if tables are sharded."""
        tables = {table.path: table.value for table in self.tables}
        row_ids = dict(zip(tables, self.row_ids(ids), strict=True))
        sharded = list(self.sharded)
        rows = {path: tf.gather(tables[path], row_ids[path]) for path in tables if path not in sharded}
        if self.shards is not None:
            # One call for all sharded tables: the number of collectives does not depend on how many there are.
            fetched = self.shards.fetch([tables[path] for path in sharded], [row_ids[path] for path in sharded])
            rows |= dict(zip(sharded, fetched, strict=True))
        in_order = tuple(rows[path] for path in tables)
        return EmbeddingRows(in_order[: len(self.deep_tables)], in_order[len(self.deep_tables) :])

    def row_ids(self, ids: tf.Tensor) -> list[tf.Tensor]:
        """Returns the rows to read of each table, [batch, columns] int32; padding reads the feature's first row."""
        present = tf.maximum(ids, 0)  # [batch, id columns]
        deep = [present[:, columns.start : columns.stop] for columns in self.layout.categorical]
        return deep + [present + self.wide_offsets for _ in self.wide_tables]

    def pool_deep(self, rows: EmbeddingRows, ids: tf.Tensor) -> list[tf.Tensor]:
        """Pools the deep rows into one [batch, width] embedding per feature."""
        pooled = []
        for columns, feature_rows in zip(self.layout.categorical, rows.deep, strict=True):
            if not columns.multihot:
                pooled.append(tf.squeeze(feature_rows, axis=1))
                continue
            # [batch, hotness, 1], 0 for padding. A row without any id pools to zeros.
            present = tf.cast(ids[:, columns.start : columns.stop, tf.newaxis] >= 0, feature_rows.dtype)
            total = tf.reduce_sum(feature_rows * present, axis=1)
            if self.combiner == "mean":
                total = tf.math.divide_no_nan(total, tf.reduce_sum(present, axis=1))
            pooled.append(total)
        return pooled

    def pool_wide(self, rows: EmbeddingRows, ids: tf.Tensor) -> tf.Tensor:
        """Sums the wide weights of each row's ids, [batch, outputs]."""
        present = tf.cast(ids[:, :, tf.newaxis] >= 0, tf.float32)  # [batch, id columns, 1]
        return tf.reduce_sum(rows.wide[0] * present, axis=1)

    def _table(self, name: str, rows: int, width: int, *, overwritten: bool) -> keras.Variable:
        """Creates this worker's rows of a table: zeros, or without values if these are overwritten."""
        self._rows[name] = rows
        rank, workers = self._holders(rows)
        # ceil((rows - rank) / workers) rows: those with number % workers == rank.
        shape = (-((rank - rows) // workers), width)

        def initializer(shape: tuple[int, ...], dtype: str) -> tf.Tensor:
            return initial_value(shape, 0.0, overwritten=overwritten)

        return self.add_weight(shape=shape, initializer=initializer, name=name)

    def _holders(self, rows: int) -> tuple[int, int]:
        """Returns this worker's position among the workers that share the table's rows, and their number."""
        if self.shards is None or not self.shards.holds_part_of(rows):
            return 0, 1
        return self.shards.rank, self.shards.workers
