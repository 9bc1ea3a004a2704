"""Gradients of table rows: from one per looked-up id to one per row, over all workers."""

from dataclasses import dataclass

import tensorflow as tf

from trainer.distributed import Comm


@dataclass(frozen=True)
class TableUse:
    """How a step uses one table.

    Attributes:
        name: the table.
        part: whose optimizer updates it, wide or deep.
        rows: its number of rows.
        width: values per row.
        lookups: ids looked up per step, over all workers.
    """

    name: str
    part: str
    rows: int
    width: int
    lookups: int

    @property
    def dense(self) -> bool:
        """Whether a step sums the whole table's gradient, instead of collecting the touched rows.

        A ring all-reduce sends 2 * rows * width values per worker, collecting at most lookups * width: the
        table is summed whole where that is less. The rule does not depend on the number of workers, so that
        one and several workers compute the same.
        """
        return 2 * self.rows <= self.lookups


def sum_by_row(ids: tf.Tensor, gradients: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Adds up the gradients of equal ids.

    Args:
        ids: [n] int32.
        gradients: [n, width] float32.

    Returns:
        The distinct ids [rows] and their gradients [rows, width].
    """
    distinct, positions = tf.unique(ids)
    return distinct, tf.math.unsorted_segment_sum(gradients, positions, tf.size(distinct))


def sum_over_workers(touched: list[tuple[tf.Tensor, tf.Tensor]], comm: Comm) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """Adds up the touched rows of all workers, for several tables at once.

    Args:
        touched: for each table, ids [n] int32 (repeats allowed) and gradients [n, width] float32.
        comm: the workers.

    Returns:
        For each table its distinct ids and their gradients, the same on every worker.
    """
    own = [sum_by_row(ids, gradients) for ids, gradients in touched]
    if comm.size == 1 or not own:
        return own
    all_ids = comm.gather_tensors([ids for ids, _ in own])
    all_gradients = comm.gather_tensors([gradients for _, gradients in own])
    return [sum_by_row(ids, gradients) for ids, gradients in zip(all_ids, all_gradients, strict=True)]
