"""Grouped tables: what a batch looks up, pooling without padding, and the gradients of the rows."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from data.loading.batch import Ids
from tests.trainer.small_models import unpadded
from trainer.embeddings.groups import LookupFinder, TableGroup, group_tables
from trainer.embeddings.tables import EmbeddingTables, Pooled
from trainer.layout import CategoricalInput, InputSchema, SequenceInput
from trainer.process import device

LARGE = 20


@st.composite
def layouts(draw: st.DrawFn) -> InputSchema:
    """Features with one id or a list, some with weights or a shared table, of a few widths, small and large.

    Some are in sequences of one or two features.
    """
    features, start = list[CategoricalInput](), 0
    for index in range(draw(st.integers(1, 6))):
        hotness = draw(st.integers(1, 4))
        multihot = hotness > 1 or draw(st.booleans())
        cardinality, width = draw(st.sampled_from([1, 7, LARGE, 50])), draw(st.sampled_from([1, 2, 3]))
        shared = draw(st.sampled_from([None, *features]))
        size = (cardinality, width) if shared is None else (shared.cardinality, shared.width, shared.table)
        wide = draw(st.sampled_from(["only", "too", "too", "no"]))
        weights = draw(st.sampled_from(["", f"weights of f{index}"])) if multihot else ""
        combiner = draw(st.sampled_from(["", "sum", "mean"])) if multihot else ""
        more = {"wide": wide, "weights": weights, "combiner": combiner}
        features.append(CategoricalInput(f"f{index}", start, hotness, multihot, *size, **more))
        start += hotness
    sequences = []
    for number in range(draw(st.integers(0, 2))):
        length, names = draw(st.integers(1, 5)), [f"s{number}f{index}" for index in range(draw(st.integers(1, 2)))]
        sequences.append(SequenceInput(f"s{number}", length, "sum", tuple(names), newest_first=draw(st.booleans())))
        for name in names:
            shared = draw(st.sampled_from([None, *(own for own in features if own.wide != "only")]))
            size = (30, 2) if shared is None else (shared.cardinality, shared.width, shared.table)
            wide = draw(st.sampled_from(["too", "no"]))
            features.append(CategoricalInput(name, start, length, True, *size, wide=wide, sequence=f"s{number}"))
            start += length
    return InputSchema(tuple(features), (), tuple(sequences))


def draw_ids(layout: InputSchema, rows: int, seed: int) -> np.ndarray:
    """Ids [rows, id columns] int32, skewed, with padding at the end of lists."""
    rng = np.random.default_rng(seed)
    columns = []
    lengths = {sequence.name: rng.integers(0, sequence.length + 1, (rows, 1)) for sequence in layout.sequences}
    for feature in layout.categorical:
        ids = (feature.cardinality * rng.random((rows, feature.hotness)) ** 3).astype(np.int32)
        if feature.multihot:
            own = lengths[feature.sequence] if feature.sequence else rng.integers(0, feature.hotness + 1, (rows, 1))
            ids[np.arange(feature.hotness) >= own] = -1
        columns.append(ids)
    return np.concatenate(columns, axis=1)


def draw_weights(layout: InputSchema, rows: int, seed: int) -> np.ndarray:
    """Weights [rows, weight columns] float32, a third of them 0."""
    rng = np.random.default_rng(seed + 1)
    shape = (rows, layout.weight_columns)
    return (3 * rng.random(shape) * rng.integers(0, 3, shape).clip(max=1)).astype(np.float32)


def make(layout: InputSchema, combiner: str, seed: int = 0) -> EmbeddingTables:
    """Tables with a wide part of two outputs and random values in it."""
    tables, rng = (
        EmbeddingTables(layout, outputs=2, combiner=combiner, seed=seed, init_std=1.0),
        np.random.default_rng(1),
    )
    for variable in tables.wide_variables:
        variable.assign(rng.normal(size=variable.shape))
    return tables


def pooled_by_hand(
    tables: EmbeddingTables, ids: np.ndarray, weights: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The embedding of each feature [batch, width] and the wide sum [batch, 2], in plain loops."""
    values = {name.removeprefix("embeddings/"): table.numpy() for name, table in tables.tables().items()}
    deep, wide = {}, np.zeros((len(ids), 2))
    for feature in tables.layout.categorical:
        deep[feature.name] = np.zeros((len(ids), feature.width))
        for row, own in enumerate(ids[:, feature.start : feature.stop]):
            of_ids = weights[row, tables.layout.weighted[feature]].tolist() if feature.weights else [1.0] * len(own)
            present = [(number, weight) for number, weight in zip(own, of_ids, strict=True) if number >= 0]
            total = sum(weight for _, weight in present)
            for number, weight in present if total else []:
                share = weight / total if (feature.combiner or tables.combiner) == "mean" else weight
                if feature.wide != "only" and not feature.sequence:
                    deep[feature.name][row] += share * values[f"deep.{feature.table}"][number]
                if feature.wide != "no":
                    wide[row] += weight * values[f"wide.{feature.name}"][number]
    return deep, wide


def from_newest_by_hand(layout: InputSchema, ids: np.ndarray) -> np.ndarray:
    """The same ids, where the lists of sequences begin with their newest step."""
    ids = ids.copy()
    for feature in layout.categorical:
        if feature.sequence and not layout.newest_first[feature.name]:
            for own in ids[:, feature.start : feature.stop]:
                count = (own >= 0).sum()
                own[:count] = own[:count][::-1].copy()
    return ids


def steps_by_hand(tables: EmbeddingTables, ids: np.ndarray) -> list[list[tuple[int, int, np.ndarray]]]:
    """For each group with sequences: row, number of the step in the group, and the step's embedding."""
    values = {name.removeprefix("embeddings/deep."): table.numpy() for name, table in tables.tables().items()}
    found = []
    for group in tables.deep_groups:
        steps, first = [], 0
        for feature in group.features:
            if feature.sequence:
                for row, own in enumerate(ids[:, feature.start : feature.stop]):
                    present = [number for number in own if number >= 0]
                    newest = present if tables.layout.newest_first[feature.name] else present[::-1]
                    steps += [(row, first + place, values[feature.table][n]) for place, n in enumerate(newest)]
                first += feature.hotness
        found += [steps] if first else []
    return found


@settings(max_examples=60, deadline=None)
@given(layouts(), st.integers(0, 9), st.sampled_from(["sum", "mean"]), st.integers(0, 2**16))
def test_pooling_equals_loops_over_ids(layout, rows, combiner, seed):
    tables, ids, weights = make(layout, combiner), draw_ids(layout, rows, seed), draw_weights(layout, rows, seed)
    deep, wide = pooled_by_hand(tables, ids, weights)
    lookups = tf.nest.map_structure(tf.constant, tables.lookups(unpadded(layout, ids, weights)))
    padded = tables.pool_padded(tf.constant(from_newest_by_hand(layout, ids)), tf.constant(weights))
    steps = steps_by_hand(tables, ids)
    for pooled in (tables.pool(tables.sources(tables.routes(lookups), lookups), lookups), padded):
        np.testing.assert_allclose(sum(pooled.wide), wide, atol=1e-5)
        for group, found in zip(tables.deep_groups, pooled.deep, strict=True):
            expected = [deep[feature.name] for feature in group.features if not feature.sequence]
            assert found.shape == (rows, len(expected), group.width)
            if expected:
                np.testing.assert_allclose(found, np.stack(expected, axis=1), atol=1e-5)
        for found, expected in zip(pooled.steps, steps, strict=True):
            for row, step, value in expected:
                np.testing.assert_allclose(found[row, step], value, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(layouts(), st.integers(0, 9), st.sampled_from(["sum", "mean"]), st.integers(0, 2**16))
def test_gradients_of_rows_equal_those_of_whole_tables(layout, rows, combiner, seed):
    tables, ids, rng = make(layout, combiner), draw_ids(layout, rows, seed), np.random.default_rng(seed)
    weights = draw_weights(layout, rows, seed)
    variables = [variable.value for _, variable in tables.group_variables]
    with tf.GradientTape() as tape:
        padded = tables.pool_padded(tf.constant(from_newest_by_hand(layout, ids)), tf.constant(weights))
        factors = tf.nest.map_structure(lambda x: rng.normal(size=x.shape).astype(np.float32), padded)
        for own, steps in zip(factors.steps, steps_by_hand(tables, ids), strict=True):
            present = np.zeros(own.shape[:2], bool)
            for row, step, _ in steps:
                present[row, step] = True
            own[~present] = 0  # the rows that padding reads get no gradient
        factors = tf.nest.map_structure(tf.constant, factors)
        products = tf.nest.map_structure(lambda x, y: tf.reduce_sum(x * y), padded, factors)
        total = tf.add_n([tf.zeros(()), *products.deep, *products.wide, *products.steps])
    whole = [tf.convert_to_tensor(gradient).numpy() for gradient in tape.gradient(total, variables)]
    lookups = tf.nest.map_structure(tf.constant, tables.lookups(unpadded(layout, ids, weights)))
    spread = tables.spread(Pooled(*factors), lookups)
    for (index, variable), found, expected in zip(
        tables.group_variables, [*spread.deep, *spread.wide], whole, strict=True
    ):
        numbers = lookups[index].rows.numpy()
        assert len(np.unique(numbers)) == len(numbers)
        dense = np.zeros(variable.shape)
        dense[numbers] = found
        np.testing.assert_allclose(dense, expected, atol=1e-4)


def test_a_gpu_sums_the_same(monkeypatch):
    """A GPU sums segments with another operation, which does not wait for the device."""
    layout = InputSchema((CategoricalInput("a", 0, 1, False, 30, 2), CategoricalInput("b", 1, 3, True, 9, 2)), ())
    ids = np.int32([[3, 1, 1, -1], [3, -1, -1, -1], [29, 8, -1, -1], [0, -1, -1, -1]])
    results = []
    for gpu in (False, True):
        monkeypatch.setattr(device, "on_gpu", lambda gpu=gpu: gpu)
        tables = make(layout, "mean")
        lookups = tf.nest.map_structure(tf.constant, tables.lookups(unpadded(layout, ids)))
        pooled = tables.pool(tables.sources(tables.routes(lookups), lookups), lookups)
        results.append([*pooled.deep, *pooled.wide, *(x for rows in tables.spread(pooled, lookups) for x in rows)])
    for first, second in zip(*results, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(layouts())
def test_groups_hold_every_table_once(layout):
    groups = group_tables(layout, LARGE)
    assert sorted(f.name for group in groups for f in group.features) == [f.name for f in layout.deep]
    assert len({group.name for group in groups}) == len(groups)
    for group in groups:
        assert {(f.width, f.cardinality >= LARGE) for f in group.features} == {
            (group.width, group.features[0].cardinality >= LARGE)
        }
        assert {f.table: f.cardinality for f in group.features} == {table.name: table.rows for table in group.tables}
        ends = [first + table.rows for first, table in zip(group.first_rows.values(), group.tables, strict=True)]
        assert [0, *ends] == [*group.first_rows.values(), group.rows]


def test_features_that_share_a_table_have_wide_weights_of_their_own():
    item, clicked = CategoricalInput("item", 0, 1, False, 6, 3), CategoricalInput("clicked", 1, 2, True, 6, 3, "item")
    layout = InputSchema((item, clicked), ())
    tables = make(layout, "sum")
    shapes = {name.removeprefix("embeddings/"): table.shape for name, table in tables.tables().items()}
    assert shapes == {"deep.item": (6, 3), "wide.item": (6, 2), "wide.clicked": (6, 2)}
    deep, wide = tables.lookups(unpadded(layout, np.int32([[5, 5, 1], [0, 5, -1]])))
    assert sorted(deep.rows) == [0, 1, 5] and sorted(wide.rows) == [0, 5, 6 + 1, 6 + 5]


def test_a_slot_without_ids_costs_nothing():
    layout = InputSchema((CategoricalInput("items", 0, 100, True, 50, 4),), ())
    ids = np.full((6, 100), -1, np.int32)
    ids[2, :3] = [7, 7, 9]
    [found] = make(layout, "sum").lookups(unpadded(layout, ids))
    assert sorted(found.rows) == [7, 9] and found.slots.tolist() == [2, 2, 2]
    assert found.counts.reshape(-1).tolist() == [0, 0, 3, 0, 0, 0]
    assert len(found.sources) == len(found.row_slots) == len(found.row_positions) == 3


def step_ids_of(ids: Ids, layout: InputSchema, group: TableGroup) -> int:
    """The number of ids in the sequences of a group."""
    return sum(ids.id_lists.lengths[:, layout.columns[own.name]].sum() for own in group.features if own.sequence)


@settings(max_examples=60, deadline=None)
@given(layouts(), st.integers(0, 9), st.integers(1, 4), st.integers(0, 2**16))
def test_rows_are_sorted_by_the_worker_that_holds_them(layout, rows, holders, seed):
    ids = unpadded(layout, draw_ids(layout, rows, seed), draw_weights(layout, rows, seed))
    for group in group_tables(layout, LARGE):
        found, alone = (LookupFinder(layout, group, holders=own).find(ids) for own in (holders, 1))
        assert sorted(found.rows) == sorted(alone.rows) and found.per_holder.dtype == np.int32
        assert (found.rows % holders).tolist() == np.repeat(range(holders), found.per_holder).tolist()
        # What each id looks up, and what each slot adds to a row's gradient, are the same.
        sources = found.rows[found.sources] if holders > 1 else found.sources
        np.testing.assert_array_equal(sources, alone.sources)
        np.testing.assert_array_equal(found.slots, alone.slots)
        np.testing.assert_array_equal(found.weights, alone.weights)
        for own, expected in zip(found.steps, alone.steps, strict=True):
            # Padding reads row 0, or the row after those that are fetched.
            is_padding = own == len(found.rows) if holders > 1 else np.zeros(len(own), bool)
            read = np.append(found.rows, 0)[own] if holders > 1 else own
            np.testing.assert_array_equal(read, expected)
            assert is_padding.sum() == (rows * group.steps - step_ids_of(ids, layout, group) if holders > 1 else 0)
        weights = [own.row_weights if group.has_weights else own.row_slots for own in (found, alone)]
        pairs = [
            sorted(zip(own.rows[own.row_positions], own.row_slots, weight, strict=True))
            for own, weight in zip((found, alone), weights, strict=True)
        ]
        assert pairs[0] == pairs[1] and np.all(np.diff(found.row_positions) >= 0)


def test_tables_keep_their_values_in_a_group():
    """A table has the same initial values alone and beside others of its width."""
    a, b = CategoricalInput("a", 0, 1, False, 6, 3), CategoricalInput("b", 1, 2, True, 5, 3)
    together = make(InputSchema((a, b), ()), "sum", seed=4).tables()
    alone = make(InputSchema((a,), ()), "sum", seed=4).tables()
    np.testing.assert_array_equal(together["embeddings/deep.a"].numpy(), alone["embeddings/deep.a"].numpy())


def test_weights_must_be_passed_where_ids_have_some():
    layout = InputSchema((CategoricalInput("tags", 0, 2, True, 5, 3, weights="confidence"),), ())
    with pytest.raises(ValueError, match="the ids of tags have weights"):
        make(layout, "sum").pool_padded(tf.constant([[1, 2]]))
