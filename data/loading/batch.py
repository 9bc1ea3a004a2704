"""The one thing that crosses from the loader to the trainer."""

from typing import NamedTuple

import numpy as np

PAD = -1


class Batch(NamedTuple):
    """Rows grouped by channel, one array per channel; feature names live in the specification.

    The first axis is the local batch size and the same for every batch of a loader. A channel
    without features has width 0. Rows that only fill the batch up have weight 0.

    Attributes:
        onehot: [batch, one-hot features] int32 ids.
        multihot: [batch, sum of max_hotness] int32 ids, PAD where a row has fewer; the features
            stand side by side in channel order, max_hotness columns each.
        numerical: [batch, numerical features] float32.
        labels: [batch, labels] float32; NaN where a label is missing (only for `missing: ignore`).
        weights: [batch] float32; the sample weight of the row, 1 without such a column, 0 for a pad.
        group: [batch] int64 values of the map feature, or None where the mapping has none.
        rows: [batch] int64 positions of the rows in the dataset (files in order), PAD for pads.
        extra: the `extra_columns` asked of the loader, in that order, [batch] each in their stored dtype
            (object for texts); 0 or None for pads.
    """

    onehot: np.ndarray
    multihot: np.ndarray
    numerical: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    group: np.ndarray | None
    rows: np.ndarray
    extra: tuple[np.ndarray, ...] = ()
