import keras
import numpy as np
import pytest

from trainer.embeddings import tables
from trainer.embeddings.shards import Shards
from trainer.embeddings.tables import EmbeddingTables
from trainer.layout import CategoricalInput, InputSchema
from trainer.seeds import seed_of

LAYOUT = InputSchema((CategoricalInput("item", 0, 1, False, 23, 3), CategoricalInput("day", 1, 1, False, 7, 2)), ())


def never(values, counts):
    raise AssertionError("there is nothing to exchange")


def make(init_std=None, shards=None) -> list[np.ndarray]:
    made = EmbeddingTables(LAYOUT, outputs=1, combiner="sum", seed=5, init_std=init_std, shards=shards)
    return [table.numpy() for table in made.tables]


@pytest.mark.parametrize("init_std", [None, 0.1])
def test_initial_values_are_those_of_keras(init_std):
    item, day, wide = make(init_std)
    for name, table in (("item", item), ("day", day)):
        seed = seed_of(seed_of(5, name), "0")
        keras_start = keras.initializers.GlorotNormal(seed) if init_std is None else None
        keras_start = keras_start or keras.initializers.RandomNormal(stddev=init_std, seed=seed)
        np.testing.assert_array_equal(table, keras_start(table.shape))
    assert wide.shape == (30, 1) and not wide.any()


@pytest.mark.parametrize("workers", [2, 3])
def test_shards_start_with_the_values_of_whole_tables(monkeypatch, workers):
    monkeypatch.setattr(tables, "INIT_ROWS", 4)
    whole = make()
    assert len(np.unique(whole[0].round(4), axis=0)) == 23  # blocks do not repeat one another
    for rank in range(workers):
        item, day, wide = make(shards=Shards(rank, workers, never, smallest=10))
        np.testing.assert_array_equal(item, whole[0][rank::workers])
        np.testing.assert_array_equal(day, whole[1])
        assert wide.shape == (len(range(rank, 30, workers)), 1)
