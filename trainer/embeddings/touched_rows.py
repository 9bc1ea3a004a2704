"""The rows of embedding tables that training has looked up, the only ones that it can have changed."""

from collections.abc import Sequence

import numpy as np

from trainer.comm import Comm
from trainer.embeddings.groups import TableGroup


class TouchedRows:
    """The rows that the batches of this worker have looked up since the last `clear`.

    Whatever the optimizer and the exchange of gradients, a step only changes rows that a worker's batch looks up. They
    are marked on the host, at a cost that grows with the rows of the batch and not with those of the tables. The marks
    take one byte per row.

    Args:
        groups: the groups of tables.
    """

    def __init__(self, groups: Sequence[TableGroup]):
        self._groups = groups
        self._marks = [np.zeros(group.rows if group.is_trained else 0, np.bool_) for group in groups]

    def add(self, rows: Sequence[np.ndarray]) -> None:
        """Mark the rows that a batch looks up, [n] integers for each group."""
        for group, marks, numbers in zip(self._groups, self._marks, rows, strict=True):
            if group.is_trained:
                marks[numbers] = True

    def clear(self) -> None:
        """Remove all marks."""
        for marks in self._marks:
            marks.fill(False)

    def of_all_workers(self, comm: Comm) -> dict[str, np.ndarray]:
        """Return the rows that any worker has marked. A collective.

        Returns:
            Key of tables (see `TableRows`) -> ascending numbers of their rows, [n] int64.
        """
        found = {}
        for group, marks in zip(self._groups, self._marks, strict=True):
            bits = np.packbits(marks)
            if group.is_trained:
                bits = np.bitwise_or.reduce(comm.gather_rows(bits[np.newaxis]))  # [workers, bytes] -> [bytes]
            numbers = np.flatnonzero(np.unpackbits(bits, count=len(marks)))
            ends = np.searchsorted(numbers, [*group.first_rows.values(), group.rows]).tolist()
            for index, (table, first) in enumerate(group.first_rows.items()):
                found[group.key_of(table)] = numbers[ends[index] : ends[index + 1]] - first
        return found
