"""Calibrators, fitted to the rows of all workers that a binary task has been evaluated on.

Both are the best non-decreasing map of their kind: (nearly) constant where logits order the rows the wrong way round.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy.optimize import isotonic_regression

from trainer.metrics.calibration import probability
from trainer.metrics.metric import Collectives, blocks
from trainer.metrics.rows import Rows
from trainer.metrics.score_table import score_table
from trainer.tasks.logit_map import Isotonic, Platt

MAX_ITERATIONS, MAX_HALVINGS = 100, 40
LEAST_GAIN = 1e-12  # decrease of the mean loss, in nats, that ends Newton's method


def fit_platt(rows: Rows, comm: Collectives) -> Platt:
    """Fit a line in the logit by maximum likelihood. A collective.

    The targets are Platt's: (n1 + 1) / (n1 + 2) and 1 / (n0 + 2) for n1 positive and n0 negative rows, so that
    separable rows have a finite optimum. The weighted loss is convex and minimized by Newton's method with backtracking
    (Lin, Lin and Weng, "A note on Platt's probabilistic outputs for support vector machines", Machine Learning 2007),
    in float64 sums over all workers; it takes a fixed amount of memory.

    Args:
        rows: this worker's rows, as metrics get them. Over all workers there are positive and negative ones.
        comm: collectives of the group of workers.
    """
    ones = float((rows.labels > 0).sum())
    positive, number = comm.sum_array(np.array([ones, len(rows.labels)])).tolist()
    targets = 1 / (number - positive + 2), (positive + 1) / (positive + 2)
    line = np.array([0.0, math.log((positive + 1) / (number - positive + 1))])  # slope and intercept
    loss, gradient, hessian, weight = _platt_sums(line, targets, rows, comm)
    for _ in range(MAX_ITERATIONS):
        step = np.linalg.lstsq(hessian, -gradient, rcond=None)[0]
        slope = float(gradient @ step)  # of the loss along the step, negative
        if -slope <= LEAST_GAIN * weight:
            break
        for halvings in range(MAX_HALVINGS):
            trial = line + step / 2**halvings
            sums = _platt_sums(trial, targets, rows, comm)
            if sums[0] <= loss + 1e-4 * slope / 2**halvings:
                break
        else:
            break  # rounding: no point on the way is better
        line, (loss, gradient, hessian, weight) = trial, sums
    if line[0] >= 0:
        return Platt(*map(float, line))
    mean = _mean_target(targets, rows, comm)  # the best constant, as the loss is convex
    return Platt(0.0, math.log(mean / (1 - mean)))


def _platt_sums(
    line: np.ndarray, targets: tuple[float, float], rows: Rows, comm: Collectives
) -> tuple[float, np.ndarray, np.ndarray, float]:
    """Return loss, gradient [2] and Hessian [2, 2] of a line, and the sum of weights, over all workers' rows."""
    sums = np.zeros(7)
    for block in blocks(rows):
        scores, weights = block.logits.astype(np.float64), block.weights.astype(np.float64)
        logits, target = line[0] * scores + line[1], np.where(block.labels > 0, targets[1], targets[0])
        mean = probability(logits)
        losses = np.logaddexp(0, logits) - target * logits
        error, curvature = weights * (mean - target), weights * mean * (1 - mean)
        columns = error * scores, error, curvature * scores * scores, curvature * scores, curvature, weights
        sums += [losses @ weights, *(column.sum() for column in columns)]
    loss, to_slope, to_intercept, twice_slope, mixed, twice_intercept, weight = comm.sum_array(sums).tolist()
    hessian = np.array([[twice_slope, mixed], [mixed, twice_intercept]])
    return loss, np.array([to_slope, to_intercept]), hessian, weight


def _mean_target(targets: tuple[float, float], rows: Rows, comm: Collectives) -> float:
    weights = rows.weights.astype(np.float64)
    own = np.array([weights @ np.where(rows.labels > 0, targets[1], targets[0]), weights.sum()])
    total, weight = comm.sum_array(own).tolist()
    return total / weight


def fit_isotonic(rows: Rows, comm: Collectives) -> Isotonic:
    """Fit the best non-decreasing function of the logit: pool adjacent violators on the table of scores. A collective.

    The regression (Zadrozny and Elkan, "Transforming Classifier Scores into Accurate Multiclass Probability Estimates",
    KDD 2002) is exact over all workers, up to the rounding of float64 sums. Each pools its own range of scores; as the
    order of poolings does not matter, pooling the gathered blocks again gives that of all rows. That is little: n rows
    of equal weight have at most 0.9 n ** (2/3) blocks, as their means are different fractions of at most n rows in all.

    One row of mean weight and the other label is added at either end (Laplace's rule of succession), so that no
    probability is 0 or 1. A block's mean label is the prediction at the weighted mean of its logits; in between, the
    logit of the prediction is linear in the logit, and so increases with it (centered isotonic regression: Oron and
    Flournoy, "Centered Isotonic Regression", Statistics in Biopharmaceutical Research 2017). Beyond the first and the
    last block it is nearly constant (`END_SLOPE`). Rows of different logits are thus tied by rounding alone.

    Args:
        rows: this worker's rows, as metrics get them. Over all workers there are positive and negative ones.
        comm: collectives of the group of workers.
    """
    table = score_table(rows, comm)
    weights = table.positive + table.negative
    lines = np.stack([table.positive, table.negative, weights, weights * table.scores.astype(np.float64)], axis=1)
    lines = comm.gather_rows(_pooled(lines))
    number = float(comm.sum_array(np.array([len(rows.labels)], np.int64))[0])
    mean_weight = lines[:, 2].sum() / number
    lines[0, 0] += mean_weight
    lines[-1, 1] += mean_weight
    positive, negative, weights, scores = _pooled(lines).T
    centers, logits = (scores / weights).astype(np.float32), np.log(positive / negative).astype(np.float32)
    return Isotonic(tuple(centers.tolist()), tuple(logits.tolist()))


def _pooled(lines: np.ndarray) -> np.ndarray:
    """Sum adjacent lines until the share of positives strictly increases.

    Args:
        lines: weights of positive and of negative rows first, [lines, columns] float64, by increasing score.

    Returns:
        [blocks, columns] float64.
    """
    if not len(lines):
        return lines
    weights = lines[:, 0] + lines[:, 1]
    blocks_of_lines = isotonic_regression(lines[:, 0] / weights, weights=weights).blocks
    return np.add.reduceat(lines, blocks_of_lines[:-1], axis=0)


# --calibrate NAME: what fits that calibrator.
CALIBRATORS: dict[str, Callable[[Rows, Collectives], Platt | Isotonic]] = {
    "platt": fit_platt,
    "isotonic": fit_isotonic,
}
