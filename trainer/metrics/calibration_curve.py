"""Data of a calibration curve: predictions and observed labels, from the lowest predictions to the highest."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from trainer.metrics.calibration import BINS, calibration_sums
from trainer.metrics.collectives import Collectives
from trainer.metrics.rows import Rows
from trainer.metrics.score_table import ScoreTable

CURVE = "calibration_curve"  # the key in the log, before a task's name
POINTS = 20


class CalibrationCurve(NamedTuple):
    """One entry per non-empty bin, by increasing prediction.

    Attributes:
        weight: [bins] float64, sum of the sample weights.
        prediction: [bins] float64, weighted mean of the predicted probabilities.
        label: [bins] float64, weighted mean of the labels.
    """

    weight: np.ndarray
    prediction: np.ndarray
    label: np.ndarray


def calibration_curve(table: ScoreTable, rows: Rows, comm: Collectives) -> CalibrationCurve:
    """Computes the curve over the rows of all workers, equal on all of them. A collective.

    It has 20 bins of equal mass, each made of five adjacent bins of the calibration error's 100, so rows of equal logit
    share a bin. Empty bins are omitted.

    Args:
        table: result of score_table for the rows.
        rows: this worker's rows of a binary task.
        comm: collectives of the group of workers.
    """
    predicted, actual, weight = calibration_sums(table, rows, comm).reshape(3, POINTS, BINS // POINTS).sum(axis=2)
    held = weight > 0
    weight = weight[held]
    return CalibrationCurve(weight, predicted[held] / weight, actual[held] / weight)


def as_records(curves: Mapping[str, CalibrationCurve]) -> dict[str, dict[str, list[float]]]:
    """Converts curves to their log format: key -> weight, prediction and label -> one value per bin."""
    return {key: {name: column.tolist() for name, column in curve._asdict().items()} for key, curve in curves.items()}
