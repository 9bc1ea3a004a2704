"""Cost of summing a table's gradient over workers and applying it, as a whole or by touched rows.

Costs are bytes moved in memory per worker and step; bytes sent over the network count NETWORK times. Values are
float32, 4 bytes each. The distribution of IDs is unknown and taken as uniform, the worst case for touched rows.
"""

import math

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
