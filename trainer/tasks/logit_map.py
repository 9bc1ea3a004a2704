"""The map from a binary task's logit to the logit of the probability that every output shows.

It is applied in `BinaryTask` alone, to what the network computes, and never in training: the evaluation, predictions
files, the Recommender and all exports go through it. It is stored with checkpoints and models as plain JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trainer.lazy import tf
from trainer.metrics.rows import as_logits

# Slope of an isotonic map beyond its knots, where rows say nothing: enough to keep the order of the best and the worst
# rows, on which rankings depend, and too little to matter otherwise (6 units of the logit change the odds by 10 %).
END_SLOPE = 1 / 64


@dataclass(frozen=True)
class Platt:
    """A straight line in the logit (Platt, "Probabilistic Outputs for Support Vector Machines", 1999).

    Attributes:
        slope: factor of the logit, at least 0.
        intercept: logit of the probability where the logit is 0.

    Raises:
        ValueError: the slope is negative, so that the map would reverse the order of rows.
    """

    slope: float
    intercept: float

    def __post_init__(self) -> None:
        if self.slope < 0:
            raise ValueError(f"slope is {self.slope}, expected at least 0")

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Map logits, [...] float64 both."""
        return self.slope * logits + self.intercept

    def in_graph(self, logits: tf.Tensor) -> tf.Tensor:
        """Map logits, [...] float32 both."""
        return self.slope * logits + self.intercept

    def __str__(self) -> str:
        return f"{self.slope:.5g} times the logit {self.intercept:+.5g}"


@dataclass(frozen=True)
class Isotonic:
    """A piecewise linear function of the logit. Below the first knot and above the last its slope is END_SLOPE.

    Attributes:
        scores: logits of the knots, strictly increasing float32 values; at least one.
        logits: values at the knots, as many non-decreasing float32 values.

    Raises:
        ValueError: the numbers are no such function.
    """

    scores: tuple[float, ...]
    logits: tuple[float, ...]

    def __post_init__(self) -> None:
        scores, logits = np.array(self.scores, np.float32), np.array(self.logits, np.float32)
        if not len(scores) == len(logits) > 0:
            raise ValueError(f"{len(scores)} scores and {len(logits)} logits, expected as many of both, at least 1")
        if (np.diff(scores) <= 0).any() or (np.diff(logits) < 0).any():
            raise ValueError("the scores of an isotonic map do not increase, or its logits decrease")

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Map logits, [...] float64 both."""
        beyond = np.minimum(logits - self.scores[0], 0) + np.maximum(logits - self.scores[-1], 0)
        return np.interp(logits, self.scores, self.logits) + END_SLOPE * beyond

    def in_graph(self, logits: tf.Tensor) -> tf.Tensor:
        """Map logits, [...] float32 both.

        A binary search of gathers and comparisons, which every format can represent: ONNX has no operator that finds
        the place of a number among sorted ones.
        """
        number = len(self.scores)
        scores, values = tf.constant(self.scores, tf.float32), tf.constant(self.logits, tf.float32)
        bits = number.bit_length()
        padded = tf.constant([*self.scores, *[math.inf] * (2**bits - 1 - number)], tf.float32)
        passed = tf.zeros_like(logits, tf.int32)  # number of knots at or below each logit, from its highest bit on
        for size in [2**bit for bit in reversed(range(bits))]:
            passed += tf.where(tf.gather(padded, passed + (size - 1)) <= logits, size, 0)
        before, after = tf.maximum(passed - 1, 0), tf.minimum(passed, number - 1)
        left, right = tf.gather(scores, before), tf.gather(scores, after)
        low, high = tf.gather(values, before), tf.gather(values, after)
        width = tf.where(after > before, right - left, 1.0)
        share = tf.where(after > before, (logits - left) / width, 0.0)
        beyond = tf.minimum(logits - self.scores[0], 0.0) + tf.maximum(logits - self.scores[-1], 0.0)
        return low + share * (high - low) + END_SLOPE * beyond

    def __str__(self) -> str:
        return f"isotonic with {len(self.scores):,} knots"


@dataclass(frozen=True)
class LogitMap:
    """A shift of a task's logit, then a calibrator. Neither reverses the order of two rows.

    Attributes:
        shift: correction of the log-odds, added to the logit: the known one of `trainer.tasks.shifts` and, after
            training with kept negatives, the intercept of `trainer.tasks.intercept`.
        calibrator: map of the shifted logit, fitted on rows that were not trained on; None for none.
    """

    shift: float = 0.0
    calibrator: Platt | Isotonic | None = None

    @property
    def is_identity(self) -> bool:
        """Whether logits are left as they are."""
        return self == LogitMap()

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Map logits, [...] float32 both, rounded once from float64."""
        if self.is_identity:
            return logits
        mapped = logits.astype(np.float64) + self.shift
        return as_logits(mapped if self.calibrator is None else self.calibrator(mapped))

    def in_graph(self, logits: tf.Tensor) -> tf.Tensor:
        """Map logits, [...] float32 both."""
        shifted = logits + self.shift if self.shift else logits
        return shifted if self.calibrator is None else self.calibrator.in_graph(shifted)

    def __str__(self) -> str:
        parts = [f"logit {self.shift:+.5g} (odds times {math.exp(self.shift):.5g})"] if self.shift else []
        return ", then ".join([*parts, *([] if self.calibrator is None else [str(self.calibrator)])])


def described(maps: Mapping[str, LogitMap]) -> str:
    """Return a line on the maps that change something, by label; empty if none does."""
    return "; ".join(f"{label}: {one}" for label, one in maps.items() if not one.is_identity)
