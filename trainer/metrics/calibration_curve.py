"""Predictions beside what happened, from the lowest predictions to the highest: the data of a calibration curve."""

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
    """A line per bin that holds a row, by rising prediction.

    Attributes:
        weight: [bins] float64, sum of the sample weights.
        prediction: [bins] float64, weighted mean of the predicted probabilities.
        label: [bins] float64, weighted mean of the labels.
    """

    weight: np.ndarray
    prediction: np.ndarray
    label: np.ndarray


def calibration_curve(table: ScoreTable, rows: Rows, comm: Collectives) -> CalibrationCurve:
    """The curve over the rows of all workers, equal on all of them. A collective.

    It has 20 bins of equal mass, each five neighbours of the 100 that the calibration error is made of: rows of equal
    logit share a bin. A bin without a row is left out.

    Args:
        table: what score_table gives for the rows.
        rows: this worker's rows of a binary task.
        comm: this worker's view of the group.
    """
    predicted, actual, weight = calibration_sums(table, rows, comm).reshape(3, POINTS, BINS // POINTS).sum(axis=2)
    held = weight > 0
    weight = weight[held]
    return CalibrationCurve(weight, predicted[held] / weight, actual[held] / weight)


def as_records(curves: Mapping[str, CalibrationCurve]) -> dict[str, dict[str, list[float]]]:
    """Curves by key as the log has them: key -> weight, prediction and label -> a value per bin."""
    return {key: {name: column.tolist() for name, column in curve._asdict().items()} for key, curve in curves.items()}
