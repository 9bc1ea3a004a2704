"""Embedding tables, of which a step reads single rows and never a whole table.

A step pools the rows that a batch looks up into one vector per feature, and differentiates everything after that (the
model, the loss) with respect to these vectors. So no gradient has the size of a table, and none has room for padding:
the cost of a list follows the ids in it. Only the rows of sequences are not pooled here, but by the model, which gets
as many as there can be steps.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import NamedTuple, Protocol

import keras
import numpy as np
import tensorflow as tf

from data.loading.batch import Ids
from trainer.embeddings import SMALLEST_SHARDED
from trainer.embeddings.groups import LookupFinder, Lookups, TableGroup, group_tables, group_vectors, group_wide
from trainer.embeddings.initialization import NormalTable, draw_tables
from trainer.embeddings.placement import HostTables
from trainer.embeddings.shards import Routes, Shards
from trainer.embeddings.table_state import HOST, WEIGHT, HostState
from trainer.layout import CategoricalInput, InputSchema
from trainer.process import device
from trainer.seeds import seed_of
from trainer.variables import TableRows, initial_value


class EmbeddingRows(NamedTuple):
    """Rows of each group of tables, or their gradients, float32.

    Attributes:
        deep: one [rows, width] tensor or variable per group, then one per trained vector.
        wide: one [rows, outputs] tensor or variable per group; none without a wide part.
        frozen: one [rows, dimension] tensor or variable per vector that is not trained, which may be float16.
    """

    deep: tuple[tf.Tensor, ...]
    wide: tuple[tf.Tensor, ...]
    frozen: tuple[tf.Tensor, ...] = ()


class Pooled(NamedTuple):
    """The embeddings of a batch, float32.

    Attributes:
        deep: one [batch, pooled features, width] tensor per group of tables, then one [batch, 1, dimension] per vector
            that is looked up and trained.
        wide: one [batch, outputs] tensor, the sum of the wide weights of each row's ids; none without a wide part.
        steps: one [batch, steps, width] tensor per group with features of sequences: of each of them, the row of every
            step, from the newest one on. For padding it is any row.
        frozen: one [batch, 1, dimension] tensor per vector that is looked up and not trained.
    """

    deep: tuple[tf.Tensor, ...]
    wide: tuple[tf.Tensor, ...]
    steps: tuple[tf.Tensor, ...] = ()
    frozen: tuple[tf.Tensor, ...] = ()


class StoredRows(Protocol):
    """The rows of a variable, as an export stores them."""

    def read(self, numbers: tf.Tensor) -> tf.Tensor:
        """Return some rows, [*numbers, width] float32.

        Args:
            numbers: numbers of the rows, int64; one out of range is an error, as for any lookup on a CPU.
        """


class EmbeddingTables(keras.layers.Layer):
    """A deep table for each categorical feature, or for several, and for a wide part the weights of each feature's ids.

    Deep tables are initialized as Glorot normal for their own shape (or with a given deviation), wide weights with
    zeros. Tables of one width share a variable (see `TableGroup`). Wide weights have the rows of the deep tables, so
    that both are looked up and updated by the same distinct rows, unless features share these tables: the weights of
    each feature are its own, and are then looked up by themselves.

    A vector that is looked up has a group of its own, by the ids of another feature, whose rows are zeros until
    `trainer.embeddings.pretrained` fills them. If it is trained, its group is one of the deep ones in all but the input
    of the model. Otherwise a step only reads it.

    Args:
        layout: layout of the features.
        outputs: number of logits of the wide part; 0 for no wide part.
        combiner: how the deep part pools the ids of a multi-hot feature that states no combiner of its own; the wide
            part always sums.
        seed: seed of the initial weights.
        init_std: standard deviation of the deep tables' normal initialization; None for Glorot's.
        shards: how large tables are sharded across workers; None if every worker holds all rows.
        host: the groups whose rows are in host memory.
        restored: whether a checkpoint overwrites the tables, which then have no initial values.

    Attributes:
        groups: the groups of tables whose rows a step looks up: the deep ones, in the order of the deep input, those of
            vectors, and then those of wide weights that do not have the rows of the deep tables.
        deep_variables: this worker's rows of each deep group, then of each trained vector.
        frozen_variables: this worker's rows of each vector that is not trained.
        wide_variables: this worker's rows of the wide weights, likewise; none without a wide part.
        stored: where `pool_padded` reads rows instead of in the variables, by the path of the variable; empty unless
            the model is being exported.
    """

    def __init__(
        self,
        layout: InputSchema,
        *,
        outputs: int,
        combiner: str,
        seed: int,
        init_std: float | None = None,
        shards: Shards | None = None,
        host: HostTables | None = None,
        restored: bool = False,
    ):
        super().__init__(name="embeddings", dtype="float32")
        self.layout, self.combiner, self.shards, self.host = layout, combiner, shards, host or HostTables()
        self.stored: Mapping[str, StoredRows] = {}
        large = shards.smallest if shards else SMALLEST_SHARDED
        deep = group_tables(layout, large)
        wide = group_wide(layout, deep, large) if outputs else ()
        vectors = group_vectors(layout)
        self.groups = (*deep, *vectors, *(group for group in wide if group not in deep))
        self.deep_groups = deep
        self._wide_groups = [self.groups.index(group) for group in wide]
        self._finders = [
            LookupFinder(layout, group, holders=self._holders(group)[1], on_host=self.is_on_host(group))
            for group in self.groups
        ]
        trained = [group for group in vectors if group.is_trained]
        self.deep_variables = [self._variable("deep", group, group.width, overwritten=True) for group in deep]
        self.deep_variables += [self._variable("vector", own, own.width, overwritten=restored) for own in trained]
        self.frozen_variables = [
            self._variable("vector", group, group.width, overwritten=restored, dtype=own.dtype)
            for group, own in zip(vectors, layout.pretrained, strict=True)
            if not own.trained
        ]
        self.wide_variables = [self._variable("wide", group, outputs, overwritten=restored) for group in wide]
        if not restored:
            draw_tables(
                [
                    NormalTable(table, init_std, seed_of(seed, name))
                    for group, variable in zip(deep, self.deep_variables, strict=False)
                    for name, table in self._rows_of(group, variable.value).items()
                ]
            )
        self.built = True

    # The tables

    def is_sharded(self, group: TableGroup) -> bool:
        """Return whether this worker holds only a part of the group's rows."""
        return self.shards is not None and self.shards.holds_part_of(group.tables[0].rows)

    def is_on_host(self, group: TableGroup) -> bool:
        """Return whether the group's rows are in host memory, although a step computes on a device."""
        return group.name in self.host.groups

    def _are_fetched(self, group: TableGroup) -> bool:
        """Return whether a step looks up the ids of the group in a copy of their rows, from workers or the host."""
        return self.is_sharded(group) or self.is_on_host(group)

    @property
    def cache_places(self) -> dict[str, int]:
        """Path of each variable in host memory -> number of its rows that the device caches in training."""
        return {
            variable.path: self.host.places(variable.shape[0])
            for index, variable in (*self.group_variables, *self.frozen_groups)
            if self.is_on_host(self.groups[index])
        }

    @property
    def group_variables(self) -> list[tuple[int, keras.Variable]]:
        """Every deep variable, then every wide one, each with the index of its group: those that are trained."""
        return [*enumerate(self.deep_variables), *zip(self._wide_groups, self.wide_variables, strict=True)]

    @property
    def frozen_groups(self) -> list[tuple[int, keras.Variable]]:
        """Every variable that is not trained, with the index of its group."""
        return list(enumerate(self.frozen_variables, start=len(self.deep_variables)))

    def tables(self) -> dict[str, TableRows]:
        """Return all tables by name: embeddings/deep.TABLE, embeddings/vector.FEATURE and embeddings/wide.FEATURE."""
        found: dict[str, TableRows] = {}
        for _, variable in (*self.group_variables, *self.frozen_groups):
            found |= self.split(variable.path, {"": variable.value})
        return found

    def vector_tables(self) -> dict[str, TableRows]:
        """Return the rows of the vectors that are looked up, by feature."""
        variables = [*self.deep_variables, *self.frozen_variables]
        found: dict[str, TableRows] = {}
        for index in range(len(self.deep_groups), len(variables)):
            found |= self._rows_of(self.groups[index], variables[index].value)
        return found

    def split(self, path: str, variables: dict[str, tf.Variable]) -> dict[str, TableRows]:
        """Return the tables in variables that have the rows of a group: its weights or its optimizer state.

        Args:
            path: path of the group's deep, vector or wide variable.
            variables: suffix of the name -> variable.

        Returns:
            embeddings/deep.TABLE + suffix (or vector.FEATURE, or wide.FEATURE) -> its rows.
        """
        of_groups = (*self.group_variables, *self.frozen_groups)
        [group] = [self.groups[index] for index, variable in of_groups if variable.path == path]
        part = path.removesuffix(f".{group.name}")
        return {
            f"{part}.{name}{suffix}": table
            for suffix, variable in variables.items()
            for name, table in self._rows_of(group, variable).items()
        }

    def _rows_of(self, group: TableGroup, variable: tf.Variable) -> dict[str, TableRows]:
        """Return each table's rows in a variable that has the rows of a group."""
        return {
            name: TableRows(variable, group.first_rows[name], rows, *self._holders(group), group.key_of(name))
            for name, rows, *_ in group.tables
        }

    # Lookup and pooling

    def lookup_specs(self, rows: int | None) -> tuple[Lookups[tf.TensorSpec], ...]:
        """Return the types of `lookups` as tensors, for the signatures of graphs.

        Args:
            rows: number of rows of a batch; None if it varies.
        """
        numbers = tf.TensorSpec([None], tf.int64)

        def spec(group: TableGroup) -> Lookups[tf.TensorSpec]:
            # Known where every slot has one id: XLA compiles what depends on it only once.
            size = None if rows is None or group.has_lists else rows * len(group.pooled)
            pooled = tf.TensorSpec([size], tf.int64)
            ids = pooled if group.is_trained and not group.in_sequences else numbers
            slots = tf.TensorSpec([None if group.has_lists else 0], tf.int64)
            counts = tf.TensorSpec(group.counts_shape(rows), tf.float32)
            weights = tf.TensorSpec([None if group.has_weights else 0], tf.float32)
            per_holder = tf.TensorSpec(self._holders(group)[1:], tf.int32)
            steps = tf.TensorSpec([None if rows is None else rows * group.steps], tf.int64)
            of_steps = (steps,) if group.in_sequences else ()
            return Lookups(numbers, pooled, slots, ids, ids, counts, weights, weights, per_holder, of_steps)

        return tuple(spec(group) for group in self.groups)

    def lookups(self, ids: Ids) -> tuple[Lookups[np.ndarray], ...]:
        """Find what each group looks up for the ids of a batch, on the host."""
        return tuple(finder.find(ids) for finder in self._finders)

    def routes(self, lookups: Sequence[Lookups]) -> Routes:
        """Tell the workers that hold rows of sharded tables which of them this one looks up. A collective then."""
        if self.shards is None:
            return Routes({}, {}, {})
        sharded = {n: found for n, found in enumerate(lookups) if self.is_sharded(self.groups[n])}
        rows = {n: found.rows for n, found in sharded.items()}
        return self.shards.routes(rows, {n: found.per_holder for n, found in sharded.items()})

    def sources(
        self, routes: Routes, lookups: Sequence[Lookups], cached: Mapping[str, HostState] | None = None
    ) -> EmbeddingRows:
        """Return what the ids are looked up in. A collective if tables are sharded, whose rows it fetches.

        Args:
            routes: what `routes` returns for the lookups of the batch.
            lookups: what each group looks up.
            cached: path of each variable in host memory -> its rows, for a step that reads them through their caches;
                None to read the variables themselves.
        """
        of_groups = [*self.group_variables, *self.frozen_groups]
        sources = [variable.value for _, variable in of_groups]
        for n, (index, variable) in enumerate(of_groups):
            if index in routes.rows or self.is_on_host(self.groups[index]):
                rows = routes.rows.get(index, lookups[index].rows)
                sources[n] = self._rows_of_worker(self.groups[index], variable, rows, cached)
        if self.shards is not None:
            sharded = [n for n, (index, _) in enumerate(of_groups) if index in routes.rows]
            # One call for all sharded tables: the number of collectives does not depend on how many there are.
            fetched = self.shards.fetch([(of_groups[n][0], sources[n]) for n in sharded], routes)
            for n, rows in zip(sharded, fetched, strict=True):
                sources[n] = rows
        deep, trained = len(self.deep_variables), len(self.group_variables)
        return EmbeddingRows(tuple(sources[:deep]), tuple(sources[deep:trained]), tuple(sources[trained:]))

    def _rows_of_worker(
        self, group: TableGroup, variable: keras.Variable, rows: tf.Tensor, cached: Mapping[str, HostState] | None
    ) -> tf.Tensor:
        """Return copies of rows [n] of those that this worker holds of a group, [n, width] float32."""
        if not self.is_on_host(group):
            return _looked_up(variable.value, rows)
        if cached is not None:
            return tf.cast(cached[variable.path].read(rows, [WEIGHT])[WEIGHT], tf.float32)
        with tf.device(HOST):
            return _looked_up(variable.value, tf.identity(rows))

    def pool(self, sources: EmbeddingRows, lookups: Sequence[Lookups]) -> Pooled:
        """Pool the rows of each slot, times the weights of the ids: a slot without ids gets zeros."""
        deep = [
            self._sum_slots(self.groups[index], source, lookups[index]) for index, source in enumerate(sources.deep)
        ]
        steps = [
            self._steps(self.groups[index], source, lookups[index])
            for index, source in enumerate(sources.deep)
            if self.groups[index].in_sequences
        ]
        wide = [
            tf.reduce_sum(self._sum_slots(self.groups[index], source, lookups[index]), axis=1)
            for index, source in zip(self._wide_groups, sources.wide, strict=True)
        ]
        frozen = [
            self._sum_slots(self.groups[index], source, lookups[index])
            for (index, _), source in zip(self.frozen_groups, sources.frozen, strict=True)
        ]
        combined, trained = self._combined([*deep, *frozen], lookups), len(deep)
        return Pooled(combined[:trained], (tf.add_n(wide),) if wide else (), tuple(steps), combined[trained:])

    def spread(self, gradients: Pooled, lookups: Sequence[Lookups]) -> EmbeddingRows:
        """Return the gradients of the rows from those of the pooled embeddings: the transpose of `pool`."""
        deep, steps = self._combined(gradients.deep, lookups), iter(gradients.steps)
        of_deep = []
        for index, slots in enumerate(deep):
            parts = [slots, next(steps)] if self.groups[index].in_sequences else [slots]
            of_deep.append(self._sum_rows(index, parts, lookups))
        of_wide = []
        for gradient in gradients.wide:
            for index in self._wide_groups:
                batch, outputs = tf.shape(gradient)[0], gradient.shape[1]
                slots = tf.broadcast_to(gradient[:, tf.newaxis], [batch, len(self.groups[index].pooled), outputs])
                of_wide.append(self._sum_rows(index, [slots], lookups))
        return EmbeddingRows(tuple(of_deep), tuple(of_wide))

    def pool_padded(
        self, ids: tf.Tensor, weights: tf.Tensor | None = None, layout: InputSchema | None = None
    ) -> Pooled:
        """Look up and pool ids in a graph without host code, as exports need it.

        Args:
            ids: [batch, id columns] int32 or int64; padding is below 0. Sequences begin with their newest step.
            weights: [batch, weight columns] float32; None if no feature has weights.
            layout: the layout of these matrices, if they hold only some of the features (see `InputSchema.sides`); the
                embeddings are then those of these features.
        """
        groups = self.groups if layout is None else tuple(group.within(layout) for group in self.groups)
        layout = layout or self.layout
        if weights is None and layout.weighted:
            names = ", ".join(feature.name for feature in layout.weighted)
            raise ValueError(f"the ids of {names} have weights; pass them")
        ids = tf.cast(ids, tf.int64)
        found = [self._padded_rows(group, layout, ids, weights) if group.features else None for group in groups]
        if any(self.is_sharded(group) for group in self.groups):
            raise ValueError("padded ids cannot be looked up in sharded tables")
        deep, steps, trained = [], [], len(self.deep_variables)
        for group, variable, rows_and_weights in zip(
            groups, [*self.deep_variables, *self.frozen_variables], found, strict=False
        ):
            if rows_and_weights is None:
                deep.append(tf.zeros([tf.shape(ids)[0], 0, variable.shape[1]]))
                continue
            numbers, of_ids = rows_and_weights
            rows = self._read(variable, numbers)
            if group.in_sequences:
                columns = sum(feature.hotness for feature in group.pooled)
                steps.append(rows[:, columns:])
                rows, of_ids = rows[:, :columns], of_ids[:, :columns]
            deep.append(self._pool_columns(group, rows, of_ids))
        wide = []
        for index, variable in zip(self._wide_groups, self.wide_variables, strict=True):
            if (rows_and_weights := found[index]) is not None:
                numbers, of_ids = rows_and_weights
                wide.append(tf.reduce_sum(self._read(variable, numbers) * of_ids, axis=1))
        if self.wide_variables and not wide:
            wide = [tf.zeros([tf.shape(ids)[0], self.wide_variables[0].shape[1]])]
        return Pooled(tuple(deep[:trained]), (tf.add_n(wide),) if wide else (), tuple(steps), tuple(deep[trained:]))

    def _read(self, variable: keras.Variable, numbers: tf.Tensor) -> tf.Tensor:
        """Return rows of a variable, or of what an export stores in its place, [*numbers, width] float32."""
        stored = self.stored.get(variable.path)
        return _looked_up(variable.value, numbers) if stored is None else stored.read(numbers)

    def _padded_rows(
        self, group: TableGroup, layout: InputSchema, ids: tf.Tensor, weights: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the rows that padded ids [batch, id columns] int64 look up in a group, and the weight of each.

        Returns:
            Row numbers [batch, columns] int64, and weights [batch, columns, 1] float32, 0 for padding.
        """
        columns = np.concatenate([np.arange(feature.start, feature.stop) for feature in group.features])
        own = tf.gather(ids, columns, axis=1)
        # An id outside of its table must fail, not read the next table of the group.
        rows = tf.where(own < group.column_sizes, tf.maximum(own, 0) + group.column_rows, group.rows)
        of_ids = tf.ones_like(own, tf.float32)
        if weights is not None and group.has_weights:
            places = {feature.weights: columns for feature, columns in layout.weighted.items()}
            parts = [
                weights[:, places[feature.weights]]
                if feature.weights
                else tf.ones_like(own[:, : feature.hotness], tf.float32)
                for feature in group.features
            ]
            of_ids = tf.concat(parts, axis=1)
        return rows, tf.where(own >= 0, of_ids, 0.0)[:, :, tf.newaxis]

    def _pool_columns(self, group: TableGroup, rows: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """Pool rows [batch, columns, width], times their weights [batch, columns, 1], of features not in sequences.

        Returns:
            [batch, pooled features, width].
        """
        if not group.has_lists:
            return rows
        pooled, start = [], 0
        for feature in group.pooled:
            columns = slice(start, start + feature.hotness)
            total = tf.reduce_sum((rows * weights)[:, columns], axis=1)
            if self._takes_means(feature):
                total = tf.math.divide_no_nan(total, tf.reduce_sum(weights[:, columns], axis=1))
            pooled.append(total)
            start += feature.hotness
        return tf.stack(pooled, axis=1)

    def _sum_slots(self, group: TableGroup, source: tf.Tensor | tf.Variable, lookups: Lookups) -> tf.Tensor:
        """Sum the rows that each slot of pooled features looks up, [batch, pooled features, width]."""
        features, width = len(group.pooled), source.shape[1]
        if not features:
            return tf.zeros([tf.shape(lookups.steps[0])[0] // group.steps, 0, width])
        per_id = _looked_up(source, lookups.sources)  # [ids, width]
        if group.has_weights:
            per_id *= lookups.weights[:, tf.newaxis]
        if group.has_lists:
            count = tf.size(lookups.counts)
            sums = _sum_segments(per_id, lookups.slots, count)
            # The slots after the last one that has an id.
            per_id = tf.pad(sums, [[0, count - tf.shape(sums)[0]], [0, 0]])
        return tf.reshape(per_id, [-1, features, width])

    def _steps(self, group: TableGroup, source: tf.Tensor | tf.Variable, lookups: Lookups) -> tf.Tensor:
        """Return the row of each step of a group's sequences, [batch, steps, width]."""
        if self._are_fetched(group):
            source = tf.pad(source, [[0, 1], [0, 0]])  # a row for padding: a batch may have no other one
        return tf.reshape(tf.gather(source, lookups.steps[0]), [-1, group.steps, source.shape[1]])

    def _sum_rows(self, index: int, slots: Sequence[tf.Tensor], lookups: Sequence[Lookups]) -> tf.Tensor:
        """Sum the gradients of the slots that look up each row of a group, [rows, width].

        Args:
            index: number of the group.
            slots: gradients of its pooled features and, if it has sequences, of their steps, [batch, ..., width] each.
            lookups: what each group looks up.
        """
        found, flat = lookups[index], [tf.reshape(own, [-1, own.shape[-1]]) for own in slots]
        per_id = tf.gather(flat[0] if len(flat) == 1 else tf.concat(flat, axis=0), found.row_slots)
        if self.groups[index].has_weights:
            per_id *= found.row_weights[:, tf.newaxis]
        return _sum_segments(per_id, found.row_positions, tf.shape(found.rows)[0])

    def _combined(self, slots: Sequence[tf.Tensor], lookups: Sequence[Lookups]) -> tuple[tf.Tensor, ...]:
        """Divide sums of deep rows, [batch, features, width] per group, by their ids' weights for the combiner mean.

        Gradients are divided in the same way, from those of the means to those of the rows.
        """
        combined = []
        for index, values in enumerate(slots):
            takes_means = [self._takes_means(feature) for feature in self.groups[index].pooled]
            if any(takes_means):
                counts = tf.where(takes_means, lookups[index].counts, 1.0)  # [batch, features]
                values = tf.math.divide_no_nan(values, counts[:, :, tf.newaxis])
            combined.append(values)
        return tuple(combined)

    def _takes_means(self, feature: CategoricalInput) -> bool:
        """Return whether the deep part takes the mean over a feature's ids, not their sum."""
        return feature.multihot and (feature.combiner or self.combiner) == "mean"

    # Creation

    def _variable(
        self, part: str, group: TableGroup, width: int, *, overwritten: bool, dtype: str = "float32"
    ) -> keras.Variable:
        """Create this worker's rows of a group: zeros, or without values if these are overwritten."""
        rank, workers = self._holders(group)
        # ceil((rows - rank) / workers) rows: those with number % workers == rank.
        shape = (-((rank - group.rows) // workers), width)

        def initializer(shape: tuple[int, ...], dtype: str) -> tf.Tensor:
            return initial_value(shape, 0.0, overwritten=overwritten, dtype=dtype)

        name, is_trained = f"{part}.{group.name}", group.is_trained
        with tf.device(HOST) if self.is_on_host(group) else nullcontext():
            return self.add_weight(shape=shape, initializer=initializer, dtype=dtype, name=name, trainable=is_trained)

    def _holders(self, group: TableGroup) -> tuple[int, int]:
        """Return this worker's position among the workers that share a group's rows, and their number."""
        return (self.shards.rank, self.shards.workers) if self.shards and self.is_sharded(group) else (0, 1)


def _looked_up(source: tf.Tensor | tf.Variable, rows: tf.Tensor) -> tf.Tensor:
    """Return rows of a source, [*rows, width] float32: of those that are float16, only these become float32."""
    return tf.cast(tf.gather(source, rows), tf.float32)


def _sum_segments(values: tf.Tensor, segments: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Sum values [n, width] with the same segment, where segments [n] ascend.

    Args:
        values: [n, width] float32.
        segments: [n] int64.
        count: number of segments, of which the last may have no values.

    Returns:
        [count, width], or fewer rows if the last segments are empty.
    """
    if device.on_gpu():
        return tf.math.unsorted_segment_sum(values, segments, count)  # segment_sum waits for the last segment's number
    return tf.math.segment_sum(values, segments)  # three times as fast on a CPU
