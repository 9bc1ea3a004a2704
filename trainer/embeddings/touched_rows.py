"""Sparse gradients of tables: from one per looked-up ID to one per row, summed over all workers."""

from collections.abc import Sequence

import tensorflow as tf

from trainer.distributed import Comm
from trainer.embeddings.plan import TableUse
from trainer.embeddings.shards import Shards

Touched = list[tuple[tf.Tensor, tf.Tensor]]


def sum_by_row(ids: tf.Tensor, gradients: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Sums the gradients of equal IDs.

    Args:
        ids: [n] int32.
        gradients: [n, width] float32.

    Returns:
        The distinct IDs [rows] and their gradients [rows, width].
    """
    distinct, positions = tf.unique(ids)
    return distinct, tf.math.unsorted_segment_sum(gradients, positions, tf.size(distinct))


def sum_touched(uses: Sequence[TableUse], touched: Touched, comm: Comm, shards: Shards | None) -> Touched:
    """Sums the touched rows of all tables over the workers. A collective.

    Args:
        uses: how the step uses each table.
        touched: for each table that is not summed whole, distinct row numbers [n] int32 and gradients [n, width].
        comm: communication with the other workers.
        shards: how tables are sharded; None if they are not.

    Returns:
        The same for the rows that this worker updates: all touched rows of a table, or for a sharded one those that it
        holds, numbered within its shard.
    """
    kinds = [use.exchange for use in uses if use.exchange != "whole"]
    # Tables of one kind share their collectives; the iterators below restore the order of `touched`.
    of_kind = {kind: [rows for own, rows in zip(kinds, touched, strict=True) if own == kind] for kind in set(kinds)}
    summed = {"rows": iter(_gathered(of_kind.get("rows", []), comm))}
    if shards is not None:
        delivered = shards.deliver(of_kind.get("shards", []))
        summed["shards"] = iter([sum_by_row(ids, gradients) for ids, gradients in delivered])
    return [next(summed[kind]) for kind in kinds]


def _gathered(touched: Touched, comm: Comm) -> Touched:
    """Returns the sums of all workers' rows, on every worker."""
    if comm.size == 1 or not touched:
        return touched
    # Workers touch different numbers of rows, so rows are gathered and summed here instead of all-reduced.
    all_ids = comm.gather_tensors([ids for ids, _ in touched])
    all_gradients = comm.gather_tensors([gradients for _, gradients in touched])
    return [sum_by_row(ids, gradients) for ids, gradients in zip(all_ids, all_gradients, strict=True)]
