"""Sums of float64 numbers that do not depend on the order of the numbers, to the last bit.

Numbers are split into integers times powers of two that add up without rounding. Bits below 2**-1000 are rounded away,
number by number.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Exponent of the unit of exact sums.
UNIT = -1000
# Larger numbers, whose squares are not far from the largest float64, have no moments.
LARGEST = 2.0**500
# Rows to sum at a time: they fit into the cache, and the sum of so many slices of this many bits is exact.
BLOCK_ROWS, SLICE_BITS = 2**16, 36
# Bits of a slice when numbers are summed by group, and the rows whose sum is then exact.
GROUP_BITS, GROUP_ROWS = 26, 2**26
# Dekker's factor: splits a float64 into two halves of 26 bits, whose products are exact.
SPLITTER = 2.0**27 + 1


def exact_sum(numbers: np.ndarray) -> int:
    """Return the sum of [n] finite float64 numbers in units of 2**UNIT."""
    total = 0
    for first in range(0, len(numbers), BLOCK_ROWS):
        for exponent, part in _slices(numbers[first : first + BLOCK_ROWS], SLICE_BITS):
            total += int(part.sum()) << (exponent - UNIT)
    return total


@dataclass(frozen=True)
class Moments:
    """Exact sums of numbers and of their squares. Moments of different numbers add up.

    Attributes:
        count: number of numbers.
        total: their sum, in units of 2**UNIT.
        squares: the sum of their squares, in units of 2**UNIT.
        least, most: smallest and largest number; infinite if there is none.
    """

    count: int = 0
    total: int = 0
    squares: int = 0
    least: float = np.inf
    most: float = -np.inf

    @classmethod
    def of(cls, numbers: np.ndarray) -> "Moments":
        """Return the moments of [n] float64 numbers between -LARGEST and LARGEST."""
        if not len(numbers):
            return cls()
        squares = 0
        for first in range(0, len(numbers), BLOCK_ROWS):
            high, low = _squares(numbers[first : first + BLOCK_ROWS])
            squares += exact_sum(high) + exact_sum(low)
        return cls(len(numbers), exact_sum(numbers), squares, float(numbers.min()), float(numbers.max()))

    @classmethod
    def repeated(cls, number: float, count: int) -> "Moments":
        """Return the moments of a number that occurs `count` times."""
        if not count:
            return cls()
        one = cls.of(np.array([number]))
        return cls(count, count * one.total, count * one.squares, number, number)

    def __add__(self, other: "Moments") -> "Moments":
        least, most = min(self.least, other.least), max(self.most, other.most)
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares, least, most)

    @property
    def mean(self) -> float:
        """Mean, rounded once; 0 if there are no numbers."""
        return self.total / (self.count << -UNIT) if self.count else 0.0

    @property
    def std(self) -> float:
        """Standard deviation (with n - 1); 0 if there are fewer than two numbers, or all are equal."""
        if self.count < 2 or self.least == self.most:
            return 0.0
        distances = self.count * (self.squares << -UNIT) - self.total**2
        return float(np.sqrt(max(distances, 0) / (self.count * (self.count - 1) << -2 * UNIT)))


@dataclass(frozen=True)
class GroupSums:
    """Exact sums of numbers by group. Sums of different numbers add up.

    Attributes:
        slices: [groups] int64 sums by exponent: a group's sum is the sum of slices[exponent] * 2**exponent.
    """

    slices: dict[int, np.ndarray]

    @classmethod
    def of(cls, groups: np.ndarray, numbers: np.ndarray, size: int) -> "GroupSums":
        """Return the sums of numbers.

        Args:
            groups: [n] group of each number, in [0, size).
            numbers: [n] finite float64 numbers.
            size: number of groups.
        """
        sums = cls({})
        for first in range(0, len(numbers), GROUP_ROWS):
            rows = slice(first, first + GROUP_ROWS)
            for exponent, part in _slices(numbers[rows], GROUP_BITS):
                found = np.bincount(groups[rows], part, minlength=size).astype(np.int64)
                sums.slices[exponent] = sums.slices.get(exponent, 0) + found
        return sums

    def moved(self, groups: np.ndarray, size: int) -> "GroupSums":
        """Return the same sums with the groups renumbered.

        Args:
            groups: new number of each group, all different.
            size: number of groups of the result.
        """
        moved = {}
        for exponent, part in self.slices.items():
            moved[exponent] = np.zeros(size, np.int64)
            moved[exponent][groups] = part
        return GroupSums(moved)

    def __add__(self, other: "GroupSums") -> "GroupSums":
        slices = dict(self.slices)
        for exponent, part in other.slices.items():
            slices[exponent] = slices[exponent] + part if exponent in slices else part
        return GroupSums(slices)

    def sums(self, size: int) -> np.ndarray:
        """Return the sums of the [size] groups in float64, which depend only on the exact sums."""
        total: np.ndarray = np.zeros(size)
        carry: np.ndarray = np.zeros(size, np.int64)
        exponent = min(self.slices, default=0)
        highest = max(self.slices, default=0)
        # Balanced digits are unique: digits above the highest slice are 0 once the carry is.
        while exponent <= highest or carry.any():
            digits = self.slices.get(exponent, 0) + carry
            carry = (digits + (1 << GROUP_BITS - 1)) >> GROUP_BITS
            total += np.ldexp((digits - (carry << GROUP_BITS)).astype(np.float64), exponent)
            exponent += GROUP_BITS
        return total


def _slices(numbers: np.ndarray, bits: int) -> Iterator[tuple[int, np.ndarray]]:
    """Split finite numbers into slices.

    Yields:
        Exponent, a multiple of `bits` from UNIT on, and [n] float64 integers of at most 2**bits: the numbers are the
        sums of integer * 2**exponent over all slices.
    """
    rest = numbers
    while len(rest):
        largest = float(np.abs(rest).max())
        if not largest:
            return
        # The smallest exponent such that the largest number has at most `bits` bits above it.
        exponent = int(np.frexp(largest)[1]) - bits
        exponent = max(UNIT, UNIT + -(-(exponent - UNIT) // bits) * bits)
        part = np.rint(rest * 2.0**-exponent)
        yield exponent, part
        if exponent == UNIT:
            return
        rest = rest - part * 2.0**exponent


def _squares(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the squares of numbers as a rounded part and the rounding error (Dekker 1971)."""
    scaled = numbers * SPLITTER
    high = scaled - (scaled - numbers)
    low = numbers - high
    square = numbers * numbers
    return square, ((high * high - square) + 2.0 * high * low) + low * low
