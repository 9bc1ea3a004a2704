"""What a model takes in memory, computed before TensorFlow is imported, against what is allocated."""

import math
import re

import numpy as np
import pandas as pd
import pytest

from data import memory
from data.errors import DataError
from data.storage.arrays import ArraySource
from main import main
from tests.helpers import ROOT, make_dataset
from tests.trainer.small_models import LAYOUT, make_model
from trainer import model_size
from trainer.build import make_training
from trainer.checkpoint.model_folder import open_model, write_model
from trainer.checkpoint.state import TrainState
from trainer.cli import parse
from trainer.comm import SingleWorker
from trainer.config import Options
from trainer.layout import CategoricalInput, InputSchema, VectorInput
from trainer.model_size import check_model_fits, shards_tables, table_sizes
from trainer.models import MODELS, model_options
from trainer.process.worker_env import WorkerEnv
from trainer.recommender import Recommender
from trainer.tasks.binary import BinaryTask
from trainer.tasks.multiclass import MulticlassTask

TASKS = (BinaryTask("click"), MulticlassTask("kind", num_classes=5))
FLAGS = {"deep_hidden_units": (32, 16), "expert_hidden_units": (16, 8), "tower_hidden_units": (8,), "num_experts": 4}
RULES = ("rmsprop", "adam", "adamw", "adagrad", "sgd")


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setattr(model_size, "may_use_gpu", lambda cpu: False)


@pytest.fixture
def bound(monkeypatch):
    def bind(available: int) -> None:
        for module in (memory, model_size):
            monkeypatch.setattr(module, "available_memory", lambda processes=1: available // processes)

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
            sizes = table_sizes(options.model, LAYOUT, 6, rule=rule)
            assert [size.bytes for size in sizes] == [bytes_of(training.state, name) for name in names], (rule, wide)
            alone = table_sizes(options.model, LAYOUT, 6, rule=None)
            weights = TrainState(model.weights_by_name)
            assert [size.bytes for size in alone] == [bytes_of(weights, name) for name in names]


@pytest.mark.parametrize("name", MODELS)
def test_dense_weights_are_at_least_what_is_computed(name):
    model = make_model(model=name, tasks=TASKS)
    real = sum(int(np.prod(weight.shape)) for weight in model.deep_weights)
    widths = {task.name: task.width for task in TASKS}
    assert 0 < model_options(model=name, **FLAGS).dense_weights(LAYOUT.width, widths) <= real


def test_projections_of_vectors_count():
    options = options_of("--vector_units", "1000000")
    layout = InputSchema((), ("age",), vectors=(VectorInput("image", 2**16),))
    assert "dense weights" in refusal(options, layout=layout)
    check_model_fits(options_of(), layout, (BinaryTask("click"),), WorkerEnv(), 1)


def layout_of(**tables: tuple[int, int]) -> InputSchema:
    """One-hot features with tables of so many rows and this width."""
    columns = (
        CategoricalInput(name, index, 1, False, rows, width)
        for index, (name, (rows, width)) in enumerate(tables.items())
    )
    return InputSchema(tuple(columns), ())


LARGE = layout_of(user=(50_000_000, 64), day=(7, 4))


def refusal(options: Options, launch: WorkerEnv | None = None, layout: InputSchema = LARGE) -> str:
    with pytest.raises(DataError) as caught:
        check_model_fits(options, layout, (BinaryTask("click"),), launch or WorkerEnv(), 1)
    return str(caught.value)


def test_tables_larger_than_memory_are_rejected(bound):
    bound(2**34)
    message = refusal(options_of("--model", "mmoe"))
    # 50 million rows of 64 weights with two accumulators each, and a step.
    assert "user (50,000,000 x 64: 35.95 GiB)" in message
    assert "and 16.00 GiB are available" in message
    assert all(fix in message for fix in ("--embedding_sizes_file", "embedding_dim", "--shard_embeddings"))


def test_without_training_only_the_weights_count(bound):
    bound(13 * 10**9)
    refusal(options_of("--model", "mmoe"))
    refusal(options_of("--model", "mmoe", "--benchmark"))
    check_model_fits(options_of("--model", "mmoe", "--evaluate"), LARGE, (BinaryTask("click"),), WorkerEnv(), 1)
    bound(12 * 10**9)
    assert "user (50,000,000 x 64: 11.92 GiB)" in refusal(options_of("--model", "mmoe", "--evaluate"))
    assert "optimizer" not in refusal(options_of("--model", "mmoe", "--predict", "out.parquet"))


def test_workers_of_a_host_share_its_memory(bound):
    two = WorkerEnv(0, 2, 0, 2)
    bound(60 * 10**9)
    check_model_fits(options_of("--model", "mmoe"), LARGE, (BinaryTask("click"),), WorkerEnv(), 1)
    replicated = options_of("--model", "mmoe", "--shard_embeddings", "off")
    assert "27.94 GiB are available to each of 2 workers on this host" in refusal(replicated, two)
    check_model_fits(options_of("--model", "mmoe"), LARGE, (BinaryTask("click"),), two, 1)
    check_model_fits(options_of("--model", "mmoe", "--shard_embeddings"), LARGE, (BinaryTask("click"),), two, 1)
    bound(38 * 10**9)
    refusal(options_of("--model", "mmoe", "--shard_embeddings"), two)
    # On two hosts, each worker has its host's memory.
    check_model_fits(
        options_of("--model", "mmoe", "--shard_embeddings"), LARGE, (BinaryTask("click"),), WorkerEnv(0, 2), 1
    )


def test_tables_are_sharded_where_they_do_not_fit_otherwise(bound):
    rows = ["--model", "mmoe", "--table_exchange", "rows"]  # which rules out shards for the sake of speed
    two = WorkerEnv(0, 2, 0, 2)
    bound(10**12)
    assert not shards_tables(options_of(*rows), LARGE, 1, two)
    bound(60 * 10**9)
    assert shards_tables(options_of(*rows), LARGE, 1, two)
    assert not shards_tables(options_of(*rows, "--evaluate"), LARGE, 1, two)  # without accumulators they fit
    bound(50 * 10**9)
    assert shards_tables(options_of(*rows, "--evaluate"), LARGE, 1, two)
    assert not shards_tables(options_of(*rows), LARGE, 1, WorkerEnv())
    assert not shards_tables(options_of(*rows, "--shard_embeddings", "off"), LARGE, 1, two)


def test_tables_are_sharded_where_that_is_faster(bound):
    bound(10**12)
    eight = WorkerEnv(0, 8)
    batch = ["--model", "mmoe", "--global_batch_size", "131072"]
    assert shards_tables(options_of(*batch), LARGE, 1, eight)
    assert not shards_tables(options_of(*batch, "--evaluate"), LARGE, 1, eight)
    # Sending little takes as many collectives as sending much.
    assert not shards_tables(options_of("--model", "mmoe", "--global_batch_size", "64"), LARGE, 1, eight)
    assert not shards_tables(options_of(*batch), layout_of(day=(7, 4), hour=(24, 4)), 1, eight)
    # Tables that are too small to be sharded do not count, even if many of them would be cheaper to exchange.
    medium = options_of("--model", "mmoe", "--global_batch_size", "2000")
    too_small, large_enough = ({f"f{index}": (rows, 64) for index in range(20)} for rows in (4000, 4200))
    assert not shards_tables(medium, layout_of(**too_small), 1, eight)
    assert shards_tables(medium, layout_of(**large_enough), 1, eight)
    # Without a value, the flag means on.
    assert shards_tables(
        options_of("--model", "mmoe", "--shard_embeddings", "--global_batch_size", "64"), LARGE, 1, eight
    )


def test_classes_units_and_experts_count(bound):
    bound(2**33)
    many = (MulticlassTask("kind", num_classes=2 * 10**9),)
    with pytest.raises(DataError, match="2,000,000,000 outputs"):
        check_model_fits(options_of("--model", "mmoe"), layout_of(day=(7, 4)), many, WorkerEnv(), 1)
    assert "dense weights" in refusal(options_of("--deep_hidden_units", "2000000000"), layout=layout_of(day=(7, 4)))
    assert "dense weights" in refusal(
        options_of("--model", "mmoe", "--num_experts", "100000000"), layout=layout_of(day=(7, 4))
    )


def test_on_a_gpu_nothing_is_compared(bound, monkeypatch):
    bound(2**20)
    monkeypatch.setattr(model_size, "may_use_gpu", lambda cpu: True)
    check_model_fits(options_of("--model", "mmoe"), LARGE, (BinaryTask("click"),), WorkerEnv(), 1)


def test_run_is_rejected_before_tensorflow_loads(tmp_path, capsys, monkeypatch, bound):
    data = make_dataset(tmp_path, ROOT / "feature_specs" / "tiny.yaml", rows=40)
    places = ["--dataset_path", data, "--model_dir", tmp_path / "models", "--results_dir", tmp_path / "results"]
    monkeypatch.setattr("main.import_tensorflow", lambda: pytest.fail("the checks were passed"))
    (data / "embedding_sizes.json").write_text('{"user_id": 4096}')
    bound(10**6)
    for more in ([], ["--benchmark"]):
        assert (
            main(
                [
                    *map(str, places),
                    "--cpu",
                    "--recipe",
                    "published",
                    "--global_batch_size",
                    "8",
                    "--eval_batch_size",
                    "8",
                    *more,
                ]
            )
            == 2
        )
        assert "user_id (50 x 4096: 1.6 MiB)" in capsys.readouterr().err


def test_fit_rejects_a_model_larger_than_memory(bound):
    frame = pd.DataFrame({"user_id": range(50), "item_id": range(50), "liked": [0, 1] * 25})
    bound(10**6)
    with pytest.raises(DataError, match="the model .* needs .* of memory, and 1.0 MiB are available"):
        Recommender(deep_hidden_units=[4096, 4096], model="wide_deep").fit(frame, tasks={"liked": "binary"})


def test_a_model_folder_larger_than_memory_is_not_read(tmp_path, bound):
    write_model(tmp_path / "model", [ArraySource.from_array("x", np.zeros(1000))], {})
    bound(8000)
    open_model(tmp_path / "model")
    bound(7999)
    with pytest.raises(DataError, match="model: a model with so many weights needs 0.0 MiB of memory"):
        open_model(tmp_path / "model")
