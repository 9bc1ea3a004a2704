"""Sharding of tables too large for one device: each worker holds some rows and fetches the others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import tensorflow as tf

from trainer.embeddings import SMALLEST_SHARDED

# (values [n], number of values for each worker) -> values received. Both in rank order. A collective.
ExchangeValues = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class _Request(NamedTuple):
    """Rows of a group of tables, sorted by the worker that holds them.

    Attributes:
        ids: [rows] int64, distinct row numbers.
        counts: [workers] int32, number of rows that each worker holds.
        order: [rows] int32, position of each row before sorting.
    """

    ids: tf.Tensor
    counts: tf.Tensor
    order: tf.Tensor


@dataclass(frozen=True)
class Shards:
    """Sharding of large tables: row r of a group of tables is row r // workers on worker r % workers.

    Adjacent rows lie on different workers, which balances memory, and also work if ids are assigned by descending
    frequency. All groups are exchanged together: a lookup takes three collectives and a delivery of gradients another
    three, whatever the number of tables.

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
        """Returns whether a table with this number of rows is sharded."""
        return self.workers > 1 and rows >= self.smallest

    def fetch(self, tables: Sequence[tf.Tensor], ids: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Fetches rows from the workers that hold them. A collective.

        Args:
            tables: this worker's rows of each group, [own rows, width].
            ids: the distinct rows of each group to fetch, [n] int64.

        Returns:
            The rows of each group, [n, width].
        """
        if not tables:
            return []
        requests = [self._request(requested) for requested in ids]
        incoming, incoming_counts = self._send_ids(requests)
        # Rows of this worker that others have requested, in rank order of the requesting workers.
        answers = [tf.gather(table, rows) for table, rows in zip(tables, incoming, strict=True)]
        received = self._swap(answers, incoming_counts, tf.stack([request.counts for request in requests]))
        # From sorted by holder back to the order of the request.
        return [
            tf.gather(rows, tf.math.invert_permutation(request.order))
            for rows, request in zip(received, requests, strict=True)
        ]

    def deliver(self, gradients: Sequence[tf.IndexedSlices]) -> list[tuple[tf.Tensor, tf.Tensor]]:
        """Sends gradients to the workers that hold their rows. A collective.

        Args:
            gradients: for each group, the sparse gradient of distinct rows.

        Returns:
            For each group, rows of this worker's shard [n] and their gradients from all workers [n, width]. A row that
            several workers have looked up occurs several times.
        """
        if not gradients:
            return []
        requests = [self._request(gradient.indices) for gradient in gradients]
        own, own_counts = self._send_ids(requests)
        ordered = [
            tf.gather(gradient.values, request.order) for gradient, request in zip(gradients, requests, strict=True)
        ]
        received = self._swap(ordered, tf.stack([request.counts for request in requests]), own_counts)
        return list(zip(own, received, strict=True))

    def _request(self, ids: tf.Tensor) -> _Request:
        holders = ids % self.workers
        order = tf.argsort(holders, stable=True)
        counts = tf.math.bincount(tf.cast(holders, tf.int32), minlength=self.workers, maxlength=self.workers)
        return _Request(tf.gather(ids, order), counts, order)

    def _send_ids(self, requests: list[_Request]) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Sends requests; returns this worker's rows that others request, and their numbers [tables, workers]."""
        counts = tf.stack([request.counts for request in requests])  # [tables, workers]
        # Sizes have to be known before the rows: every worker sends each other one a count per table.
        sizes = tf.fill([self.workers], len(requests))
        incoming = self.exchange(tf.reshape(tf.transpose(counts), [-1]), sizes)
        incoming_counts = tf.transpose(tf.reshape(incoming, [self.workers, -1]))
        # Numbers in the whole group become those in the shard; _swap takes matrices, hence [rows, 1].
        # They are sent as int32, half the bytes.
        ids = [tf.cast(request.ids[:, tf.newaxis] // self.workers, tf.int32) for request in requests]
        received = self._swap(ids, counts, incoming_counts)
        return [tf.cast(tf.reshape(rows, [-1]), tf.int64) for rows in received], incoming_counts

    def _swap(self, tensors: list[tf.Tensor], sent: tf.Tensor, received: tf.Tensor) -> list[tf.Tensor]:
        """Exchanges the rows of several tensors in a single collective.

        Args:
            tensors: [rows, width] each, of one dtype; the rows for worker 0 first.
            sent, received: [tensors, workers] int32, rows per receiver and per sender.

        Returns:
            The received rows of each tensor in rank order, [rows, width].
        """
        widths = [tensor.shape[1] for tensor in tensors]
        column = tf.constant(widths, tf.int32)[:, tf.newaxis]
        sent_values, received_values = sent * column, received * column
        pieces = [
            tf.split(tf.reshape(tensor, [-1]), sent_values[index], num=self.workers)
            for index, tensor in enumerate(tensors)
        ]
        # Flat values, by receiver and within it by tensor. Received values are ordered by sender in the same way.
        outgoing = tf.concat([own[worker] for worker in range(self.workers) for own in pieces], axis=0)
        incoming = self.exchange(outgoing, tf.reduce_sum(sent_values, axis=0))
        sizes = tf.reshape(tf.transpose(received_values), [-1])
        parts = tf.split(incoming, sizes, num=self.workers * len(tensors))
        # Every len(tensors)-th part belongs to the same tensor.
        return [
            tf.reshape(tf.concat(parts[index :: len(tensors)], axis=0), [-1, width])
            for index, width in enumerate(widths)
        ]
