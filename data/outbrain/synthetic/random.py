"""Random draws of the synthetic Outbrain: whole tables use generators, single displays and users use hashes.

The draws of a display or user depend only on the seed and its number, not on earlier draws, so blocks can have any
size.
"""

from dataclasses import dataclass

import numpy as np

from data.preprocess.hashing import hash_rows, mix


@dataclass(frozen=True)
class Draws:
    """Random numbers of a seed; draws with different names are independent.

    Attributes:
        seed: seed of all draws, an integer.
    """

    seed: int

    def generator(self, name: str) -> np.random.Generator:
        """Return a generator for the arrays of a table."""
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, *name.encode()])))

    def hashes(self, name: str, *ids: np.ndarray | int) -> np.ndarray:
        """Return random words for rows of ids, [n] uint64."""
        return hash_rows(self.seed, [name], *ids)

    def uniform(self, name: str, *ids: np.ndarray | int) -> np.ndarray:
        """Return uniform numbers in (0, 1) for rows of ids, [n] float64."""
        return _unit(self.hashes(name, *ids))

    def normal(self, name: str, ids: np.ndarray, dims: int) -> np.ndarray:
        """Return standard normal numbers for ids, [n, dims] float64, by the Box-Muller transform."""
        columns = []
        hashes = self.hashes(name, ids)
        for _ in range(dims):
            first = mix(hashes)
            hashes = mix(first)
            columns.append(np.sqrt(-2 * np.log(_unit(first))) * np.cos(2 * np.pi * _unit(hashes)))
        return np.stack(columns, axis=1)


def _unit(hashes: np.ndarray) -> np.ndarray:
    # The upper 53 bits, centered in their interval so that 0 (and log(0)) cannot occur.
    return ((hashes >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def cumulative(weights: np.ndarray) -> np.ndarray:
    """Return float64 cumulative probabilities of weights along the last axis, ending in exactly 1."""
    sums = np.cumsum(weights, axis=-1, dtype=np.float64)
    return sums / sums[..., -1:]


def pick(cumulative_probabilities: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Draw int64 indices by inversion, in the shape of `uniforms`."""
    return np.searchsorted(cumulative_probabilities, uniforms, side="right")


def popular_index(uniforms: np.ndarray, count: int, head: float) -> np.ndarray:
    """Draw int64 indices in [0, count) with probabilities approximately proportional to 1 / (index + head)."""
    return np.minimum(head * ((count + head) / head) ** uniforms - head, count - 1).astype(np.int64)
