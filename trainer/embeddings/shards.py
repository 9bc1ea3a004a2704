"""Tables too large for one device: each worker holds some rows, and workers ask each other for the others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import tensorflow as tf

from trainer.model_size import SMALLEST_SHARDED

# Values of rank 1 and how many of them go to each worker, in rank order -> what came, in rank order. A collective.
ExchangeValues = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class _Request(NamedTuple):
    """Row numbers of a table, those of worker 0 first.

    Attributes:
        ids: [rows] int32, each once.
        counts: [workers] int32, how many of them each worker holds.
        order: [rows] int32, where each stood before.
    """

    ids: tf.Tensor
    counts: tf.Tensor
    order: tf.Tensor


@dataclass(frozen=True)
class Shards:
    """How large tables are dealt to the workers: row r is row r // workers of worker r % workers.

    Neighbouring rows lie on different workers. Ids are laid out by falling frequency, so that memory and work are both
    balanced. All tables travel together: a lookup is three collectives, a delivery of gradients another three, however
    many tables there are.

    Attributes:
        rank: this worker.
        workers: how many there are.
        exchange: sends values to workers.
        smallest: tables of fewer rows are held whole by every worker.
    """

    rank: int
    workers: int
    exchange: ExchangeValues
    smallest: int = SMALLEST_SHARDED

    def holds_part_of(self, rows: int) -> bool:
        """Whether a table of so many rows is dealt to the workers."""
        return self.workers > 1 and rows >= self.smallest

    def fetch(self, tables: list[tf.Tensor], ids: list[tf.Tensor]) -> list[tf.Tensor]:
        """The rows of all workers' tables. A collective.

        Args:
            tables: this worker's rows of each table, [own rows, width].
            ids: rows of the whole table that are wanted, int32 of any shape; each is asked for once.

        Returns:
            For each table a tensor [*shape of ids, width].
        """
        if not tables:
            return []
        distinct = [tf.unique(tf.reshape(wanted, [-1])) for wanted in ids]
        requests = [self._request(values) for values, _ in distinct]
        asked, asked_counts = self._send_ids(requests)
        answers = [tf.gather(table, rows) for table, rows in zip(tables, asked, strict=True)]
        came = self._swap(answers, asked_counts, tf.stack([request.counts for request in requests]))
        rows = []
        for wanted, (_, positions), request, found in zip(ids, distinct, requests, came, strict=True):
            where = tf.gather(tf.math.invert_permutation(request.order), positions)
            shape = tf.concat([tf.shape(wanted), tf.shape(found)[1:]], axis=0)
            rows.append(tf.reshape(tf.gather(found, where), shape))
        return rows

    def deliver(self, touched: list[tuple[tf.Tensor, tf.Tensor]]) -> list[tuple[tf.Tensor, tf.Tensor]]:
        """Brings gradients to the workers that hold their rows. A collective.

        Args:
            touched: for each table, rows of the whole table [n] int32, each once, and gradients [n, width].

        Returns:
            For each table, rows of this worker's part and gradients, from all workers: rows may come several times.
        """
        if not touched:
            return []
        requests = [self._request(ids) for ids, _ in touched]
        own, own_counts = self._send_ids(requests)
        ordered = [tf.gather(rows, request.order) for (_, rows), request in zip(touched, requests, strict=True)]
        came = self._swap(ordered, tf.stack([request.counts for request in requests]), own_counts)
        return list(zip(own, came, strict=True))

    def _request(self, ids: tf.Tensor) -> _Request:
        holders = ids % self.workers
        order = tf.argsort(holders, stable=True)
        counts = tf.math.bincount(holders, minlength=self.workers, maxlength=self.workers)
        return _Request(tf.gather(ids, order), counts, order)

    def _send_ids(self, requests: list[_Request]) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Each worker's requests of this worker, as rows of its own; and how many came, [tables, workers]."""
        counts = tf.stack([request.counts for request in requests])
        each = tf.fill([self.workers], len(requests))
        came = tf.transpose(tf.reshape(self.exchange(tf.reshape(tf.transpose(counts), [-1]), each), [self.workers, -1]))
        numbers = self._swap([request.ids[:, tf.newaxis] // self.workers for request in requests], counts, came)
        return [tf.reshape(rows, [-1]) for rows in numbers], came

    def _swap(self, tensors: list[tf.Tensor], sent: tf.Tensor, received: tf.Tensor) -> list[tf.Tensor]:
        """Sends the rows of several tensors at once.

        Args:
            tensors: [rows, width] each, of one dtype; the rows for worker 0 first.
            sent, received: [tensors, workers] int32, rows per receiver and per sender.

        Returns:
            What came for each tensor, in rank order, [rows, width].
        """
        widths = [tensor.shape[1] for tensor in tensors]
        column = tf.constant(widths, tf.int32)[:, tf.newaxis]
        sent_values, received_values = sent * column, received * column
        pieces = [
            tf.split(tf.reshape(tensor, [-1]), sent_values[index], num=self.workers)
            for index, tensor in enumerate(tensors)
        ]
        outgoing = tf.concat([own[worker] for worker in range(self.workers) for own in pieces], axis=0)
        incoming = self.exchange(outgoing, tf.reduce_sum(sent_values, axis=0))
        sizes = tf.reshape(tf.transpose(received_values), [-1])
        parts = tf.split(incoming, sizes, num=self.workers * len(tensors))
        return [
            tf.reshape(tf.concat(parts[index :: len(tensors)], axis=0), [-1, width])
            for index, width in enumerate(widths)
        ]
