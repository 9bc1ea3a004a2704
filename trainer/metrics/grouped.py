"""Grouped AUC: how well rows are ranked within their groups."""

import math
from typing import NamedTuple

import numpy as np

from trainer.metrics.metric import Collectives, Direction, Metric, error_of_sums
from trainer.metrics.rows import Rows
from trainer.metrics.sorting import (
    exchange_columns,
    number_groups,
    rising_key,
    run_starts,
    splitters,
    sum_before,
    sum_runs,
)


class GroupedAuc(Metric):
    """Mean over groups of the ROC AUC of their rows, weighted by each group's total weight.

        GAUC = sum over groups of W_g * AUC_g / sum over groups of W_g,    W_g = sum of the group's weights w

    over the groups that have rows of both classes; the others have no AUC and are left out. Without sample weights, W_g
    is the number of rows (impressions), as in Zhu et al., "Optimized Cost per Click in Taobao Display Advertising", KDD
    2017. AUC_g is computed as in RocAuc: sample weights count, ties count one half. NaN if no group has both classes.
    """

    name = "gauc"
    title = "GAUC"
    direction = Direction.LARGER
    needs_group = True

    def result(self, rows: Rows, comm: Collectives) -> float:
        """Compute the GAUC over the rows of all workers. A collective.

        It takes up to about 100 bytes per row while it runs, up to 150 with several workers.

        Raises:
            ValueError: the rows have no group.
        """
        inner, edges = _groups(rows, comm)
        area, weight = comm.sum_array(_weighted_area(inner)) + _weighted_area(edges)
        return float(area / weight) if weight > 0 else math.nan

    def standard_error(self, rows: Rows, comm: Collectives, value: float) -> float:
        """Compute the standard error of a weighted mean over groups that are drawn independently. A collective.

            SE = sqrt(n / (n - 1) * sum over groups of W_g^2 * (AUC_g - GAUC)^2) / sum over groups of W_g

        over the n groups that have rows of both classes.
        """
        inner, edges = _groups(rows, comm)
        return error_of_sums(comm.sum_array(_squares(inner, value)) + _squares(edges, value))


def _groups(rows: Rows, comm: Collectives) -> tuple["_Parts", "_Parts"]:
    """Return the groups of all rows: those that only this worker has, and the others, equal on every worker."""
    if rows.group is None:
        raise ValueError("GAUC ranks rows within groups, and these rows have no group")
    # The sign carries the label, so that one column less has to be sorted.
    signed_weights = np.where(rows.labels > 0, -rows.weights, rows.weights)
    table = _tabulate(rows.group, rows.logits, signed_weights)
    if comm.size > 1:
        table = _share(table, comm)
    ties = table.positive * table.negative / 2
    parts = _merge_parts(_Parts(table.group, table.positive, table.negative, ties))
    # Only a worker's first and last group can have parts on other workers, so only those are gathered.
    is_edge = np.zeros(len(parts.group), bool)
    is_edge[:1] = is_edge[-1:] = True
    edges = _merge_parts(_Parts(*(comm.gather_rows(column[is_edge]) for column in parts)))
    inner = _Parts(*(column[~is_edge] for column in parts))
    return inner, edges


class _Table(NamedTuple):
    """One line per distinct group and score, by group and increasing score, each column [lines].

    Attributes:
        group: int64 group IDs.
        scores: float32 scores.
        positive: float64, weight of the rows with label 1.
        negative: float64, weight of the rows with label 0.
    """

    group: np.ndarray
    scores: np.ndarray
    positive: np.ndarray
    negative: np.ndarray


class _Parts(NamedTuple):
    """Contiguous parts of groups, by group and increasing score, each column [parts].

    Attributes:
        group: int64 group IDs.
        positive: float64, weight of the rows with label 1.
        negative: float64, weight of the rows with label 0.
        pairs: float64, weight of the correctly ordered pairs within the part; ties count one half.
    """

    group: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    pairs: np.ndarray


def _tabulate(group: np.ndarray, scores: np.ndarray, signed_weights: np.ndarray) -> _Table:
    """Build this worker's own table; weights ([rows] float32) of positive rows are negative."""
    order = _order(group, scores)
    group, scores, signed_weights = group[order], scores[order], signed_weights[order]
    del order
    starts = run_starts(group, scores)
    return _Table(
        group[starts],
        scores[starts],
        sum_runs(np.maximum(-signed_weights, 0), starts, np.float64),
        sum_runs(np.maximum(signed_weights, 0), starts, np.float64),
    )


def _order(group: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the positions [rows] that sort by group and increasing score."""
    order, _, packed = number_groups(group)
    packed <<= np.uint64(32)
    packed |= rising_key(scores[order])
    return order[np.argsort(packed)]


def _share(table: _Table, comm: Collectives) -> _Table:
    """Return this worker's part of the table of all rows. A collective.

    Parts are in rank order and have about equally many lines, however large a group is: a group may continue on the
    next worker.
    """
    ends = []
    for group, score in zip(*splitters((table.group, table.scores), _order, comm), strict=True):
        first, last = np.searchsorted(table.group, group, "left"), np.searchsorted(table.group, group, "right")
        ends.append(first + np.searchsorted(table.scores[first:last], score))
    counts = np.diff(ends, prepend=0, append=len(table.group))
    received = _Table(*exchange_columns(table, counts.tolist(), comm))
    order = _order(received.group, received.scores)
    group, scores, positive, negative = (column[order] for column in received)
    starts = run_starts(group, scores)
    sums = (sum_runs(column, starts, np.float64) for column in (positive, negative))
    return _Table(group[starts], scores[starts], *sums)


def _merge_parts(parts: _Parts) -> _Parts:
    """Join parts into one per group: a positive outscores all negatives of the group's earlier parts."""
    starts = run_starts(parts.group)
    pairs = parts.pairs + parts.positive * _weight_before(parts.negative, starts)
    sums = (sum_runs(column, starts, np.float64) for column in (parts.positive, parts.negative, pairs))
    return _Parts(parts.group[starts], *sums)


def _weight_before(weights: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the sum of the weights ([parts] float64) before each one in its group; groups begin at `starts`.

    Differences of running sums over all groups would leave few correct digits for a small group after large ones. So
    the weights are split in two: multiples of a unit whose running sums are exact in float64, and small remainders.
    """
    # A power of two at least 2^-51 of the total: sums of its multiples fit into float64's 53 bits.
    unit = math.ldexp(1, math.frexp(weights.sum())[1] - 51)
    coarse = np.rint(weights / unit) * unit
    return sum_before(coarse, starts) + sum_before(weights - coarse, starts)


def _weighted_area(groups: _Parts) -> np.ndarray:
    """Return the sum of weight * AUC over the groups with both classes, and the sum of their weights, [2] float64."""
    pairs = groups.positive * groups.negative
    known = pairs > 0
    weights = (groups.positive + groups.negative)[known]
    return np.array([weights @ (groups.pairs[known] / pairs[known]), weights.sum()])


def _squares(groups: _Parts, mean: float) -> np.ndarray:
    """Return the sums of (weight * (AUC - mean))^2 and of weight, and the number, of the groups with both classes."""
    pairs = groups.positive * groups.negative
    known = pairs > 0
    weights = (groups.positive + groups.negative)[known]
    deviations = weights * (groups.pairs[known] / pairs[known] - mean)
    return np.array([deviations @ deviations, weights.sum(), len(weights)])
