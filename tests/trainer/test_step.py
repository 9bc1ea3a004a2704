import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import left_to_all
from tests.trainer import small_models
from tests.trainer.local_workers import LocalWorker, run_workers
from tests.trainer.small_models import (
    DEEP_RATE,
    WEIGHTED,
    WIDE_RATE,
    Rows,
    differences,
    make_batches,
    make_step,
    part,
    run,
    run_eagerly,
    share_of,
)
from trainer.comm import sees_clock
from trainer.embeddings.shards import Shards
from trainer.layout import RowValues
from trainer.models.ranking import RankingModel
from trainer.models.step_context import StepContext
from trainer.optimizers.optimizer import Gradient, Optimizer
from trainer.process import device
from trainer.tasks.binary import BinaryTask
from trainer.tasks.regression import RegressionTask

pytestmark = pytest.mark.long

STEPS = 30
# Lists with and without weights.
make_model = partial(small_models.make_model, layout=WEIGHTED)


def train(model: RankingModel, batches: list[Rows], **options) -> list[float]:  # type: ignore[no-untyped-def]
    step = make_step(model, **options)
    return [run(step, batch, number).sum() for number, batch in enumerate(batches, start=1)]


def train_densely(model: RankingModel, batches: list[Rows]) -> list[float]:
    """Trains every row of every table in every step, with RMSprop and FTRL written out in NumPy."""
    deep = [*model.deep_weights, *model.embeddings.deep_variables]
    wide = [*model.wide_weights, *model.embeddings.wide_variables]
    squares = [np.zeros(v.shape, np.float64) for v in deep]
    sums = [np.full(v.shape, 0.1) for v in wide]
    linear = [np.zeros(v.shape) for v in wide]
    losses = []
    for batch in batches:
        with tf.GradientTape() as tape:
            logits = model(*batch.padded(WEIGHTED))
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(batch.labels, logits))
        gradients = tape.gradient(loss, [v.value for v in (*deep, *wide)])
        gradients = [tf.convert_to_tensor(g).numpy().astype(np.float64) for g in gradients]
        for index, (v, g) in enumerate(zip(deep, gradients[: len(deep)], strict=True)):
            squares[index] = 0.5 * squares[index] + 0.5 * g**2
            v.assign(v.numpy() - DEEP_RATE * g / (np.sqrt(squares[index]) + 1e-7))
        for index, (v, g) in enumerate(zip(wide, gradients[len(deep) :], strict=True)):
            new = sums[index] + g**2
            linear[index] += g - (np.sqrt(new) - np.sqrt(sums[index])) / WIDE_RATE * v.numpy()
            sums[index] = new
            v.assign(-linear[index] * WIDE_RATE / np.sqrt(new))
        losses.append(float(loss))
    return losses


@pytest.fixture(scope="module")
def batches() -> list[Rows]:
    return make_batches(STEPS)


@pytest.fixture(scope="module")
def trained(batches) -> tuple[RankingModel, list[float]]:
    model = make_model()
    return model, train(model, batches)


def test_lazy_updates_equal_dense_updates(batches, trained):
    model, losses = trained
    dense = make_model()
    np.testing.assert_allclose(losses, train_densely(dense, batches), rtol=1e-5)
    # RMSprop divides by the size of a gradient, which for the smallest ones is rounding error: a tenth of a step.
    assert differences(model, dense) < 0.1 * DEEP_RATE


@pytest.mark.parametrize("exchange", ["whole", "rows"])
def test_forms_of_table_exchange_agree(batches, trained, exchange):
    model, losses = trained
    other = make_model()
    np.testing.assert_allclose(losses, train(other, batches, table_exchange=exchange), rtol=1e-5)
    assert differences(model, other) < 0.1 * DEEP_RATE


def test_training_lowers_the_loss(trained):
    _, losses = trained
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def train_on_workers(
    workers: int, batches: list[Rows], *, sharded: bool, **flags: object
) -> list[tuple[RankingModel, list[float]]]:
    """Returns each worker's model and losses; a batch is cut into the workers' parts."""
    cuts = np.linspace(0, 16, workers + 1).astype(int)

    def work(comm: LocalWorker) -> tuple[RankingModel, list[float]]:
        shards = Shards(comm.rank, comm.size, comm.exchange_values, smallest=50) if sharded else None
        model = make_model(shards=shards)
        step, losses = make_step(model, comm=comm, **flags), []
        for number, batch in enumerate(batches, start=1):
            rows = part(batch, slice(cuts[comm.rank], cuts[comm.rank + 1]))
            result = run_eagerly(step, rows, number)
            losses.append(result.losses.numpy().item())
        return model, losses

    return run_workers(workers, work)


@pytest.mark.parametrize("workers", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_several_workers_equal_one(batches, trained, workers):
    _, losses = trained
    results = train_on_workers(workers, batches[:20], sharded=False)
    for _, own in results:
        np.testing.assert_allclose(own, losses[:20], rtol=1e-4)
    assert differences(results[0][0], results[-1][0]) == 0


@pytest.mark.parametrize("workers", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_sharded_tables_equal_replicated_ones(batches, trained, workers):
    model, losses = trained
    tables = {name: table.numpy() for name, table in model.embeddings.tables().items()}
    for rank, (mine, own) in enumerate(train_on_workers(workers, batches, sharded=True)):
        np.testing.assert_allclose(own, losses, rtol=1e-4)
        assert mine.parameters == model.parameters
        sharded = [name for name, table in mine.embeddings.tables().items() if table.is_sharded]
        assert sorted(sharded) == sorted(name for name in tables if not name.endswith(".day"))
        for name, table in mine.embeddings.tables().items():
            # The rows of a group are dealt out to the workers, across its tables.
            expected = tables[name][(rank - table.first) % workers :: workers] if table.is_sharded else tables[name]
            np.testing.assert_allclose(table.numpy(), expected, atol=1e-4, err_msg=name)


def gradient_norm(model: RankingModel, batch: Rows) -> float:
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(batch.labels, model(*batch.padded(WEIGHTED))))
    gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
    return float(np.sqrt(sum(np.square(tf.convert_to_tensor(own).numpy(), dtype=float).sum() for own in gradients)))


class Recorder:
    """Stands in for an optimizer, and keeps the gradients that it is given."""

    def __init__(self, optimizer: Optimizer):
        self.weights, self.applied = optimizer.weights, {}

    def apply(self, gradients: dict[str, Gradient], step: tf.Tensor) -> None:
        self.applied = {name: getattr(own, "values", own).numpy().astype(float) for name, own in gradients.items()}


@pytest.mark.parametrize("exchange", ["whole", "rows"])
@pytest.mark.parametrize("share", [0.25, 4.0])
def test_clipped_gradients_keep_their_direction(batches, eagerly, exchange, share):
    model = make_model()
    norm = gradient_norm(model, batches[0])
    applied = []
    for clip_norm in (None, share * norm):
        step = make_step(model, table_exchange=exchange, clip_norm=clip_norm)
        step.optimizer = Recorder(step.optimizer)
        run_eagerly(step, batches[0], 1)
        applied.append(step.optimizer.applied)
    free, clipped = applied
    assert np.sqrt(sum(np.square(own).sum() for own in free.values())) == pytest.approx(norm, rel=1e-5)
    for name, own in clipped.items():
        np.testing.assert_allclose(own, min(share, 1.0) * free[name], rtol=1e-4, atol=1e-9)


def test_workers_clip_by_the_same_norm(batches, trained):
    losses = train(make_model(), batches[:20], clip_norm=0.05)
    assert not np.allclose(losses, trained[1][:20], rtol=1e-4)
    for sharded in (False, True):
        for _, own in train_on_workers(2, batches[:20], sharded=sharded, clip_norm=0.05):
            np.testing.assert_allclose(own, losses, rtol=1e-4)


@pytest.fixture
def eagerly() -> Iterator[None]:
    """Functions run as plain Python: workers in threads can meet in the middle of one."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.parametrize(
    "weighting", left_to_all(("static", "pcgrad", "gradnorm", "uncertainty"), ("pcgrad", "uncertainty"))
)
def test_three_workers_share_batches_of_any_size(eagerly, weighting):
    """16 rows, 7, and 2, so that one worker has none."""
    sizes = (16, 7, 2, 16)
    batches = [batch for seed, rows in enumerate(sizes) for batch in make_batches(1, rows, tasks=2, seed=seed)]
    tasks = (BinaryTask("click", loss_weight=0.5), RegressionTask("price"))

    def work(comm: LocalWorker) -> tuple[RankingModel, list[np.ndarray]]:
        shards = Shards(comm.rank, comm.size, comm.exchange_values, smallest=50)
        model = make_model(model="mmoe", tasks=tasks, batch_norm=True, shards=shards)
        step, losses = make_step(model, comm=comm, loss_weighting=weighting), []
        for number, batch in enumerate(batches, start=1):
            result = run_eagerly(step, share_of(batch, comm.rank, comm.size), number)
            losses.append(result.losses.numpy())
        return model, losses

    [(alone, losses)] = run_workers(1, work)
    moments = [variable.numpy() for variable in alone.non_trainable_variables]
    assert moments
    for model, own in run_workers(3, work):
        np.testing.assert_allclose(own, losses, rtol=1e-3)
        for variable, expected in zip(model.non_trainable_variables, moments, strict=True):
            np.testing.assert_allclose(variable.numpy(), expected, atol=1e-4)


def test_overflow_on_one_worker_is_skipped_by_all(batches):
    def work(comm: LocalWorker) -> tuple[float, bool]:
        shards = Shards(comm.rank, comm.size, comm.exchange_values, smallest=50)
        model = make_model(shards=shards, compute_dtype="float16")
        step = make_step(model, comm=comm, compute_dtype="float16")
        before = [variable.numpy().copy() for variable in model.variables]
        rows = part(batches[0], slice(8 * comm.rank, 8 * comm.rank + 8)).input(model)
        [row_counts] = comm.sum_tensors([step.row_counts(rows)])
        summed = step.exchange(step.forward_backward(rows, tf.constant(1), row_counts))
        if comm.rank == 1:
            user = model.embeddings.deep_variables[-1].path
            own = summed.by_name[user]
            summed.by_name[user] = tf.IndexedSlices(own.values + np.inf, own.indices)
        step.update(summed, tf.constant(1))
        unchanged = [np.array_equal(*pair) for pair in zip(before, (v.numpy() for v in model.variables), strict=True)]
        return float(step.loss_scale.scale), all(unchanged)

    assert run_workers(2, work) == [(2.0**14, True)] * 2


def test_float16_exchange_rounds_gradients(batches, trained):
    _, losses = trained
    own = train(make_model(), batches, fp16_allreduce=True)
    np.testing.assert_allclose(own, losses, atol=5e-3)
    assert own != losses


def test_rows_of_weight_zero_change_nothing(batches):
    padded, plain = make_model(), make_model()
    for number, batch in enumerate(batches[:5], start=1):
        pads = Rows(
            ids=tf.concat([batch.ids, tf.tile([[0, 0, *[-1] * 5]], [4, 1])], axis=0),
            numerical=tf.concat([batch.numerical, tf.zeros((4, 2))], axis=0),
            labels=tf.concat([batch.labels, tf.zeros((4, 1))], axis=0),
            weights=tf.concat([batch.weights, tf.zeros(4)], axis=0),
        )
        if number == 1:
            step_padded, step_plain = make_step(padded), make_step(plain)
        losses = [run(step, rows, number) for step, rows in ((step_padded, pads), (step_plain, batch))]
        np.testing.assert_allclose(*losses, rtol=1e-5)
    assert differences(padded, plain) < 1e-5


def test_row_of_weight_two_counts_as_two_rows(batches):
    twice, weighted = make_model(), make_model()
    batch = batches[0]
    doubled = Rows(*(tf.concat([tensor, tensor[:3]], axis=0) for tensor in batch))
    heavy = batch._replace(weights=tf.constant([2.0] * 3 + [1.0] * 13))
    first = run(make_step(twice), doubled, 1)
    np.testing.assert_allclose(first, run(make_step(weighted), heavy, 1), rtol=1e-5)


def test_each_task_is_averaged_over_its_own_rows():
    tasks = (BinaryTask("click"), BinaryTask("buy", loss_weight=0.5, positive_weight=3.0, given=0))
    model = make_model(tasks=tasks)
    batch = make_batches(1, tasks=2)[0]
    labels = batch.labels.numpy()
    labels[4:, 1] = np.nan
    batch = batch._replace(labels=tf.constant(labels))
    z = model(*batch.padded(WEIGHTED)).numpy().astype(np.float64)
    p = 1 / (1 + np.exp(-z))
    click = -(labels * np.log(p) + (1 - labels) * np.log(1 - p))[:, 0].mean()
    buy = -(3 * labels * np.log(p) + (1 - labels) * np.log(1 - p))[:4, 1].mean()
    losses = run(make_step(model), batch, 1)
    np.testing.assert_allclose(losses, [click, buy], rtol=1e-5)


def test_batch_without_rows_of_a_task_trains_the_rest():
    model = make_model(tasks=("click", "buy"))
    batch = make_batches(1, tasks=2)[0]
    labels = batch.labels.numpy()
    labels[:, 1] = np.nan
    losses = run(make_step(model), batch._replace(labels=tf.constant(labels)), 1)
    assert losses[0] > 0 and losses[1] == 0
    assert all(np.isfinite(v.numpy()).all() for v in model.variables)


@pytest.mark.parametrize(
    ("compute_dtype", "xla"), [("float32", True), ("bfloat16", False), ("bfloat16", True), ("float16", False)]
)
def test_precision_and_xla_follow_the_float32_losses(batches, trained, compute_dtype, xla):
    _, losses = trained
    model = make_model(compute_dtype=compute_dtype)
    own = train(model, batches, xla=xla, compute_dtype=compute_dtype)
    tolerance = 1e-5 if compute_dtype == "float32" else 0.05
    np.testing.assert_allclose(own, losses, atol=tolerance)
    assert {variable.dtype for variable in model.variables} == {"float32"}
    assert model(*batches[0].padded(WEIGHTED)).dtype == tf.float32


def test_xla_keeps_dropout_masks(batches):
    plain, compiled = (train(make_model(dropout=0.5), batches[:10], xla=xla) for xla in (False, True))
    np.testing.assert_allclose(compiled, plain, rtol=1e-5)


def test_whole_passes_are_compiled_only_on_gpus(monkeypatch):
    for gpu in (False, True):
        monkeypatch.setattr(device, "on_gpu", lambda gpu=gpu: gpu)
        assert [device.compiles_passes(xla) for xla in (False, True)] == [False, gpu]


def test_xla_compiles_nothing_whose_size_varies(monkeypatch):
    """It would compile again for every number of rows that a batch looks up."""
    monkeypatch.setattr(device, "on_gpu", lambda: True)
    step = make_step(make_model(), xla=True, batch_rows=16)
    graph = step.run.get_concrete_function().graph
    inputs = [own.inputs for own in graph.get_operations() if own.node_def.attr["_XlaMustCompile"].b]
    assert len(inputs) == 2  # the passes and the check for finite gradients; the optimizer's update is in a branch
    assert all(tensor.shape.is_fully_defined() for own in inputs for tensor in own)


def test_float16_overflow_skips_and_halves_the_scale(batches):
    model = make_model(compute_dtype="float16")
    step = make_step(model, compute_dtype="float16")
    before = [v.numpy().copy() for v in model.variables]
    run(step, batches[0]._replace(numerical=tf.fill((16, 2), 1e30)), 1)
    assert float(step.loss_scale.scale) == 2.0**14
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())


def test_dropout_is_a_function_of_seed_step_and_rank(batches):
    first, second = make_model(dropout=0.5), make_model(dropout=0.5)
    losses = train(first, batches[:3])
    assert losses == train(second, batches[:3])
    model = make_model(dropout=0.5)
    seeds = [tf.constant([0, 64]), tf.constant([0, 128]), tf.constant([1, 64])]
    batch, logits = batches[0], []
    for seed in seeds:
        training_pass = StepContext(seed, tf.ones(16), lambda tensors: tensors)
        embedded = model.embeddings.pool_padded(batch.ids, batch.padded(WEIGHTED).weights)
        logits.append(model.logits(embedded, RowValues(batch.numerical), training_pass).numpy())
    assert not np.allclose(logits[0], logits[1])
    assert not np.allclose(logits[0], logits[2])


def weights_of(model: RankingModel) -> list[np.ndarray]:
    return [variable.numpy().copy() for variable in model.variables]


def train_through_nan(comm: LocalWorker, batches: list[Rows], **flags: object) -> tuple[RankingModel, list]:
    """Trains six steps, the third of which has a NaN among the inputs of the last worker.

    Returns the weights before the third step and after each of the steps from there on, with what the host reads.
    """
    shards = Shards(comm.rank, comm.size, comm.exchange_values, smallest=50)
    model = make_model(shards=shards, batch_norm=True)
    step, seen = make_step(model, comm=comm, **flags), []
    for number, batch in enumerate(batches[:6], start=1):
        rows = share_of(batch, comm.rank, comm.size)
        if number == 3:
            seen.append((weights_of(model), step.running_losses.read()[1]))
            if comm.rank == comm.size - 1:
                rows = rows._replace(numerical=rows.numerical + [[np.nan, 0.0]] * rows.numerical.shape[0])
        run_eagerly(step, rows, number)
        if number >= 3:
            seen.append((weights_of(model), step.running_losses.read()[1]))
    return model, seen


@pytest.mark.parametrize("workers", [1, 2])
def test_no_update_from_a_non_finite_step_on(eagerly, batches, workers):
    for _, [(before, is_finite), *after] in run_workers(workers, lambda comm: train_through_nan(comm, batches)):
        assert is_finite and [still_finite for _, still_finite in after] == [False] * 4
        for weights, _ in after:
            for expected, found in zip(before, weights, strict=True):
                np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_non_finite_gradient_stops_updates(batches, form):
    """The loss may be finite where a gradient is not, such as that of a square root at zero."""
    model = make_model()
    step = make_step(model)
    inputs = batches[0].input(model)
    gradients = step.forward_backward(inputs, tf.constant(1), step.row_counts(inputs))
    is_sparse = {name: isinstance(own, tf.IndexedSlices) for name, own in gradients.by_name.items()}
    name = next(name for name, sparse in is_sparse.items() if sparse == (form == "sparse"))
    own, before = gradients.by_name[name], weights_of(model)
    broken = tf.IndexedSlices(own.values * np.inf, own.indices) if form == "sparse" else own + np.nan
    step.update(gradients._replace(by_name=gradients.by_name | {name: broken}), tf.constant(1))
    run(step, batches[1], 2)
    assert not step.running_losses.read()[1]
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())


def test_non_finite_loss_stops_updates_under_float16(batches):
    model = make_model(compute_dtype="float16")
    step = make_step(model, compute_dtype="float16")
    before = weights_of(model)
    run(step, batches[0]._replace(numerical=tf.fill((16, 2), np.nan)), 1)
    run(step, batches[1], 2)
    assert not step.running_losses.read()[1]
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())


def test_running_losses_are_the_sums_of_the_steps():
    model = make_model(tasks=("click", "buy"))
    step, batches = make_step(model), make_batches(5, tasks=2)
    step.running_losses.set([0.25, 0.5])  # as in a run that was resumed within an epoch
    losses = [run(step, batch, number) for number, batch in enumerate(batches, start=1)]
    sums, is_finite = step.running_losses.read()
    np.testing.assert_array_equal(sums, np.sum([[0.25, 0.5], *losses], axis=0, dtype=np.float64))
    assert sums.dtype == np.float64 and is_finite
    step.running_losses.set()
    np.testing.assert_array_equal(step.running_losses.read()[0], [0, 0])


def test_control_flags_are_summed_and_waiting_is_timed(batches):
    """The first worker is ready half a second before the second and waits for it in the step's first collective."""

    def work(comm: LocalWorker) -> tuple[list[float], float]:
        step = make_step(make_model(), comm=comm)
        for number in (1, 2):
            comm.sum_array(np.zeros(1))
            time.sleep(0.5 * comm.rank)
            result = run_eagerly(step, share_of(batches[0], comm.rank, comm.size), number, (comm.rank, 1.0))
        return result.control_flags.numpy().tolist(), float(result.waited)

    (first_flags, first_waited), (second_flags, second_waited) = run_workers(2, work)
    assert first_flags == second_flags == [1.0, 2.0]
    if sees_clock():
        assert first_waited > 0.4 and first_waited > second_waited + 0.3
    else:  # an earlier test has made this process deterministic, for good
        assert first_waited == second_waited == 0
    alone = run_eagerly(make_step(make_model()), batches[0], 1, (1.0, 0.0))
    assert alone.control_flags.numpy().tolist() == [1.0, 0.0] and float(alone.waited) == 0


def test_parts_of_a_step_equal_the_step(batches):
    """The benchmark runs and times the three parts one after the other, each as a graph."""
    whole, parts = make_model(), make_model()
    steps = make_step(whole), make_step(parts)
    functions = [
        tf.function(part, reduce_retracing=True, autograph=False)
        for part in (steps[1].forward_backward, steps[1].exchange, steps[1].update)
    ]
    for number, batch in enumerate(batches[:4], start=1):
        run(steps[0], batch, number)
        inputs = batch.input(parts)
        gradients = functions[0](inputs, tf.constant(number), steps[1].row_counts(inputs))
        functions[2](functions[1](gradients), tf.constant(number))
    assert differences(whole, parts) < 1e-6
    assert all(function.experimental_get_tracing_count() <= 3 for function in functions)
