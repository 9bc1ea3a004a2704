"""Decode Arrow columns into the row-major arrays of a `Batch`, rejecting invalid values."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from data.errors import DataError
from data.loading.batch import Batch
from data.loading.lists import Lists
from data.spec.columns import GROUPS, Column, Domain, as_numbers, describe_column
from data.spec.feature_spec import FeatureSpec
from data.spec.features import Feature

# How to handle an id outside [0, cardinality): raise; use the `unseen_id` of the feature, or raise if it states none;
# use the nearest valid id; or do that and give the row weight 0.
OovPolicy = Literal["error", "unseen", "clip", "drop"]
LIST_DTYPES = {"id_lists": np.int32, "number_lists": np.float32}


@dataclass(frozen=True)
class BatchColumn:
    """A column of a `Batch`: where its values go, and which are valid.

    Attributes:
        name: name of the column.
        field: name of the `Batch` field that receives the values.
        slot: index of the column in that field, or of the first value of a vector.
        longest: maximum length of a list; longer ones are cut. None unless the values are lists.
        keep_last: whether the last items of a longer list are kept instead of the first ones.
        dimension: number of values of a vector; None unless the values are vectors.
        feature: description of the column from the specification; None for an extra column, passed on unchanged.
        domain: valid values of the column.
        oov_policy: how to handle integral ids outside the domain.
        unseen_id: id that replaces them under "unseen".
    """

    name: str
    field: str
    slot: int = 0
    longest: int | None = None
    keep_last: bool = False
    dimension: int | None = None
    feature: Column | None = None
    domain: Domain = Domain()
    oov_policy: OovPolicy = "error"
    unseen_id: int | None = None

    @property
    def expected(self) -> str:
        """Description of the valid values, for messages."""
        return self.feature.expected if self.feature else "a value"

    @property
    def expected_type(self) -> str:
        """Description of the accepted stored types, for messages."""
        return self.feature.expected_type if self.feature else "numbers, booleans or texts"

    def accepts(self, stored: pa.DataType) -> bool:
        """Return whether a column of this stored type can be decoded."""
        return self.feature.accepts(stored) if self.feature else _is_plain(stored)


def batch_columns(
    spec: FeatureSpec, *, with_group: bool, extra_columns: Sequence[str] = (), oov_policy: OovPolicy = "error"
) -> list[BatchColumn]:
    """Return the columns of a batch; `oov_policy` applies to ids."""

    def column(feature: Feature, field: str, slot: int = 0) -> BatchColumn:
        described = describe_column(spec, feature.name)
        sequence = spec.sequence_of.get(feature.name)
        longest = described.longest or 1 if field in LIST_DTYPES else None
        dimension = feature.dimension if field == "vectors" else None
        keep_last = sequence is not None and sequence.order == "newest_last"
        policy = oov_policy if described.has_ids and field != "group" else "error"
        if policy == "unseen" and feature.unseen_id is None:
            policy = "error"
        return BatchColumn(
            feature.name,
            field,
            slot,
            longest,
            keep_last,
            dimension,
            described,
            described.domain,
            policy,
            feature.unseen_id,
        )

    columns = [column(feature, "onehot", slot) for slot, feature in enumerate(spec.onehot)]
    columns += [column(feature, "id_lists", slot) for slot, feature in enumerate(spec.id_lists)]
    columns += [column(feature, "number_lists", slot) for slot, feature in enumerate(spec.number_lists)]
    columns += [column(feature, "numerical", slot) for slot, feature in enumerate(spec.numerical)]
    columns += [column(feature, "training_only", slot) for slot, feature in enumerate(spec.training_only)]
    ends = np.cumsum([feature.dimension or 0 for feature in spec.vectors]).tolist()
    columns += [
        column(feature, "vectors", end - (feature.dimension or 0))
        for feature, end in zip(spec.vectors, ends, strict=True)
    ]
    columns += [column(feature, "labels", slot) for slot, feature in enumerate(spec.labels)]
    if spec.sample_weight is not None:
        columns.append(column(spec.sample_weight, "weights"))
    if with_group and spec.map_feature is not None:
        # Any integer: ids outside of a one-hot feature's table are groups of their own.
        columns.append(replace(column(spec.map_feature, "group"), domain=GROUPS))
    return columns + [BatchColumn(name, "extra", slot) for slot, name in enumerate(extra_columns)]


def is_text(stored: pa.DataType) -> bool:
    """Return whether a stored type is text."""
    return pa.types.is_string(stored) or pa.types.is_large_string(stored)


def _is_plain(stored: pa.DataType) -> bool:
    is_number = pa.types.is_integer(stored) or pa.types.is_floating(stored)
    return is_number or pa.types.is_boolean(stored) or is_text(stored)


class Location(NamedTuple):
    """Where values are stored, for messages.

    Attributes:
        path: path of the file.
        row_group: index of the row group in the file.
        first_row: index of the first row in the file.
    """

    path: Path
    row_group: int
    first_row: int


def reject_nulls(
    column: BatchColumn, array: pa.Array, location: Location, row_of: Callable[[int], int] = lambda index: index
) -> None:
    """Raise a DataError if there are nulls, naming the row of the first one.

    Args:
        column: column that the values belong to.
        array: values of the column, or flattened items of its lists.
        location: where the values are stored.
        row_of: maps a position in `array` to its row; the identity unless the values are list items.
    """
    if array.null_count == 0:
        return
    first = int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
    raise DataError(
        f"{location.path}, row group {location.row_group}: column {column.name!r} has "
        f"{array.null_count} missing values (null), the first in row {location.first_row + row_of(first)} of the file; "
        f"expected {column.expected}. check_dataset.py lists them all."
    )


def usable_values(
    column: BatchColumn, values: np.ndarray, location: Location, row_of: Callable[[int], int] = lambda index: index
) -> tuple[np.ndarray, np.ndarray]:
    """Check values against the domain of their column, and replace out-of-range ids if the `oov_policy` allows it.

    Args:
        column: column that the values belong to.
        values: [count] numbers.
        location: where the values are stored.
        row_of: maps a position in `values` to its row; the identity unless the values are list items.

    Returns:
        The [count] values, all in the domain, and the [replaced] int64 positions of the ids that were not.

    Raises:
        DataError: if a value is out of range and cannot be replaced, naming the first one and its row.
    """
    if column.domain.allows_all(values):  # the usual case, and faster than `allows`
        return values, np.zeros(0, np.int64)
    wrong = np.flatnonzero(~column.domain.allows(values))
    # Only integral ids may be replaced: NaN or 1.5 is damage, not an unseen id.
    is_id = column.field != "group" and column.feature is not None and column.feature.has_ids
    whole = is_id & np.isfinite(values[wrong]) & (values[wrong] == np.floor(values[wrong]))
    rejected = wrong if column.oov_policy == "error" else wrong[~whole]
    if len(rejected):
        can_replace = column.oov_policy == "error" and whole.all()
        fix = f"to replace such ids, {_how_to_replace(column)}; " if can_replace else ""
        raise DataError(
            f"{location.path}, row group {location.row_group}: column {column.name!r} has {len(rejected)} unusable "
            f"values, the first {values[rejected[0]].item()} in row {location.first_row + row_of(int(rejected[0]))} of "
            f"the file; expected {column.expected}. {fix}check_dataset.py lists them all."
        )
    if column.oov_policy != "unseen":
        return np.clip(values, column.domain.low, column.domain.high), wrong
    ids = values.copy()
    ids[wrong] = 0
    ids = ids.astype(np.int32)  # holds every id, unlike some stored types
    ids[wrong] = column.unseen_id
    return ids, wrong


def _how_to_replace(column: BatchColumn) -> str:
    if column.unseen_id is None:
        return "state the unseen_id of the feature, or pass --oov_policy clip or drop to main.py"
    return f"pass --oov_policy unseen (they become {column.unseen_id}), or --oov_policy clip or drop, to main.py"


class Decoded(NamedTuple):
    """The lists of decoded rows, and the values that were changed while decoding.

    Attributes:
        id_lists: [rows, 1] lists of int32 of each feature, in the order of `FeatureSpec.id_lists`.
        number_lists: [rows, 1] lists of float32 of each column, in the order of `FeatureSpec.number_lists`.
        cut: number of lists cut to max_hotness, by column.
        replaced: [replaced] int64 row of each id that was out of range, by column; columns without such ids are
            left out.
    """

    id_lists: Sequence[Lists]
    number_lists: Sequence[Lists]
    cut: Mapping[str, int]
    replaced: Mapping[str, np.ndarray]


class DecodedLists(NamedTuple):
    """Lists of a column.

    Attributes:
        lists: [rows, 1] lists of int32 ids or float32 numbers.
        lengths: [rows] int32 lengths of these lists before they were cut.
        cut: number of lists cut to max_hotness.
    """

    lists: Lists
    lengths: np.ndarray
    cut: int


def decode_column(
    column: BatchColumn, stored: pa.ChunkedArray, location: Location, out: Batch
) -> tuple[DecodedLists | None, np.ndarray]:
    """Decode some rows of a column into `out`, unless they are lists.

    Args:
        column: column to decode.
        stored: its stored values.
        location: where the first row is stored, for messages.
        out: batch of the same rows to write to; other columns are left unchanged.

    Returns:
        The lists, or None, and the [replaced] int64 row of each id that was out of range.

    Raises:
        DataError: if a value is missing or out of range, naming the file, the row and the value.
    """
    array, no_rows = _one_array(stored), np.zeros(0, np.int64)
    if column.field == "extra":
        out.extra[column.slot][:] = _decode_extra(column, array, location)
        return None, no_rows
    if column.dimension is not None:
        values = _decode_vectors(column, array, column.dimension, location)
        out.vectors[:, column.slot : column.slot + column.dimension] = values
        return None, no_rows
    if column.longest is not None:
        whole, replaced = _decode_lists(column, array, location)
        kept = whole.cut([column.longest], keep_last=column.keep_last)
        cut = 0 if kept is whole else int(np.count_nonzero(kept.lengths < whole.lengths))
        return DecodedLists(kept.astype(LIST_DTYPES[column.field]), whole.lengths[:, 0], cut), replaced
    values, replaced = _decode_numbers(column, array, location)
    field = getattr(out, column.field)
    (field if field.ndim == 1 else field[:, column.slot])[:] = values
    return None, replaced


def extra_dtype(stored: pa.DataType) -> np.dtype:
    """Return the dtype of an extra column in a batch."""
    return np.dtype(object if is_text(stored) else stored.to_pandas_dtype())


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _decode_numbers(column: BatchColumn, array: pa.Array, location: Location) -> tuple[np.ndarray, np.ndarray]:
    """Return the [rows] values and the [replaced] int64 rows of those that were replaced."""
    if not column.domain.may_miss:
        reject_nulls(column, array, location)
    return usable_values(column, as_numbers(array).to_numpy(zero_copy_only=False), location)


def _decode_extra(column: BatchColumn, array: pa.Array, location: Location) -> np.ndarray:
    if not is_text(array.type):
        reject_nulls(column, array, location)
    return array.to_numpy(zero_copy_only=False)


def _decode_lists(column: BatchColumn, array: pa.Array, location: Location) -> tuple[Lists, np.ndarray]:
    """Return the [rows, 1] whole lists and the [replaced] int64 row of each id that was replaced."""
    offsets, items = _offsets_and_items(column, array, location)

    def row_of(item: int) -> int:
        return int(np.searchsorted(offsets, item, side="right")) - 1

    reject_nulls(column, items, location, row_of)
    ids, replaced = usable_values(column, items.to_numpy(), location, row_of)
    lengths = np.diff(offsets).astype(np.int32, copy=False)[:, np.newaxis]
    return Lists(ids, lengths), np.searchsorted(offsets, replaced, side="right") - 1


def _decode_vectors(column: BatchColumn, array: pa.Array, dimension: int, location: Location) -> np.ndarray:
    """Return the vectors, [rows, dimension] of their stored type."""
    offsets, items = _offsets_and_items(column, array, location)
    lengths = np.diff(offsets)
    wrong = np.flatnonzero(lengths != dimension)
    if len(wrong):
        raise DataError(
            f"{location.path}, row group {location.row_group}: column {column.name!r} has {len(wrong)} vectors of "
            f"another length than its dimension, the first of {lengths[wrong[0]]} numbers in row "
            f"{location.first_row + int(wrong[0])} of the file; expected {column.expected}: write the file again, or "
            "correct the dimension in the feature specification. check_dataset.py lists them all."
        )

    def row_of(item: int) -> int:
        return item // dimension

    reject_nulls(column, items, location, row_of)
    values = items.to_numpy()
    # Every finite float16 is usable; wider ones, which Arrow makes slowly, are only needed to say what is wrong.
    if values.dtype != np.float16 or not np.isfinite(values).all():
        values, _ = usable_values(column, as_numbers(items).to_numpy(), location, row_of)
    return values.reshape(-1, dimension)


def _offsets_and_items(column: BatchColumn, array: pa.Array, location: Location) -> tuple[np.ndarray, pa.Array]:
    """Return the [rows + 1] offsets of lists, of which none is null, and all of their items."""
    reject_nulls(column, array, location)
    if pa.types.is_fixed_size_list(array.type):
        return np.arange(len(array) + 1) * array.type.list_size, array.flatten()
    # The offsets of a sliced array point into the values of the whole row group.
    offsets = array.offsets.to_numpy()
    return offsets - offsets[0], array.values.slice(offsets[0], offsets[-1] - offsets[0])
