"""How a step sums the gradients of each table over the workers."""

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
        name: the table.
        part: whose optimizer updates it, wide or deep.
        rows: its number of rows, over all workers.
        width: values per row.
        exchange: how its gradient is summed. whole: all rows, on every worker; rows: those that a batch touches, on
            every worker; shards: those that a batch touches, by the worker that holds them.
    """

    name: str
    part: Part
    rows: int
    width: int
    exchange: Exchange


def plan_tables(
    embeddings: EmbeddingTables, global_batch_size: int, workers: int, choice: Choice
) -> tuple[TableUse, ...]:
    """How a step over `global_batch_size` rows uses each table: the deep ones in feature order, then the wide one.

    Args:
        embeddings: the tables; sharded ones are exchanged as shards, whatever the choice.
        global_batch_size: rows per step, over all workers.
        workers: how many there are.
        choice: whole or rows for all tables, or auto: for each the cheaper.
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
    """The cheaper of summing a table whole and collecting its touched rows.

    Both give the same sums but for rounding, and the same updates (see `Optimizer`).

    Args:
        rows, width: of the table.
        lookups: ids looked up per step, over all workers.
        workers: how many there are; a single one chooses by what its memory has to move.
    """
    by_rows = cost_rows(rows, width, lookups, workers)
    return "whole" if cost_whole(rows, width, workers) <= by_rows else "rows"
