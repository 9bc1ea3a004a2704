"""Allocate, copy and pad the arrays of a `Batch`, which also serve as the loader's buffers of decoded rows."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.loading.arrays import empty_array
from data.spec.feature_spec import FeatureSpec

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

    @property
    def ids(self) -> np.ndarray:
        """One-hot and multi-hot ids side by side, [batch, id columns] int32."""
        # Without a copy if there is only one kind.
        if self.multihot.shape[1] == 0:
            return self.onehot
        if self.onehot.shape[1] == 0:
            return self.multihot
        return np.concatenate([self.onehot, self.multihot], axis=1)


def empty_batch(spec: FeatureSpec, rows: int, *, with_group: bool, extra_dtypes: Sequence[np.dtype] = ()) -> Batch:
    """Allocate a batch of `rows` rows with undefined contents."""
    return Batch(
        onehot=empty_array((rows, len(spec.onehot)), np.int32),
        multihot=empty_array((rows, sum(feature.max_hotness or 0 for feature in spec.multihot)), np.int32),
        numerical=empty_array((rows, len(spec.numerical)), np.float32),
        labels=empty_array((rows, len(spec.labels)), np.float32),
        weights=empty_array((rows,), np.float32),
        group=empty_array((rows,), np.int64) if with_group else None,
        rows=empty_array((rows,), np.int64),
        extra=tuple(empty_array((rows,), dtype) for dtype in extra_dtypes),
    )


def bytes_per_row(spec: FeatureSpec, *, with_group: bool, extra_dtypes: Sequence[np.dtype] = ()) -> int:
    """Return the bytes per row of a batch from `empty_batch`, counting 8 per text (the pointer alone)."""
    columns = len(spec.onehot) + len(spec.numerical) + len(spec.labels)
    lists = sum(feature.max_hotness or 0 for feature in spec.multihot)
    # 4 bytes: int32 ids, float32 numbers, labels and the weight. 8 bytes: int64 `rows` and `group`.
    return 4 * (columns + lists + 1) + 8 * (1 + with_group) + sum(dtype.itemsize for dtype in extra_dtypes)


def slice_rows(batch: Batch, begin: int, end: int) -> Batch:
    """Return views of the rows [begin, end)."""
    columns = {name: array if array is None else array[begin:end] for name, array in batch._asdict().items()}
    return Batch(**columns | {"extra": tuple(array[begin:end] for array in batch.extra)})


def copy_rows(source: Batch, positions: np.ndarray, target: Batch) -> None:
    """Copy the rows of `source` at `positions` to `target`, which has len(positions) rows."""
    indices = positions.astype(np.intp)
    for values, out in zip(_arrays(source), _arrays(target), strict=True):
        # All positions are in range; with mode="raise", NumPy buffers `out` and copies twice.
        np.take(values, indices, axis=0, out=out, mode="clip")


def pad_rows(batch: Batch) -> None:
    """Turn all rows into padding: weight 0, ids of lists and row positions PAD, everything else 0 or None."""
    for array in _arrays(batch):
        array[...] = None if array.dtype == object else 0
    batch.multihot[...] = PAD
    batch.rows[...] = PAD


def _arrays(batch: Batch) -> list[np.ndarray]:
    return [array for array in (*batch[:-1], *batch.extra) if array is not None]
