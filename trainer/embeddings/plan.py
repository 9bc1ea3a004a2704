"""Plan of how a step sums the gradient of each table over the workers."""

from dataclasses import dataclass
from typing import Literal

from trainer.embeddings.cost import cost_rows, cost_whole
from trainer.embeddings.tables import EmbeddingTables

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
