"""Which tables are in host memory because the device cannot hold them. Imports no TensorFlow."""

from dataclasses import dataclass

# Rows of a group that the device caches at least. On a CPU, which has no memory of its own, exactly so many.
SMALLEST_CACHE = 4096


@dataclass(frozen=True)
class HostTables:
    """The groups of tables whose rows are in host memory, and how many of these rows the device caches.

    Tables are placed by group, since those of a group share their variables.

    Attributes:
        groups: names of the groups (see `TableGroup`).
        cached_share: share of the rows of each of them that the cache has places for, in [0, 1].
        smallest_cache: number of places at least, unless there are fewer rows.
    """

    groups: frozenset[str] = frozenset()
    cached_share: float = 0.0
    smallest_cache: int = SMALLEST_CACHE

    def places(self, rows: int) -> int:
        """Return how many of so many rows the cache has places for."""
        return max(1, min(rows, max(self.smallest_cache, int(self.cached_share * rows))))
