"""What an export predicts beside what the model predicts. Imports no TensorFlow."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from trainer.export.ports import rows_of
from trainer.metrics.calibration import probability
from trainer.predictions import softmax
from trainer.tasks import Task, logit_columns

# Of float32 numbers up to 1, and relative to larger ones (a regression's values).
TOLERANCE = 1e-5

# Named inputs, [rows, width] each, to named predictions, [rows, width] each.
Predict = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


class ExportDiffers(RuntimeError):
    """An export that predicts something else than the model."""


def expected_predictions(tasks: Sequence[Task], logits: np.ndarray) -> dict[str, np.ndarray]:
    """What a model's logits [rows, outputs] float32 say, per task [rows, width] float64."""
    functions = {"binary": probability, "multiclass": softmax, "regression": lambda values: values.astype(np.float64)}
    places = zip(tasks, logit_columns(tasks), strict=True)
    return {task.name: functions[task.kind](logits[:, columns]) for task, columns in places}


def largest_difference(predict: Predict, inputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """Between predictions and what is expected, over all rows at once and the first row alone.

    Absolute, but relative to values beyond 1.

    Raises:
        ExportDiffers: outputs of other names or shapes, or a difference above TOLERANCE.
    """
    differences = [0.0]
    for rows in (slice(None), slice(1)):
        found, wanted = predict(rows_of(inputs, rows)), rows_of(expected, rows)
        shapes, of_model = ({name: array.shape for name, array in arrays.items()} for arrays in (found, wanted))
        if shapes != of_model:
            raise ExportDiffers(f"the export gives outputs of the shapes {shapes}, the model {of_model}")
        differences += [_difference(found[name], wanted[name]) for name in wanted]
    largest = float(np.max(differences))
    if not largest <= TOLERANCE:  # nor is NaN
        raise ExportDiffers(f"the export's predictions differ from the model's by {largest:.2g}, over {TOLERANCE}")
    return largest


def _difference(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.max(np.abs(found - wanted) / np.maximum(1, np.abs(wanted)), initial=0))
