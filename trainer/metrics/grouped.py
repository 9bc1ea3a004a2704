"""Metrics that rank rows within groups: grouped AUC, and mean average precision (MAP@12)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trainer.metrics.metric import Collectives, Direction, Metric
from trainer.metrics.rows import Rows
from trainer.metrics.sorting import (
    exchange_columns,
    number_groups,
    rising_key,
    run_starts,
    score_of_key,
    splitters,
    sum_before,
    sum_runs,
)

RANKS = 12  # MAP@12, the measure of the click prediction contest that the recipe is based on
_HARMONIC = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, RANKS + 1))])
_HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2 ** 64 / golden ratio: spreads adjacent IDs evenly


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
        """Computes the GAUC over the rows of all workers. A collective.

        Takes up to about 100 bytes per row while it runs, up to 150 with several workers.

        Raises:
            ValueError: the rows have no group.
        """
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
        area, weight = comm.sum_array(_weighted_area(inner)) + _weighted_area(edges)
        return float(area / weight) if weight > 0 else math.nan


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
    """Builds this worker's own table; weights ([rows] float32) of positive rows are negative."""
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
    """Returns the positions [rows] that sort by group and increasing score."""
    order, _, packed = number_groups(group)
    packed <<= np.uint64(32)
    packed |= rising_key(scores[order])
    return order[np.argsort(packed)]


def _share(table: _Table, comm: Collectives) -> _Table:
    """Returns this worker's part of the table of all rows. A collective.

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
    """Joins parts into one per group: a positive outscores all negatives of the group's earlier parts."""
    starts = run_starts(parts.group)
    pairs = parts.pairs + parts.positive * _weight_before(parts.negative, starts)
    sums = (sum_runs(column, starts, np.float64) for column in (parts.positive, parts.negative, pairs))
    return _Parts(parts.group[starts], *sums)


def _weight_before(weights: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Returns the sum of the weights ([parts] float64) before each one in its group; groups begin at `starts`.

    Differences of running sums over all groups would leave few correct digits for a small group after large ones. So
    the weights are split in two: multiples of a unit whose running sums are exact in float64, and small remainders.
    """
    # A power of two at least 2^-51 of the total: sums of its multiples fit into float64's 53 bits.
    unit = math.ldexp(1, math.frexp(weights.sum())[1] - 51)
    coarse = np.rint(weights / unit) * unit
    return sum_before(coarse, starts) + sum_before(weights - coarse, starts)


def _weighted_area(groups: _Parts) -> np.ndarray:
    """Returns the sum of weight * AUC over the groups with both classes, and the sum of their weights, [2] float64."""
    pairs = groups.positive * groups.negative
    known = pairs > 0
    weights = (groups.positive + groups.negative)[known]
    return np.array([weights @ (groups.pairs[known] / pairs[known]), weights.sum()])


class MeanAveragePrecision(Metric):
    """Mean over groups of the average precision within the first 12 ranks.

        AP = sum over ranks k <= 12 with a positive of (positives in ranks 1 to k) / k
             / min(12, positives in the group)

    Rows are ranked by decreasing logit. Groups without a positive are left out. For tied float32 logits, AP is its
    expectation over all orders of the tied rows (McSherry and Najork, "Computing Information Retrieval Performance
    Measures Efficiently in the Presence of Tied Scores", ECIR 2008), so nothing depends on the order of rows. Sample
    weights are ignored, except that rows of weight 0 are dropped. NaN if no group has a positive.
    """

    name = "streaming_map_val"
    title = "MAP@12"
    direction = Direction.LARGER
    headline = 5
    needs_group = True

    def result(self, rows: Rows, comm: Collectives) -> float:
        """Computes the MAP over the rows of all workers. A collective.

        Takes about 70 bytes per row while it runs, up to 150 with several workers.

        Raises:
            ValueError: the rows have no group.
        """
        if rows.group is None:
            raise ValueError("MAP@12 ranks rows within groups, and these rows have no group")
        ties = _ties_of_rows(rows.group, rows.logits, rows.labels)
        if comm.size > 1:
            ties = _cut(ties)
            ties = _merged(_share_by_group(ties, comm))
        precisions = _average_precisions(ties)
        total, groups = comm.sum_array(np.array([precisions.sum(), len(precisions)]))
        return float(total / groups) if groups else float("nan")


class _Ties(NamedTuple):
    """Blocks of rows with equal group and score, by group and decreasing score, each column [blocks].

    Attributes:
        group: int64 group IDs.
        scores: float32 scores.
        rows: int64, number of rows in the block.
        positives: int64, number of rows with label 1.
    """

    group: np.ndarray
    scores: np.ndarray
    rows: np.ndarray
    positives: np.ndarray


def _ties_of_rows(group: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> _Ties:
    """Builds the blocks of this worker's rows."""
    order, names, packed = number_groups(group)
    # One integer per row, sorted at once. From the highest bit: 31 bits of group number, 32 of score, 1 of label.
    packed <<= np.uint64(33)
    packed |= rising_key(-logits[order]).astype(np.uint64) << np.uint64(1)
    packed |= (labels[order] > 0).view(np.uint8)
    del order
    packed.sort()
    blocks = packed >> np.uint64(1)
    starts = run_starts(blocks)
    blocks = blocks[starts]
    return _Ties(
        names[blocks >> np.uint64(32)],
        -score_of_key(blocks.astype(np.uint32)),
        np.diff(starts, append=len(packed)),
        sum_runs(packed & np.uint64(1), starts, np.int64),
    )


def _merged(columns: Sequence[np.ndarray]) -> _Ties:
    """Sorts blocks, given in any order as the columns of _Ties, and joins those of equal group and score."""
    group, scores, rows, positives = columns
    order, _, packed = number_groups(group)
    packed <<= np.uint64(32)
    packed |= rising_key(-scores[order])
    order = order[np.argsort(packed)]
    return _merge_ties(_Ties(group[order], scores[order], rows[order], positives[order]))


def _merge_ties(ties: _Ties) -> _Ties:
    """Joins adjacent blocks of equal group and score."""
    starts = run_starts(ties.group, ties.scores)
    return _Ties(
        ties.group[starts],
        ties.scores[starts],
        sum_runs(ties.rows, starts, np.int64),
        sum_runs(ties.positives, starts, np.int64),
    )


def _cut(ties: _Ties) -> _Ties:
    """Joins everything after rank 12 of a group into one block at its end.

    Other workers' rows can only push it further down, so only its number of positives still matters. A worker thus
    sends at most 13 blocks per group, however large the group is.
    """
    behind = sum_before(ties.rows, run_starts(ties.group)) >= RANKS
    return _merge_ties(ties._replace(scores=np.where(behind, np.float32(-np.inf), ties.scores)))


def _share_by_group(ties: _Ties, comm: Collectives) -> tuple[np.ndarray, ...]:
    """Sends each group's blocks to the worker that its ID hashes to. A collective."""
    mixed = (ties.group.view(np.uint64) * _HASH_FACTOR) >> np.uint64(32)
    worker = (mixed % np.uint64(comm.size)).astype(np.uint16)  # NumPy's stable sort of 16-bit integers is a radix sort
    order = np.argsort(worker, kind="stable")
    counts = np.bincount(worker, minlength=comm.size)
    return exchange_columns([column[order] for column in ties], counts.tolist(), comm)


def _average_precisions(ties: _Ties) -> np.ndarray:
    """Returns the AP ([groups] float64) of the groups that have a positive.

    For a block of m rows with p positives, after r rows with c positives: its j-th rank holds a positive with
    probability p / m, and then the j - 1 ranks of the block before it hold (j - 1)(p - 1) / (m - 1) on average. Over
    its t = min(m, 12 - r) ranks that count, the block therefore adds

        p / m * sum over j = 1 to t of (c + 1 + (j - 1) * q) / (r + j),    q = (p - 1) / (m - 1)
      = p / m * ((c + 1) * h + q * (t - (r + 1) * h)),                     h = sum of 1 / (r + j)
    """
    starts = run_starts(ties.group)
    before = sum_before(ties.rows, starts)
    hits = np.flatnonzero((ties.positives > 0) & (before < RANKS))
    before, rows, positives = before[hits], ties.rows[hits], ties.positives[hits]
    positives_before = sum_before(ties.positives, starts)[hits]
    counted = np.minimum(rows, RANKS - before)
    harmonic = _HARMONIC[before + counted] - _HARMONIC[before]
    follow = (positives - 1) / np.maximum(rows - 1, 1)
    gains = positives / rows * ((positives_before + 1) * harmonic + follow * (counted - (before + 1) * harmonic))
    group_of_hit = np.searchsorted(starts, hits, side="right") - 1
    precision_sums = np.bincount(group_of_hit, gains, minlength=len(starts))
    positives = sum_runs(ties.positives, starts, np.int64)
    known = positives > 0
    return precision_sums[known] / np.minimum(positives[known], RANKS)
