import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.local_workers import run_workers
from tests.trainer.small_models import LAYOUT, make_model, unpadded
from trainer.embeddings import exchange
from trainer.embeddings.costs import Traffic, bytes_rows, bytes_shards, bytes_whole, cheaper_exchange, expected_distinct
from trainer.embeddings.exchange import SparseExchange, plan_exchange
from trainer.embeddings.shards import Shards


def test_expected_distinct_rows_of_uniform_draws():
    rng = np.random.default_rng(0)
    for rows, draws in ((10, 5), (1000, 300), (50, 2000)):
        seen = np.mean([len(np.unique(rng.integers(0, rows, draws))) for _ in range(300)])
        assert expected_distinct(rows, draws) == pytest.approx(seen, rel=0.06)


def test_bytes_of_ring_collectives():
    # Four workers: in the all-reduce of 1000 x 8 values each sends 3/4 of them twice.
    assert bytes_whole(1000, 8, 4) == 2 * 0.75 * 1000 * 8 * 4
    assert bytes_whole(1000, 8, 1) == bytes_rows(1000, 8, 10**6, 1) == 0
    # All rows of the table on every worker, with their int64 numbers, passed on by three of four.
    assert bytes_rows(1000, 8, 10**6, 4) == pytest.approx(3 * 1000 * (8 * 4 + 8))
    # With shards: 3/4 of the rows lie elsewhere. An int32 number asks for each, and then row and gradient are sent.
    assert bytes_shards(1000, 8, 10**6, 4) == pytest.approx(750 * (4 + 2 * 8 * 4))
    assert bytes_shards(1000, 8, 10**6, 1) == 0


@pytest.mark.parametrize(
    ("rows", "lookups", "workers", "expected"),
    [
        (10, 10_000, 1, "rows"),
        (10, 10_000, 2, "whole"),
        (10**6, 10_000, 1, "rows"),
        (10**6, 10_000, 8, "rows"),
        (1_000, 10_000, 8, "whole"),
        # Sixty-four workers gather almost as many rows as the table has; reducing it is cheaper.
        (200_000, 400_000, 2, "rows"),
        (200_000, 400_000, 64, "whole"),
    ],
)
def test_cheaper_exchange(rows, lookups, workers, expected):
    table = Traffic(rows, lookups)
    assert cheaper_exchange([table], 64, workers=workers) == expected
    assert cheaper_exchange([table, table], 64, workers=workers) == expected


def test_the_larger_table_of_a_group_decides():
    assert cheaper_exchange([Traffic(10, 10_000), Traffic(10**6, 10_000)], 64, workers=2) == "rows"


def test_plan_has_one_entry_per_variable():
    embeddings = make_model().embeddings  # day has width 4, tags 6, and user and friends share a table of width 8
    names = [f"{part}.{width}.small" for part in ("deep", "wide") for width in (4, 6, 8)]
    names[-1] = "wide.apart.small"
    for choice in ("whole", "rows"):
        assert list(plan_exchange(embeddings, 16, 2, choice).values()) == [choice] * 6
    auto = plan_exchange(embeddings, 16, 2, "auto")
    assert [path.rpartition("/")[2] for path in auto] == names
    assert list(auto.values())[:3] == ["whole", "rows", "rows"]


def draw_ids(rng: np.random.Generator) -> np.ndarray:
    """A few rows or none of the ids of user, day, tags and friends, which several workers draw."""
    rows = int(rng.integers(0, 6))
    columns = [(count * rng.random((rows, 1)) ** 4).astype(np.int32) for count in (500, 7, 90, 90, 90, 500, 500)]
    return np.concatenate(columns, axis=1)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 3), st.booleans(), st.integers(0, 2**32 - 1))
def test_sparse_sums_equal_dense_sums(workers, sharded, seed):
    """In several steps with different rows: none may use what another one has left behind."""
    rng = np.random.default_rng(seed)
    steps = [[draw_ids(rng) for _ in range(workers)] for _ in range(3)]

    def work(comm):
        """Returns for each step and variable the shape of its table, and (rows, values) before and after the sum."""
        shards = Shards(comm.rank, comm.size, comm.exchange_values, smallest=50) if sharded else None
        embeddings = make_model(shards=shards).embeddings
        exchange = SparseExchange(embeddings, plan_exchange(embeddings, 16, workers, "rows"), comm)
        own, results = np.random.default_rng([seed, comm.rank]), []
        for ids in steps:
            lookups = tf.nest.map_structure(tf.constant, embeddings.lookups(unpadded(LAYOUT, ids[comm.rank])))
            gradients = {}
            for index, variable in embeddings.group_variables:
                rows = lookups[index].rows
                values = own.normal(size=(len(rows), variable.shape[1]))
                gradients[variable.path] = tf.IndexedSlices(tf.constant(values, tf.float32), rows)
            summed = exchange.sum(gradients, embeddings.routes(lookups))
            results.append([])
            for index, variable in embeddings.group_variables:
                group, before, after = embeddings.groups[index], gradients[variable.path], summed[variable.path]
                rows = after.indices.numpy()
                if embeddings.is_sharded(group):
                    rows = rows * workers + comm.rank
                given, found = (before.indices.numpy(), before.values.numpy()), (rows, after.values.numpy())
                results[-1].append(((group.rows, variable.shape[1]), embeddings.is_sharded(group), given, found))
        return results

    for of_step in zip(*run_workers(workers, work), strict=True):
        for of_variable in zip(*of_step, strict=True):
            shape, is_sharded, _, _ = of_variable[0]
            assert is_sharded == (sharded and shape[0] >= 50)
            expected, used = np.zeros(shape), np.zeros(shape[0], bool)
            for _, _, (rows, values), _ in of_variable:
                np.add.at(expected, rows, values)
                used[rows] = True
            for rank, (_, _, _, (rows, values)) in enumerate(of_variable):
                updated = used & (np.arange(shape[0]) % workers == rank) if is_sharded else used
                assert sorted(rows) == np.flatnonzero(updated).tolist()
                np.testing.assert_allclose(values, expected[rows], atol=1e-5)


def test_workers_keep_rows_in_one_order(monkeypatch):
    """Else a norm of all rows would differ between workers, where a GPU writes equal rows in any order."""
    scatter = exchange.scatter

    def in_any_order(variable, rows, values):
        order = np.random.permutation(len(rows))
        scatter(variable, tf.gather(rows, order), tf.gather(values, order))

    monkeypatch.setattr(exchange, "scatter", in_any_order)

    def work(comm):
        embeddings, rng = make_model().embeddings, np.random.default_rng(comm.rank)
        sums, gradients = SparseExchange(embeddings, plan_exchange(embeddings, 16, comm.size, "rows"), comm), {}
        for _, variable in embeddings.group_variables:
            rows = rng.choice(min(40, variable.shape[0]), 5, replace=False)
            gradients[variable.path] = tf.IndexedSlices(tf.ones((5, variable.shape[1])), tf.constant(rows))
        summed = sums.sum(gradients, embeddings.routes([]))
        return {path: own.indices.numpy().tolist() for path, own in summed.items()}

    first, *others = run_workers(3, work)
    assert all(own == first for own in others)
    assert any(len(rows) > 10 for rows in first.values())
