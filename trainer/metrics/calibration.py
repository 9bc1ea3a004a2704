"""Calibration: whether predicted probabilities match observed frequencies."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from trainer.metrics.metric import Collectives, Direction, Metric, blocks, error_of_ratio, weighted_sums
from trainer.metrics.rows import Rows
from trainer.metrics.score_table import ScoreMetric, ScoreTable

BINS = 100  # of the calibration error
POINTS = 20  # of the calibration curve; divides BINS
# The keys in the log, before a task's name: of the predictions, and of what they would be without a calibrator.
CURVE, UNCALIBRATED_CURVE = "calibration_curve", "uncalibrated_curve"


class Calibration(Metric):
    """Ratio of predicted to actual positives.

        calibration = sum of w * p / sum of w * y

    with probability p, label y and sample weight w of each row. 1 is best; above 1, the model overpredicts (He et al.,
    "Practical Lessons from Predicting Clicks on Ads at Facebook", ADKDD 2014: "the ratio of the average estimated CTR
    and empirical CTR"). NaN if no row is positive.
    """

    name = "calibration"
    title = "Calibration"
    direction = Direction.NEAREST_1

    def result(self, rows: Rows, comm: Collectives) -> float:
        """Compute the ratio over the rows of all workers. A collective."""
        predicted, actual, _ = weighted_sums(rows, comm, _predicted, _actual)
        return predicted / actual if actual > 0 else math.nan

    def standard_error(self, rows: Rows, comm: Collectives, value: float) -> float:
        """Compute the standard error of the ratio. A collective."""
        return error_of_ratio(rows, comm, value, _predicted, _actual)


def _predicted(rows: Rows) -> np.ndarray:
    return probability(rows.logits)


def _actual(rows: Rows) -> np.ndarray:
    return rows.labels.astype(np.float64)


class CalibrationError(ScoreMetric):
    """Expected calibration error over 100 bins of equal mass, by increasing score.

        ECE = sum over bins of |sum of w * p - sum of w * y| / sum of w over all rows

    This is the mass-weighted mean over bins of |mean prediction - mean label| (Naeini et al., "Obtaining Well
    Calibrated Probabilities Using Bayesian Binning", AAAI 2015; with bins of equal mass as in Nixon et al., "Measuring
    Calibration in Deep Learning", CVPR workshops 2019). NaN if there are no rows.

    Rows of equal float32 logit share a bin, the one that contains the middle of their mass: bin
    floor(100 * (c + m / 2) / M) for their mass m, the mass c of lower scores and the total mass M. A bin may thus hold
    more than a hundredth, or nothing, and neither the order of rows nor their worker matters. To make this exact to the
    last bit, the masses that assign rows to bins are integers: weights in units of 1 / 2 ** 22 of the largest weight,
    rounded. (The sums within bins use the original weights.)
    """

    name = "calibration_error"
    title = "Calibration error"
    direction = Direction.SMALLER

    def of_table(self, table: ScoreTable, rows: Rows, comm: Collectives) -> float:
        """Compute the error from an existing score table. A collective."""
        predicted, actual, weight = calibration_sums(table, rows, comm)
        total = weight.sum()
        return float(np.abs(predicted - actual).sum() / total) if total > 0 else math.nan


def calibration_sums(table: ScoreTable, rows: Rows, comm: Collectives) -> np.ndarray:
    """Return the sums of w * p, of w * y and of w in each bin of equal mass, [3, 100] float64. A collective.

    Args:
        table: result of score_table for the rows.
        rows: this worker's rows of a binary task.
        comm: collectives of the group of workers.
    """
    borders = _bin_borders(table, comm)
    sums = np.zeros((3, BINS))
    for block in blocks(rows):
        bins = np.searchsorted(borders, block.logits, side="right")
        predicted = probability(block.logits) * block.weights
        actual = block.labels * block.weights
        sums += [np.bincount(bins, values, BINS) for values in (predicted, actual, block.weights)]
    return comm.sum_array(sums)


def probability(logits: np.ndarray) -> np.ndarray:
    """Apply the logistic function in float64, without overflow: [rows] float -> [rows] float64."""
    small = np.exp(-np.abs(logits.astype(np.float64)))
    return np.where(logits >= 0, 1, small) / (1 + small)


def _bin_borders(table: ScoreTable, comm: Collectives) -> np.ndarray:
    """Return the lowest score in bin 1 or above, 2 or above, ..., [99] float32, rising; infinite if there is none."""
    mass = table.mass.astype(np.int64)
    shares = comm.gather_rows(mass.sum(keepdims=True))
    # Doubled to stay in integers: 2 c + m per score, c including the lower-ranked workers' mass.
    twice_middle = 2 * (np.cumsum(mass) + shares[: comm.rank].sum()) - mass
    bins = np.minimum(twice_middle * (BINS // 2) // shares.sum(), BINS - 1)
    first = np.searchsorted(bins, np.arange(1, BINS))
    # The lowest score over all workers; a worker without such a score contributes infinity.
    return comm.gather_rows(np.append(table.scores, np.float32(np.inf))[first][np.newaxis]).min(axis=0)


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
    """Compute the curve over the rows of all workers, equal on all of them. A collective.

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
    """Convert curves to their log format: key -> weight, prediction and label -> one value per bin."""
    return {key: {name: column.tolist() for name, column in curve._asdict().items()} for key, curve in curves.items()}
