"""Allocate, copy and pad the arrays of a `Batch`, which also serve as the loader's buffers of decoded rows."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from data.loading.arrays import empty_array
from data.loading.lists import Lists, empty_lists, join_rows
from data.spec.feature_spec import FeatureSpec

PAD = -1
MATRICES = ("onehot", "numerical", "training_only", "labels")  # fields of a batch with 4 bytes per row and column
ITEM_BYTES = 4  # of a value in a list: an int32 id, or its float32 weight


class Ids(NamedTuple):
    """The ids of some rows.

    Attributes:
        onehot: [rows, one-hot features] int32.
        id_lists: [rows, features] lists of int32, in the order of `FeatureSpec.id_lists`.
        number_lists: [rows, columns] lists of float32, in the order of `FeatureSpec.number_lists`.
    """

    onehot: np.ndarray
    id_lists: Lists
    number_lists: Lists

    def take(self, rows: np.ndarray) -> "Ids":
        """Return a copy of the rows at the positions [taken], which are integers."""
        return Ids(self.onehot[rows], self.id_lists.take(rows), self.number_lists.take(rows))


def join_ids(parts: Sequence[Ids]) -> Ids:
    """Return a copy of the rows of all parts, part after part."""
    return Ids(
        np.concatenate([part.onehot for part in parts]),
        join_rows([part.id_lists for part in parts]),
        join_rows([part.number_lists for part in parts]),
    )


class Batch(NamedTuple):
    """One array of rows per channel; the columns follow the order of the features in the specification.

    The first axis is the local batch size, which is the same for every batch of a loader. A channel without features
    has width 0. Padding rows have weight 0.

    Attributes:
        onehot: [batch, one-hot features] int32 ids.
        id_lists: [batch, features] lists of int32 ids, at most max_hotness each, in the order of
            `FeatureSpec.id_lists`; empty for padding. The lists of a sequence are equally long.
        number_lists: [batch, columns] lists of float32, in the order of `FeatureSpec.number_lists`: the weights of the
            ids of multi-hot features, of at least 0, then the numbers of sequences, which may be negative.
        numerical: [batch, numerical features] float32 values.
        vectors: [batch, sum of dimensions] float32 values of the vectors, side by side. In a loader's buffers, they are
            float16 if they are stored so.
        labels: [batch, labels] float32 labels; NaN where a label is missing, which needs `missing: ignore` or
            a loader with `needs_labels=False`.
        weights: [batch] float32 sample weights; 1 if the dataset has no such column, 0 for padding.
        group: [batch] int64 values of the map feature, or None if they were not requested.
        rows: [batch] int64 positions of the rows in the dataset (files in order), PAD for padding.
        training_only: [batch, features known only in training] float32, ids and numbers in the order of
            `FeatureSpec.training_only`; the constants of predictions if the rows are to be predicted or the mapping
            lacks the columns.
        extra: one [batch] array per requested extra column, in its stored dtype (object for text); 0 or None for
            padding.
    """

    onehot: np.ndarray
    id_lists: Lists
    number_lists: Lists
    numerical: np.ndarray
    vectors: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    group: np.ndarray | None
    rows: np.ndarray
    training_only: np.ndarray = np.empty((0, 0), np.float32)
    extra: tuple[np.ndarray, ...] = ()

    @property
    def ids(self) -> Ids:
        """Ids, and the numbers in lists, without a copy."""
        return Ids(self.onehot, self.id_lists, self.number_lists)


def empty_batch(
    spec: FeatureSpec,
    rows: int,
    *,
    with_group: bool,
    extra_dtypes: Sequence[np.dtype] = (),
    vector_dtype: type[np.floating] = np.float32,
) -> Batch:
    """Allocate a batch of `rows` rows with undefined contents; its lists have no columns, since their size varies."""
    return Batch(
        onehot=empty_array((rows, len(spec.onehot)), np.int32),
        id_lists=empty_lists(rows, 0),
        number_lists=empty_lists(rows, 0, np.float32),
        numerical=empty_array((rows, len(spec.numerical)), np.float32),
        vectors=empty_array((rows, vector_columns(spec)), vector_dtype),
        labels=empty_array((rows, len(spec.labels)), np.float32),
        weights=empty_array((rows,), np.float32),
        group=empty_array((rows,), np.int64) if with_group else None,
        rows=empty_array((rows,), np.int64),
        training_only=empty_array((rows, len(spec.training_only)), np.float32),
        extra=tuple(empty_array((rows,), dtype) for dtype in extra_dtypes),
    )


def vector_columns(spec: FeatureSpec) -> int:
    """Return the width of the matrix of vectors: the sum of their dimensions."""
    return sum(feature.dimension or 0 for feature in spec.vectors)


def bytes_per_row(spec: FeatureSpec, *, with_group: bool, extra_dtypes: Sequence[np.dtype] = ()) -> int:
    """Return the bytes per row of a batch with empty lists, counting 8 per text (the pointer alone).

    Each id and each number of a list takes another ITEM_BYTES.
    """
    columns = len(spec.onehot) + len(spec.numerical) + vector_columns(spec) + len(spec.training_only) + len(spec.labels)
    # 4 bytes: int32 ids, float32 numbers, labels and the weight. 8 bytes: int64 `rows` and `group`. 12 bytes: the int32
    # length of a list, and the int64 position of its end.
    lists = 12 * (len(spec.id_lists) + len(spec.number_lists))
    return 4 * (columns + 1) + lists + 8 * (1 + with_group) + sum(dtype.itemsize for dtype in extra_dtypes)


def column_bytes_per_row(spec: FeatureSpec) -> int:
    """Return the bytes per row of what `by_column` allocates."""
    return 4 * (len(spec.onehot) + len(spec.numerical) + len(spec.training_only) + len(spec.labels))


def by_column(batch: Batch) -> Batch:
    """Return the batch with new MATRICES, of undefined contents, that lie in memory column by column.

    Writing all columns there, and then the rows with `copy_columns`, is faster than writing each with a stride.
    """
    old = [getattr(batch, name) for name in MATRICES]
    new: list[Any] = [np.empty(matrix.shape[::-1], matrix.dtype).T for matrix in old]
    return batch._replace(**dict(zip(MATRICES, new, strict=True)))


def copy_columns(source: Batch, target: Batch) -> None:
    """Copy the MATRICES of `source`, which lie in memory column by column, to a batch of as many rows."""
    for name in MATRICES:
        getattr(target, name)[...] = getattr(source, name)


def slice_rows(batch: Batch, begin: int, end: int) -> Batch:
    """Return views of the rows [begin, end)."""
    columns = {name: array if array is None else array[begin:end] for name, array in batch._asdict().items()}
    return Batch(**columns | {"extra": tuple(array[begin:end] for array in batch.extra)})


def copy_rows(source: Batch, positions: np.ndarray, target: Batch) -> None:
    """Copy the rows of `source` at `positions` to `target`, which has len(positions) rows, except for their lists."""
    indices = positions.astype(np.intp)
    for values, out in zip(_arrays(source), _arrays(target), strict=True):
        if values.dtype == out.dtype:
            # All positions are in range; with mode="raise", NumPy buffers `out` and copies twice.
            np.take(values, indices, axis=0, out=out, mode="clip")
        else:  # float16 vectors become float32
            out[...] = values[indices]


def pad_rows(batch: Batch) -> None:
    """Turn all rows into padding: weight 0, row positions PAD, everything else but their lists 0 or None."""
    for array in _arrays(batch):
        array[...] = None if array.dtype == object else 0
    batch.rows[...] = PAD


def _arrays(batch: Batch) -> list[np.ndarray]:
    return [array for array in (*batch[:-1], *batch.extra) if isinstance(array, np.ndarray)]
