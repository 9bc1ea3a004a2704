"""What it costs to sum the gradient of a table over workers and to apply it: as a whole, or by touched rows.

Costs are bytes moved in memory per worker and step; bytes that are sent count NETWORK times. The figures are float32,
4 bytes a value. How ids are distributed is not known: they count as uniform, which is the worst case for touched rows.
"""

import math

NETWORK = 10
# Passes over the values of a table or of its touched rows: gradient, and weight and slot, read and written.
PASSES_WHOLE = 6
# The same, and finding the rows; they lie scattered, which one more pass stands for.
PASSES_ROWS = 7


def expected_distinct(rows: int, lookups: float) -> float:
    """How many of `rows` rows are hit by so many uniform draws, on average."""
    return rows * -math.expm1(-lookups / rows)


def bytes_whole(rows: int, width: int, workers: int) -> float:
    """Bytes that a worker sends in a ring all-reduce of the whole gradient."""
    return 2 * (workers - 1) / workers * 4 * rows * width


def bytes_rows(rows: int, width: int, lookups: float, workers: int) -> float:
    """Bytes that a worker sends when all touched rows, with their numbers, are gathered around a ring.

    Args:
        rows, width: of the table.
        lookups: of all workers in a step.
        workers: how many there are.
    """
    return (workers - 1) * 4 * (width + 1) * expected_distinct(rows, lookups / workers)


def cost_whole(rows: int, width: int, workers: int) -> float:
    """See the module."""
    return PASSES_WHOLE * 4 * rows * width + NETWORK * bytes_whole(rows, width, workers)


def cost_rows(rows: int, width: int, lookups: float, workers: int) -> float:
    """See the module."""
    gathered = workers * expected_distinct(rows, lookups / workers)
    # What came from several workers is added up once more, read and written.
    memory = PASSES_ROWS * expected_distinct(rows, lookups) + (2 * gathered if workers > 1 else 0)
    return 4 * width * memory + NETWORK * bytes_rows(rows, width, lookups, workers)
