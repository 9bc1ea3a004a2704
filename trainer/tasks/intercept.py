"""The intercept of a model whose training left out negatives, refitted when training has ended.

A trained network's mean prediction is off by a few percent: its intercept depends on the last few batches, and dropout
before a normalized layer gives that layer other moments in training than afterwards (Li et al., "Understanding the
Disharmony Between Dropout and Batch Normalization by Variance Shift", CVPR 2019). The maximum-likelihood intercept has
neither error. It is the b that solves

    sum over the kept rows of v (sigmoid(z + b) - y) = 0

with labels y, log-odds z among the kept rows (`trainer.tasks.shifts.logit_among_kept`), and the weights v that rows had
before negatives were left out.

*Why kept negatives do not weigh 1 / r here.* A training row has pulled its own prediction towards its label, in
proportion to the gradient of its loss; a new row has not. In the sum over the kept rows, these pulls cancel on average,
as the gradients of positive and negative rows do where training ends: with either loss, weighted by 1 / r or not. If
kept negatives weighed 1 / r in the sum, the pull of a negative row would count 1 / r times that of a positive one. The
mean prediction would be lower for training rows than for new ones, and b too high.
"""

import numpy as np
from scipy.optimize import brentq

from trainer.metrics.calibration import probability
from trainer.metrics.metric import Collectives, blocks
from trainer.metrics.rows import Rows

MAX_ROWS = 2**20  # of all workers: with some percent of positive ones, enough for odds that are right to 1%
LIMIT = 10.0  # a model that is further off has learned nothing


def fit_intercept(rows: Rows, comm: Collectives) -> float:
    """Return what to add to the logits so that their mean probability is the mean label. A collective.

    Args:
        rows: this worker's rows, with log-odds among the kept rows as logits.
        comm: collectives over the workers.

    Returns:
        The maximum-likelihood intercept, clipped to [-LIMIT, LIMIT]; 0 if all rows are positive, or all negative.
    """
    weights = rows.weights.astype(np.float64)
    is_positive = rows.labels > 0
    own = np.array([weights @ is_positive, weights @ ~is_positive])
    positive, negative = comm.sum_array(own).tolist()
    if 0 in (positive, negative):
        return 0.0

    def excess(intercept: float) -> float:
        """Return the mean probability with an intercept, less the mean label."""
        own = sum(
            block.weights.astype(np.float64) @ probability(block.logits.astype(np.float64) + intercept)
            for block in blocks(rows)
        )
        return float((comm.sum_array(np.array([own], np.float64))[0] - positive) / (positive + negative))

    if excess(-LIMIT) >= 0:
        return -LIMIT
    if excess(LIMIT) <= 0:
        return LIMIT
    return float(brentq(excess, -LIMIT, LIMIT, xtol=1e-9))
