"""How the gradients of embedding tables are summed over the workers, and the sums of sparse ones."""

from collections.abc import Mapping
from typing import Literal

import tensorflow as tf

from trainer.comm import Comm
from trainer.embeddings.costs import Exchange, cheaper_exchange, traffic_of
from trainer.embeddings.shards import Shards
from trainer.embeddings.tables import EmbeddingTables


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
            tables = traffic_of(group.tables, global_batch_size)
            plan[variable.path] = cheaper_exchange(tables, variable.shape[1], workers=workers)
        else:
            plan[variable.path] = choice
    return plan


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
