"""Initial values of embedding tables, drawn by all cores without a second copy in memory.

A table is drawn in blocks of rows, each by a generator of its own, seeded by the table and the number of the block. The
values therefore do not depend on the number of threads, or on which of them draws a block.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.parallel import in_parallel
from trainer.logging.progress import byte_progress
from trainer.variables import TableRows, assign_rows

# Values per block. A block and its temporaries fit into a core's share of the cache.
BLOCK_VALUES = 1 << 18
# A truncated normal is cut off at two deviations; what is left has a smaller standard deviation, this one.
CUT, CUT_DEVIATION = 2.0, 0.87962566103423978
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class NormalTable:
    """A table whose initial values are normal with mean 0.

    Attributes:
        table: the table, [rows, width] float32.
        deviation: standard deviation of the values; None for that of Glorot's normal initialization,
            sqrt(2 / (rows + width)), with values beyond two deviations of the normal drawn again.
        seed: seed of the table.
    """

    table: TableRows
    deviation: float | None
    seed: int

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-self.table.rows // self._rows_per_block)

    @property
    def _rows_per_block(self) -> int:
        return max(1, BLOCK_VALUES // self.table.shape[1])

    def draw(self, block: int) -> tuple[int, np.ndarray]:
        """Draw a block and keep the rows of this worker, which thus do not depend on the number of workers.

        Returns:
            Index of the first of these rows in the table's variable, and the rows [n, width] float32.
        """
        table, start = self.table, block * self._rows_per_block
        stop, width = min(start + self._rows_per_block, table.rows), table.shape[1]
        values = np.empty((stop - start, width), np.float32)
        # Unlike other generators of NumPy, SFC64 needs no multiplication wider than a word: it is the fastest.
        rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence(self.seed, spawn_key=(block,))))
        if self.deviation is None:
            _draw_truncated(rng, values.reshape(-1))
            values *= np.float32(math.sqrt(2 / (table.rows + width)) / CUT_DEVIATION)
        else:
            rng.standard_normal(dtype=np.float32, out=values)
            values *= np.float32(self.deviation)
        own = values[(table.rank - table.first - start) % table.workers :: table.workers]
        return table.own(start, stop).start, own


def draw_tables(tables: Sequence[NormalTable]) -> None:
    """Overwrite the variables of tables with their initial values, on all cores."""
    blocks = [(table, block) for table in tables for block in range(table.blocks)]
    total = sum(_FLOAT_BYTES * math.prod(each.table.shape) // each.table.workers for each in tables)
    with byte_progress("drawing initial values", total) as done:

        def set_block(task: tuple[NormalTable, int]) -> None:
            normal, block = task
            first, own = normal.draw(block)
            assign_rows(normal.table.variable, first, own)
            done(own.nbytes)

        in_parallel(set_block, blocks)


def _draw_truncated(rng: np.random.Generator, values: np.ndarray) -> None:
    """Draw normal values of deviation 1, and those beyond CUT again, until none is left. values: [n] float32."""
    rng.standard_normal(dtype=np.float32, out=values)
    beyond = np.flatnonzero(np.abs(values) > CUT)
    while beyond.size:
        drawn = rng.standard_normal(beyond.size, np.float32)
        values[beyond] = drawn
        beyond = beyond[np.abs(drawn) > CUT]
