"""Real models under the monitor."""

import numpy as np
import pytest
import tensorflow as tf

from data.loading.batch import Batch
from tests.trainer.local_workers import run_workers
from tests.trainer.small_models import make_batches, make_model, make_step
from trainer import expert_monitor as monitor_module
from trainer.comm import SingleWorker
from trainer.expert_monitor import ExpertMonitor, monitor_of
from trainer.models.ranking import RankingModel

TASKS = ("click", "buy")
ROWS = 400


def batch_of(start: int, end: int, pads: int = 0) -> Batch:
    """Rows start to end of one dataset, and pads that no model has seen the like of."""
    whole = make_batches(1, ROWS, tasks=2)[0]
    here = np.concatenate([np.arange(start, end), np.zeros(pads, int)])
    numerical = whole.numerical.numpy()[here]
    numerical[end - start :] = 1e6
    return Batch(
        onehot=whole.ids.numpy()[here, :2],
        multihot=whole.ids.numpy()[here, 2:],
        numerical=numerical,
        labels=whole.labels.numpy()[here],
        weights=(np.arange(len(here)) < end - start).astype(np.float32),
        group=None,
        rows=np.where(np.arange(len(here)) < end - start, np.arange(start, start + len(here)), -1),
    )


def looked_at(model: RankingModel, comm=None, ends: tuple[int, ...] = ()) -> tuple[ExpertMonitor, dict, list[str]]:
    comm = comm or SingleWorker()
    borders = (0, *ends, ROWS)
    health = monitor_of(model, ROWS, comm)
    health.see(batch_of(borders[comm.rank], borders[comm.rank + 1], pads=7))
    return health, *health.measure()


def test_models_without_gates_have_no_monitor():
    for name, flags in (("wide_deep", {}), ("shared_bottom", {}), ("aitm", {}), ("mmoe", {"num_experts": 1})):
        assert monitor_of(make_model(model=name, tasks=TASKS, **flags), ROWS, SingleWorker()) is None


@pytest.mark.parametrize("model", ["omoe", "mmoe", "cgc", "ple"])
@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_weights_and_shares_of_each_gate_sum_to_one(model, compute_dtype):
    _, values, warnings = looked_at(make_model(model=model, tasks=TASKS, compute_dtype=compute_dtype))
    gates = {key.removeprefix("gate_entropy") for key in values if key.startswith("gate_entropy")}
    assert len(gates) == {"omoe": 1, "mmoe": 2, "cgc": 2, "ple": 5}[model]
    for gate in gates:
        for name in ("gate_weight", "gate_argmax_share"):
            assert sum(value for key, value in values.items() if key.startswith(f"{name}{gate}/")) == pytest.approx(1)
    assert np.isfinite(list(values.values())).all() and not warnings


def test_one_and_several_workers_find_the_same_and_pads_count_nowhere():
    model = make_model(model="ple", tasks=TASKS)
    _, alone, _ = looked_at(model)
    for ends in ((150,), (0, 399)):
        for _, values, _ in run_workers(len(ends) + 1, lambda comm, ends=ends: looked_at(model, comm, ends)):
            assert values.keys() == alone.keys()
            np.testing.assert_allclose(list(values.values()), list(alone.values()), rtol=1e-4, atol=1e-6)


def test_rows_are_spread_over_the_mapping_and_stay_the_same(monkeypatch):
    monkeypatch.setattr(monitor_module, "ROWS", 100)
    health = ExpertMonitor(make_model(model="mmoe", tasks=TASKS), ROWS, SingleWorker())
    health.see(batch_of(0, 250))
    health.see(batch_of(250, ROWS, pads=50))
    first, _ = health.measure()
    expected = batch_of(0, ROWS).numerical[::4]
    np.testing.assert_array_equal(health._numerical[0], expected)
    health.see(batch_of(0, 30))
    assert health.measure()[0] == first


def test_a_forced_collapse_is_told_once():
    model = make_model(model="mmoe", tasks=TASKS)
    kernel = model.network.gates[0].linear.kernel
    health, _, warnings = looked_at(model)
    assert not warnings
    # With one price for all rows, the weight of the price alone decides the second task's gate.
    health._numerical[0][:, -1] = 5.0
    kernel.assign(tf.tensor_scatter_nd_update(kernel, [[1, kernel.shape[1] - 1, 2]], [4.0]))
    values, warnings = health.measure()
    assert values["gate_argmax_share/buy/3"] == 1 and values["gate_entropy/buy"] < 0.01
    (warning,) = warnings
    assert "task 'buy'" in warning and "expert 3 of 4" in warning and "--expert_dropout" in warning
    assert health.measure()[1] == []


def test_equal_experts_are_told():
    model = make_model(model="mmoe", tasks=TASKS)
    for layer in model.network.experts[0].dense:
        layer.kernel.assign(tf.tile(layer.kernel[:1], [4, 1, 1]))
    _, values, warnings = looked_at(model)
    similarities = [value for key, value in values.items() if key.startswith("expert_similarity")]
    np.testing.assert_allclose(similarities, [1] * 6, atol=1e-6)
    assert len(warnings) == 1 and "3 more pairs" in warnings[0]


def test_dead_experts_are_told():
    model = make_model(model="mmoe", tasks=TASKS)
    last = model.network.experts[0].dense[-1]
    last.bias.assign(tf.tensor_scatter_nd_update(last.bias, [[1, 0, unit] for unit in range(8)], [-1e3] * 8))
    _, values, warnings = looked_at(model)
    assert values["dead_units/2"] == 1 and values["dead_units/1"] < 1
    assert len(warnings) == 1 and warnings[0].startswith("expert 2 of 4")


def test_the_entropy_term_cures_a_collapse():
    entropies = {}
    for weight in (0.0, 1.0):
        model = make_model(model="mmoe", tasks=TASKS, gate_entropy_weight=weight)
        kernel = model.network.gates[0].linear.kernel
        kernel.assign(kernel * 4)
        step = make_step(model, global_batch_size=64)
        _, start, _ = looked_at(model)
        for number, batch in enumerate(make_batches(100, 64, tasks=2), start=1):
            step(batch, tf.constant(number))
        entropies[weight] = looked_at(model)[1]["gate_entropy/click"]
        assert start["gate_entropy/click"] < 0.6
    assert entropies[0.0] < 0.6 and entropies[1.0] > 0.75
