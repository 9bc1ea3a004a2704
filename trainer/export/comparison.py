"""Comparison of an export's predictions with the model's. Does not import TensorFlow."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from data.spec.features import SCORE
from trainer.export.ports import rows_of
from trainer.tasks.score import Score, predicted
from trainer.tasks.task import Task

# Absolute for values up to 1, relative for larger ones (values of a regression). Predictions are float32.
TOLERANCE = 1e-5

Arrays = Mapping[str, np.ndarray]
# A function from named inputs, [rows, width] each, to named predictions, [rows, width] each.
Predict = Callable[[Arrays], Arrays]


@dataclass(frozen=True)
class Check:
    """Something in an export that predicts, and what it has to predict.

    Attributes:
        name: what predicts, for messages: a signature or a file.
        predict: its prediction function.
        inputs: inputs by name, [rows, width] each.
        expected: the model's predictions by task name, [rows, width] each.
        kind: what the rows are, for messages.
        score: the model's score; None for none.
        numbers: the numbers that it reads, [rows, numbers] float32.
    """

    name: str
    predict: Predict
    inputs: Arrays
    expected: Arrays
    kind: str
    score: Score | None = None
    numbers: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))

    def wanted(self, found: Arrays, rows: slice) -> dict[str, np.ndarray]:
        """Return what some rows should give.

        The score is computed from the export's own predictions: a formula may enlarge their rounding errors to any
        extent.
        """
        wanted = rows_of(self.expected, rows)
        if self.score is None or not wanted.keys() <= found.keys():
            return wanted
        return wanted | {SCORE: self.score([found[name] for name in wanted], self.numbers[rows])}


class ExportDiffers(RuntimeError):
    """The predictions of an export differ from the model's."""


def expected_predictions(tasks: Sequence[Task], logits: np.ndarray) -> dict[str, np.ndarray]:
    """Convert logits to predictions by task.

    Args:
        tasks: the model's tasks.
        logits: [rows, outputs] float32.

    Returns:
        Predictions [rows, width] float64 by task name.
    """
    return predicted(tasks, None, logits, None)


def largest_difference(check: Check) -> float:
    """Return the largest difference between actual and expected predictions.

    Differences are absolute, but relative for expected values beyond 1. All rows are predicted in one batch, and the
    first row once more on its own, which would fail with a fixed batch size.

    Raises:
        ExportDiffers: if names or shapes of the outputs differ, or a difference exceeds TOLERANCE.
    """
    differences = [0.0]
    for rows in (slice(None), slice(1)):
        found = check.predict(rows_of(check.inputs, rows))
        wanted = check.wanted(found, rows)
        shapes, of_model = ({name: array.shape for name, array in arrays.items()} for arrays in (found, wanted))
        if shapes != of_model:
            raise ExportDiffers(f"the export gives outputs of the shapes {shapes}, the model {of_model}")
        differences += [difference(found[name], wanted[name]) for name in check.expected]
        if check.score is not None:
            differences.append(_difference_of_scores(found[SCORE], wanted[SCORE]))
    largest = float(np.max(differences))
    if not largest <= TOLERANCE:  # also true for NaN
        raise ExportDiffers(f"the export's predictions differ from the model's by {largest:.2g}, over {TOLERANCE}")
    return largest


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the largest difference, absolute, but relative where a wanted value is beyond 1; NaN if there is any."""
    return float(np.max(np.abs(found - wanted) / np.maximum(1, np.abs(wanted)), initial=0))


def _difference_of_scores(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the difference of scores, which may be NaN or infinite in both."""
    same = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
    return difference(found[~same], wanted[~same])
