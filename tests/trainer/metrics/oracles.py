"""The metrics by their definitions: every pair, every order of tied rows, exact fractions. For small inputs."""

import math
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from itertools import chain, combinations, permutations, product

import numpy as np


def auc_over_all_pairs(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """The weight of the pairs in order among all pairs of a positive and a negative."""
    weights = [Fraction(float(weight)) for weight in weights]
    ordered = every = Fraction(0)
    for i in range(len(logits)):
        for j in range(len(logits)):
            if labels[i] == 1 and labels[j] == 0:
                pair = weights[i] * weights[j]
                every += pair
                if logits[i] > logits[j]:
                    ordered += pair
                elif logits[i] == logits[j]:
                    ordered += pair / 2
    return float(ordered / every) if every else math.nan


def log_loss_row_by_row(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Mean of -log of the probability that the model gave to what happened."""
    losses = []
    for logit, label, weight in zip(logits.tolist(), labels.tolist(), weights.tolist(), strict=True):
        towards_label = logit if label == 1 else -logit
        losses.append(weight * (math.log1p(math.exp(-towards_label)) if towards_label > -700 else -towards_label))
    return math.fsum(losses) / math.fsum(weights.tolist()) if losses else math.nan


def average_precision(ranked: Sequence[int]) -> Fraction:
    """AP@12 of labels that stand in a definite order, the best rank first."""
    return sum(gains(ranked)) / min(12, sum(ranked))


def gains(ranked: Sequence[int]) -> list[Fraction]:
    """What each rank adds: the precision at the ranks of positives, up to rank 12."""
    return [
        Fraction(sum(ranked[:rank]), rank) if ranked[rank - 1] and rank <= 12 else Fraction(0)
        for rank in range(1, len(ranked) + 1)
    ]


def map_over_all_orders(logits: np.ndarray, labels: np.ndarray, group: np.ndarray) -> float:
    """MAP@12, each group's AP being the mean over all orders of its tied rows. For groups of up to 6 rows."""
    precisions = []
    for blocks in groups_of_ties(logits, labels, group):
        ranked = [list(chain(*order)) for order in product(*map(permutations, blocks))]
        precisions.append(sum(map(average_precision, ranked)) / len(ranked))
    return float(sum(precisions) / len(precisions)) if precisions else math.nan


def map_over_all_placements(logits: np.ndarray, labels: np.ndarray, group: np.ndarray) -> float:
    """MAP@12 for groups of any size and ties of up to about 12 rows.

    How a block of tied rows is ordered changes nothing at the ranks before and behind it, so that each
    block takes its turn; and within one, all placements of its positives are equally frequent.
    """
    precisions = []
    for blocks in groups_of_ties(logits, labels, group):
        total = Fraction(0)
        before: list[int] = []
        for block in blocks:
            placements = [
                [int(place in places) for place in range(len(block))]
                for places in combinations(range(len(block)), sum(block))
            ]
            added = [sum(gains(before + placed)[len(before) :]) for placed in placements]
            total += Fraction(sum(added)) / len(placements)
            before += block
        precisions.append(total / min(12, sum(before)))
    return float(sum(precisions) / len(precisions)) if precisions else math.nan


def groups_of_ties(logits: np.ndarray, labels: np.ndarray, group: np.ndarray) -> list[list[list[int]]]:
    """Per group that has a positive: the labels of each set of tied rows, the highest logit first."""
    groups: dict[int, dict[float, list[int]]] = defaultdict(lambda: defaultdict(list))
    for name, logit, label in zip(group.tolist(), logits.tolist(), labels.tolist(), strict=True):
        groups[name][logit].append(int(label))
    ranked = [[ties[logit] for logit in sorted(ties, reverse=True)] for ties in groups.values()]
    return [blocks for blocks in ranked if any(map(sum, blocks))]


def map_by_shuffling(
    logits: np.ndarray, labels: np.ndarray, group: np.ndarray, num_orders: int, random: np.random.Generator
) -> float:
    """MAP@12 for ties of any size: the mean over random orders. Good to about 0.3 / sqrt(orders * groups)."""
    total = 0.0
    for _ in range(num_orders):
        precisions = []
        for blocks in groups_of_ties(logits, labels, group):
            ranked = list(chain(*(random.permutation(block).tolist() for block in blocks)))
            precisions.append(float(average_precision(ranked)))
        total += sum(precisions) / len(precisions)
    return total / num_orders
