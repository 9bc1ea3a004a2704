"""Metrics of the first ranks of each group: NDCG, recall, reciprocal rank, hit rate and average precision at rank k."""

import math
import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from trainer.metrics.metric import Collectives, Direction, Metric, error_of_sums
from trainer.metrics.rows import Rows
from trainer.metrics.sorting import (
    exchange_columns,
    number_groups,
    rising_key,
    run_starts,
    score_of_key,
    sum_before,
    sum_runs,
)

RANKS = 12  # MAP@12, the measure of the click prediction contest that the recipe is based on
_HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2 ** 64 / golden ratio: spreads adjacent IDs evenly
_CELLS = 1 << 18  # bounds the memory of _first_positives
_NAME = re.compile(r"([a-z_]+)@([1-9][0-9]{0,5})")


class RankingMetric(Metric):
    """Mean over groups of a measure of their first k ranks.

    Rows are ranked by decreasing logit. Groups without a positive are left out; the ranks of a group of fewer than k
    rows end with its rows. For tied float32 logits, the measure is its expectation over all orders of the tied rows
    (McSherry and Najork, "Computing Information Retrieval Performance Measures Efficiently in the Presence of Tied
    Scores", ECIR 2008), so nothing depends on the order of rows. Sample weights are ignored, except that rows of weight
    0 are dropped. NaN if no group has a positive.

    Attributes:
        family: name without the number of ranks.
        ranks: the number of ranks, k.
    """

    family: ClassVar[str]
    direction = Direction.LARGER
    headline = 1
    needs_group = True
    ranks: int

    def __init__(self, ranks: int) -> None:
        """Create the metric of so many ranks, at least 1."""
        self.ranks, self.name, self.title = ranks, f"{self.family}@{ranks}", f"{self.title}@{ranks}"

    def result(self, rows: Rows, comm: Collectives) -> float:
        """Compute the mean over the groups of all workers, with the memory of ranked_ties. A collective."""
        return self.of_ties(ranked_ties(rows, self.ranks, comm), comm)

    def of_ties(self, ties: "Ties", comm: Collectives) -> float:
        """Compute the mean from existing blocks of ties. A collective."""
        values = self.per_group(ties)
        total, groups = comm.sum_array(np.array([values.sum(), len(values)]))
        return float(total / groups) if groups else math.nan

    def standard_error(self, rows: Rows, comm: Collectives, value: float) -> float:
        """Compute the standard error of a mean over groups that are drawn independently. A collective."""
        deviations = self.per_group(ranked_ties(rows, self.ranks, comm)) - value
        return error_of_sums(comm.sum_array(np.array([deviations @ deviations, len(deviations), len(deviations)])))

    @abstractmethod
    def per_group(self, ties: "Ties") -> np.ndarray:
        """Return the measure of each group with a positive, [groups] float64.

        Args:
            ties: result of ranked_ties for as many ranks or more.
        """


class Ndcg(RankingMetric):
    """Normalized discounted cumulative gain of the first k ranks (Jarvelin and Kekalainen, TOIS 2002).

    NDCG@k = (sum over ranks i <= k with a positive of 1 / log2(i + 1))
             / (sum over ranks i <= min(k, positives in the group) of 1 / log2(i + 1))
    """

    family, title = "ndcg", "NDCG"

    def per_group(self, ties: "Ties") -> np.ndarray:
        """Return the NDCG of each group with a positive, [groups] float64."""
        blocks, positives = _first_blocks(ties, self.ranks)
        ideal_ranks = np.minimum(positives, self.ranks)
        last = max(blocks.ends.max(initial=0), ideal_ranks.max(initial=0))
        discounts = _running_sum(lambda ranks: 1 / np.log2(ranks + 1), last)
        gains = blocks.positives / blocks.rows * (discounts[blocks.ends] - discounts[blocks.before])
        return blocks.sum_by_group(gains, len(positives)) / discounts[ideal_ranks]


class Recall(RankingMetric):
    """Share of a group's positives that are within its first k ranks."""

    family, title = "recall", "Recall"

    def per_group(self, ties: "Ties") -> np.ndarray:
        """Return the recall of each group with a positive, [groups] float64."""
        blocks, positives = _first_blocks(ties, self.ranks)
        found = blocks.positives / blocks.rows * (blocks.ends - blocks.before)
        return blocks.sum_by_group(found, len(positives)) / positives


class ReciprocalRank(RankingMetric):
    """1 / rank of a group's first positive; 0 if it is not within the first k ranks. The mean is called MRR."""

    family, title = "mrr", "MRR"

    def per_group(self, ties: "Ties") -> np.ndarray:
        """Return the reciprocal rank of each group with a positive, [groups] float64."""
        return _first_positives(ties, self.ranks, lambda ranks: 1 / ranks)


class HitRate(RankingMetric):
    """1 if a positive is within a group's first k ranks, else 0."""

    family, title = "hit_rate", "Hit rate"

    def per_group(self, ties: "Ties") -> np.ndarray:
        """Return 1 or 0 (with ties, the probability of 1) for each group with a positive, [groups] float64."""
        return _first_positives(ties, self.ranks, np.ones_like)


class AveragePrecision(RankingMetric):
    """Average precision within the first k ranks. The mean is called MAP.

    AP@k = sum over ranks i <= k with a positive of (positives in ranks 1 to i) / i
           / min(k, positives in the group)
    """

    family, title = "map", "MAP"

    def per_group(self, ties: "Ties") -> np.ndarray:
        """Return the average precision of each group with a positive, [groups] float64.

        For a block of m rows with p positives, after r rows with c positives: its j-th rank holds a positive with
        probability p / m, and then the j - 1 ranks of the block before it hold (j - 1)(p - 1) / (m - 1) on average.
        Over its t = min(m, k - r) ranks that count, the block therefore adds

            p / m * sum over j = 1 to t of (c + 1 + (j - 1) * q) / (r + j),    q = (p - 1) / (m - 1)
          = p / m * ((c + 1) * h + q * (t - (r + 1) * h)),                     h = sum of 1 / (r + j)
        """
        blocks, positives = _first_blocks(ties, self.ranks)
        harmonic = _running_sum(lambda ranks: 1 / ranks, blocks.ends.max(initial=0))
        h = harmonic[blocks.ends] - harmonic[blocks.before]
        follow = (blocks.positives - 1) / np.maximum(blocks.rows - 1, 1)
        others = follow * (blocks.ends - blocks.before - (blocks.before + 1) * h)
        gains = blocks.positives / blocks.rows * ((blocks.positives_before + 1) * h + others)
        return blocks.sum_by_group(gains, len(positives)) / np.minimum(positives, self.ranks)


class MeanAveragePrecision(AveragePrecision):
    """Mean over groups of the average precision within the first 12 ranks, under the key of the public recipe."""

    name = "streaming_map_val"
    title = "MAP@12"
    headline = 5

    def __init__(self) -> None:
        """Create the metric."""
        self.ranks = RANKS


RANKING_METRICS: dict[str, type[RankingMetric]] = {
    metric.family: metric for metric in (Ndcg, Recall, ReciprocalRank, HitRate, AveragePrecision)
}


def ranking_metric(name: str) -> RankingMetric:
    """Return the metric of a name such as ndcg@10.

    Raises:
        ValueError: there is no such metric.
    """
    found = _NAME.fullmatch(name)
    if found is None or found[1] not in RANKING_METRICS:
        raise ValueError(
            f"{name!r} is not a ranking metric; expected NAME@K with a NAME of {', '.join(RANKING_METRICS)} and a "
            "number K of ranks from 1 to 999999, such as ndcg@10"
        )
    return RANKING_METRICS[found[1]](int(found[2]))


class Ties(NamedTuple):
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


def ranked_ties(rows: Rows, ranks: int, comm: Collectives) -> Ties:
    """Build the blocks of the groups that this worker gets, each whole on one worker. A collective.

    It takes about 70 bytes per row while it runs, up to 150 with several workers; a block takes 28.

    Args:
        rows: this worker's rows.
        ranks: the number of ranks that matter; blocks behind may be joined.
        comm: collectives of the group of workers.

    Raises:
        ValueError: the rows have no group.
    """
    if rows.group is None:
        raise ValueError("rows are ranked within groups, and these rows have no group")
    ties = _ties_of_rows(rows.group, rows.logits, rows.labels)
    return ties if comm.size == 1 else _merged(_share_by_group(_cut(ties, ranks), comm))


def _ties_of_rows(group: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> Ties:
    """Build the blocks of this worker's rows."""
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
    return Ties(
        names[blocks >> np.uint64(32)],
        -score_of_key(blocks.astype(np.uint32)),
        np.diff(starts, append=len(packed)),
        sum_runs(packed & np.uint64(1), starts, np.int64),
    )


def _merged(columns: Sequence[np.ndarray]) -> Ties:
    """Sort blocks, given in any order as the columns of Ties, and join those of equal group and score."""
    group, scores, rows, positives = columns
    order, _, packed = number_groups(group)
    packed <<= np.uint64(32)
    packed |= rising_key(-scores[order])
    order = order[np.argsort(packed)]
    return _merge_ties(Ties(group[order], scores[order], rows[order], positives[order]))


def _merge_ties(ties: Ties) -> Ties:
    """Join adjacent blocks of equal group and score."""
    starts = run_starts(ties.group, ties.scores)
    return Ties(
        ties.group[starts],
        ties.scores[starts],
        sum_runs(ties.rows, starts, np.int64),
        sum_runs(ties.positives, starts, np.int64),
    )


def _cut(ties: Ties, ranks: int) -> Ties:
    """Join everything after so many ranks of a group into one block at its end.

    Other workers' rows can only push it further down, so only its number of positives still matters. A worker thus
    sends at most ranks + 1 blocks per group, however large the group is.
    """
    behind = sum_before(ties.rows, run_starts(ties.group)) >= ranks
    return _merge_ties(ties._replace(scores=np.where(behind, np.float32(-np.inf), ties.scores)))


def _share_by_group(ties: Ties, comm: Collectives) -> tuple[np.ndarray, ...]:
    """Send each group's blocks to the worker that its ID hashes to. A collective."""
    mixed = (ties.group.view(np.uint64) * _HASH_FACTOR) >> np.uint64(32)
    worker = (mixed % np.uint64(comm.size)).astype(np.uint16)  # NumPy's stable sort of 16-bit integers is a radix sort
    order = np.argsort(worker, kind="stable")
    counts = np.bincount(worker, minlength=comm.size)
    return exchange_columns([column[order] for column in ties], counts.tolist(), comm)


class _Blocks(NamedTuple):
    """Blocks with a positive that begin within the first ranks of their group, by group and rank, each column [blocks].

    Attributes:
        group: int64 position of the group among those with a positive.
        before: int64, number of the group's rows above the block.
        ends: int64, last rank of the block that counts.
        positives_before: int64, number of positives above the block.
        rows: int64, number of rows in the block.
        positives: int64, number of rows with label 1.
    """

    group: np.ndarray
    before: np.ndarray
    ends: np.ndarray
    positives_before: np.ndarray
    rows: np.ndarray
    positives: np.ndarray

    def sum_by_group(self, values: np.ndarray, groups: int) -> np.ndarray:
        """Return the sums of the blocks' values over each of the groups with a positive, [groups] float64."""
        return np.bincount(self.group, values, minlength=groups).astype(np.float64)


def _first_blocks(ties: Ties, ranks: int) -> tuple[_Blocks, np.ndarray]:
    """Return the blocks that count for so many ranks, and the positives of each group that has one, [groups] int64."""
    starts = run_starts(ties.group)
    positives = sum_runs(ties.positives, starts, np.int64)
    before = sum_before(ties.rows, starts)
    hits = np.flatnonzero((ties.positives > 0) & (before < ranks))
    position = np.cumsum(positives > 0) - 1  # of a group among those with a positive
    blocks = _Blocks(
        position[np.searchsorted(starts, hits, side="right") - 1],
        before[hits],
        np.minimum(before[hits] + ties.rows[hits], ranks),
        sum_before(ties.positives, starts)[hits],
        ties.rows[hits],
        ties.positives[hits],
    )
    return blocks, positives[positives > 0]


def _running_sum(value: Callable[[np.ndarray], np.ndarray], last: int) -> np.ndarray:
    """Return the sums of a value over the first 0, 1, ..., last ranks, [last + 1] float64."""
    return np.concatenate([[0.0], np.cumsum(value(np.arange(1, last + 1, dtype=np.float64)))])


def _first_positives(ties: Ties, ranks: int, value: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return the expected value of the rank of each group's first positive, [groups] float64; 0 behind the last rank.

    Only the first block with a positive matters. In a block of m rows with p positives, the (j + 1)-th row holds a
    positive with probability p / (m - j) if the j rows before it hold none. Blocks are treated side by side, as many
    rows of each at a time as fit into a fixed amount of memory.
    """
    blocks, positives = _first_blocks(ties, ranks)
    first = np.flatnonzero(blocks.positives_before == 0)
    # The first positive of a block is within its first m - p + 1 rows.
    lengths = np.minimum(blocks.ends - blocks.before, blocks.rows - blocks.positives + 1)[first]
    first, lengths = first[order := np.argsort(-lengths, kind="stable")], lengths[order]
    expected, none_yet = np.zeros(len(first)), np.ones(len(first))
    start = 0
    while active := int(np.count_nonzero(lengths > start)):
        offsets = np.arange(start, min(start + max(1, _CELLS // active), int(lengths[0])))
        now = first[:active, np.newaxis]
        counts = offsets < lengths[:active, np.newaxis]
        left = np.where(counts, blocks.rows[now] - offsets, blocks.positives[now])
        survive = np.cumprod((left - blocks.positives[now]) / left, axis=1) * none_yet[:active, np.newaxis]
        reach = np.concatenate([none_yet[:active, np.newaxis], survive[:, :-1]], axis=1)
        values = value((blocks.before[now] + offsets + 1).astype(np.float64))
        expected[:active] += (counts * reach * blocks.positives[now] / left * values).sum(axis=1)
        none_yet[:active] = survive[:, -1]
        start = int(offsets[-1]) + 1
    result = np.zeros(len(positives))
    result[blocks.group[first]] = expected
    return result
