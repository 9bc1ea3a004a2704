from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import left_to_all
from tests.trainer.local_workers import run_workers
from tests.trainer.small_models import LAYOUT, Rows, make_batches, make_model, make_step, run, run_eagerly
from tests.trainer.test_step import differences, part
from trainer.models.layers import MLP, DenseConfig, Gates, mix
from trainer.models.multitask import ExpertOptions, levels_of

MODELS = ("shared_bottom", "omoe", "mmoe", "cgc", "ple", "esmm", "aitm")
TASKS = ("click", "buy")


@pytest.fixture(scope="module")
def batches():
    return make_batches(30, tasks=2)


def train(name: str, batches: list[Rows], compute_dtype: str = "float32", *, xla: bool = False) -> np.ndarray:
    """The losses of a model's tasks in every step, [steps, tasks]."""
    step = make_step(
        make_model(model=name, tasks=TASKS, compute_dtype=compute_dtype), compute_dtype=compute_dtype, xla=xla
    )
    return np.array([run(step, batch, number) for number, batch in enumerate(batches, start=1)])


@pytest.fixture(scope="module")
def plain_losses(batches) -> Callable[[str], np.ndarray]:
    """The losses of a model that one worker trains in float32."""
    return cache(lambda name: train(name, batches))


def random_input(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def stack_of(stacks: int, units: tuple[int, ...]) -> MLP:
    stack = MLP(units, DenseConfig("relu"), stacks=stacks, name="stack")
    stack(tf.zeros((1, 6)))
    return stack


def gates_over(readable: np.ndarray, **flags: object) -> Gates:
    return Gates(readable, config=DenseConfig("relu"), name="gates", **({"units": ()} | flags))


@pytest.mark.parametrize("shape", [(10, 6), (3, 10, 6)])
def test_stacked_experts_equal_single_experts(shape):
    stack, x = stack_of(3, (5, 4)), random_input(*shape)
    for layer in stack.dense:
        layer.bias.assign(random_input(*layer.bias.shape))
    found = stack(tf.constant(x)).numpy()
    for number in range(3):
        h = x if x.ndim == 2 else x[number]
        for layer in stack.dense:
            h = np.maximum(h @ layer.kernel.numpy()[number] + layer.bias.numpy()[number], 0)
        np.testing.assert_allclose(found[number], h, atol=1e-6)


def test_stacked_gates_and_mix_equal_single_gates():
    readable = np.array([[True, True, False, True], [False, True, True, True]])
    gates, x = gates_over(readable, units=(7,), temperature=2.0), random_input(10, 6)
    outputs = random_input(4, 10, 5)
    weights = gates(tf.constant(x)).numpy()
    mixed = mix(tf.constant(weights), tf.constant(outputs)).numpy()
    hidden_layer = gates.hidden.dense[0]
    for number, own in enumerate(readable):
        h = np.maximum(x @ hidden_layer.kernel.numpy()[number] + hidden_layer.bias.numpy()[number], 0)
        powers = np.exp(h @ gates.linear.kernel.numpy()[number] / 2.0) * own
        expected = powers / powers.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(weights[number], expected, atol=1e-6)
        naive = sum(expected[:, [expert]] * outputs[expert] for expert in range(4))
        np.testing.assert_allclose(mixed[number], naive, atol=1e-6)


def test_experts_start_from_different_weights():
    kernel = stack_of(8, (64,)).dense[0].kernel.numpy()
    for first in range(8):
        for second in range(first):
            cosine = np.sum(kernel[first] * kernel[second]) / np.prod(
                [np.linalg.norm(kernel[i]) for i in (first, second)]
            )
            assert abs(cosine) < 0.2
    limit = np.sqrt(6 / (6 + 64))
    assert kernel.min() > -limit and kernel.max() < limit
    np.testing.assert_allclose(kernel.std(axis=(1, 2)), limit / np.sqrt(3), rtol=0.15)


def test_uniform_gates_start_equal():
    weights = gates_over(np.array([[True, False, True, True, True]]), starts_uniform=True)(
        tf.constant(random_input(4, 6))
    )
    np.testing.assert_allclose(weights.numpy()[0], np.tile([0.25, 0, 0.25, 0.25, 0.25], (4, 1)), atol=1e-7)


def test_levels_of_each_model():
    def levels(name, **flags):
        return levels_of(ExpertOptions(model=name, num_experts=3, num_task_experts=2, num_shared_experts=1, **flags), 2)

    assert [level.readable.shape for level in levels("shared_bottom")] == [(1, 1)]
    assert [level.readable.shape for level in levels("omoe")] == [(1, 3)]
    assert [level.readable.shape for level in levels("mmoe")] == [(2, 3)]
    own = [[True, True, False, False, True], [False, False, True, True, True]]
    (cgc,) = levels("cgc")
    assert cgc.readable.tolist() == own and cgc.sources == ()
    first, middle, last = levels("ple", ple_levels=3)
    assert first.readable.tolist() == middle.readable.tolist() == [*own, [True] * 5]
    assert last.readable.tolist() == own
    assert first.sources == () and middle.sources == last.sources == (0, 0, 1, 1, 2)


def test_ple_equals_its_definition():
    model = make_model(model="ple", tasks=TASKS, num_task_experts=1, num_shared_experts=1, tower_hidden_units=())
    x = random_input(5, model.layout.embedding_width + 2)

    def expert(level, number, value):
        for layer in model.network.experts[level].dense:
            value = np.maximum(value @ layer.kernel.numpy()[number] + layer.bias.numpy()[number], 0)
        return value

    def mixed(level, gate, value, outputs):
        powers = np.exp(value @ model.network.gates[level].linear.kernel.numpy()[gate])
        powers = powers * model.network.gates[level]._blocked.numpy()[gate, 0].__eq__(0)
        weights = powers / powers.sum(axis=1, keepdims=True)
        return sum(weights[:, [number]] * output for number, output in enumerate(outputs))

    first = [expert(0, number, x) for number in range(3)]
    inputs = [mixed(0, gate, x, first) for gate in range(3)]
    second = [expert(1, number, inputs[number]) for number in range(3)]
    tops = [mixed(1, task, inputs[task], second) for task in range(2)]
    (heads,) = model.network.towers.logits
    expected = [top @ heads.kernel.numpy()[task] + heads.bias.numpy()[task] for task, top in enumerate(tops)]
    np.testing.assert_allclose(model.network.call(tf.constant(x)), np.hstack(expected), atol=1e-5)


@pytest.mark.parametrize("name", left_to_all(MODELS, ("mmoe",)))
def test_one_and_two_workers_agree(batches, plain_losses, name):
    def work(comm):
        mine = make_model(model=name, tasks=TASKS)
        step = make_step(mine, comm=comm)
        own = []
        for number, batch in enumerate(batches[:8], start=1):
            rows = part(batch, slice(0, 9) if comm.rank == 0 else slice(9, 16))
            result = run_eagerly(step, rows, number)
            own.append(result.losses.numpy())
        return mine, own

    results = run_workers(2, work)
    for _, own in results:
        np.testing.assert_allclose(own, plain_losses(name)[:8], rtol=1e-4)
    assert differences(results[0][0], results[1][0]) == 0


PRECISIONS = [("float32", True), ("bfloat16", False), ("bfloat16", True)]
# One model in every precision; scripts/test.sh --all trains every model in every precision.
IN_PRECISIONS = [
    pytest.param(name, *precision, marks=[] if name == "mmoe" else pytest.mark.slow)
    for name in MODELS
    for precision in PRECISIONS
]


@pytest.mark.parametrize(("name", "compute_dtype", "xla"), IN_PRECISIONS)
def test_learns_in_every_precision(batches, plain_losses, name, compute_dtype, xla):
    plain = plain_losses(name).sum(axis=1)
    losses = train(name, batches, compute_dtype, xla=xla).sum(axis=1)
    for own in (plain, losses):
        assert np.mean(own[-5:]) < 0.9 * np.mean(own[:5])
    distances = np.abs(losses - plain)
    if compute_dtype == "float32":
        assert distances.max() < 1e-4
    else:  # rounding moves single losses further apart with every step
        assert distances[:10].max() < 0.05 and distances.mean() < 0.05


def test_wide_part_adds_a_linear_model(batches):
    plain, wide = (make_model(model="mmoe", tasks=TASKS, wide_part=part) for part in (False, True))
    batch = batches[0]
    np.testing.assert_allclose(plain(batch.ids, batch.numerical), wide(batch.ids, batch.numerical), atol=1e-6)
    for variable in wide.embeddings.wide_variables:
        variable.assign(random_input(*variable.shape))
    tables = wide.embeddings.tables()
    user, day, tags, friends = (tables[f"embeddings/wide.{feature.name}"].numpy() for feature in LAYOUT.categorical)
    linear = [
        user[row[0]] + day[row[1]] + sum(values[number] for values, own in lists for number in own if number >= 0)
        for row in batch.ids.numpy()
        for lists in [((tags, row[2:5]), (friends, row[5:]))]
    ]
    difference = wide(batch.ids, batch.numerical) - plain(batch.ids, batch.numerical)
    np.testing.assert_allclose(difference, linear, atol=1e-5)
    assert not plain.embeddings.wide_variables and not plain.wide_weights
