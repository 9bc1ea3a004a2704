"""Tables in host memory with a cache on the device, against the same tables on the device: bit for bit."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import ROOT, left_to_all, metrics, must
from tests.trainer.local_workers import LocalWorker, run_workers
from tests.trainer.small_models import HISTORY, Rows, make_model, make_step, run, run_eagerly, share_of
from tests.trainer.small_runs import run as run_main
from tests.trainer.small_runs import train
from tests.trainer.test_model_size import options_of
from tests.trainer.test_sequences import make_rows
from trainer.build import Training, make_training
from trainer.checkpoint.load_model import load_model
from trainer.checkpoint.state import TrainState
from trainer.checkpoint.store import CheckpointStore
from trainer.comm import SingleWorker
from trainer.embeddings.exchange import plan_exchange
from trainer.embeddings.placement import HostTables
from trainer.embeddings.shards import Shards
from trainer.embeddings.table_state import HostState
from trainer.layout import PretrainedInput
from trainer.models.ranking import RankingModel
from trainer.step import TrainStep

ROWS, PLACES, STEPS = 50, 7, 200

# Shared tables, lists, sequences, wide weights with rows of their own, and vectors that are looked up.
LAYOUT = replace(
    HISTORY,
    pretrained=(PretrainedInput("item_text", "item", 5, trained=True), PretrainedInput("shop_text", "shop", 4)),
)
# So small that rows of a batch compete for places.
ON_HOST = HostTables(
    frozenset({"8.small", "6.small", "apart.small", "of.item_text", "of.shop_text"}), smallest_cache=PLACES
)


def test_reads_and_writes_are_those_of_the_variables():
    rng = np.random.default_rng(0)
    shapes = {"weight": (ROWS, 3), "slot": (ROWS, 3), "last_step": (ROWS,)}
    expected = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    variables = {name: tf.Variable(values) for name, values in expected.items()}
    state = HostState(variables, PLACES)
    for _ in range(100):
        read = rng.zipf(1.3, rng.integers(0, 20)) % ROWS  # with repeats, as when several workers ask
        for name, values in state.read(tf.constant(read), shapes).items():
            np.testing.assert_array_equal(values, expected[name][read])
        written = np.unique(rng.zipf(1.3, rng.integers(0, 20)) % ROWS)
        new = {name: rng.normal(size=(len(written), *shape[1:])).astype(np.float32) for name, shape in shapes.items()}
        state.write(tf.constant(written), {name: tf.constant(values) for name, values in new.items()})
        for name, values in new.items():
            expected[name][written] = values
            np.testing.assert_array_equal(variables[name], expected[name])
    assert 0 < state.use.hits < state.use.rows and state.use.evictions > 0


def hits_of(state: HostState, rows: list[int]) -> int:
    """How many of the rows of a batch were in the cache before it."""
    before = state.use.hits
    state.write(tf.constant(rows, tf.int64), {"weight": tf.zeros([len(rows), 1])})
    return state.use.hits - before


def test_a_frequent_row_keeps_its_place():
    """Rows 3, 10 and 17 have the same place, of which there are seven."""
    state = HostState({"weight": tf.Variable(np.zeros((ROWS, 1), np.float32))}, PLACES)
    assert [hits_of(state, [10, 3]), hits_of(state, [3])] == [0, 1]  # of several rows, the first
    assert hits_of(state, [17]) == 0 and hits_of(state, [3, 17]) == 1  # a batch without it
    assert [hits_of(state, [17]) for _ in range(4)] == [0, 0, 1, 1]  # until its credits are used up
    assert state.use == (10, 4, 1)


def test_the_cache_is_read_in_place_of_the_host():
    """A test that does not look into the cache could not tell it from none."""
    variable = tf.Variable(np.zeros((ROWS, 1), np.float32))
    state = HostState({"weight": variable}, PLACES)
    state.write(tf.constant([3], tf.int64), {"weight": tf.ones([1, 1])})
    variable.assign(tf.fill([ROWS, 1], 9.0))
    np.testing.assert_array_equal(state.read(tf.constant([3, 4], tf.int64), ["weight"])["weight"], [[1.0], [9.0]])


def placed(host: HostTables | None, *flags: str) -> tuple[RankingModel, Training]:
    model = make_model(layout=LAYOUT, wide_part=True, host=host)
    [frozen] = model.embeddings.frozen_variables
    frozen.assign(np.random.default_rng(1).normal(size=frozen.shape).astype(np.float32))
    options = options_of("--model", "wide_deep", *flags)
    return model, make_training(options, model, SingleWorker(), STEPS)


def values_of(state: TrainState) -> dict[str, np.ndarray]:
    return {name: variable.numpy() for name, variable in state.variables.items()}


def assert_equal(found: TrainState, expected: TrainState) -> None:
    first, second = values_of(found), values_of(expected)
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], err_msg=name)


@pytest.fixture(scope="module")
def batches() -> list[Rows]:
    return make_rows(STEPS, layout=LAYOUT)


CASES = {
    "adamw": ["--optimizer", "adamw", "--ema_momentum", "0.9", "--clip_norm", "1"],
    "adagrad": ["--optimizer", "adagrad", "--l2_reg_embedding", "0.001", "--l2_reg_linear", "0.1"],
}


@pytest.mark.parametrize("case", left_to_all(CASES, ("adamw",)))
def test_training_is_bit_identical(case, batches, tmp_path):
    (device, on_device), (model, on_host) = placed(None, *CASES[case]), placed(ON_HOST, *CASES[case])
    for number, batch in enumerate(batches, start=1):
        np.testing.assert_array_equal(run(on_host.step, batch, number), run(on_device.step, batch, number))
        if number == STEPS // 2:
            CheckpointStore(tmp_path).save(number, on_host.state.sources(), {})
    assert_equal(on_host.state, on_device.state)
    uses = {name: own.use for name, own in on_host.step.optimizer.host_tables.items()}
    assert len(uses) == 5  # two deep groups, a trained vector, wide weights with their rows and others
    assert all(0 < use.hits < use.rows and use.evictions for use in uses.values()), uses
    # A forward pass of its own, as in evaluation, reads the variables themselves.
    with on_host.step.optimizer.averaged(STEPS), on_device.step.optimizer.averaged(STEPS):
        logits = [
            own.logits(own.embed(found.lookups), found.values)
            for own, found in [(own, batches[0].input(own)) for own in (model, device)]
        ]
    np.testing.assert_array_equal(*logits)

    on_host.state.restore(CheckpointStore(tmp_path).open("last"))
    on_host.step.forget_cached()
    for number, batch in enumerate(batches[STEPS // 2 :], start=STEPS // 2 + 1):
        run(on_host.step, batch, number)
    assert_equal(on_host.state, on_device.state)


@pytest.mark.parametrize("sharded", [pytest.param(False, marks=pytest.mark.slow), True])
def test_workers_exchange_rows_of_host_tables(sharded, batches):
    """Two workers, which exchange the rows themselves or hold a part each."""

    def work(comm: LocalWorker, host: HostTables | None) -> tuple[list[np.ndarray], TrainStep]:
        shards = Shards(comm.rank, comm.size, comm.exchange_values, smallest=50) if sharded else None
        model = make_model(layout=LAYOUT, wide_part=True, shards=shards, host=host)
        plan = plan_exchange(model.embeddings, 16, comm.size, "whole")
        assert host is None or "whole" not in [plan[path] for path in model.embeddings.cache_places if path in plan]
        step = make_step(model, comm=comm, table_exchange="rows")
        losses = [
            run_eagerly(step, share_of(batch, comm.rank, comm.size), number).losses.numpy()
            for number, batch in enumerate(batches[:4], start=1)
        ]
        return [*losses, *(variable.numpy() for variable in model.variables)], step

    on_device, on_host = (run_workers(2, lambda comm, host=host: work(comm, host)) for host in (None, ON_HOST))
    for (expected, _), (found, step) in zip(on_device, on_host, strict=True):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
        assert sum(own.use.hits for own in step.optimizer.host_tables.values()) > 0


def test_a_run_goes_on_with_tables_in_host_memory(tmp_path, capsys):
    """From a checkpoint of tables on the device, to the weights and metrics of the run that kept them there."""
    spec = tmp_path / "large.yaml"
    spec.write_text((ROOT / "feature_specs" / "tiny.yaml").read_text().replace("cardinality: 50", "cardinality: 9000"))
    first = train(spec, tmp_path / "device", "--wide_part", "--table_placement", "device")
    capsys.readouterr()
    folder = tmp_path / "host"
    shutil.copytree(first.folder / "models", folder / "models")
    checkpoint = min((folder / "models" / "checkpoints").iterdir(), key=lambda path: int(path.name[5:]))
    must(run_main(first.data, folder, "--use_checkpoint", "--checkpoint", str(checkpoint), "--table_placement", "host"))
    said = capsys.readouterr().out
    assert "; 2 of 4 tables are in host memory" in said, "the embeddings and wide weights of user_id"
    assert re.search(r"tables in host memory: [1-9]\S*% of [\d,]+ updated rows were in the device's cache", said)
    assert metrics(folder / "results") == metrics(first.folder / "results")
    expected = first.saved.model.weights_by_name
    for name, weight in load_model(folder / "models" / "model").model.weights_by_name.items():
        np.testing.assert_array_equal(weight.numpy(), expected[name].numpy(), err_msg=name)
