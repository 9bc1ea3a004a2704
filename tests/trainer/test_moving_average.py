"""Moving averages of weights and table rows, against averages over every step in float64."""

import numpy as np
import pytest
import tensorflow as tf

from main import main
from tests.helpers import ROOT, losses, make_dataset, metrics, must
from trainer.checkpoint.load_model import load_model
from trainer.checkpoint.store import CheckpointStore
from trainer.optimizers.moving_average import MovingAverage
from trainer.optimizers.optimizer import Optimizer, ParameterGroup
from trainer.optimizers.rules import SGD, Adagrad, Adam, UpdateRule
from trainer.optimizers.schedules import Constant

ROWS, WIDTH, STEPS, MOMENTUM = 40, 3, 60, 0.95
SKIPPED = (7, 30)  # steps that a loss scale skips


def rare_gradients(step: int) -> np.ndarray:
    """A gradient of the table: most rows are rarely looked up, and some never."""
    rng = np.random.default_rng(step)
    looked_up = rng.random(ROWS) < np.linspace(0.9, 0.0, ROWS)
    return (rng.normal(size=(ROWS, WIDTH)) * looked_up[:, np.newaxis]).astype(np.float32)


@pytest.mark.parametrize("form", ["sparse", "dense"])
@pytest.mark.parametrize("rule", [SGD(), Adagrad(), Adam()], ids=["sgd", "adagrad", "adam"])
def test_averages_equal_those_over_every_step(rule: UpdateRule, form: str):
    rng = np.random.default_rng(0)
    table, weight = (tf.Variable(rng.normal(size=shape).astype(np.float32)) for shape in ((ROWS, WIDTH), (5,)))
    group = ParameterGroup(rule, Constant(0.05), {"weight": weight}, {"table": table}, l2={"table": 0.01})
    optimizer = Optimizer(group, average=MovingAverage(MOMENTUM))
    sums = {"table": np.zeros(table.shape), "weight": np.zeros(weight.shape)}
    for step in range(1, STEPS + 1):
        if step not in SKIPPED:
            dense = rare_gradients(step)
            ids = np.flatnonzero(dense.any(axis=1))
            rows = tf.IndexedSlices(tf.constant(dense[ids]), tf.constant(ids)) if form == "sparse" else dense
            gradient = rng.normal(size=5).astype(np.float32)
            optimizer.apply({"weight": tf.constant(gradient), "table": rows}, tf.constant(step))
        for name, variable in (("table", table), ("weight", weight)):
            sums[name] = MOMENTUM * sums[name] + (1 - MOMENTUM) * variable.numpy().astype(float)
        if step in (1, 2, *SKIPPED, STEPS):
            trained = table.numpy(), weight.numpy()
            with optimizer.averaged(step):
                for name, variable in (("table", table), ("weight", weight)):
                    expected = sums[name] / (1 - MOMENTUM**step)
                    np.testing.assert_allclose(variable.numpy(), expected, rtol=2e-5, atol=2e-6)
            np.testing.assert_array_equal(table.numpy(), trained[0])
            np.testing.assert_array_equal(weight.numpy(), trained[1])


def test_weights_return_after_an_error_and_before_the_first_step():
    weight = tf.Variable([1.0, 2.0])
    optimizer = Optimizer(ParameterGroup(SGD(), Constant(1.0), {"weight": weight}), average=MovingAverage(0.5))
    with optimizer.averaged(0):
        np.testing.assert_array_equal(weight.numpy(), [1.0, 2.0])
    for step in (1, 2):
        optimizer.apply({"weight": tf.constant([1.0, 1.0])}, tf.constant(step))
    with pytest.raises(KeyError), optimizer.averaged(2):
        # Weights 0 and -1 after the steps, the older one with half of the newer one's share.
        np.testing.assert_allclose(weight.numpy(), [-2 / 3, 1 / 3], rtol=1e-6)
        raise KeyError
    np.testing.assert_array_equal(weight.numpy(), [-1.0, 0.0])


def test_runs_evaluate_and_write_averages(tmp_path, capfd):
    data = make_dataset(tmp_path / "data", ROOT / "feature_specs" / "two_labels.yaml", rows=300)

    def train(name: str, *more: str) -> None:
        folders = ["--model_dir", str(tmp_path / name), "--results_dir", str(tmp_path / name / "results")]
        flags = ["--recipe", "published", "--cpu", "--deterministic", "--num_epochs", "2", "--log_every", "1"]
        flags += ["--global_batch_size", "32", "--deep_hidden_units", "8", "--deep_learning_rate", "0.05"]
        must(main(["--dataset_path", str(data), *folders, *flags, "--checkpoint_every", "0", *more]))

    train("plain")
    train("averaged", "--ema_momentum", "0.9")
    assert losses(tmp_path / "averaged" / "results") == losses(tmp_path / "plain" / "results")
    checkpoint = CheckpointStore(tmp_path / "averaged").open("best")
    plain = CheckpointStore(tmp_path / "plain").open(
        str(tmp_path / "plain" / "checkpoints" / f"step-{checkpoint.step}")
    )
    model = load_model(tmp_path / "averaged" / "model").model
    averaged = 0
    for name, weight in model.weights_by_name.items():
        trained, found = checkpoint.read(name), weight.numpy()
        np.testing.assert_array_equal(trained, plain.read(name), err_msg=name)
        if f"{name}.average" in checkpoint.arrays:
            last_step = checkpoint.read(f"{name}.last_step").astype(float)
            kept = 0.9 ** (checkpoint.step - last_step)
            kept = kept[:, np.newaxis] if kept.ndim else kept
            expected = (kept * checkpoint.read(f"{name}.average") + (1 - kept) * trained) / (1 - 0.9**checkpoint.step)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6, err_msg=name)
            averaged += not np.allclose(found, trained, rtol=1e-3)
    assert averaged > 5
    during = checkpoint.state["metrics"]
    train("averaged", "--evaluate", "--results_dir", str(tmp_path / "evaluated"))
    evaluated = metrics(tmp_path / "evaluated")
    assert {key: during[key] for key in evaluated if key in during} == pytest.approx(
        {key: evaluated[key] for key in evaluated if key in during}, rel=1e-6
    )
    assert evaluated["loss_val/mean"] != metrics(tmp_path / "plain" / "results")["loss_val/mean"]
