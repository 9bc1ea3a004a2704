"""Sharding of tables too large for one device: each worker holds some rows and fetches the others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import tensorflow as tf

from trainer.embeddings import SMALLEST_SHARDED

# (values [n], number of values for each worker) -> values received. Both in rank order. A collective.
ExchangeValues = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class Routes(NamedTuple):
    """The rows of sharded groups that travel between the workers in a step: all three are empty without such groups.

    Keys are numbers of groups.

    Attributes:
        fetched: [workers] int32, how many rows this worker looks up in the shard of each worker.
        answered: [workers] int32, how many rows each worker looks up in this worker's shard.
        rows: [n] int64, the rows that `answered` counts, in rank order and numbered within this worker's shard.
    """

    fetched: Mapping[int, tf.Tensor]
    answered: Mapping[int, tf.Tensor]
    rows: Mapping[int, tf.Tensor]


@dataclass(frozen=True)
class Shards:
    """Sharding of large tables: row r of a group of tables is row r // workers on worker r % workers.

    Adjacent rows lie on different workers, which balances memory, and also work if ids are assigned by descending
    frequency. All groups are exchanged together: the routes take two collectives, the rows one and the gradients one,
    whatever the number of tables. How many values travel is known on the host, which therefore never waits for a GPU.

    Attributes:
        rank: rank of this worker.
        workers: number of workers.
        exchange: collective that sends values to workers.
        smallest: number of rows below which every worker holds the whole table.
    """

    rank: int
    workers: int
    exchange: ExchangeValues
    smallest: int = SMALLEST_SHARDED

    def holds_part_of(self, rows: int) -> bool:
        """Return whether a table with this number of rows is sharded."""
        return self.workers > 1 and rows >= self.smallest

    def routes(self, rows: Mapping[int, tf.Tensor], per_holder: Mapping[int, tf.Tensor]) -> Routes:
        """Tell the workers which of their rows this one looks up. A collective.

        Args:
            rows: number of a group -> the distinct rows that this worker looks up, sorted by holder, [n] int64.
            per_holder: number of a group -> how many of them each worker holds, [workers] int32.
        """
        if not rows:
            return Routes({}, {}, {})
        answered = self._swap_counts(per_holder)
        # int32 is half the bytes; as float32, because TensorFlow keeps int32 in host memory.
        numbers = [tf.bitcast(tf.cast(own // self.workers, tf.int32), tf.float32) for own in rows.values()]
        columns = [(index, own[:, tf.newaxis]) for index, own in zip(rows, numbers, strict=True)]
        received = self._swap(columns, per_holder, answered)
        own_rows = [tf.cast(tf.bitcast(tf.reshape(column, [-1]), tf.int32), tf.int64) for column in received]
        return Routes(per_holder, answered, dict(zip(rows, own_rows, strict=True)))

    def fetch(self, answers: Sequence[tuple[int, tf.Tensor]], routes: Routes) -> list[tf.Tensor]:
        """Fetch rows from the workers that hold them. A collective.

        Args:
            answers: the rows of `routes.rows` of this worker's tables, [n, width] float32, each with the number of its
                group.
            routes: the rows to fetch.

        Returns:
            The rows of each table, [n, width] float32, in the order in which `routes` was given them.
        """
        return self._swap(answers, routes.answered, routes.fetched)

    def deliver(self, gradients: Sequence[tuple[int, tf.Tensor]], routes: Routes) -> list[tf.Tensor]:
        """Send gradients to the workers that hold their rows. A collective.

        Args:
            gradients: gradients of the rows that this worker has fetched, [n, width] float32, each with the number of
                its group.
            routes: the routes of the fetched rows.

        Returns:
            For each gradient, the gradients of `routes.rows` of its group, [n, width]. A row that several workers have
            fetched occurs several times.
        """
        return self._swap(gradients, routes.fetched, routes.answered)

    def _swap_counts(self, counts: Mapping[int, tf.Tensor]) -> dict[int, tf.Tensor]:
        """Exchange a number per group and worker; return those received per group, [workers] int32."""
        with tf.device("/CPU:0"):  # sizes of tensors have to be known on the host
            by_worker = tf.stack(list(counts.values()), axis=1)  # [workers, groups]
            received = self.exchange(tf.reshape(by_worker, [-1]), tf.constant([len(counts)] * self.workers))
            received.set_shape([self.workers * len(counts)])
            by_group = tf.unstack(tf.reshape(received, [self.workers, len(counts)]), axis=1)
        return dict(zip(counts, by_group, strict=True))

    def _swap(
        self,
        tensors: Sequence[tuple[int, tf.Tensor]],
        sent: Mapping[int, tf.Tensor],
        received: Mapping[int, tf.Tensor],
    ) -> list[tf.Tensor]:
        """Exchange the rows of several tensors in a single collective.

        Args:
            tensors: [rows, width] float32, each with the number of its group; the rows for worker 0 first.
            sent, received: number of a group -> rows per receiver and per sender, [workers] int32.

        Returns:
            The received rows of each tensor in rank order, [rows, width].
        """
        if not tensors:
            return []
        widths = [tensor.shape[1] for _, tensor in tensors]
        sizes = [sent[index] * width for (index, _), width in zip(tensors, widths, strict=True)]
        pieces = [
            tf.split(tf.reshape(tensor, [-1]), own, num=self.workers)
            for (_, tensor), own in zip(tensors, sizes, strict=True)
        ]
        # Flat values, by receiver and within it by tensor. Received values are ordered by sender in the same way.
        outgoing = tf.concat([own[worker] for worker in range(self.workers) for own in pieces], axis=0)
        incoming = self.exchange(outgoing, tf.add_n(sizes))
        sizes = [received[index] * width for (index, _), width in zip(tensors, widths, strict=True)]
        parts = tf.split(incoming, tf.reshape(tf.stack(sizes, axis=1), [-1]), num=self.workers * len(tensors))
        # Every len(tensors)-th part belongs to the same tensor.
        return [
            tf.reshape(tf.concat(parts[index :: len(tensors)], axis=0), [-1, width])
            for index, width in enumerate(widths)
        ]
