"""How the gradients of embedding tables are summed over the workers, and the sums of sparse ones."""

import math
from collections.abc import Mapping
from typing import Literal

import tensorflow as tf

from trainer.comm import Comm
from trainer.embeddings.tables import EmbeddingTables

# How the gradient of a table is summed.
# whole: a dense gradient of all rows, on every worker.
# rows: a sparse gradient of the rows that a batch looks up, on every worker.
# shards: the same, but each worker gets the rows of its shard.
Exchange = Literal["whole", "rows", "shards"]

# Cost of a byte sent over the network, relative to one read from or written to memory.
NETWORK = 10
# Memory passes over the values of a whole table: gradient, weight and slot are each read and written.
PASSES_WHOLE = 6
# The same for single rows, plus one pass for finding them and for their scattered memory access.
PASSES_ROWS = 7


def plan_exchange(
    embeddings: EmbeddingTables, global_batch_size: int, workers: int, choice: Literal["auto", "whole", "rows"]
) -> dict[str, Exchange]:
    """Plans how a step over `global_batch_size` rows sums the gradient of each table.

    Args:
        embeddings: the tables; sharded ones are always exchanged as shards.
        global_batch_size: rows per step over all workers.
        workers: number of workers.
        choice: whole or rows for all tables, or auto for the cheaper one per table.

    Returns:
        Path of a table's variable -> how its gradient is summed.
    """
    # The number of ids per row of the batch that each table looks up.
    ids = [feature.hotness for feature in embeddings.layout.categorical]
    ids += [embeddings.layout.id_columns for _ in embeddings.wide_tables]
    plan: dict[str, Exchange] = {}
    for table, ids_per_row in zip(embeddings.tables, ids, strict=True):
        rows, width = embeddings.whole_rows[table.path], table.shape[1]
        if table.path in embeddings.sharded:
            plan[table.path] = "shards"
        elif choice == "auto":
            plan[table.path] = cheaper_exchange(rows, width, lookups=global_batch_size * ids_per_row, workers=workers)
        else:
            plan[table.path] = choice
    return plan


def cheaper_exchange(rows: int, width: int, *, lookups: int, workers: int) -> Exchange:
    """Returns the cheaper of summing a table's whole gradient and gathering the rows that the workers look up.

    Both give the same sums up to rounding; see `Optimizer` for the updates.

    Args:
        rows, width: shape of the table.
        lookups: ids looked up per step, over all workers.
        workers: number of workers; with a single one, only memory traffic counts.
    """
    cost_whole = PASSES_WHOLE * 4 * rows * width + NETWORK * bytes_whole(rows, width, workers)
    gathered = workers * expected_distinct(rows, lookups / workers)
    # Rows gathered from several workers are summed once more: read and written.
    passes = PASSES_ROWS * expected_distinct(rows, lookups) + (2 * gathered if workers > 1 else 0)
    cost_rows = 4 * width * passes + NETWORK * bytes_rows(rows, width, lookups, workers)
    return "whole" if cost_whole <= cost_rows else "rows"


def expected_distinct(rows: int, lookups: float) -> float:
    """Returns the expected number of distinct rows, of `rows`, hit by `lookups` uniform draws."""
    # expm1 keeps precision where lookups are few compared with rows.
    return rows * -math.expm1(-lookups / rows)


def bytes_whole(rows: int, width: int, workers: int) -> float:
    """Returns the bytes that a worker sends in a ring all-reduce of the whole gradient."""
    return 2 * (workers - 1) / workers * 4 * rows * width


def bytes_rows(rows: int, width: int, lookups: float, workers: int) -> float:
    """Returns the bytes that a worker sends in a ring all-gather of the rows that were looked up and their ids."""
    return (workers - 1) * 4 * (width + 1) * expected_distinct(rows, lookups / workers)


def sum_by_row(ids: tf.Tensor, gradients: tf.Tensor) -> tf.IndexedSlices:
    """Sums the gradients of equal ids.

    Args:
        ids: [n] int32.
        gradients: [n, width] float32.

    Returns:
        The distinct ids [rows] and their gradients [rows, width].
    """
    distinct, positions = tf.unique(ids)
    return tf.IndexedSlices(tf.math.unsorted_segment_sum(gradients, positions, tf.size(distinct)), distinct)


def sum_sparse(
    gradients: Mapping[str, tf.IndexedSlices], embeddings: EmbeddingTables, comm: Comm
) -> dict[str, tf.IndexedSlices]:
    """Sums sparse gradients over the workers. A collective.

    Args:
        gradients: path of the table -> gradient of this worker's rows, with distinct ids of the whole table.
        embeddings: the tables.
        comm: collectives over the workers.

    Returns:
        Path of the table -> gradient of the rows that this worker updates: all rows that any worker looked up or, for
        a sharded table, those that this worker holds, numbered within its shard.
    """
    replicated = {path: gradient for path, gradient in gradients.items() if path not in embeddings.sharded}
    sharded = {path: gradient for path, gradient in gradients.items() if path in embeddings.sharded}
    summed = dict(replicated)
    # The tables of a kind share their collectives, so that the number of these does not depend on that of the tables.
    if replicated and comm.size > 1:
        # Workers look up different numbers of rows, so rows are gathered and summed here instead of all-reduced.
        ids = comm.gather_tensors([gradient.indices for gradient in replicated.values()])
        values = comm.gather_tensors([gradient.values for gradient in replicated.values()])
        summed = {path: sum_by_row(*pair) for path, *pair in zip(replicated, ids, values, strict=True)}
    if sharded and embeddings.shards is not None:
        # Several workers may have sent gradients of the same row.
        for path, (ids, values) in zip(sharded, embeddings.shards.deliver(list(sharded.values())), strict=True):
            summed[path] = sum_by_row(ids, values)
    return {path: summed[path] for path in gradients}
