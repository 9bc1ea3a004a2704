"""The batch, which is all that the loader passes to the trainer."""

from typing import NamedTuple

import numpy as np

PAD = -1


class Batch(NamedTuple):
    """One array of rows per channel; the columns follow the order of the features in the specification.

    The first axis is the local batch size, which is the same for every batch of a loader. A channel without features
    has width 0. Padding rows have weight 0.

    Attributes:
        onehot: [batch, one-hot features] int32 ids.
        multihot: [batch, sum of max_hotness] int32 ids, with PAD after the end of a list. Features are side by side
            in channel order, max_hotness columns each.
        numerical: [batch, numerical features] float32 values.
        labels: [batch, labels] float32 labels; NaN where a label is missing, which needs `missing: ignore` or
            a loader with `needs_labels=False`.
        weights: [batch] float32 sample weights; 1 if the dataset has no such column, 0 for padding.
        group: [batch] int64 values of the map feature, or None if they were not requested.
        rows: [batch] int64 positions of the rows in the dataset (files in order), PAD for padding.
        extra: one [batch] array per requested extra column, in its stored dtype (object for text); 0 or None for
            padding.
    """

    onehot: np.ndarray
    multihot: np.ndarray
    numerical: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    group: np.ndarray | None
    rows: np.ndarray
    extra: tuple[np.ndarray, ...] = ()
