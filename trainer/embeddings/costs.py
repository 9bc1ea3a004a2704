"""What the exchange of embedding gradients costs, in bytes moved per step. Imports no TensorFlow.

Costs count bytes that are read from or written to memory. A byte that is sent over the network counts as several.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from trainer.embeddings import SMALLEST_SHARDED
from trainer.layout import InputSchema, Table

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
# Passes over the rows that a worker fetches and whose gradients it sends, or sums because several workers looked them
# up: each is copied once more, in both directions.
PASSES_SHARDS = 8
PASSES_GATHERED = 2
# Cost of the collectives that shards add, one after the other, however little they send.
COLLECTIVES_OF_SHARDS = 30_000_000


class Traffic(NamedTuple):
    """The use of a table in a step.

    Attributes:
        rows: number of its rows.
        lookups: number of ids looked up per step, over all workers.
    """

    rows: int
    lookups: int


def traffic_of(tables: Iterable[Table], global_batch_size: int) -> list[Traffic]:
    """Return the use of tables in a step over `global_batch_size` rows."""
    return [Traffic(table.rows, global_batch_size * table.hotness) for table in tables]


def cheaper_exchange(tables: Sequence[Traffic], width: int, *, workers: int) -> Literal["whole", "rows"]:
    """Return the cheaper of summing whole gradients and gathering the rows that the workers look up.

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


def shards_are_cheaper(layout: InputSchema, outputs: int, *, global_batch_size: int, workers: int) -> bool:
    """Return whether sharding the large tables takes less than every worker's updating all of their rows.

    Args:
        layout: layout of the features.
        outputs: number of wide weights for each id of a feature; 0 without a wide part.
        global_batch_size: rows per step over all workers.
        workers: number of workers.
    """
    replicated = sharded = 0.0
    for table in (*layout.tables, *layout.wide_tables(outputs)):
        if table.rows >= SMALLEST_SHARDED:
            (traffic,) = traffic_of([table], global_batch_size)
            whole, rows = (cost(traffic, table.width, workers) for cost in (_cost_whole, _cost_rows))
            replicated += min(whole, rows)
            sharded += _cost_shards(traffic, table.width, workers)
    return workers > 1 and sharded + COLLECTIVES_OF_SHARDS < replicated


def _cost_whole(table: Traffic, width: int, workers: int) -> float:
    return PASSES_WHOLE * 4 * table.rows * width + NETWORK * bytes_whole(table.rows, width, workers)


def _cost_rows(table: Traffic, width: int, workers: int) -> float:
    # Rows gathered from several workers are summed once more: read and written.
    gathered = workers * expected_distinct(table.rows, table.lookups / workers)
    passes = PASSES_ROWS * expected_distinct(table.rows, table.lookups) + PASSES_GATHERED * gathered
    return 4 * width * passes + NETWORK * bytes_rows(table.rows, width, table.lookups, workers)


def _cost_shards(table: Traffic, width: int, workers: int) -> float:
    own = expected_distinct(table.rows, table.lookups / workers)
    passes = PASSES_ROWS * expected_distinct(table.rows, table.lookups) / workers + PASSES_SHARDS * own
    return 4 * width * passes + NETWORK * bytes_shards(table.rows, width, table.lookups, workers)


def expected_distinct(rows: int, lookups: float) -> float:
    """Return the expected number of distinct rows, of `rows`, hit by `lookups` uniform draws."""
    # expm1 keeps precision where lookups are few compared with rows.
    return rows * -math.expm1(-lookups / rows)


def bytes_whole(rows: int, width: int, workers: int) -> float:
    """Return the bytes that a worker sends in a ring all-reduce of the whole gradient."""
    return 2 * (workers - 1) / workers * 4 * rows * width


def bytes_rows(rows: int, width: int, lookups: float, workers: int) -> float:
    """Return the bytes that a worker sends in a ring all-gather of the rows that were looked up and their ids."""
    return (workers - 1) * (4 * width + 8) * expected_distinct(rows, lookups / workers)


def bytes_shards(rows: int, width: int, lookups: float, workers: int) -> float:
    """Return the bytes that a worker sends to ask for rows by int32 ids, to answer others, and to deliver gradients."""
    return (workers - 1) / workers * (4 + 2 * 4 * width) * expected_distinct(rows, lookups / workers)
