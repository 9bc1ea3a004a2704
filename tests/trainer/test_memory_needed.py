"""What a run takes in memory, against hand calculations, and what happens where there is less."""

import re
from dataclasses import replace

import pandas as pd
import pytest

from benchmarks.memory import measure
from data.errors import DataError
from data.loading.loader import LoaderSize
from main import main
from tests.helpers import ROOT, make_dataset
from tests.trainer.local_workers import run_workers
from tests.trainer.test_model_size import LARGE, layout_of, options_of
from trainer import build, memory_needed
from trainer.config import Options
from trainer.embeddings.placement import HostTables
from trainer.layout import CategoricalInput, InputSchema, SequenceInput, VectorInput
from trainer.memory_needed import (
    FRAGMENTATION,
    HOROVOD_BYTES,
    PROGRAM_BYTES,
    check_devices,
    check_memory,
    describe_memory,
    place_tables,
    workers_that_hold,
)
from trainer.process.worker_env import WorkerEnv
from trainer.recommender import Recommender
from trainer.step_memory import RunSize, StepMemory, kept_values
from trainer.tasks.binary import BinaryTask
from trainer.tasks.multiclass import MulticlassTask

# Two one-hot features and one with lists of at most 4 ids.
SMALL = InputSchema(
    (
        CategoricalInput("a", 0, 1, False, 5000, 4),
        CategoricalInput("b", 1, 1, False, 7, 2),
        CategoricalInput("tags", 2, 4, True, 90, 6),
    ),
    ("age", "price"),
)
LONG_LOGITS = 2 * 10**9


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setattr(memory_needed, "may_use_gpu", lambda cpu: False)


@pytest.fixture
def bound(monkeypatch):
    """Sets the memory of a host, of which this process holds nothing yet."""

    def bind(available: int) -> None:
        monkeypatch.setattr(memory_needed, "available_memory", lambda processes=1: available // processes)
        monkeypatch.setattr(memory_needed, "resident_bytes", lambda: 0)

    return bind


def loader(rows: int, batch: int, *, row_bytes: int = 100, list_values: float = 0.0):
    """The sizes of a loader without windows, for any number of workers."""
    return lambda workers: LoaderSize(-(-rows // workers), -(-batch // workers), 6, row_bytes, list_values, 0, 0, 0)


def run_of(options: Options, layout: InputSchema = LARGE, batch: int = 8, rows: int = 64, tasks=("click",)) -> RunSize:
    trains = loader(rows, batch) if options.run.trains else None
    return RunSize(options, layout, tuple(map(BinaryTask, tasks)), trains, loader(rows, batch))


def parts_of(run: RunSize, workers: int = 1, **more: bool) -> dict[str, int]:
    needed = memory_needed.memory_needed(run, workers, sharded=more.pop("sharded", False), **more)
    return {part.name: part.bytes for part in needed.parts}


def test_weights_and_their_state_are_those_of_the_optimizer():
    options = options_of("--optimizer", "adam", "--deep_hidden_units", "5", "--model", "wide_deep")
    parts = parts_of(run_of(options, SMALL))
    deep, wide, rows = 5000 * 4 + 7 * 2 + 90 * 6, 5000 + 7 + 90, 5000 + 7 + 90
    dense = (4 + 2 + 6 + 2) * 5 + 5 * 1
    assert parts["tables"] == 4 * (deep + wide) and parts["dense weights"] == 4 * dense
    # Two moments of the deep part with the step of each row's last update, two accumulators of the wide part.
    assert parts["optimizer state"] == 4 * (2 * deep + rows + 2 * wide + 2 * dense)
    averaged = parts_of(run_of(options_of("--optimizer", "adam", "--ema_momentum", "0.9"), SMALL))
    assert averaged["optimizer state"] > parts["optimizer state"] + 2 * 4 * (deep + wide)


def test_activations_are_the_input_and_hidden_units():
    flags = ["--model", "wide_deep", "--deep_hidden_units", "50", "30"]
    inputs = 4 + 2 + 6 + 2
    run = run_of(options_of(*flags), SMALL, batch=1000)
    parts = parts_of(run)
    assert parts["activations"] == 1000 * 4 * (inputs + 50 + 30)
    # The widest layer's gradient twice; of dense weights the gradient, its sum, the new weight and RMSprop's new slot.
    dense = inputs * 50 + 50 * 30 + 30
    assert parts["gradients"] == 1000 * 4 * 2 * 50 and parts["dense gradients"] == 4 * 3 * dense
    step = sum(parts[name] for name in ("activations", "gradients", "dense gradients", "unpacked batch"))
    assert parts["fragmentation"] == int(FRAGMENTATION * step)
    halved = parts_of(run, workers=2)
    assert halved["activations"] == parts["activations"] / 2
    assert halved["TensorFlow and the program"] == PROGRAM_BYTES + HOROVOD_BYTES


def test_half_precision_normalization_and_activation_change_a_unit():
    def of_unit(*flags: str, on_gpu: bool = False) -> float:
        one, two = (
            StepMemory(
                run_of(options_of("--deep_hidden_units", units, *flags), SMALL), 1, sharded=False, on_gpu=on_gpu
            ).activations()
            for units in ("50", "51")
        )
        return (two - one) / 8

    assert of_unit() == 4 and of_unit("--amp", on_gpu=True) == 2
    assert of_unit("--activation", "gelu", "--deep_dropout", "0") == 8
    assert of_unit("--activation", "gelu") == 10
    assert of_unit("--batch_norm", "--deep_dropout", "0") == 4 + 4 + 2 * 4


@pytest.mark.parametrize(
    ("flags", "values"),
    [
        # First layer in two layouts, experts, gates, experts and mixed outputs by row; towers.
        (["--model", "mmoe", "--num_experts", "3"], [3 * 8, 3 * 8, 3 * 4, 2 * 3, 3 * 4, 2 * 4, 2 * 4, 5, 5]),
        (["--model", "shared_bottom"], [8, 8, 4, 0, 5, 5]),
        (["--model", "esmm"], [2 * 8, 2 * 8, 2 * 4, 5, 5]),
        (["--model", "aitm"], [2 * 8, 2 * 8, 2 * 4, 5, 5, 4, 2 * 4, 6 * 4]),
    ],
)
def test_hidden_values_of_models(flags, values):
    options = options_of(*flags, "--expert_hidden_units", "8", "4", "--tower_hidden_units", "5")
    run = run_of(options, SMALL, tasks=("click", "buy"))
    assert [value for value, size in kept_values(run, 2) if size == 2] in (values, [*values[:3], *values[4:]])


def test_levels_and_interactions_add_values():
    def kept(*flags: str, layout: InputSchema = SMALL) -> int:
        return sum(value for value, _ in kept_values(run_of(options_of(*flags), layout, tasks=("click", "buy")), 4))

    one, two = (kept("--model", "ple", "--ple_levels", levels) for levels in ("1", "2"))
    assert one < two < 2.2 * one
    width = 4 + 2 + 6 + 2
    plain = kept("--model", "wide_deep")
    assert kept("--model", "wide_deep", "--interaction", "cross", "--cross_layers", "2") == plain + 2 * 2 * width
    assert kept("--model", "wide_deep", "--interaction", "fm") == plain + 3 * 6
    clicks = SequenceInput("clicks", 50, "din", ("clicked",), targets=("a",))
    item = CategoricalInput("clicked", 2, 50, True, 5000, 4, "a", sequence="clicks")
    layout = InputSchema((*SMALL.categorical[:2], item), (), sequences=(clicks,))
    din = kept("--model", "wide_deep", "--attention_hidden_units", "16", "8", layout=layout)
    without = kept("--model", "wide_deep", layout=InputSchema(layout.categorical, ()))
    assert din - without == 50 * 4 + 4 * 16 + 50 * 16 + 50 * 8


def test_batches_take_what_their_arrays_take():
    run = run_of(options_of("--model", "mmoe"), layout_of(user=(10**9, 4), day=(10**9, 4)), batch=100)
    steps = StepMemory(run, 1, sharded=False, on_gpu=False)
    # An id: the rows it is read from and summed into, and the distinct row, which is also passed on; label and weight.
    packed = 100 * (2 * 8 * (3 + 2) + 2 * 4)
    assert steps.packed_bytes(loader(64, 100)(1)) == pytest.approx(packed, rel=0.01)
    assert steps.ahead() == pytest.approx(7 * packed, rel=0.01)
    # Logit, label and weight of every row, and 60 bytes while metrics are computed, without batches.
    many = replace(run_of(options_of("--model", "mmoe"), batch=1, rows=10**6), training=None)
    assert StepMemory(many, 1, sharded=False, on_gpu=False).evaluation() == 10**6 * (3 * 4 + 60)


def test_evaluation_uses_what_the_loader_of_training_returns():
    many = run_of(options_of("--model", "mmoe"), batch=1, rows=10**6)
    alone = StepMemory(replace(many, training=None), 1, sharded=False, on_gpu=False).evaluation()
    for window, kept, beyond in ((10**7, 4 * 10**6, alone - 6 * 10**6), (10**9, 0, 0)):
        size = loader(64, 1)(1)._replace(window_bytes=window, kept_bytes=kept)
        beside = StepMemory(replace(many, training=lambda workers, size=size: size), 1, sharded=False, on_gpu=False)
        assert beside.evaluation() == pytest.approx(beyond, abs=1000)  # and a batch of one row


def refusal(options: Options, launch: WorkerEnv | None = None, **size: object) -> str:
    with pytest.raises(DataError) as caught:
        check_memory(run_of(options, **size), launch or WorkerEnv())
    return str(caught.value)


def test_tables_larger_than_memory_are_refused(bound):
    bound(2**34)
    message = refusal(options_of("--model", "mmoe"))
    # 50 million rows of 64 weights with two moments each, and a step.
    assert "user (50,000,000 x 64: 35.95 GiB)" in message and "and 16.00 GiB are available" in message
    assert "tables 11.92 GiB" in message and "optimizer state 24.03 GiB" in message
    order = ["--embedding_sizes_file", "--global_batch_size", "narrower layers", "--shard_embeddings"]
    places = [message.index(text) for text in order]
    assert places == sorted(places)


@pytest.mark.parametrize("limit", [2**32, 2**34, 2**35])
def test_number_of_workers_is_the_smallest_that_fits(bound, limit):
    run = run_of(options_of("--model", "mmoe"))
    workers = workers_that_hold(run, limit, on_device=False)

    def needed(count: int) -> int:
        return sum(parts_of(run, count, sharded=count > 1).values())

    assert workers > 1 and needed(workers) <= limit < needed(workers - 1)
    bound(limit)
    assert f"; {workers} workers with --shard_embeddings and as much memory each would hold it" in refusal(run.options)


def test_what_every_worker_holds_is_never_enough(bound):
    bound(2**33)
    for options in (
        options_of("--model", "wide_deep", "--deep_hidden_units", "2000000000"),
        options_of("--model", "mmoe", "--num_experts", "100000000"),
    ):
        message = refusal(options, layout=layout_of(day=(7, 4)))
        assert "narrower layers" in message and "no number of workers would hold it" in message
    layout = InputSchema((), ("age",), vectors=(VectorInput("image", 2**16),))
    assert "choose narrower layers" in refusal(options_of("--vector_units", "1000000"), layout=layout)
    check_memory(run_of(options_of(), layout), WorkerEnv())
    tasks = (MulticlassTask("kind", num_classes=LONG_LOGITS),)
    with pytest.raises(DataError, match="no number of workers"):
        check_memory(RunSize(options_of("--model", "mmoe"), LARGE, tasks, loader(8, 8), loader(8, 8)), WorkerEnv())


def test_a_smaller_batch_is_the_first_advice_where_batches_take_most(bound):
    bound(2**32)
    message = refusal(options_of("--model", "wide_deep"), layout=SMALL, batch=10**6, rows=10**7)
    assert "choose a smaller batch (--global_batch_size" in message
    check_memory(run_of(options_of("--model", "wide_deep"), SMALL, batch=10**4, rows=10**5), WorkerEnv())


def test_without_training_only_the_weights_count(bound):
    bound(14 * 10**9)
    refusal(options_of("--model", "mmoe"))
    refusal(options_of("--model", "mmoe", "--benchmark"))
    check_memory(run_of(options_of("--model", "mmoe", "--evaluate")), WorkerEnv())
    bound(12 * 10**9)
    assert "user (50,000,000 x 64: 11.92 GiB)" in refusal(options_of("--model", "mmoe", "--evaluate"))
    assert "optimizer" not in refusal(options_of("--model", "mmoe", "--predict", "out.parquet"))
    # Only rank 0 has read the flags of the model from the checkpoint.
    assert check_memory(run_of(options_of("--model", "mmoe", "--evaluate")), WorkerEnv(1, 2, 1, 2)) is None


def test_workers_of_a_host_share_its_memory(bound):
    two = WorkerEnv(0, 2, 0, 2)
    bound(60 * 10**9)
    check_memory(run_of(options_of("--model", "mmoe")), WorkerEnv())
    replicated = options_of("--model", "mmoe", "--shard_embeddings", "off")
    assert "27.94 GiB are available to each of 2 workers on this host" in refusal(replicated, two)
    check_memory(run_of(options_of("--model", "mmoe")), two)
    sharded = options_of("--model", "mmoe", "--shard_embeddings")
    check_memory(run_of(sharded), two)
    bound(38 * 10**9)
    refusal(sharded, two)
    check_memory(run_of(sharded), WorkerEnv(0, 2))  # on two hosts, each worker has its host's memory


def test_tables_that_do_not_fit_a_device_go_to_the_host(bound, monkeypatch):
    monkeypatch.setattr(memory_needed, "may_use_gpu", lambda cpu: True)
    bound(2**40)
    layout = InputSchema(
        (
            CategoricalInput("item", 0, 1, False, 10**6, 32),
            CategoricalInput("user", 1, 1, False, 10**7, 64),
            CategoricalInput("day", 2, 1, False, 7, 16),
        ),
        (),
    )
    run = run_of(options_of("--model", "wide_deep", "--optimizer", "adam", "--deep_hidden_units", "8"), layout)
    # A row: its weights with two moments and a step, and the wide weight with two accumulators.
    user, item = (rows * 4 * (3 * width + 1 + 3) for rows, width in ((10**7, 64), (10**6, 32)))

    def place(device_bytes: int | None, choice: str = "auto") -> HostTables:
        chosen = replace(
            run, options=replace(run.options, training=replace(run.options.training, table_placement=choice))
        )
        return place_tables(chosen, 1, sharded=False, device_bytes=device_bytes)

    def on_device(host: HostTables) -> int:
        return memory_needed.memory_needed(run, 1, sharded=False, on_gpu=True, host=host).where(on_device=True).bytes

    fits = on_device(HostTables())
    assert place(None) == place(fits) == place(1, "device") == HostTables()
    one = place(fits - 1)
    assert one.groups == {"64.large"}
    # The cache takes half of what is left without it.
    left = fits - 1 - (fits - user)
    assert on_device(one) - (fits - user) == pytest.approx(left / 2, rel=1e-3)
    assert one.cached_share == pytest.approx(left / 2 / user, rel=1e-3) and one.places(10**7) > 4096
    # Where devices differ, all workers place tables as the one with the least memory has to.
    devices = fits, fits - 1
    agreed = run_workers(2, lambda comm: build._host_tables(run, comm, sharded=False, device_bytes=devices[comm.rank]))
    assert [host.groups for host in agreed] == [one.groups] * 2
    # What the smallest caches need is not free.
    assert place(fits - user).groups == place(2**40, "host").groups == {"64.large", "32.large"}
    assert place(None, "host") == HostTables(frozenset({"64.large", "32.large"}))
    rest = memory_needed.memory_needed(run, 1, sharded=False, on_gpu=True, host=place(None, "host"))
    parts = {part.name: part.bytes for part in rest.parts}
    assert parts["tables in host memory"] + parts["optimizer state in host memory"] == user + item
    assert {table.name for table in rest.where(on_device=False).tables} == {"user", "item", "wide"}

    bound(2**40)
    advice = "or keep large tables in host memory .--table_placement host"
    with pytest.raises(DataError, match=advice):
        check_devices(run, WorkerEnv(), sharded=False, device_bytes=fits - 1)
    check_devices(run, WorkerEnv(), sharded=False, device_bytes=fits - 1, host=one)
    bound(user)
    with pytest.raises(
        DataError, match=r"of memory per worker .*tables in host memory .*largest tables: user"
    ) as caught:
        check_devices(run, WorkerEnv(), sharded=False, device_bytes=fits - 1, host=one)
    assert "--table_placement" not in str(caught.value)
    with pytest.raises(DataError) as caught:
        check_devices(run, WorkerEnv(), sharded=False, device_bytes=2**10, host=place(2**10))
    assert "on the GPU" in str(caught.value) and "--table_placement" not in str(caught.value)


def test_a_gpu_is_compared_once_its_memory_is_known(bound, monkeypatch):
    monkeypatch.setattr(memory_needed, "may_use_gpu", lambda cpu: True)
    bound(2**20)
    run = run_of(options_of("--model", "mmoe"))
    needed = check_memory(run, WorkerEnv())
    assert needed is not None
    device, host = needed.where(on_device=True), needed.where(on_device=False)
    assert device.bytes + host.bytes == needed.bytes and device.bytes > 10 * host.bytes
    line = describe_memory(needed, 1, on_gpu=True)
    assert re.match(r"memory needed: about 3\d\.\d\d GiB on the GPU \(optimizer state 24.03 GiB, tables", line)
    bound(2**40)
    with pytest.raises(DataError, match="of memory on the GPU .*, and 16.00 GiB are available; .* 3 workers") as caught:
        check_devices(run, WorkerEnv(), sharded=False, device_bytes=2**34)
    assert "on this host" not in str(caught.value)
    check_devices(run, WorkerEnv(), sharded=False, device_bytes=device.bytes)
    bound(host.bytes - 1)
    with pytest.raises(DataError, match="of memory per worker .*TensorFlow and the program"):
        check_devices(run, WorkerEnv(), sharded=False, device_bytes=device.bytes)


def arguments_of(tmp_path, *flags: str) -> list[str]:
    data = make_dataset(tmp_path, ROOT / "feature_specs" / "tiny.yaml", rows=40)
    (data / "embedding_sizes.json").write_text('{"user_id": 4096}')
    places = ["--dataset_path", data, "--model_dir", tmp_path / "models", "--results_dir", tmp_path / "results"]
    batches = ["--global_batch_size", "8", "--eval_batch_size", "8"]
    return [*map(str, places), "--recipe", "published", *batches, *flags]


def test_run_is_refused_before_tensorflow_loads(tmp_path, capsys, monkeypatch, bound):
    monkeypatch.setattr("main.import_tensorflow", lambda: pytest.fail("the checks were passed"))
    arguments = arguments_of(tmp_path, "--cpu")
    bound(5 * 10**8)
    monkeypatch.setattr("data.loading.loader.check_fits", lambda *_: None)
    for more in ([], ["--benchmark"]):
        assert main([*arguments, *more]) == 2
        assert "user_id (50 x 4096: 1.6 MiB)" in capsys.readouterr().err


def test_the_gpu_is_checked_before_its_variables_are_created(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(build, "on_gpu", lambda: True)
    monkeypatch.setattr(build, "gpu_memory", lambda: 10**6)
    monkeypatch.setattr(build, "build_model", lambda *_, **__: pytest.fail("the check was passed"))
    assert main(arguments_of(tmp_path)) == 2
    out, err = capsys.readouterr()
    assert re.search(r"^memory needed: about 0\.\d\d GiB \(TensorFlow and the program 0\.67 GiB", out, re.MULTILINE)
    assert "of memory on the GPU (" in err and "1.0 MiB are available" in err


def test_fit_refuses_a_model_larger_than_memory(bound, monkeypatch):
    frame = pd.DataFrame({"user_id": range(50), "item_id": range(50), "liked": [0, 1] * 25})
    bound(2**29)
    monkeypatch.setattr("data.loading.loader.check_fits", lambda *_: None)
    with pytest.raises(DataError, match=r"the run needs .* of memory per worker .*, and 0.50 GiB are available"):
        Recommender(deep_hidden_units=[4096, 4096], model="wide_deep").fit(frame, tasks={"liked": "binary"})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["large tables", "MMoE, three tasks", "20 lists of 10 ids"])
def test_estimate_is_close_to_the_measured_peak(name, tmp_path):
    line = measure(name, tmp_path)
    assert line["ratio"] == pytest.approx(1, abs=0.15), line
