"""Groups of embedding tables that share their variables, and what a batch looks up in them."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from data.loading.batch import Ids
from data.loading.lists import Lists, from_padded, join_columns
from trainer.layout import CategoricalInput, InputSchema, Table, from_newest, tables_of

Array = TypeVar("Array")  # a NumPy array, or a tensor once it is on the device


class Lookups(NamedTuple, Generic[Array]):
    """The ids of a batch that a group of tables looks up, without padding.

    A slot is a feature of a row of the batch, numbered row by row: slot = row * pooled features + feature. After these
    slots come those of sequences, one for each step that a sequence may have, also numbered row by row: within a row,
    feature by feature, and within a feature from the newest step on. Unless stated otherwise, arrays are int64, which
    GPUs compute with on the device; TensorFlow keeps int32 in host memory.

    Attributes:
        rows: [rows] distinct rows of the group that are read, sorted by the worker that holds them. This and what
            belongs to it is empty for a group that is neither sharded, nor in host memory, nor trained.
        sources: [pooled ids] where the row of each id outside of sequences is read, by slot: its number in the group's
            variable or, for a group that is sharded or in host memory, its position in `rows`.
        slots: [pooled ids] the slot of each of them, ascending; empty if every slot has exactly one id.
        row_slots: [ids] the slots of all ids, by position in `rows`: those whose gradients each row sums.
        row_positions: [ids] the position in `rows` that each of `row_slots` belongs to, ascending.
        counts: [batch, pooled features] float32, the number of ids in each slot, or the sum of their weights; [0, 0] if
            it is always 1.
        weights: [pooled ids] float32, the weight of each id, by slot; empty if all weigh 1.
        row_weights: [ids] float32, the weight of each id, in the order of `row_slots`; empty if all weigh 1.
        per_holder: [workers] int32, how many of `rows` each worker holds; [1] if the group is not sharded.
        steps: if the group has sequences, one array [batch * steps] of where the row of each step is read, like
            `sources`. For padding that is row 0 or, where positions are read, the one after the last row.
    """

    rows: Array
    sources: Array
    slots: Array
    row_slots: Array
    row_positions: Array
    counts: Array
    weights: Array
    row_weights: Array
    per_holder: Array
    steps: tuple[Array, ...] = ()


@dataclass(frozen=True, eq=False)
class TableGroup:
    """Tables of one width, whose rows lie one after the other in the same variables.

    Few large operations take less time than many small ones: a step looks up, sums and updates rows once per group.

    Attributes:
        features: the features that look up the tables, those of sequences last. Features that share a table are in the
            same group.
        name: name of the group, distinct in the model.
        is_trained: whether a step changes the rows.
        all_features: all features that look up the tables, if `features` are only some of them.
    """

    features: tuple[CategoricalInput, ...]
    name: str
    is_trained: bool = True
    all_features: tuple[CategoricalInput, ...] = ()

    def within(self, layout: InputSchema) -> "TableGroup":
        """Return the same tables with those features alone that a layout has, at its columns of the id matrix."""
        starts = {feature.name: feature.start for feature in (*layout.categorical, *layout.looked_up)}
        features = (replace(one, start=starts[one.name]) for one in self.features if one.name in starts)
        return replace(self, features=tuple(features), all_features=self.features)

    @property
    def width(self) -> int:
        """Width of the embeddings."""
        return self.features[0].width

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        """The tables, in the order of their rows."""
        return tables_of(self.all_features or self.features)

    @property
    def rows(self) -> int:
        """Number of rows of all tables together, over all workers."""
        return sum(table.rows for table in self.tables)

    @cached_property
    def pooled(self) -> tuple[CategoricalInput, ...]:
        """The features outside of sequences, whose ids are pooled."""
        return tuple(feature for feature in self.features if not feature.sequence)

    @cached_property
    def in_sequences(self) -> tuple[CategoricalInput, ...]:
        """The features of sequences."""
        return tuple(feature for feature in self.features if feature.sequence)

    @property
    def steps(self) -> int:
        """Largest number of steps in a row of a batch, over all features of sequences."""
        return sum(feature.hotness for feature in self.in_sequences)

    @property
    def has_wide_rows(self) -> bool:
        """Whether wide weights are looked up by the rows of the deep tables.

        No table is shared, all have some, and they are pooled in both parts.
        """
        return all(
            feature.wide != "no" and feature.table == feature.name and not feature.sequence for feature in self.features
        )

    @property
    def has_lists(self) -> bool:
        """Whether a pooled feature may have more or fewer ids than one."""
        return any(feature.multihot for feature in self.pooled)

    @cached_property
    def weighted(self) -> np.ndarray:
        """[pooled features] bool, whether the ids of each one have weights."""
        return np.array([bool(feature.weights) for feature in self.pooled], bool)

    @property
    def has_weights(self) -> bool:
        """Whether the ids of a feature have weights; those of the others then weigh 1."""
        return bool(self.weighted.any())

    @property
    def ids_per_row(self) -> int:
        """Largest number of ids in a row of a batch."""
        return sum(feature.hotness for feature in self.features)

    def counts_shape(self, rows: int | None) -> tuple[int | None, int]:
        """Return the shape of `Lookups.counts` for a batch of so many rows."""
        return (rows, len(self.pooled)) if self.has_lists else (0, 0)

    @cached_property
    def first_rows(self) -> dict[str, int]:
        """Name of each table -> its first row, that of id 0."""
        ends = np.cumsum([table.rows for table in self.tables]).tolist()
        return {table.name: first for table, first in zip(self.tables, [0, *ends], strict=False)}

    def key_of(self, table: str) -> str:
        """Return the key of a table's rows (see `TableRows`)."""
        return f"{self.name}/{table}"

    @cached_property
    def column_sizes(self) -> np.ndarray:
        """[columns] int64, the number of ids for each column."""
        sizes = [feature.cardinality for feature in self.features]
        return np.repeat(sizes, [feature.hotness for feature in self.features])

    @cached_property
    def column_rows(self) -> np.ndarray:
        """[columns] int64, the row of id 0 for each column."""
        first = [self.first_rows[feature.table] for feature in self.features]
        return np.repeat(first, [feature.hotness for feature in self.features])


def group_tables(layout: InputSchema, large: int) -> tuple[TableGroup, ...]:
    """Group the tables of a layout's deep part by width and size.

    Large tables are apart, because several workers exchange the gradients of small tables whole and those of large
    ones by row, and may shard large ones. The groups' order is that of the model's deep input, so it depends on nothing
    but the layout.

    Args:
        layout: layout of the features.
        large: number of rows from which a table is large.
    """

    def key(feature: CategoricalInput) -> tuple[int, bool]:
        return feature.width, feature.cardinality >= large

    groups = groupby(sorted(layout.deep, key=key), key=key)
    return tuple(
        TableGroup(tuple(features), f"{width}.{'large' if is_large else 'small'}")
        for (width, is_large), features in groups
    )


def group_vectors(layout: InputSchema) -> tuple[TableGroup, ...]:
    """Return a group for each vector that is looked up: those that are trained first."""
    tables = zip(layout.looked_up, layout.pretrained, strict=True)
    return tuple(TableGroup((feature,), f"of.{feature.name}", own.trained) for feature, own in tables)


def group_wide(layout: InputSchema, deep: Sequence[TableGroup], large: int) -> tuple[TableGroup, ...]:
    """Group the wide weights of a layout.

    Args:
        layout: layout of the features.
        deep: what `group_tables` returns for it.
        large: number of rows from which the weights of a feature are large.

    Returns:
        Deep groups whose rows the wide weights share, so that both are looked up at once, and groups of the others.
    """
    shared = tuple(group for group in deep if group.has_wide_rows)
    done = {feature.name for group in shared for feature in group.features}
    # A table per feature, and features that need not have a width. The wide part sums over the steps of sequences.
    apart = [
        replace(feature, table=feature.name, width=0, sequence="")
        for feature in layout.wide
        if feature.name not in done
    ]
    by_size = {"small": [one for one in apart if one.cardinality < large]}
    by_size["large"] = [one for one in apart if one.cardinality >= large]
    return (*shared, *(TableGroup(tuple(own), f"apart.{size}") for size, own in by_size.items() if own))


class LookupFinder:
    """Finds the rows that batches look up in a group, on the host: ahead of the step, in the loader's thread.

    Args:
        layout: layout of the features.
        group: the tables.
        holders: number of workers that hold the group's rows: row r is on worker r % holders; 1 if it is not sharded.
        on_host: whether the group's rows are in host memory.
    """

    def __init__(self, layout: InputSchema, group: TableGroup, *, holders: int, on_host: bool = False):
        self._group, self._holders, self._are_fetched = group, holders, on_host or holders > 1
        # A number for each row that the current batch reads. Finding distinct rows with it takes no hashing or sorting,
        # and it is small beside the tables.
        self._numbers = np.zeros(group.rows, np.int32)
        self._lock = threading.Lock()
        pooled, in_sequences = group.pooled, group.in_sequences
        self._onehot = [layout.columns[feature.name] for feature in pooled if not feature.multihot]
        self._multihot = [layout.columns[feature.name] for feature in pooled if feature.multihot]
        self._in_sequences = [layout.columns[feature.name] for feature in in_sequences]
        self._newest_first = [layout.newest_first[feature.name] for feature in in_sequences]
        self._first_steps = np.cumsum([0, *(feature.hotness for feature in in_sequences)])[:-1]  # [in_sequences]
        self._first_rows = np.array([group.first_rows[feature.table] for feature in group.features], np.int64)
        weighted = [feature.weights for feature in layout.weighted]
        self._weights = [weighted.index(feature.weights) for feature in pooled if feature.weights]
        # The place of each feature among the one-hot ones followed by the multi-hot ones.
        self._order = np.argsort(np.argsort([feature.multihot for feature in pooled], kind="stable"))

    def find(self, ids: Ids) -> Lookups[np.ndarray]:
        """Return what the group looks up for the ids of a batch."""
        group, batch = self._group, len(ids.onehot)
        rows, slots, counts, weights = self._pooled(ids)
        if not group.is_trained and not self._are_fetched:  # neither exchanged nor updated
            none = np.empty(0, np.int64)
            return Lookups(none, rows, slots, none, none, counts, weights, weights[:0], np.zeros(1, np.int32))
        pooled, all_slots, all_weights = len(rows), slots, weights
        step_slots = np.empty(0, np.int64)
        if group.in_sequences:
            step_rows, step_slots = self._in_steps(ids.id_lists)
            rows = np.concatenate([rows, step_rows])
            all_slots = slots if group.has_lists else np.arange(pooled)
            all_slots = np.concatenate([all_slots, batch * len(group.pooled) + step_slots])
            if group.has_weights:
                all_weights = np.concatenate([weights, np.ones(len(step_rows), np.float32)])
        distinct, positions, per_holder = self._distinct(rows)
        order, row_positions = _sorted_by(positions, len(distinct))
        sources = positions if self._are_fetched else rows
        steps = np.full(batch * group.steps, len(distinct) if self._are_fetched else 0)
        steps[step_slots] = sources[pooled:]
        return Lookups(
            distinct,
            sources[:pooled],
            slots,
            all_slots[order] if group.has_lists or group.in_sequences else order,
            row_positions,
            counts,
            weights,
            all_weights[order] if group.has_weights else weights,
            per_holder,
            (steps,) if group.in_sequences else (),
        )

    def _pooled(self, ids: Ids) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the row of each id outside of sequences, and its slot, with the counts and weights of `Lookups`."""
        group, first_rows = self._group, self._first_rows[: len(self._group.pooled)]
        own = ids.onehot if len(self._onehot) == ids.onehot.shape[1] else ids.onehot[:, self._onehot]
        weights = np.empty(0, np.float32)
        if not group.has_lists:
            rows = (np.maximum(own, 0) + first_rows).reshape(-1)  # [batch * pooled features] int64
            return rows, np.empty(0, np.int64), np.empty((0, 0), np.float32), weights
        tables = [from_padded(own, [1] * len(self._onehot))] if self._onehot else []
        lists = join_columns([*tables, ids.id_lists.select(self._multihot)]).select(self._order.tolist())
        slots, counts = lists.cells(), lists.lengths.astype(np.float32)
        rows = lists.values + np.tile(first_rows, len(lists))[slots]
        if group.has_weights:
            weights = self._weights_of(slots, ids.number_lists)
            sums = np.bincount(slots, weights, minlength=counts.size)
            counts = sums.reshape(counts.shape).astype(np.float32)
        return rows, slots, counts, weights

    def _in_steps(self, id_lists: Lists) -> tuple[np.ndarray, np.ndarray]:
        """Return the row of each id in sequences, and its slot among those of all steps, both [step ids] int64."""
        lists, first_rows = id_lists.select(self._in_sequences), self._first_rows[len(self._group.pooled) :]
        repeats = lists.lengths.reshape(-1)
        first_slots = self._group.steps * np.arange(len(lists))[:, np.newaxis] + self._first_steps
        slots = np.repeat(first_slots.reshape(-1), repeats) + from_newest(lists, self._newest_first)
        return lists.values + np.repeat(np.tile(first_rows, len(lists)), repeats), slots

    def _weights_of(self, slots: np.ndarray, number_lists: Lists) -> np.ndarray:
        """Return the weight of each id, [ids] float32, given their slots and the weights of a batch."""
        is_weighted = self._group.weighted[slots % len(self._group.pooled)]
        weights = np.ones(len(slots), np.float32)
        # The lists of the group's weighted features follow one another as their slots do.
        weights[is_weighted] = number_lists.select(self._weights).values
        return weights

    def _distinct(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the distinct rows sorted by holder, each row's position among them, and their number per holder."""
        numbers = np.arange(len(rows), dtype=np.int32)
        with self._lock:
            self._numbers[rows] = numbers  # the last of a row's ids remains
            distinct = rows[np.flatnonzero(self._numbers[rows] == numbers)]
            per_holder = np.array([len(distinct)])
            if self._holders > 1:
                order, per_holder = _counting_sort(distinct % self._holders, self._holders)
                distinct = distinct[order]
            self._numbers[distinct] = numbers[: len(distinct)]
            positions = self._numbers[rows].astype(np.int64)
        return distinct, positions, per_holder.astype(np.int32)


def _sorted_by(positions: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the stable order of positions [n] in [0, count), and the positions in this order, both int64."""
    order, per_position = _counting_sort(positions, count)
    return order, np.repeat(np.arange(count), per_position)


def _counting_sort(keys: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the stable order of keys [n] int32 in [0, count), and how often each key occurs, both int64."""
    from scipy.sparse import csc_array  # takes time to import

    # A matrix with one entry per column, converted from columns to rows, is a counting sort in compiled code.
    entries = np.empty(len(keys), np.int8)
    starts = np.arange(len(keys) + 1, dtype=np.int32)
    by_row = csc_array((entries, keys, starts), shape=(count, len(keys))).tocsr()
    return by_row.indices.astype(np.int64), np.diff(by_row.indptr).astype(np.int64)
