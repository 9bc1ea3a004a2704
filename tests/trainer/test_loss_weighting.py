"""Every loss weighting against its formula on numbers worked out by hand."""

import math

import numpy as np
import pytest
import tensorflow as tf

from data.errors import DataError
from tests.trainer.local_workers import run_workers
from tests.trainer.small_models import make_batches, make_model, make_step, run_eagerly
from tests.trainer.test_step import differences, part
from trainer.tasks.binary import BinaryTask
from trainer.tasks.loss_weighting import LOSS_WEIGHTINGS, GradNorm, PCGrad, Uncertainty, project
from trainer.tasks.regression import RegressionTask

# No tensor: it would start TensorFlow while tests are collected, before main.py can set it up.
LOSSES = np.array([0.5, 2.0], np.float32)


def tasks_of(*loss_weights: float) -> list[BinaryTask]:
    return [BinaryTask(f"task_{index}", loss_weight=weight) for index, weight in enumerate(loss_weights)]


def method(name: str, *, seed: int = 7):
    return LOSS_WEIGHTINGS[name](tasks_of(1.0, 3.0), seed)


def total(weighting, step: int = 1, workers: int = 1) -> float:
    trained = {name: tf.convert_to_tensor(variable) for name, variable in weighting.weights.items()}
    return weighting.total(LOSSES, trained, weighting.factors(tf.constant(step)), workers).numpy()


def test_static_takes_the_specifications_weights():
    assert total(method("static")) == pytest.approx(1 * 0.5 + 3 * 2.0)


def test_uncertainty_follows_the_paper():
    tasks = [BinaryTask("click"), RegressionTask("price", loss_weight=3.0)]
    weighting = Uncertainty(tasks, 7)
    assert total(weighting) == pytest.approx(0.5 + 3 * (0.5 * 2.0))
    weighting.weights["loss_log_variance"].assign([math.log(4.0), -math.log(2.0)])
    classification = 0.5 / 4 + math.log(4.0) / 2
    regression = 0.5 * 2.0 * 2 - math.log(2.0) / 2
    assert total(weighting) == pytest.approx(classification + 3 * regression)


def test_uncertainty_gradient_and_bound():
    weighting = method("uncertainty")
    variable = weighting.weights["loss_log_variance"]
    with tf.GradientTape() as tape:
        value = weighting.total(LOSSES, {"loss_log_variance": tf.convert_to_tensor(variable)}, tf.ones(2), 1)
    # d/ds of exp(-s) L + s/2 at s = 0: 1/2 - L.
    np.testing.assert_allclose(tape.gradient(value, variable), [0.0, -1.5], atol=1e-6)
    variable.assign([-50.0, 50.0])
    assert np.isfinite(total(weighting))


def test_random_weights_are_softmax_of_normals():
    weighting = method("rlw")
    factors = np.stack([weighting.factors(tf.constant(step)).numpy() for step in range(1, 2001)]) / [1.0, 3.0]
    np.testing.assert_allclose(factors.sum(axis=1), 2.0, rtol=1e-5)
    difference = np.log(factors[:, 0] / factors[:, 1])  # of two standard normal numbers
    assert abs(difference.mean()) < 0.15
    assert difference.std() == pytest.approx(math.sqrt(2), rel=0.1)
    again = method("rlw").factors(tf.constant(5)).numpy()
    np.testing.assert_array_equal(again, weighting.factors(tf.constant(5)).numpy())
    assert not np.allclose(again, method("rlw", seed=8).factors(tf.constant(5)).numpy())


def test_dwa_uses_the_last_two_epochs():
    weighting = method("dwa")
    np.testing.assert_allclose(weighting.factors(tf.constant(1)), [1.0, 3.0], rtol=1e-6)
    weighting.end_epoch([0.8, 0.4])
    np.testing.assert_allclose(weighting.factors(tf.constant(2)), [1.0, 3.0], rtol=1e-6)
    weighting.end_epoch([0.4, 0.6])
    powers = [math.exp(0.5 / 2), math.exp(1.5 / 2)]
    expected = [2 * powers[0] / sum(powers), 3 * 2 * powers[1] / sum(powers)]
    np.testing.assert_allclose(weighting.factors(tf.constant(3)), expected, rtol=1e-5)


@pytest.mark.parametrize("name", LOSS_WEIGHTINGS)
def test_shares_of_workers_add_up(name):
    weighting = method(name)
    trained = {key: tf.convert_to_tensor(variable) for key, variable in weighting.weights.items()}
    factors = weighting.factors(tf.constant(4))
    shares = [tf.constant([0.2, 1.5]), tf.constant([0.3, 0.5])]
    added = sum(weighting.total(share, trained, factors, 2).numpy() for share in shares)
    assert added == pytest.approx(weighting.total(LOSSES, trained, factors, 1).numpy(), rel=1e-6)


# scripts/test.sh --all tries all of them in both dtypes.
USUAL = (("uncertainty", "float32"), ("gradnorm", "float32"), ("pcgrad", "bfloat16"))
IN_DTYPES = [
    pytest.param(name, dtype, marks=[] if (name, dtype) in USUAL else pytest.mark.slow)
    for dtype in ("float32", "bfloat16")
    for name in LOSS_WEIGHTINGS
]


@pytest.mark.parametrize(("name", "compute_dtype"), IN_DTYPES)
def test_one_worker_and_two_agree(name, compute_dtype):
    batches = make_batches(6, tasks=2)
    tasks = (BinaryTask("click", loss_weight=0.5), RegressionTask("price"))
    settings = {
        "loss_weighting": name,
        "compute_dtype": compute_dtype,
    }

    def work(comm):
        model = make_model(model="mmoe", tasks=tasks, compute_dtype=compute_dtype)
        step, losses = make_step(model, comm=comm, **settings), []
        for number, batch in enumerate(batches, start=1):
            rows = batch if comm.size == 1 else part(batch, slice(0, 9) if comm.rank == 0 else slice(9, 16))
            result = run_eagerly(step, rows, number)
            losses.append(result.losses.numpy())
            if number % 2 == 0:
                step.weighting.end_epoch(losses[-1].tolist())
        return model, losses

    [(_, alone)] = run_workers(1, work)
    together = run_workers(2, work)
    # Where a CPU has bfloat16 units, every product is rounded to 8 bits, and over six steps that adds up.
    tolerances = {"rtol": 1e-4} if compute_dtype == "float32" else {"rtol": 0.03, "atol": 0.02}
    for _, losses in together:
        np.testing.assert_allclose(losses, alone, **tolerances)
    assert differences(together[0][0], together[1][0]) == 0


def test_gradnorm_follows_its_equations():
    weighting = GradNorm(tasks_of(1.0, 2.0), 0, alpha=0.5)
    np.testing.assert_array_equal(weighting.factors(tf.constant(1)), [1.0, 2.0])
    gradients = tf.constant([[3.0, 4.0], [0.0, 1.0]])  # norms of w_k L_k: 5 and 2
    assert weighting.combine(gradients, tf.constant([1.0, 4.0]), tf.constant(1)) is None
    # Paces are 1 and 1, the target is the mean 3.5 for both; slopes are +5 and -2; the sum is scaled back to 2.
    v = np.array([1 - 0.025 * 5, 1 + 0.025 * 2])
    v *= 2 / v.sum()
    np.testing.assert_allclose(weighting.factors(tf.constant(2)), v * [1, 2], rtol=1e-5)
    weighting.combine(gradients, tf.constant([1.5, 2.0]), tf.constant(2))
    # Paces 1.5 and 0.5, relative the same; G = v (5, 2). With alpha 1 both slopes would have the other sign.
    g = v * [5, 2]
    target = g.mean() * np.sqrt([1.5, 0.5])
    v = v - 0.025 * np.sign(g - target) * [5, 2]
    np.testing.assert_allclose(weighting.factors(tf.constant(3)), 2 * v / v.sum() * [1, 2], rtol=1e-5)


def test_gradnorm_skips_a_task_without_rows():
    weighting = GradNorm(tasks_of(1.0, 1.0), 0)
    weighting.combine(tf.constant([[3.0], [0.0]]), tf.constant([1.0, 0.0]), tf.constant(1))
    np.testing.assert_allclose(weighting.factors(tf.constant(2)), [1.0, 1.0], rtol=1e-6)
    assert math.isnan(weighting.state["gradnorm_first_losses"].numpy()[1])


def naive_pcgrad(gradients: np.ndarray, orders: np.ndarray) -> np.ndarray:
    total = np.zeros(gradients.shape[1])
    for task, order in enumerate(orders):
        own = gradients[task].copy()
        for other in order:
            if other != task and own @ gradients[other] < 0:
                own -= own @ gradients[other] / (gradients[other] @ gradients[other]) * gradients[other]
        total += own
    return total


def test_pcgrad_removes_conflicting_components():
    weighting = PCGrad(tasks_of(1.0, 2.0), 0)
    combined = weighting.combine(tf.constant([[1.0, 0.0], [-0.5, 0.5]]), tf.constant(LOSSES), tf.constant(1))
    # g1 = (1, 0), g2 = (-1, 1): g1 loses -1/2 g2 and becomes (1/2, 1/2), g2 loses -1 g1 and becomes (0, 1).
    np.testing.assert_allclose(combined, [0.5, 1.5], rtol=1e-6)
    combined = weighting.combine(tf.constant([[1.0, 0.0], [0.5, 0.5]]), tf.constant(LOSSES), tf.constant(1))
    np.testing.assert_allclose(combined, [2.0, 1.0], rtol=1e-6)


def test_pcgrad_equals_sequential_projections():
    rng = np.random.default_rng(0)
    for tasks in (2, 3, 5):
        gradients = rng.normal(size=(tasks, 12))
        gradients[-1] = 0  # a task without a row in the batch
        orders = np.stack([rng.permutation(tasks) for _ in range(tasks)])
        products = tf.constant(gradients @ gradients.T, tf.float32)
        found = project(products, tf.constant(orders, tf.int32)).numpy().sum(axis=0) @ gradients
        np.testing.assert_allclose(found, naive_pcgrad(gradients, orders), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["gradnorm", "pcgrad"])
def test_task_gradients_are_of_the_shared_weights(name):
    model, batch = make_model(model="mmoe", tasks=("click", "buy")), make_batches(1, tasks=2)[0]
    step = make_step(model, loss_weighting=name)
    weights = [weight.value for weight in model.shared_weights]
    if name == "gradnorm":
        weights = [model.network.experts[-1].dense[-1].kernel.value]
    with tf.GradientTape(persistent=True) as tape:
        logits = model(batch.ids, batch.numerical)
        losses = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=batch.labels, logits=logits), axis=0)
        each = tf.unstack(losses)
    expected = [np.concatenate([g.numpy().ravel() for g in tape.gradient(loss, weights)]) for loss in each]
    inputs = batch.input(model)
    (found,) = step.forward_backward(inputs, tf.constant(1), step.row_counts(inputs)).per_task
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_models_without_shared_weights_are_rejected():
    with pytest.raises(DataError, match="esmm has no dense weights that tasks share"):
        make_step(make_model(model="esmm", tasks=("click", "buy")), loss_weighting="pcgrad")
