"""Two regression tasks over the same inputs with a given correlation (Ma et al., KDD 2018, section 3.2).

With orthonormal u1, u2 in R^100, weights w1 = c u1 and w2 = c (p u1 + sqrt(1 - p^2) u2) whose cosine is the
correlation p, and phases shared by both tasks:

    y_k = w_k.x + sum over i of sin(alpha_i w_k.x + beta_i) + noise_k,    x ~ N(0, I), noise_k ~ N(0, 0.1^2)

c = 1, with ten sines and alpha_i, beta_i ~ N(0, 1). The paper does not specify alpha and beta; with these, models
differ as it reports from about a million rows on. The correlation of the labels grows with p, but is smaller.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

INPUTS = 100
SINES = 10
SCALE = 1.0
NOISE = 0.1
ROWS_PER_BLOCK = 65_536
# Keys that, combined with the seed, give each generator its own random stream.
_DIRECTIONS, _PHASES, _INPUTS, _NOISE = range(4)


@dataclass(frozen=True, eq=False)
class Tasks:
    """Parameters that relate inputs to labels.

    Attributes:
        weights: [2, INPUTS] float64 weights w1 and w2.
        alpha, beta: [SINES] float64 frequencies and phases of the sines, shared by both tasks.
    """

    weights: np.ndarray
    alpha: np.ndarray
    beta: np.ndarray

    def means(self, inputs: np.ndarray) -> np.ndarray:
        """Return the noise-free labels, [rows, 2] float64, of [rows, INPUTS] inputs: the optimal predictions."""
        projected = inputs.astype(np.float64) @ self.weights.T  # [rows, 2]; the sines below are [rows, 2, SINES]
        return projected + np.sin(projected[..., None] * self.alpha + self.beta).sum(axis=-1)


def draw_tasks(correlation: float, seed: int) -> Tasks:
    """Draw two tasks; their directions, frequencies and phases depend on the seed only.

    Args:
        correlation: cosine similarity of the tasks' weights, in [-1, 1].
        seed: seed of the draws, at least 0.
    """
    first, other = np.random.default_rng([_DIRECTIONS, seed]).standard_normal((2, INPUTS))
    first = first / np.linalg.norm(first)
    other = other - (other @ first) * first  # Gram-Schmidt
    other = other / np.linalg.norm(other)
    second = correlation * first + np.sqrt(1 - correlation**2) * other
    alpha, beta = np.random.default_rng([_PHASES, seed]).standard_normal((2, SINES))
    return Tasks(SCALE * np.stack([first, second]), alpha, beta)


def draw_rows(
    tasks: Tasks, mapping: int, rows: int, seed: int, rows_per_block: int = ROWS_PER_BLOCK
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draw rows in blocks; inputs and noise depend on (seed, mapping), and fewer rows are a prefix of more.

    Args:
        tasks: parameters that relate inputs to labels.
        mapping: index of the mapping, which has its own random streams.
        rows: total number of rows.
        seed: seed of the draws, at least 0.
        rows_per_block: maximum number of rows per block; the rows do not depend on it.

    Yields:
        [block, INPUTS] float32 inputs and [block, 2] float32 labels, computed from the inputs after rounding.
    """
    input_generator = np.random.default_rng([_INPUTS, seed, mapping])
    noise_generator = np.random.default_rng([_NOISE, seed, mapping])
    for start in range(0, rows, rows_per_block):
        size = min(rows_per_block, rows - start)
        inputs = input_generator.standard_normal((size, INPUTS)).astype(np.float32)
        noise = NOISE * noise_generator.standard_normal((size, 2))
        yield inputs, (tasks.means(inputs) + noise).astype(np.float32)
