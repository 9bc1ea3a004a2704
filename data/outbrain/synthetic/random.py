"""Randomness of the synthetic Outbrain: of whole tables by generators, of single displays and users by hashes.

What is drawn for a display or a user depends on the seed and on its number only, not on what was drawn before it:
blocks may have any size.
"""

from dataclasses import dataclass

import numpy as np

from data.encoding.hashing import hash_rows, mix


@dataclass(frozen=True)
class Draws:
    """Random numbers of one seed; what is drawn under different names is independent.

    Attributes:
        seed: a whole number.
    """

    seed: int

    def generator(self, name: str) -> np.random.Generator:
        """A generator for the arrays of one table."""
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, *name.encode()])))

    def hashes(self, name: str, *ids: np.ndarray | int) -> np.ndarray:
        """Random words for rows of ids, [n] uint64."""
        return hash_rows(self.seed, [name], *ids)

    def uniform(self, name: str, *ids: np.ndarray | int) -> np.ndarray:
        """Uniform numbers in (0, 1) for rows of ids, [n] float64."""
        return _unit(self.hashes(name, *ids))

    def normal(self, name: str, ids: np.ndarray, dims: int) -> np.ndarray:
        """Standard normal numbers for ids, [n, dims] float64."""
        columns = []
        hashes = self.hashes(name, ids)
        for _ in range(dims):
            first = mix(hashes)
            hashes = mix(first)
            columns.append(np.sqrt(-2 * np.log(_unit(first))) * np.cos(2 * np.pi * _unit(hashes)))
        return np.stack(columns, axis=1)


def _unit(hashes: np.ndarray) -> np.ndarray:
    return ((hashes >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def cumulative(weights: np.ndarray) -> np.ndarray:
    """Cumulative probabilities of weights along the last axis, ending in exactly 1. float64."""
    sums = np.cumsum(weights, axis=-1, dtype=np.float64)
    return sums / sums[..., -1:]


def pick(cumulative_probabilities: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Indices drawn by inversion, of the shape of `uniforms`, int64."""
    return np.searchsorted(cumulative_probabilities, uniforms, side="right")


def popular_index(uniforms: np.ndarray, count: int, head: float) -> np.ndarray:
    """Indices in [0, count) with probabilities falling like 1 / (index + head), int64."""
    return np.minimum(head * ((count + head) / head) ** uniforms - head, count - 1).astype(np.int64)
