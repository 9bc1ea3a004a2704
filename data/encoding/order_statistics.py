"""Exact order statistics, such as medians, of more numbers than fit into memory."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

FLOAT_MAX = np.finfo(np.float64).max


@dataclass(frozen=True, eq=False)
class SortedRuns:
    """Numbers as ascending runs, in memory or on disk.

    Attributes:
        runs: runs in memory, float64.
        files: files of further runs, written by `merged`.
        count: number of numbers.
    """

    runs: tuple[np.ndarray, ...]
    files: tuple[Path, ...]
    count: int

    @classmethod
    def of(cls, numbers: np.ndarray) -> "SortedRuns":
        """Return the run of [n] float64 numbers without NaN."""
        # 0.0 is added so that -0.0 becomes 0.0.
        return cls((np.sort(numbers + 0.0),), (), len(numbers))

    @classmethod
    def merged(cls, parts: Sequence["SortedRuns"], budget: int, folder: Path) -> "SortedRuns":
        """Return the runs of all parts; runs of more than `budget` bytes are written to a folder."""
        runs = tuple(run for part in parts for run in part.runs)
        files = tuple(file for part in parts for file in part.files)
        count = sum(part.count for part in parts)
        if sum(run.nbytes for run in runs) <= budget:
            return cls(runs, files, count)
        handle, path = tempfile.mkstemp(suffix=".f64", dir=folder)
        with os.fdopen(handle, "wb") as file:
            file.write(np.sort(np.concatenate(runs)).data)
        return cls((), (*files, Path(path)), count)

    def at(self, ranks: Sequence[int]) -> np.ndarray:
        """Return the numbers with the given ranks, [ranks] float64; 0 is the rank of the smallest."""
        runs = [*self.runs, *map(_mapped, self.files)]
        # Bisection over the order of all float64 numbers: the smallest number with more than `rank` numbers up to it.
        # float64 has a range of 2**64 patterns, halved 64 times; the sum of the bounds could overflow int64.
        wanted = np.asarray(ranks, np.int64)
        low: np.ndarray = np.full(len(wanted), _order(np.array(-FLOAT_MAX)))
        high: np.ndarray = np.full(len(wanted), _order(np.array(FLOAT_MAX)))
        while (low < high).any():
            middle = (low >> 1) + (high >> 1) + (low & high & 1)
            numbers = _number(middle)
            enough = sum(np.searchsorted(run, numbers, side="right") for run in runs) > wanted
            high, low = np.where(enough, middle, high), np.where(enough, low, middle + 1)
        return _number(low)

    def median(self) -> float:
        """Return the mean of the two middle numbers; there must be at least one number."""
        lower, upper = self.at([(self.count - 1) // 2, self.count // 2])
        return float(lower / 2 + upper / 2 if lower != upper else lower)


def _mapped(path: Path) -> np.ndarray:
    return np.frombuffer(pa.memory_map(str(path)).read_buffer(), np.float64)


def _order(numbers: np.ndarray) -> np.ndarray:
    """Map float64 numbers to int64 in the same order."""
    bits = numbers.view(np.int64)
    return np.where(bits < 0, np.iinfo(np.int64).min - bits, bits)


def _number(order: np.ndarray) -> np.ndarray:
    """Invert `_order`."""
    return np.where(order < 0, np.iinfo(np.int64).min - order, order).view(np.float64)
