"""Gradients of table rows: from one per looked-up id to one per row, over all workers."""

from collections.abc import Sequence

import tensorflow as tf

from trainer.distributed import Comm
from trainer.embeddings.plan import TableUse
from trainer.embeddings.shards import Shards

Touched = list[tuple[tf.Tensor, tf.Tensor]]


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


def sum_touched(uses: Sequence[TableUse], touched: Touched, comm: Comm, shards: Shards | None) -> Touched:
    """Adds up the touched rows of all workers, those of all tables at once. A collective.

    Args:
        uses: of all tables.
        touched: for each table that is not summed whole, row numbers [n] int32, each once, and gradients [n, width].
        comm: the workers.
        shards: where tables are sharded.

    Returns:
        The same for the rows that this worker updates: all of them, or those of a sharded table that it holds, by their
        numbers there.
    """
    kinds = [use.exchange for use in uses if use.exchange != "whole"]
    of_kind = {kind: [rows for own, rows in zip(kinds, touched, strict=True) if own == kind] for kind in set(kinds)}
    summed = {"rows": iter(_gathered(of_kind.get("rows", []), comm))}
    if shards is not None:
        delivered = shards.deliver(of_kind.get("shards", []))
        summed["shards"] = iter([sum_by_row(ids, gradients) for ids, gradients in delivered])
    return [next(summed[kind]) for kind in kinds]


def _gathered(touched: Touched, comm: Comm) -> Touched:
    """The sums of all workers' rows, on every worker."""
    if comm.size == 1 or not touched:
        return touched
    all_ids = comm.gather_tensors([ids for ids, _ in touched])
    all_gradients = comm.gather_tensors([gradients for _, gradients in touched])
    return [sum_by_row(ids, gradients) for ids, gradients in zip(all_ids, all_gradients, strict=True)]
