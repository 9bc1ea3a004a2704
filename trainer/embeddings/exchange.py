"""How the gradients of embedding tables are summed over the workers, and the sums of sparse ones."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import tensorflow as tf

from trainer.comm import Comm
from trainer.embeddings.shards import Shards
from trainer.embeddings.tables import EmbeddingTables

# How the gradients of a group of tables are summed.
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
    """Plans how a step over `global_batch_size` rows sums the gradients of each group of tables.

    Args:
        embeddings: the tables; sharded ones are always exchanged as shards.
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
        elif choice == "auto":
            plan[variable.path] = cheaper_exchange(
                [Traffic(table.cardinality, global_batch_size * table.hotness) for table in group.features],
                variable.shape[1],
                workers=workers,
            )
        else:
            plan[variable.path] = choice
    return plan


class Traffic(NamedTuple):
    """The use of a table in a step.

    Attributes:
        rows: number of its rows.
        lookups: number of ids looked up per step, over all workers.
    """

    rows: int
    lookups: int


def cheaper_exchange(tables: Sequence[Traffic], width: int, *, workers: int) -> Exchange:
    """Returns the cheaper of summing whole gradients and gathering the rows that the workers look up.

    Both give the same sums up to rounding; see `Optimizer` for the updates.

    Args:
        tables: the tables of a group.
        width: their width.
        workers: number of workers. A single one exchanges nothing and always takes rows, which it has summed anyway.
    """
    if workers == 1:
        return "rows"
    whole = sum(_cost_whole(table, width, workers) for table in tables)
    rows = sum(_cost_rows(table, width, workers) for table in tables)
    return "whole" if whole <= rows else "rows"


def _cost_whole(table: Traffic, width: int, workers: int) -> float:
    return PASSES_WHOLE * 4 * table.rows * width + NETWORK * bytes_whole(table.rows, width, workers)


def _cost_rows(table: Traffic, width: int, workers: int) -> float:
    gathered = workers * expected_distinct(table.rows, table.lookups / workers)
    # Rows gathered from several workers are summed once more: read and written.
    passes = PASSES_ROWS * expected_distinct(table.rows, table.lookups) + 2 * gathered
    return 4 * width * passes + NETWORK * bytes_rows(table.rows, width, table.lookups, workers)


def expected_distinct(rows: int, lookups: float) -> float:
    """Returns the expected number of distinct rows, of `rows`, hit by `lookups` uniform draws."""
    # expm1 keeps precision where lookups are few compared with rows.
    return rows * -math.expm1(-lookups / rows)


def bytes_whole(rows: int, width: int, workers: int) -> float:
    """Returns the bytes that a worker sends in a ring all-reduce of the whole gradient."""
    return 2 * (workers - 1) / workers * 4 * rows * width


def bytes_rows(rows: int, width: int, lookups: float, workers: int) -> float:
    """Returns the bytes that a worker sends in a ring all-gather of the rows that were looked up and their ids."""
    return (workers - 1) * (4 * width + 8) * expected_distinct(rows, lookups / workers)


def sum_by_row(ids: tf.Tensor, gradients: tf.Tensor) -> tf.IndexedSlices:
    """Sums the gradients of equal ids.

    Args:
        ids: [n] int64.
        gradients: [n, width] float32.

    Returns:
        The distinct ids [rows] and their gradients [rows, width].
    """
    distinct, positions = tf.unique(ids, out_idx=tf.int64)
    return tf.IndexedSlices(tf.math.unsorted_segment_sum(gradients, positions, tf.size(distinct)), distinct)


def sum_sparse(
    gradients: Mapping[str, tf.IndexedSlices], plan: Mapping[str, Exchange], shards: Shards | None, comm: Comm
) -> dict[str, tf.IndexedSlices]:
    """Sums sparse gradients over the workers. A collective.

    Args:
        gradients: path of a group's variable -> gradient of this worker's rows, with distinct numbers of rows.
        plan: how each is summed.
        shards: how large tables are sharded.
        comm: collectives over the workers.

    Returns:
        Path of the variable -> gradient of the rows that this worker updates: all rows that any worker looked up or,
        for a sharded group, those that this worker holds, numbered within its shard.
    """
    replicated = {path: gradient for path, gradient in gradients.items() if plan[path] == "rows"}
    sharded = {path: gradient for path, gradient in gradients.items() if plan[path] == "shards"}
    summed = dict(replicated)
    # The groups of a kind share their collectives, so that the number of these does not depend on that of the tables.
    if replicated and comm.size > 1:
        # Workers look up different numbers of rows, so rows are gathered and summed here instead of all-reduced.
        ids = comm.gather_tensors([gradient.indices for gradient in replicated.values()])
        values = comm.gather_tensors([gradient.values for gradient in replicated.values()])
        summed = {path: sum_by_row(*pair) for path, *pair in zip(replicated, ids, values, strict=True)}
    if sharded and shards is not None:
        # Several workers may have sent gradients of the same row.
        for path, (ids, values) in zip(sharded, shards.deliver(list(sharded.values())), strict=True):
            summed[path] = sum_by_row(ids, values)
    return {path: summed[path] for path in gradients}
