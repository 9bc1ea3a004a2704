"""Each method against its formula on numbers worked by hand."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tests.trainer.local_workers import run_workers
from tests.trainer.small_models import make_batches, make_model, make_step
from tests.trainer.test_step import differences, part
from trainer.loss_weighting import METHODS, make_loss_weighting
from trainer.tasks import Task

# No tensor: it would start TensorFlow while tests are collected, before main.py can set it up.
LOSSES = np.array([0.5, 2.0], np.float32)


def method(name: str, *, regressions: tuple[bool, bool] = (False, False), seed: int = 7):
    return make_loss_weighting(name, [1.0, 3.0], regressions, seed)


def total(weighting, step: int = 1, workers: int = 1) -> float:
    trained = {name: tf.convert_to_tensor(variable) for name, variable in weighting.weights.items()}
    return weighting.total(LOSSES, trained, weighting.factors(tf.constant(step)), workers).numpy()


def test_static_weights_are_the_specifications():
    assert total(method("static")) == pytest.approx(1 * 0.5 + 3 * 2.0)


def test_uncertainty_follows_kendall_for_classification_and_regression():
    weighting = method("uncertainty", regressions=(False, True))
    assert total(weighting) == pytest.approx(0.5 + 3 * (0.5 * 2.0))
    weighting.weights["loss_log_variance"].assign([math.log(4.0), -math.log(2.0)])
    classification = 0.5 / 4 + math.log(4.0) / 2
    regression = 0.5 * 2.0 * 2 - math.log(2.0) / 2
    assert total(weighting) == pytest.approx(classification + 3 * regression)


def test_uncertainty_moves_a_tasks_weight_both_ways_and_stops_at_its_bound():
    weighting = method("uncertainty")
    variable = weighting.weights["loss_log_variance"]
    with tf.GradientTape() as tape:
        value = weighting.total(LOSSES, {"loss_log_variance": tf.convert_to_tensor(variable)}, tf.ones(2), 1)
    # d/ds of exp(-s) L + s/2 at s = 0: 1/2 - L.
    np.testing.assert_allclose(tape.gradient(value, variable), [0.0, -1.5], atol=1e-6)
    variable.assign([-50.0, 50.0])
    assert np.isfinite(total(weighting))


def test_random_weights_are_the_softmax_of_normal_numbers_drawn_in_every_step():
    weighting = method("rlw")
    factors = np.stack([weighting.factors(tf.constant(step)).numpy() for step in range(1, 2001)]) / [1.0, 3.0]
    np.testing.assert_allclose(factors.sum(axis=1), 2.0, rtol=1e-5)
    difference = np.log(factors[:, 0] / factors[:, 1])  # of two standard normal numbers
    assert abs(difference.mean()) < 0.15
    assert difference.std() == pytest.approx(math.sqrt(2), rel=0.1)
    again = method("rlw").factors(tf.constant(5)).numpy()
    np.testing.assert_array_equal(again, weighting.factors(tf.constant(5)).numpy())
    assert not np.allclose(again, method("rlw", seed=8).factors(tf.constant(5)).numpy())


def test_dynamic_weight_average_looks_at_the_last_two_epochs():
    weighting = method("dwa")
    np.testing.assert_allclose(weighting.factors(tf.constant(1)), [1.0, 3.0], rtol=1e-6)
    weighting.end_epoch([0.8, 0.4])
    np.testing.assert_allclose(weighting.factors(tf.constant(2)), [1.0, 3.0], rtol=1e-6)
    weighting.end_epoch([0.4, 0.6])
    powers = [math.exp(0.5 / 2), math.exp(1.5 / 2)]
    expected = [2 * powers[0] / sum(powers), 3 * 2 * powers[1] / sum(powers)]
    np.testing.assert_allclose(weighting.factors(tf.constant(3)), expected, rtol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_the_shares_of_workers_add_up_to_the_whole(name):
    weighting = method(name)
    trained = {key: tf.convert_to_tensor(variable) for key, variable in weighting.weights.items()}
    factors = weighting.factors(tf.constant(4))
    shares = [tf.constant([0.2, 1.5]), tf.constant([0.3, 0.5])]
    added = sum(weighting.total(share, trained, factors, 2).numpy() for share in shares)
    assert added == pytest.approx(weighting.total(LOSSES, trained, factors, 1).numpy(), rel=1e-6)


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", METHODS)
def test_one_worker_and_two_agree(name, compute_dtype):
    batches = make_batches(6, tasks=2)
    settings = {
        "tasks": (Task("click", loss_weight=0.5), Task("price", kind="regression")),
        "loss_weighting": name,
        "compute_dtype": compute_dtype,
    }

    def work(comm):
        model = make_model(model="mmoe", tasks=("click", "price"), compute_dtype=compute_dtype)
        step, losses = make_step(model, comm=comm, **settings), []
        for number, batch in enumerate(batches, start=1):
            rows = batch if comm.size == 1 else part(batch, slice(0, 9) if comm.rank == 0 else slice(9, 16))
            summed = step.exchange(step.compute(rows, tf.constant(number)))
            step.update(summed, tf.constant(number))
            losses.append(summed.losses.numpy())
            if number % 2 == 0:
                step.weighting.end_epoch(losses[-1].tolist())
        return model, losses

    [(_, alone)] = run_workers(1, work)
    together = run_workers(2, work)
    tolerance = 1e-4 if compute_dtype == "float32" else 0.03
    for _, losses in together:
        np.testing.assert_allclose(losses, alone, rtol=tolerance)
    assert differences(together[0][0], together[1][0]) == 0
