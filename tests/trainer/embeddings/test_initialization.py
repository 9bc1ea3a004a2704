"""Initial values of tables: distribution, independence of threads and workers, and none where they are restored."""

import os

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from trainer.embeddings import initialization
from trainer.embeddings.initialization import NormalTable, draw_tables
from trainer.embeddings.shards import Shards
from trainer.embeddings.tables import EmbeddingTables
from trainer.layout import CategoricalInput, InputSchema
from trainer.variables import TableRows

LAYOUT = InputSchema((CategoricalInput("item", 0, 1, False, 23, 3), CategoricalInput("day", 1, 1, False, 7, 2)), ())
ROWS, WIDTH = 100_000, 20


def never(values, counts):
    raise AssertionError("there is nothing to exchange")


def make(init_std=None, shards=None, seed=5) -> list[np.ndarray]:
    """The rows of this worker: of item, day, and the wide weights of item."""
    made = EmbeddingTables(LAYOUT, outputs=1, combiner="sum", seed=seed, init_std=init_std, shards=shards).tables()
    return [made[f"embeddings/{name}"].numpy() for name in ("deep.item", "deep.day", "wide.item")]


def drawn(rows: int, width: int, deviation: float | None, seed: int) -> np.ndarray:
    variable = tf.Variable(tf.fill([rows, width], np.nan))
    draw_tables([NormalTable(TableRows(variable, 0, rows), deviation, seed)])
    return variable.numpy()


def test_glorot_values_are_those_of_a_normal_truncated_at_two_deviations():
    """The limits are five standard errors of the moments, and a Kolmogorov-Smirnov test."""
    expected = stats.truncnorm(-2, 2, scale=np.sqrt(2 / (ROWS + WIDTH)) / stats.truncnorm(-2, 2).std())
    values = drawn(ROWS, WIDTH, None, seed=1).reshape(-1).astype(np.float64)
    bound = 2 * expected.kwds["scale"]
    assert bound * 0.999 < np.abs(values).max() <= bound * (1 + 1e-6)
    assert np.isclose(expected.std(), np.sqrt(2 / (ROWS + WIDTH)))
    assert_moments(values, expected)


@pytest.mark.parametrize("deviation", [0.01, 1.0])
def test_values_with_a_given_deviation_are_normal(deviation):
    values = drawn(ROWS, WIDTH, deviation, seed=2).reshape(-1).astype(np.float64)
    assert np.abs(values).max() > 4 * deviation
    assert_moments(values, stats.norm(scale=deviation))


def assert_moments(values, expected) -> None:
    count = values.size
    for order in (1, 2, 3, 4):
        moment, error = expected.moment(order), np.sqrt(expected.moment(2 * order) - expected.moment(order) ** 2)
        assert abs(np.mean(values**order) - moment) < 5 * error / np.sqrt(count), order
    assert stats.kstest(values[:100_000], expected.cdf).pvalue > 1e-3
    # Neighbours, within a row and between rows, are independent.
    for lag in (1, WIDTH):
        assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < 5 / np.sqrt(count)


def test_blocks_tables_and_seeds_do_not_repeat_one_another(monkeypatch):
    monkeypatch.setattr(initialization, "BLOCK_VALUES", 12)  # blocks of four and of six rows
    item, day, wide = make()
    other, *_ = make(seed=6)
    values = np.concatenate(
        [item.reshape(-1) / item.std(), day.reshape(-1) / day.std(), other.reshape(-1) / item.std()]
    )
    assert len(np.unique(values.round(4))) > 0.99 * values.size
    assert wide.shape == (23, 1) and not wide.any()


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("init_std", [None, 0.1])
def test_values_do_not_depend_on_the_number_of_threads(monkeypatch, threads, init_std):
    monkeypatch.setattr(initialization, "BLOCK_VALUES", 12)
    expected = make(init_std)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(threads)))
    for values, of_table in zip(make(init_std), expected, strict=True):
        np.testing.assert_array_equal(values, of_table)


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("init_std", [None, 0.1])
def test_shards_start_with_the_values_of_whole_tables(monkeypatch, workers, init_std):
    monkeypatch.setattr(initialization, "BLOCK_VALUES", 12)
    whole = make(init_std)
    for rank in range(workers):
        item, day, wide = make(init_std, shards=Shards(rank, workers, never, smallest=10))
        np.testing.assert_array_equal(item, whole[0][rank::workers])
        np.testing.assert_array_equal(day, whole[1])
        assert wide.shape == (len(range(rank, 23, workers)), 1)


def test_a_worker_may_hold_no_row_of_a_block(monkeypatch):
    monkeypatch.setattr(initialization, "BLOCK_VALUES", 3)  # blocks of one row
    whole = make()[0]
    for rank in range(5):
        item, *_ = make(shards=Shards(rank, 5, never, smallest=10))
        np.testing.assert_array_equal(item, whole[rank::5])


def test_tables_to_be_restored_draw_nothing(monkeypatch):
    monkeypatch.setattr(NormalTable, "draw", lambda self, block: pytest.fail("drew initial values"))
    made = EmbeddingTables(LAYOUT, outputs=1, combiner="sum", seed=5, restored=True)
    assert sorted(table.shape for table in made.tables().values()) == [(7, 1), (7, 2), (23, 1), (23, 3)]
