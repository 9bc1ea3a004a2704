"""The metrics by their definitions: every pair, every order of tied rows, exact fractions. For small inputs."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
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


def measure(family: str, ranks: int, ranked: Sequence[int]) -> float:
    """A measure of the first ranks of labels that stand in a definite order; at least one label is 1."""
    first, positives = ranked[:ranks], sum(ranked)
    if family == "ndcg":
        gain = sum(label / math.log2(place + 1) for place, label in enumerate(first, 1))
        return gain / sum(1 / math.log2(place + 1) for place in range(1, min(ranks, positives) + 1))
    if family == "recall":
        return sum(first) / positives
    if family == "mrr":
        return 1 / (first.index(1) + 1) if 1 in first else 0.0
    if family == "hit_rate":
        return float(1 in first)
    precisions = [sum(first[:place]) / place for place, label in enumerate(first, 1) if label]
    return sum(precisions) / min(ranks, positives)


def measures_over_all_orders(
    family: str, ranks: int, logits: np.ndarray, labels: np.ndarray, group: np.ndarray
) -> list[float]:
    """The measure of each group with a positive, its mean over all orders of tied rows. For groups of up to 6 rows."""
    values = []
    for blocks in groups_of_ties(logits, labels, group):
        orders = [measure(family, ranks, list(chain(*order))) for order in product(*map(permutations, blocks))]
        values.append(math.fsum(orders) / len(orders))
    return values


def mean(values: Sequence[float]) -> float:
    """Their mean; NaN if there are none."""
    return math.fsum(values) / len(values) if values else math.nan


def error_of_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """The standard error of a weighted mean; with equal weights, the standard deviation over the root of the number."""
    if len(values) < 2:
        return math.nan
    total = math.fsum(weights)
    centre = math.fsum(w * x for w, x in zip(weights, values, strict=True)) / total
    squares = math.fsum((w * (x - centre)) ** 2 for w, x in zip(weights, values, strict=True))
    return math.sqrt(squares * len(values) / (len(values) - 1)) / total


def error_of_auc(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """DeLong's standard error: of the share of the other class that each row is on the right side of."""
    rows = list(zip(logits.tolist(), labels.tolist(), weights.tolist(), strict=True))
    variance = 0.0
    for own, sign in ((1, 1), (0, -1)):
        here, others = [row for row in rows if row[1] == own], [row for row in rows if row[1] != own]
        total = math.fsum(w for _, _, w in others)
        shares = [
            math.fsum(w * (1 + np.sign(sign * (score - other))) / 2 for other, _, w in others) / total
            for score, _, _ in here
        ]
        variance += error_of_mean(shares, [w for _, _, w in here]) ** 2
    return math.sqrt(variance)


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


def auc_group_by_group(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, group: np.ndarray) -> float:
    """The AUC of every group that has one, over all its pairs; their mean by the groups' weights."""
    total = every = 0.0
    for name in np.unique(group):
        rows = group == name
        auc = auc_over_all_pairs(logits[rows], labels[rows], weights[rows])
        if not math.isnan(auc):
            weight = math.fsum(weights[rows].tolist())
            total += weight * auc
            every += weight
    return total / every if every else math.nan


def average_precision_score_by_score(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Recall gained times precision, at every distinct score that rows could be cut off at."""
    rows = [(x, y == 1, Fraction(w)) for x, y, w in zip(logits.tolist(), labels, weights.tolist(), strict=True)]
    positives = sum(w for _, y, w in rows if y)
    if not positives:
        return math.nan
    area = recall = Fraction(0)
    for cut in sorted({x for x, _, _ in rows}, reverse=True):
        found = sum(w for x, y, w in rows if x >= cut and y)
        area += (found / positives - recall) * found / sum(w for x, _, w in rows if x >= cut)
        recall = found / positives
    return float(area)


def entropy_of_labels(labels: np.ndarray, weights: np.ndarray) -> float:
    """Log loss of the mean label as everybody's prediction."""
    mean = math.fsum((labels * weights.astype(float)).tolist()) / math.fsum(weights.tolist())
    return -mean * math.log(mean) - (1 - mean) * math.log(1 - mean)


def probability_of(logit: float) -> float:
    """The logistic function."""
    return 1 / (1 + math.exp(-logit)) if logit > 0 else math.exp(logit) / (1 + math.exp(logit))


def calibration_row_by_row(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """The positives that the model expects per positive."""
    actual = math.fsum(weights[labels == 1].tolist())
    predicted = (w * probability_of(x) for x, w in zip(logits.tolist(), weights.tolist(), strict=True))
    return math.fsum(predicted) / actual if actual else math.nan


def bins_of_equal_mass(logits: np.ndarray, weights: np.ndarray, bins: int) -> list[int]:
    """Each row looks for its bin: where the middle of the mass of its score lies among all mass."""
    largest = Fraction(float(weights.max(initial=0)))
    masses = [round(Fraction(weight) / largest * 2**22) for weight in weights.tolist()]
    places = []
    for logit in logits.tolist():
        below = sum(mass for other, mass in zip(logits.tolist(), masses, strict=True) if other < logit)
        tied = sum(mass for other, mass in zip(logits.tolist(), masses, strict=True) if other == logit)
        places.append(min(math.floor(bins * (below + Fraction(tied, 2)) / sum(masses)), bins - 1))
    return places


def calibration_error_bin_by_bin(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Over a hundred bins: the weighted mean of what is predicted too much in each."""
    if len(logits) == 0:
        return math.nan
    gaps: dict[int, list[float]] = defaultdict(list)
    rows = zip(logits.tolist(), labels.tolist(), weights.tolist(), strict=True)
    for place, (logit, label, weight) in zip(bins_of_equal_mass(logits, weights, 100), rows, strict=True):
        gaps[place].append(weight * (probability_of(logit) - label))
    return math.fsum(abs(math.fsum(gap)) for gap in gaps.values()) / math.fsum(weights.tolist())


def calibration_curve_bin_by_bin(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> list[list[float]]:
    """[weight, mean prediction, mean label] of each of twenty bins that holds a row."""
    places = np.array(bins_of_equal_mass(logits, weights, 20), int)
    curve = []
    for place in sorted(set(places.tolist())):
        here = places == place
        weight = math.fsum(weights[here].tolist())
        rows = zip(logits[here].tolist(), labels[here].tolist(), weights[here].tolist(), strict=True)
        products = [(w * probability_of(x), w * y) for x, y, w in rows]
        curve.append([weight, *(math.fsum(column) / weight for column in zip(*products, strict=True))])
    return curve


def mean_error(values: np.ndarray, labels: np.ndarray, weights: np.ndarray, power: int) -> float:
    """Mean of |value - label| ** power."""
    rows = [tuple(map(Fraction, row)) for row in zip(values.tolist(), labels.tolist(), weights.tolist(), strict=True)]
    every = sum(weight for _, _, weight in rows)
    return float(sum(w * abs(v - y) ** power for v, y, w in rows) / every) if rows else math.nan


def softmax_loss_row_by_row(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Mean of -log of the probability that the model gave to the row's class."""
    losses = []
    for row, label, weight in zip(logits.tolist(), labels.tolist(), weights.tolist(), strict=True):
        losses.append(weight * log_of_sum(logit - row[int(label)] for logit in row))
    return math.fsum(losses) / math.fsum(weights.tolist()) if losses else math.nan


def log_of_sum(logs: Iterable[float]) -> float:
    """log(sum of exp(x)), exact to the last digits also where one x is far above the others."""
    *others, largest = sorted(logs)
    return largest + math.log1p(math.fsum(math.exp(x - largest) for x in others))


def entropy_of_classes(labels: np.ndarray, weights: np.ndarray) -> float:
    """Cross-entropy of the classes' shares as everybody's prediction."""
    rows = [(label, Fraction(weight)) for label, weight in zip(labels.tolist(), weights.tolist(), strict=True)]
    every = sum(weight for _, weight in rows)
    shares = [float(sum(w for other, w in rows if other == label) / every) for label in {label for label, _ in rows}]
    return -math.fsum(share * math.log(share) for share in shares)


def accuracy_row_by_row(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """The chance that a class drawn among those of the highest logit is the row's."""
    right = every = Fraction(0)
    for row, label, weight in zip(logits.tolist(), labels.tolist(), weights.tolist(), strict=True):
        best = [index for index, logit in enumerate(row) if logit == max(row)]
        right += Fraction(weight) * Fraction(best.count(int(label)), len(best))
        every += Fraction(weight)
    return float(right / every) if every else math.nan


def auc_class_by_class(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Mean of each class's AUC against all others by log(p / (1 - p)), of the classes that have one."""
    aucs = []
    for index in range(logits.shape[1]):
        others = [log_of_sum(logit for i, logit in enumerate(row) if i != index) for row in logits.tolist()]
        scores = (logits[:, index].astype(float) - others).astype(np.float32)
        aucs.append(auc_over_all_pairs(scores, (labels == index).astype(float), weights))
    known = [auc for auc in aucs if not math.isnan(auc)]
    return math.fsum(known) / len(known) if known else math.nan
