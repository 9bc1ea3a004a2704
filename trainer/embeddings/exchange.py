"""Plan of how a step sums the gradient of each table over the workers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import tensorflow as tf

from trainer.comm import Comm
from trainer.embeddings.shards import Shards
from trainer.embeddings.tables import EmbeddingTables

NETWORK = 10
# Passes over the values of a table: gradient, weight and slot are each read and written.
PASSES_WHOLE = 6
# The same for touched rows, plus one pass for finding them and for their scattered memory access.
PASSES_ROWS = 7


def expected_distinct(rows: int, lookups: float) -> float:
    """Returns the expected number of distinct rows, of `rows`, hit by `lookups` uniform draws."""
    # expm1 keeps precision where lookups are few compared with rows.
    return rows * -math.expm1(-lookups / rows)


def bytes_whole(rows: int, width: int, workers: int) -> float:
    """Returns the bytes a worker sends in a ring all-reduce of the whole gradient."""
    return 2 * (workers - 1) / workers * 4 * rows * width


def bytes_rows(rows: int, width: int, lookups: float, workers: int) -> float:
    """Returns the bytes a worker sends in a ring all-gather of all touched rows and their row numbers.

    Args:
        rows, width: shape of the table.
        lookups: IDs looked up in a step, over all workers.
        workers: number of workers.
    """
    return (workers - 1) * 4 * (width + 1) * expected_distinct(rows, lookups / workers)


def cost_whole(rows: int, width: int, workers: int) -> float:
    """Returns the cost of summing and applying a table's whole gradient."""
    return PASSES_WHOLE * 4 * rows * width + NETWORK * bytes_whole(rows, width, workers)


def cost_rows(rows: int, width: int, lookups: float, workers: int) -> float:
    """Returns the cost of summing and applying a table's touched rows; arguments are those of bytes_rows."""
    gathered = workers * expected_distinct(rows, lookups / workers)
    # Rows gathered from several workers are summed once more: read and written.
    memory = PASSES_ROWS * expected_distinct(rows, lookups) + (2 * gathered if workers > 1 else 0)
    return 4 * width * memory + NETWORK * bytes_rows(rows, width, lookups, workers)


Part = Literal["wide", "deep"]
Exchange = Literal["whole", "rows", "shards"]
Choice = Literal["auto", "whole", "rows"]


@dataclass(frozen=True)
class TableUse:
    """How a step uses one table.

    Attributes:
        name: path of the table's variable.
        part: which part's optimizer updates the table, wide or deep.
        rows: number of rows over all workers.
        width: values per row.
        exchange: how the gradient is summed. whole: all rows, on every worker; rows: the rows that a batch touches, on
            every worker; shards: the rows that a batch touches, on the worker that holds them.
    """

    name: str
    part: Part
    rows: int
    width: int
    exchange: Exchange


def plan_tables(
    embeddings: EmbeddingTables, global_batch_size: int, workers: int, choice: Choice
) -> tuple[TableUse, ...]:
    """Plans how a step over `global_batch_size` rows uses each table.

    Args:
        embeddings: the tables; sharded ones are always exchanged as shards.
        global_batch_size: rows per step over all workers.
        workers: number of workers.
        choice: whole or rows for all tables, or auto for the cheaper one per table.

    Returns:
        One entry per table: the deep ones in feature order, then the wide one.
    """
    deep: list[tuple[Part, int]] = [("deep", columns.hotness) for columns in embeddings.layout.categorical]
    wide: list[tuple[Part, int]] = [("wide", embeddings.layout.id_columns) for _ in embeddings.wide_tables]
    uses = []
    for table, (part, columns) in zip(embeddings.tables, [*deep, *wide], strict=True):
        rows, width = embeddings.whole_rows[table.path], table.shape[1]
        if table.path in embeddings.sharded:
            exchange: Exchange = "shards"
        elif choice == "auto":
            exchange = cheaper_exchange(rows, width, lookups=global_batch_size * columns, workers=workers)
        else:
            exchange = choice
        uses.append(TableUse(table.path, part, rows, width, exchange))
    return tuple(uses)


def cheaper_exchange(rows: int, width: int, *, lookups: int, workers: int) -> Exchange:
    """Returns the cheaper of summing a table's whole gradient and gathering its touched rows.

    Both give the same sums up to rounding; see `Optimizer` for the updates.

    Args:
        rows, width: shape of the table.
        lookups: IDs looked up per step, over all workers.
        workers: number of workers; with a single one, only memory traffic counts.
    """
    by_rows = cost_rows(rows, width, lookups, workers)
    return "whole" if cost_whole(rows, width, workers) <= by_rows else "rows"


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
