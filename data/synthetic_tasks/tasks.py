"""Two regression tasks over the same inputs, as related as one wants: Ma et al., KDD 2018, section 3.2.

With orthonormal u1, u2 in R^100, weights w1 = c u1 and w2 = c (p u1 + sqrt(1 - p^2) u2) whose cosine is the
correlation p, and phases shared by both tasks:

    y_k = w_k.x + sum over i of sin(alpha_i w_k.x + beta_i) + noise_k,    x ~ N(0, I), noise_k ~ N(0, 0.1^2)

c = 1 and ten sines; alpha_i, beta_i ~ N(0, 1). The paper leaves alpha and beta open; with these, models differ as it
tells once there are about a million rows. The labels' own correlation grows with p, but is smaller.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

INPUTS = 100
SINES = 10
SCALE = 1.0
NOISE = 0.1
ROWS_PER_BLOCK = 65_536
# First keys of the generators besides the seed, so that each draws from a stream of its own.
_DIRECTIONS, _PHASES, _INPUTS, _NOISE = range(4)


@dataclass(frozen=True, eq=False)
class Tasks:
    """What relates inputs and labels.

    Attributes:
        weights: [2, INPUTS] float64, w1 and w2.
        alpha, beta: [SINES] float64.
    """

    weights: np.ndarray
    alpha: np.ndarray
    beta: np.ndarray

    def means(self, inputs: np.ndarray) -> np.ndarray:
        """Labels without noise, [rows, 2] float64, of inputs [rows, INPUTS]: what no model can do better than."""
        projected = inputs.astype(np.float64) @ self.weights.T
        return projected + np.sin(projected[..., None] * self.alpha + self.beta).sum(axis=-1)


def draw_tasks(correlation: float, seed: int) -> Tasks:
    """Draws two tasks; directions and phases depend on the seed alone.

    Args:
        correlation: cosine of the tasks' weights, in [-1, 1].
        seed: any integer from 0 on.
    """
    first, other = np.random.default_rng([_DIRECTIONS, seed]).standard_normal((2, INPUTS))
    first = first / np.linalg.norm(first)
    other = other - (other @ first) * first
    other = other / np.linalg.norm(other)
    second = correlation * first + np.sqrt(1 - correlation**2) * other
    alpha, beta = np.random.default_rng([_PHASES, seed]).standard_normal((2, SINES))
    return Tasks(SCALE * np.stack([first, second]), alpha, beta)


def draw_rows(
    tasks: Tasks, mapping: int, rows: int, seed: int, rows_per_block: int = ROWS_PER_BLOCK
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draws rows in blocks; inputs and noise depend on (seed, mapping), fewer rows being the first of more.

    Args:
        tasks: what relates them.
        mapping: number of the mapping.
        rows: how many, in all.
        seed: any integer from 0 on.
        rows_per_block: most rows of a block; the rows do not depend on it.

    Yields:
        inputs [block, INPUTS] float32, and labels [block, 2] float32, which are those of the inputs as stored.
    """
    input_generator = np.random.default_rng([_INPUTS, seed, mapping])
    noise_generator = np.random.default_rng([_NOISE, seed, mapping])
    for start in range(0, rows, rows_per_block):
        size = min(rows_per_block, rows - start)
        inputs = input_generator.standard_normal((size, INPUTS)).astype(np.float32)
        noise = NOISE * noise_generator.standard_normal((size, 2))
        yield inputs, (tasks.means(inputs) + noise).astype(np.float32)
