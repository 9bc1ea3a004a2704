"""Embedding tables, read by row and never as a whole.

A step gathers the rows that a batch names, and everything behind (pooling, the model, the loss) is
differentiated with respect to these rows: no gradient has the size of a table.
"""

import math
from typing import NamedTuple

import keras
import tensorflow as tf

from trainer.embeddings.shards import Shards
from trainer.layout import InputLayout

# Rows of a table that are drawn at once, so that a large table never stands in memory twice.
START_ROWS = 1 << 17


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

    Each deep table is a variable of its own: one variable for all tables of a width saves kernels where tables are many
    and batches small, and costs as much where batches are large (benchmarks/table_layout.py).

    Args:
        layout: the features.
        outputs: number of logits of the wide part; 0 for no wide part.
        combiner: how the deep part pools the ids of a multi-hot feature; the wide part always sums.
        seed: of the initial weights.
        init_std: deviation of the deep tables' normal start; None for Glorot's.
        shards: how large tables are dealt to workers; None where every worker has all rows.

    Attributes:
        deep_tables, wide_tables: this worker's rows of each table.
    """

    def __init__(
        self,
        layout: InputLayout,
        *,
        outputs: int,
        combiner: str,
        seed: int,
        init_std: float | None = None,
        shards: Shards | None = None,
    ):
        super().__init__(name="embeddings", dtype="float32")
        self.layout, self.combiner, self.shards = layout, combiner, shards
        self._rows: dict[str, int] = {}
        self.deep_tables = [
            self._table(f"deep.{columns.name}", columns.cardinality, columns.width) for columns in layout.categorical
        ]
        for index, (table, columns) in enumerate(zip(self.deep_tables, layout.categorical, strict=True)):
            self._start(table.value, columns.cardinality, init_std, seed + index)
        offsets, total = [], 0
        for columns in layout.categorical:
            offsets += [total] * columns.hotness
            total += columns.cardinality
        self.wide_offsets = tf.constant([offsets], tf.int32, shape=(1, layout.id_columns))
        # One row even without a categorical feature: an empty tensor cannot be summed over workers.
        self.wide_tables = [self._table("wide", max(total, 1), outputs)] if outputs else []
        self.built = True

    @property
    def tables(self) -> list[keras.Variable]:
        """The deep ones in feature order, then the wide one."""
        return [*self.deep_tables, *self.wide_tables]

    @property
    def whole_rows(self) -> dict[str, int]:
        """Path -> number of rows, over all workers, of every table."""
        return {table.path: rows for table, rows in zip(self.tables, self._rows.values(), strict=True)}

    @property
    def sharded(self) -> dict[str, int]:
        """Path -> number of rows, over all workers, of the tables of which this worker has only some."""
        return {path: rows for path, rows in self.whole_rows.items() if self.shards and self.shards.holds_part_of(rows)}

    def gather(self, ids: tf.Tensor) -> Rows:
        """The rows of every table that ids [batch, id columns] int32 name. A collective where tables are sharded."""
        wanted = self.row_numbers(ids)
        paths = [table.path for table in self.tables]
        values = {path: table.value for path, table in zip(paths, self.tables, strict=True)}
        asked = dict(zip(paths, wanted, strict=True))
        sharded = list(self.sharded)
        rows = {path: tf.gather(values[path], asked[path]) for path in paths if path not in sharded}
        if self.shards is not None:
            fetched = self.shards.fetch([values[path] for path in sharded], [asked[path] for path in sharded])
            rows |= dict(zip(sharded, fetched, strict=True))
        ordered = tuple(rows[path] for path in paths)
        return Rows(ordered[: len(self.deep_tables)], ordered[len(self.deep_tables) :])

    def row_numbers(self, ids: tf.Tensor) -> list[tf.Tensor]:
        """Which rows of each table a batch reads, [batch, columns] int32; pads become the feature's first row."""
        present = tf.maximum(ids, 0)
        deep = [present[:, columns.start : columns.stop] for columns in self.layout.categorical]
        return deep + [present + self.wide_offsets for _ in self.wide_tables]

    def pool_deep(self, rows: Rows, ids: tf.Tensor) -> list[tf.Tensor]:
        """One [batch, width] embedding per feature."""
        pooled = []
        for columns, feature_rows in zip(self.layout.categorical, rows.deep, strict=True):
            if not columns.multihot:
                pooled.append(tf.squeeze(feature_rows, axis=1))
                continue
            present = tf.cast(ids[:, columns.start : columns.stop, tf.newaxis] >= 0, feature_rows.dtype)
            total = tf.reduce_sum(feature_rows * present, axis=1)
            if self.combiner == "mean":
                total = tf.math.divide_no_nan(total, tf.reduce_sum(present, axis=1))
            pooled.append(total)
        return pooled

    def pool_wide(self, rows: Rows, ids: tf.Tensor) -> tf.Tensor:
        """Sum of the wide weights of a row's ids, [batch, outputs]."""
        present = tf.cast(ids[:, :, tf.newaxis] >= 0, tf.float32)
        return tf.reduce_sum(rows.wide[0] * present, axis=1)

    def _table(self, name: str, rows: int, width: int) -> keras.Variable:
        """This worker's rows of a table, zeros."""
        self._rows[name] = rows
        rank, workers = self._holders(rows)
        return self.add_weight(shape=(-((rank - rows) // workers), width), initializer="zeros", name=name)

    def _holders(self, rows: int) -> tuple[int, int]:
        """This worker's place among those that share the rows of a table, and how many these are."""
        if self.shards is None or not self.shards.holds_part_of(rows):
            return 0, 1
        return self.shards.rank, self.shards.workers

    def _start(self, table: tf.Variable, rows: int, deviation: float | None, seed: int) -> None:
        """Sets the initial values: those that this worker's rows have in a table held whole."""
        (rank, workers), width, filled = self._holders(rows), table.shape[1], 0
        for block, first in enumerate(range(0, rows, START_ROWS)):
            shape, block_seed = (min(START_ROWS, rows - first), width), seed + 1_000_003 * block
            if deviation is None:
                # Of a normal that is cut off at twice its deviation, 0.8796 of it are left.
                glorot = math.sqrt(2 / (rows + width)) / 0.87962566103423978
                drawn = keras.random.truncated_normal(shape, stddev=glorot, seed=block_seed)
            else:
                drawn = keras.random.normal(shape, stddev=deviation, seed=block_seed)
            own = drawn[(rank - first) % workers :: workers]
            table[filled : filled + own.shape[0]].assign(own)
            filled += own.shape[0]
