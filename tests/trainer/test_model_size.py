"""The sizes of tables and weights, computed before TensorFlow is imported, against what is allocated."""

import math
import re

import numpy as np
import pytest

from data import memory
from data.errors import DataError
from data.storage.arrays import ArraySource
from tests.trainer.small_models import LAYOUT, make_model
from trainer.build import make_training
from trainer.checkpoint.model_folder import open_model, write_model
from trainer.checkpoint.state import TrainState
from trainer.cli import parse
from trainer.comm import SingleWorker
from trainer.config import Options
from trainer.layout import CategoricalInput, InputSchema
from trainer.model_size import shards_tables, table_sizes
from trainer.models import MODELS, model_options
from trainer.process.worker_env import WorkerEnv
from trainer.tasks.binary import BinaryTask
from trainer.tasks.multiclass import MulticlassTask

TASKS = (BinaryTask("click"), MulticlassTask("kind", num_classes=5))
FLAGS = {"deep_hidden_units": (32, 16), "expert_hidden_units": (16, 8), "tower_hidden_units": (8,), "num_experts": 4}
RULES = ("rmsprop", "adam", "adamw", "adagrad", "sgd")


@pytest.fixture
def bound(monkeypatch):
    def bind(available: int) -> None:
        monkeypatch.setattr(memory, "available_memory", lambda processes=1: available // processes)

    return bind


def options_of(*flags: str) -> Options:
    return parse(flags, 1, reads_checkpoint=False)


def bytes_of(state: TrainState, name: str) -> int:
    """The bytes of the variables embeddings/NAME and embeddings/NAME.SUFFIX."""
    pattern = re.compile(rf"embeddings/{name}(\..*)?")
    return sum(4 * math.prod(value.shape) for key, value in state.variables.items() if pattern.fullmatch(key))


@pytest.mark.parametrize("name", MODELS)
def test_tables_with_their_state_take_what_is_computed(name):
    for rule in RULES:
        for wide in ([], ["--wide_part"]):
            options = options_of("--model", name, "--optimizer", rule, *wide)
            model = make_model(model=name, wide_part=bool(wide), tasks=TASKS)
            training = make_training(options, model, SingleWorker(), steps_per_epoch=1)
            names = [f"deep.{table.name}" for table in LAYOUT.tables]
            names += ["wide"] if model.wide_weights else []
            sizes = table_sizes(options, LAYOUT, 6)
            assert [size.bytes for size in sizes] == [bytes_of(training.state, name) for name in names], (rule, wide)
            alone = table_sizes(options_of("--model", name, *wide, "--evaluate"), LAYOUT, 6)
            weights = TrainState(model.weights_by_name)
            assert [size.bytes for size in alone] == [bytes_of(weights, name) for name in names]


@pytest.mark.parametrize("name", MODELS)
def test_dense_weights_are_at_least_what_is_computed(name):
    model = make_model(model=name, tasks=TASKS)
    real = sum(int(np.prod(weight.shape)) for weight in model.deep_weights)
    widths = {task.name: task.width for task in TASKS}
    assert 0 < model_options(model=name, **FLAGS).dense_weights(LAYOUT.width, widths) <= real


def layout_of(**tables: tuple[int, int]) -> InputSchema:
    """One-hot features with tables of so many rows and this width."""
    columns = (
        CategoricalInput(name, index, 1, False, rows, width)
        for index, (name, (rows, width)) in enumerate(tables.items())
    )
    return InputSchema(tuple(columns), ())


LARGE = layout_of(user=(50_000_000, 64), day=(7, 4))


def test_tables_are_sharded_where_they_do_not_fit_otherwise():
    rows = ["--model", "mmoe", "--table_exchange", "rows"]  # which rules out shards for the sake of speed
    two = WorkerEnv(0, 2, 0, 2)
    assert not shards_tables(options_of(*rows), LARGE, 1, two, 10**12)
    assert shards_tables(options_of(*rows), LARGE, 1, two, 30 * 10**9)
    assert not shards_tables(
        options_of(*rows, "--evaluate"), LARGE, 1, two, 30 * 10**9
    )  # without accumulators they fit
    assert shards_tables(options_of(*rows, "--evaluate"), LARGE, 1, two, 25 * 10**9)
    assert not shards_tables(options_of(*rows), LARGE, 1, WorkerEnv(), 25 * 10**9)
    assert not shards_tables(options_of(*rows, "--shard_embeddings", "off"), LARGE, 1, two, 25 * 10**9)


def test_tables_are_sharded_where_that_is_faster():
    eight = WorkerEnv(0, 8)
    batch = ["--model", "mmoe", "--global_batch_size", "131072"]
    assert shards_tables(options_of(*batch), LARGE, 1, eight, 10**12)
    assert not shards_tables(options_of(*batch, "--evaluate"), LARGE, 1, eight, 10**12)
    # Sending little takes as many collectives as sending much.
    assert not shards_tables(options_of("--model", "mmoe", "--global_batch_size", "64"), LARGE, 1, eight, 10**12)
    assert not shards_tables(options_of(*batch), layout_of(day=(7, 4), hour=(24, 4)), 1, eight, 10**12)
    # Tables that are too small to be sharded do not count, even if many of them would be cheaper to exchange.
    medium = options_of("--model", "mmoe", "--global_batch_size", "2000")
    too_small, large_enough = ({f"f{index}": (rows, 64) for index in range(20)} for rows in (4000, 4200))
    assert not shards_tables(medium, layout_of(**too_small), 1, eight, 10**12)
    assert shards_tables(medium, layout_of(**large_enough), 1, eight, 10**12)
    # Without a value, the flag means on.
    assert shards_tables(
        options_of("--model", "mmoe", "--shard_embeddings", "--global_batch_size", "64"), LARGE, 1, eight, 10**12
    )


def test_a_model_folder_larger_than_memory_is_not_read(tmp_path, bound):
    write_model(tmp_path / "model", [ArraySource.from_array("x", np.zeros(1000))], {})
    bound(8000)
    open_model(tmp_path / "model")
    bound(7999)
    with pytest.raises(DataError, match="model: a model with so many weights needs 0.0 MiB of memory"):
        open_model(tmp_path / "model")
