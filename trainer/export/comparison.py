"""Comparison of an export's predictions with the model's. Does not import TensorFlow."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.export.ports import rows_of
from trainer.tasks.task import Task, logit_columns

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
    """

    name: str
    predict: Predict
    inputs: Arrays
    expected: Arrays
    kind: str


class ExportDiffers(RuntimeError):
    """The predictions of an export differ from the model's."""


def expected_predictions(tasks: Sequence[Task], logits: np.ndarray) -> dict[str, np.ndarray]:
    """Converts logits to predictions by task.

    Args:
        tasks: the model's tasks.
        logits: [rows, outputs] float32.

    Returns:
        Predictions [rows, width] float64 by task name.
    """
    places = zip(tasks, logit_columns(tasks), strict=True)
    return {task.name: task.predictions(logits[:, columns]) for task, columns in places}


def largest_difference(check: Check) -> float:
    """Returns the largest difference between actual and expected predictions.

    Differences are absolute, but relative for expected values beyond 1. All rows are predicted in one batch, and the
    first row once more on its own, which would fail with a fixed batch size.

    Raises:
        ExportDiffers: if names or shapes of the outputs differ, or a difference exceeds TOLERANCE.
    """
    differences = [0.0]
    for rows in (slice(None), slice(1)):
        found, wanted = check.predict(rows_of(check.inputs, rows)), rows_of(check.expected, rows)
        shapes, of_model = ({name: array.shape for name, array in arrays.items()} for arrays in (found, wanted))
        if shapes != of_model:
            raise ExportDiffers(f"the export gives outputs of the shapes {shapes}, the model {of_model}")
        differences += [difference(found[name], wanted[name]) for name in wanted]
    largest = float(np.max(differences))
    if not largest <= TOLERANCE:  # also true for NaN
        raise ExportDiffers(f"the export's predictions differ from the model's by {largest:.2g}, over {TOLERANCE}")
    return largest


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """Returns the largest difference, absolute, but relative where a wanted value is beyond 1; NaN if there is any."""
    return float(np.max(np.abs(found - wanted) / np.maximum(1, np.abs(wanted)), initial=0))
