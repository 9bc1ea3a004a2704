"""The two-sample Kolmogorov-Smirnov test, exact for small samples and with ties."""

from collections.abc import Sequence
from fractions import Fraction
from math import comb
from typing import NamedTuple

import numpy as np


class KsTest(NamedTuple):
    """What the test finds.

    Attributes:
        statistic: largest distance between the two empirical distribution functions, from 0 to 1.
        p_value: probability of that distance or a larger one, where all values were dealt to the two samples at random.
    """

    statistic: float
    p_value: float


def ks_test(first: Sequence[float], second: Sequence[float]) -> KsTest:
    """Whether two samples may come from one distribution (two-sided, by permutation of the values).

    A deal of m + n sorted values is a path of m steps in one direction and n in the other; those that keep below the
    observed distance wherever a value differs from the next are counted in whole numbers (Hodges, "The significance
    probability of the Smirnov two-sample test", Arkiv foer Matematik 1958; ties as in Schroeer and Trenkler,
    Computational Statistics & Data Analysis 1995). Work grows with m * (m + n).

    Args:
        first: m values, at least one and none of them NaN.
        second: n values, likewise.

    Raises:
        ValueError: a sample is empty or holds NaN.
    """
    samples = [np.sort(np.asarray(sample, np.float64)) for sample in (first, second)]
    if any(len(sample) == 0 or np.isnan(sample).any() for sample in samples):
        raise ValueError("each sample needs at least one value, and no NaN")
    m, n = map(len, samples)
    distinct = np.unique(np.concatenate(samples))
    below = [np.searchsorted(sample, distinct, side="right") for sample in samples]
    distance = int(np.abs(below[0] * n - below[1] * m).max())  # in units of 1 / (m * n)
    nearer = _paths_below(distance, m, n, set((below[0] + below[1]).tolist()))
    return KsTest(distance / (m * n), float(1 - Fraction(nearer, comb(m + n, m))))


def _paths_below(distance: int, m: int, n: int, looked_at: set[int]) -> int:
    """In how many ways m of m + n values can be chosen so that the distance stays smaller after these many values."""
    chosen = np.arange(m + 1)
    ways = np.zeros(m + 1, object)  # by how many have been chosen; Python's integers do not overflow
    ways[0] = 1
    for values in range(1, m + n + 1):
        ways[1:] += ways[:-1].copy()
        left_out = values - chosen
        ways[left_out > n] = 0
        if values in looked_at:
            ways[np.abs(chosen * n - left_out * m) >= distance] = 0
    return int(ways[m])
