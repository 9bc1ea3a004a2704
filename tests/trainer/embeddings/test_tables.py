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


def make(init_std=None, shards=None) -> dict[str, np.ndarray]:
    made = EmbeddingTables(LAYOUT, outputs=1, combiner="sum", seed=5, init_std=init_std, shards=shards)
    return {
        name.removeprefix("embeddings/"): table.variable.numpy() if table.is_sharded else table.numpy()
        for name, table in made.tables().items()
    }


@pytest.mark.parametrize("init_std", [None, 0.1])
def test_initial_values_are_those_of_keras(init_std):
    made = make(init_std)
    for name in ("item", "day"):
        table = made[f"deep.{name}"]
        seed = seed_of(seed_of(5, name), "0")
        keras_start = keras.initializers.GlorotNormal(seed) if init_std is None else None
        keras_start = keras_start or keras.initializers.RandomNormal(stddev=init_std, seed=seed)
        np.testing.assert_array_equal(table, keras_start(table.shape))
    assert made["wide.item"].shape == (23, 1) and made["wide.day"].shape == (7, 1)
    assert not made["wide.item"].any() and not made["wide.day"].any()


@pytest.mark.parametrize("workers", [2, 3])
def test_shards_start_with_the_values_of_whole_tables(monkeypatch, workers):
    monkeypatch.setattr(tables, "INIT_ROWS", 4)
    whole = make()
    assert len(np.unique(whole["deep.item"].round(4), axis=0)) == 23  # blocks do not repeat one another
    for rank in range(workers):
        own = make(shards=Shards(rank, workers, never, smallest=10))
        np.testing.assert_array_equal(own["deep.item"], whole["deep.item"][rank::workers])
        np.testing.assert_array_equal(own["deep.day"], whole["deep.day"])
        assert own["wide.item"].shape == (len(range(rank, 23, workers)), 1)
