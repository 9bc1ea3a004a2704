"""Mean average precision of the rows ranked within their groups."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trainer.metrics.collectives import Collectives, exchange_columns
from trainer.metrics.direction import Direction
from trainer.metrics.rows import Rows
from trainer.metrics.sorting import number_groups, rising_key, run_starts, score_of_key, sum_before, sum_runs

RANKS = 12  # MAP@12, the measure of the click prediction contest that the recipe is based on
_HARMONIC = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, RANKS + 1))])
_HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2 ** 64 / golden ratio: spreads adjacent IDs evenly


class MeanAveragePrecision:
    """Mean over groups of the average precision within the first 12 ranks.

        AP = sum over ranks k <= 12 with a positive of (positives in ranks 1 to k) / k
             / min(12, positives in the group)

    Rows are ranked by decreasing logit. Groups without a positive are left out. For tied float32 logits, AP is its
    expectation over all orders of the tied rows (McSherry and Najork, "Computing Information Retrieval Performance
    Measures Efficiently in the Presence of Tied Scores", ECIR 2008), so nothing depends on the order of rows. Sample
    weights are ignored, except that rows of weight 0 are dropped. NaN if no group has a positive.
    """

    needs_group = True
    direction = Direction.LARGER

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
    return _joined(_Ties(group[order], scores[order], rows[order], positives[order]))


def _joined(ties: _Ties) -> _Ties:
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
    return _joined(ties._replace(scores=np.where(behind, np.float32(-np.inf), ties.scores)))


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
