"""How the gradients of embedding tables are summed over the workers, and the sums of sparse ones."""

from collections.abc import Mapping
from typing import Literal

import tensorflow as tf

from trainer.comm import Comm
from trainer.embeddings.costs import Exchange, cheaper_exchange, traffic_of
from trainer.embeddings.shards import Routes
from trainer.embeddings.table_state import scatter
from trainer.embeddings.tables import EmbeddingTables


def plan_exchange(
    embeddings: EmbeddingTables, global_batch_size: int, workers: int, choice: Literal["auto", "whole", "rows"]
) -> dict[str, Exchange]:
    """Plan how a step over `global_batch_size` rows sums the gradients of each group of tables.

    Args:
        embeddings: the tables; sharded ones are always exchanged as shards, and others in host memory as rows.
        global_batch_size: rows per step over all workers.
        workers: number of workers.
        choice: whole or rows for all tables, or auto for the cheaper one per group.

    Returns:
        Path of a group's variable -> how its gradient is summed.
    """
    plan: dict[str, Exchange] = {}
    for index, variable in embeddings.group_variables:
        group = embeddings.groups[index]
        if embeddings.is_sharded(group):
            plan[variable.path] = "shards"
        elif embeddings.is_on_host(group):  # a gradient of all rows would not fit on the device either
            plan[variable.path] = "rows"
        elif choice == "auto":
            tables = traffic_of(group.tables, global_batch_size)
            plan[variable.path] = cheaper_exchange(tables, variable.shape[1], workers=workers)
        else:
            plan[variable.path] = choice
    return plan


class SparseExchange:
    """Sums the sparse gradients of tables over the workers.

    Args:
        embeddings: the tables.
        plan: path of a group's variable -> how its gradient is summed.
        comm: collectives over the workers.
    """

    def __init__(self, embeddings: EmbeddingTables, plan: Mapping[str, Exchange], comm: Comm):
        self._plan, self._shards, self._comm = plan, embeddings.shards, comm
        self._groups = {variable.path: index for index, variable in embeddings.group_variables}
        rows = {
            index: variable.shape[0]
            for index, variable in embeddings.group_variables
            if comm.size > 1 and plan[variable.path] != "whole"
        }
        # A number per row, of which a step only uses those that it has written before. With them, a GPU finds distinct
        # rows without waiting for its own results; and they are small beside the tables. float64 holds them exactly: of
        # integers, TensorFlow would copy the whole variable to the host to scatter them there.
        self._numbers = {
            index: tf.Variable(tf.raw_ops.Empty(shape=[count], dtype=tf.float64, init=False), trainable=False)
            for index, count in rows.items()
        }

    def sum(self, gradients: Mapping[str, tf.IndexedSlices], routes: Routes) -> dict[str, tf.IndexedSlices]:
        """Sum gradients over the workers. A collective.

        Args:
            gradients: path of a group's variable -> gradient of the distinct rows that this worker has looked up.
            routes: where rows of sharded tables have come from.

        Returns:
            Path of the variable -> gradient of the distinct rows that this worker updates: all rows that any worker
            looked up or, for a sharded group, those that this worker holds, numbered within its shard.
        """
        if self._comm.size == 1:
            return dict(gradients)
        replicated = {path: own for path, own in gradients.items() if self._plan[path] == "rows"}
        sharded = [(path, own.values) for path, own in gradients.items() if self._plan[path] == "shards"]
        rows = {index: own for index, own in routes.rows.items() if index in self._groups.values()}  # trained ones
        values: dict[str, tf.Tensor] = {}
        # Groups of a kind share their collectives, so that the number of these does not depend on that of the tables.
        if replicated:
            # Workers look up different numbers of rows, so rows are gathered and summed here instead of all-reduced.
            own_rows = {self._groups[path]: own.indices for path, own in replicated.items()}
            rows |= zip(own_rows, self._comm.gather_tensors(list(own_rows.values())), strict=True)
            gathered = self._comm.gather_tensors([own.values for own in replicated.values()])
            values |= zip(replicated, gathered, strict=True)
        if sharded and self._shards is not None:
            delivered = self._shards.deliver([(self._groups[path], own) for path, own in sharded], routes)
            values |= zip((path for path, _ in sharded), delivered, strict=True)
        summed = self._sum_equal_rows(rows, values)
        return {path: summed[path] for path in gradients}

    def _sum_equal_rows(
        self, rows: Mapping[int, tf.Tensor], values: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.IndexedSlices]:
        """Sum the gradients of equal rows.

        Args:
            rows: number of a group -> rows [n] int64, of which several may be equal.
            values: path of a variable -> the gradients of the rows of its group, [n, width] float32.
        """
        places = {index: self._places(index, own) for index, own in rows.items()}
        # A GPU computes the numbers of distinct rows, for which the host waits once.
        totals = tf.unstack(tf.cast(tf.stack([total for _, total in places.values()]), tf.int32)) if places else []
        counts = dict(zip(places, totals, strict=True))
        distinct = {}
        for index, own in rows.items():
            numbers = self._numbers[index]
            scatter(numbers, places[index][0], tf.cast(own, tf.float64))
            distinct[index] = tf.cast(tf.gather(numbers, _entries(own[: counts[index]])), tf.int64)
        return {
            path: tf.IndexedSlices(tf.math.unsorted_segment_sum(own, places[index][0], counts[index]), distinct[index])
            for path, own in values.items()
            for index in [self._groups[path]]
        }

    def _places(self, index: int, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Assign numbers from 0 to the distinct ones among rows of a group.

        Returns:
            The number of each row, [n] int64, and how many numbers there are, scalar int64.
        """
        entries, numbers = _entries(rows), self._numbers[index]
        # The largest, not the last that is written, which on a GPU is any: rows are in the same order on all workers.
        scatter(numbers, rows, tf.zeros_like(rows, tf.float64))
        tf.raw_ops.ResourceScatterMax(resource=numbers.handle, indices=rows, updates=tf.cast(entries, tf.float64))
        last = tf.cast(tf.gather(numbers, rows), tf.int64)  # the last entry that has the same row
        is_last = tf.cast(last == entries, tf.int64)
        return tf.gather(tf.cumsum(is_last, exclusive=True), last), tf.reduce_sum(is_last)


def _entries(rows: tf.Tensor) -> tf.Tensor:
    """Return 0, 1, ... for each of rows [n] int64. A GPU would wait for the limits of a tf.range of int64."""
    return tf.cumsum(tf.ones_like(rows), exclusive=True)
