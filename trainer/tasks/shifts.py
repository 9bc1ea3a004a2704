"""Known shifts of log-odds between the rows that are trained on and the rows that are predicted.

*Kept negatives.* If training keeps every positive row but only a share r of the negative ones, a row with the true
probability p is positive among the kept ones with

    p' = p / (p + r (1 - p)),   so that   p' / (1 - p') = (1 / r) p / (1 - p)   and   logit p = logit p' + log r,

or p = p' / (p' + (1 - p') / r) (King and Zeng, "Logistic Regression in Rare Events Data", Political Analysis 2001,
section 4.1; He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook", ADKDD 2014, section 6.3).

*Positive weight.* A loss that weighs positive rows w times is minimized where w p (1 - q) = (1 - p) q, that is by
q / (1 - q) = w p / (1 - p), so that logit p = logit q - log w.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np

from data.errors import DataError
from data.loading.batch import Batch
from data.spec.feature_spec import FeatureSpec
from data.spec.features import TRAIN, Feature
from trainer.config import TrainingOptions
from trainer.tasks.group import group_labels


def logit_shifts(
    spec: FeatureSpec, mapping: str, options: TrainingOptions, *, trains_joint_probabilities: bool
) -> dict[str, float]:
    """Return what training on a mapping has to add to the logits in every output, by name of the labels concerned.

    Args:
        spec: specification of the dataset.
        mapping: mapping that is trained on.
        options: the flags --negatives and --correct_positive_weight.
        trains_joint_probabilities: whether the model learns labels with `given` through the product of probabilities.

    Raises:
        DataError: a flag asks for a correction that the data does not need, or for one that is no shift.
    """
    shifts = {label.name: 0.0 for label in spec.labels}
    if options.negatives == "logit":
        rate = _negative_rate(spec, mapping)
        label = _label_of_negatives(spec)
        if label is None:
            raise DataError(
                "--negatives logit: a row is negative if all its binary labels are 0, so that no single shift corrects "
                f"each of {', '.join(label.name for label in spec.labels if label.given is None)}. It needs one binary "
                "label that the others are `given`, directly or through each other; use --negatives weights"
            )
        shifts[label.name] += math.log(rate)
    if options.correct_positive_weight:
        weighted = [label for label in spec.labels if label.positive_weight != 1]
        if not weighted:
            raise DataError(
                "--correct_positive_weight: no label of the feature specification has a positive_weight other than 1; "
                "remove the flag"
            )
        if trains_joint_probabilities and any(label.given for label in spec.labels):
            raise DataError(
                "--correct_positive_weight: this model learns labels with `given` as part of a product of "
                "probabilities, where no shift corrects a positive_weight; remove positive_weight, or the flag and "
                "calibrate with --calibrate"
            )
        for label in weighted:
            shifts[label.name] -= math.log(label.positive_weight)
    return {name: shift for name, shift in shifts.items() if shift}


def label_of_kept_negatives(spec: FeatureSpec, mapping: str) -> Feature | None:
    """Return the label whose log-odds keeping negatives shifts in a mapping; None if there is none.

    It is the binary label that is 0 exactly in the rows of which a share was kept, and is learned by its cross-entropy.
    """
    weight = spec.sample_weight
    if weight is None or weight.negative_rate is None or mapping != TRAIN:
        return None
    label = _label_of_negatives(spec)
    return None if label in group_labels(spec) else label


def logit_among_kept(spec: FeatureSpec, label: Feature, options: TrainingOptions) -> float:
    """Return what to add to the logit that a network learns to get the log-odds of a label among the kept rows.

    Args:
        spec: specification of the dataset, whose weights state their negative_rate.
        label: the label of `label_of_kept_negatives`.
        options: the flag --negatives.
    """
    weight = spec.sample_weight
    rate = 1.0 if weight is None or weight.negative_rate is None else weight.negative_rate
    weighs_kept = options.negatives == "weights"  # so that the network learns the odds among all rows
    return -math.log(label.positive_weight) - (math.log(rate) if weighs_kept else 0.0)


def weighted_positives(spec: FeatureSpec, options: TrainingOptions) -> Iterator[str]:
    """Yield a warning for each label whose probabilities a positive_weight shifts, and nothing corrects."""
    if options.correct_positive_weight or options.calibrate is not None:
        return
    for label in spec.labels:
        if label.positive_weight != 1:
            yield (
                f"label {label.name!r} has positive_weight {label.positive_weight:g}, which multiplies the odds of "
                f"predicted probabilities by {label.positive_weight:g}; --correct_positive_weight shifts the logit "
                "back in every output"
            )


def without_negative_factor(spec: FeatureSpec) -> Callable[[Batch, int], None]:
    """Return the edit of training batches that takes the factor 1 / negative_rate out of the weights of negatives.

    What is left are the weights of the rows before a part of the negatives was kept.
    """
    weight = spec.sample_weight
    rate = 1.0 if weight is None or weight.negative_rate is None else weight.negative_rate
    binary = [index for index, label in enumerate(spec.labels) if label.is_binary]

    def edit(batch: Batch, epoch: int) -> None:
        # A missing label counts as 0, as it does when rows are kept.
        negative = ~(batch.labels[:, binary] > 0).any(axis=1)
        batch.weights[negative] = batch.weights[negative].astype(np.float64) * rate

    return edit


def _negative_rate(spec: FeatureSpec, mapping: str) -> float:
    """Return the share of negatives in a mapping. Raise a DataError if that is all of them, or unknown."""
    weight = spec.sample_weight
    if weight is None or weight.negative_rate is None:
        why = "the weights state no negative_rate" if weight else "it has no sample weights"
        raise DataError(
            f"--negatives logit: the dataset does not say that it keeps only a share of its negatives ({why}). Write "
            "it with preprocess.py and keep_negatives in the raw specification, or remove the flag"
        )
    if mapping != TRAIN:
        raise DataError(
            f"--negatives logit: only mapping {TRAIN!r} keeps a share of its negatives, and --train_mapping {mapping} "
            "all of them; remove one of the flags"
        )
    return weight.negative_rate


def _label_of_negatives(spec: FeatureSpec) -> Feature | None:
    """Return the binary label that is 0 exactly in the negative rows; None if there is none."""
    roots = [label for label in spec.labels if label.given is None]
    return roots[0] if len(roots) == 1 and roots[0].is_binary else None
