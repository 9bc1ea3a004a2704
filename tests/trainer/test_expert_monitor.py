"""Statistics of gates and experts against their definitions, their log keys, the warnings, and monitored models."""

import math
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from data.loading.batch import Batch
from tests.trainer.local_workers import run_workers
from tests.trainer.metrics.workers import LocalWorkers
from tests.trainer.small_models import LAYOUT, make_batches, make_model, make_step, run, unpadded
from trainer import expert_monitor
from trainer.comm import SingleWorker
from trainer.expert_monitor import (
    MAX_PAIRED,
    MIN_ROWS,
    ExpertMonitor,
    LevelStatistics,
    find_warnings,
    gate_names,
    level_statistics,
    log_values,
    monitor_of,
)
from trainer.logging.gate_records import is_gate_key, levels_in
from trainer.models.ranking import RankingModel
from trainer.tasks.evaluation import metric_of

GATES, EXPERTS, ROWS, UNITS = 2, 4, 60, 5
READABLE = np.array([[True, True, True, False], [True, True, True, True]])


def states(rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    gates = np.exp(rng.normal(size=(GATES, rows, EXPERTS))) * READABLE[:, np.newaxis, :]
    experts = np.maximum(rng.normal(size=(EXPERTS, rows, UNITS)), 0)
    experts[1, :, 2:4] = 0
    return (gates / gates.sum(axis=2, keepdims=True)).astype(np.float32), experts.astype(np.float32)


def measured(gates: np.ndarray, experts: np.ndarray, ends: tuple[int, ...] = (), readable=READABLE) -> LevelStatistics:
    """Statistics computed by as many workers as `ends` cuts the rows into, which must be equal on all of them."""
    borders = (0, *ends, gates.shape[1])

    def work(comm):
        here = slice(borders[comm.rank], borders[comm.rank + 1])
        return level_statistics(readable, gates[:, here], experts[:, here], comm)

    found = LocalWorkers(len(ends) + 1).run(work)
    for other in found[1:]:
        np.testing.assert_array_equal(other.expert_similarity, found[0].expert_similarity)
        np.testing.assert_array_equal(other.weight, found[0].weight)
    return found[0]


def naive_cka(x: np.ndarray, y: np.ndarray) -> float:
    """CKA by its definition: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with Gram matrices of rows, centered by H."""
    rows = len(x)
    centre = np.eye(rows) - 1 / rows
    k, l = (centre @ (z @ z.T) @ centre for z in (x.astype(float), y.astype(float)))
    return np.sum(k * l) / np.sqrt(np.sum(k * k) * np.sum(l * l))


@pytest.mark.parametrize("ends", [(), (25,), (10, 10, 41)])
def test_statistics_equal_their_definitions(ends):
    gates, experts = states()
    found = measured(gates, experts, ends)
    assert found.rows == ROWS
    for gate in range(GATES):
        np.testing.assert_allclose(found.weight[gate], [np.mean(gates[gate, :, i]) for i in range(EXPERTS)], rtol=1e-6)
        leads = [max(range(EXPERTS), key=lambda i: row[i]) for row in gates[gate]]
        np.testing.assert_allclose(found.argmax_share[gate], [leads.count(i) / ROWS for i in range(EXPERTS)])
        entropies = [-sum(float(g) * np.log(float(g)) for g in row if g > 0) for row in gates[gate]]
        assert found.entropy[gate] == pytest.approx(np.mean(entropies) / np.log(READABLE[gate].sum()), rel=1e-6)
    cosines = [a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(*gates.astype(float), strict=True)]
    np.testing.assert_allclose(found.gate_similarity, [[1, np.mean(cosines)], [np.mean(cosines), 1]], rtol=1e-6)
    naive = [[naive_cka(a, b) for b in experts] for a in experts]
    np.testing.assert_allclose(found.expert_similarity, naive, rtol=1e-5)
    np.testing.assert_allclose(found.dead_units, [0, 2 / UNITS, 0, 0])


def test_cka_ignores_rotation_scale_and_shift():
    gates, experts = states()
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(UNITS, UNITS)))[0]
    experts[3] = 3 * experts[0] @ rotation + 7
    found = measured(gates, experts).expert_similarity
    assert found[0, 3] == pytest.approx(1, abs=1e-5)
    assert found[0, 2] < 0.9


def test_entropy_of_uniform_and_collapsed_gates():
    gates, experts = states()
    gates[0] = READABLE[0] / 3
    gates[1] = [0, 1, 0, 0]
    np.testing.assert_allclose(measured(gates, experts).entropy, [1, 0], atol=1e-6)


def test_unit_is_dead_only_if_constant_on_all_workers():
    gates, experts = states()
    experts[1, 50, 2] = 0.5
    assert measured(gates, experts, (30,)).dead_units[1] == pytest.approx(1 / UNITS)
    experts[1, :30, 2], experts[1, 30:, 2] = 0.25, 0.5
    assert measured(gates, experts, (30,)).dead_units[1] == pytest.approx(1 / UNITS)


def test_undefined_statistics_are_nan():
    gates, experts = states()
    experts[2] = 0
    single = np.array([[True, False, False, False], [True] * 4])
    found = measured(gates, experts, readable=single)
    assert np.isnan(found.entropy[0]) and np.isnan(found.expert_similarity[2]).all() and found.dead_units[2] == 1
    assert not np.isnan(found.expert_similarity[0, 1])
    nothing = measured(gates[:, :0], experts[:, :0], (0,))
    assert nothing.rows == 0
    assert np.isnan(nothing.weight).all() and np.isnan(nothing.dead_units).all()


TASKS = ["click", "conversion"]


def level(gates: int = 2, experts: int = 4, **values: object) -> LevelStatistics:
    """A level without any problem, except for `values`."""
    usual = LevelStatistics(
        rows=1000,
        readable=np.ones((gates, experts), bool),
        weight=np.full((gates, experts), 1 / experts),
        argmax_share=np.full((gates, experts), 1 / experts),
        entropy=np.full(gates, 0.9),
        gate_similarity=np.eye(gates) + 0.5 * (1 - np.eye(gates)),
        expert_similarity=np.eye(experts) + 0.25 * (1 - np.eye(experts)),
        dead_units=np.zeros(experts),
    )
    return replace(usual, **values)


def leaning(weight: float, share: float, gates: int = 2, experts: int = 4, gate: int = 1) -> LevelStatistics:
    """A level with a gate that relies on expert 3."""
    found = level(gates, experts)
    for array, value in ((found.weight, weight), (found.argmax_share, share)):
        array[gate] = (1 - value) / (experts - 1)
        array[gate, 2] = value
    return found


def test_no_warning_for_healthy_gates():
    assert find_warnings(TASKS, [level()]) == {}


@pytest.mark.parametrize(
    ("weight", "share", "warns"),
    [(0.70, 0.97, True), (0.96, 0.94, True), (0.70, 0.94, False), (0.30, 1.00, False), (0.94, 0.95, False)],
)
def test_collapse_is_a_clear_lead_in_nearly_all_rows(weight, share, warns):
    assert bool(find_warnings(TASKS, [leaning(weight, share)])) == warns


def test_collapse_names_task_expert_and_remedies():
    (text,) = find_warnings(TASKS, [leaning(0.9, 0.97)]).values()
    assert "task 'conversion'" in text and "expert 3 of 4" in text and "97%" in text and "click" not in text
    for flag in ("--expert_dropout", "--gate_entropy_weight", "--gate_temperature"):
        assert flag in text


def test_collapse_of_shared_gates_is_named():
    (text,) = find_warnings(TASKS, [leaning(0.9, 0.97, gates=1, gate=0)]).values()
    assert "the gate of all tasks has" in text
    (text,) = find_warnings(TASKS, [leaning(0.9, 0.97, gates=3, gate=2), level()]).values()
    assert "the gate of the shared experts of level 1 has" in text


def test_gate_of_a_single_expert_has_not_collapsed():
    found = leaning(1.0, 1.0)
    found.readable[1] = [False, False, True, False]
    assert find_warnings(TASKS, [found]) == {}


def test_coincident_experts_are_named():
    found = level()
    found.expert_similarity[0, 2] = found.expert_similarity[2, 0] = 0.9995
    (text,) = find_warnings(TASKS, [found]).values()
    assert "of the 4 experts, 1 and 3 give the same output" in text and "--num_experts" in text
    (text,) = find_warnings(TASKS, [level(expert_similarity=np.ones((4, 4)))]).values()
    assert "1 and 2, 1 and 3, 1 and 4 and 3 more pairs" in text


def test_only_fully_dead_experts_are_named():
    (text,) = find_warnings(TASKS, [level(dead_units=np.array([0.0, 1.0, 0.5, 0.0]))]).values()
    assert text.startswith("expert 2 of 4") and "--deep_learning_rate" in text


def test_no_warning_on_few_rows():
    few = replace(leaning(0.9, 0.97), rows=MIN_ROWS - 1)
    assert find_warnings(TASKS, [few]) == {}


def test_keys_are_parsed_back():
    found = leaning(0.9, 0.97)
    found.readable[0, 3] = False
    values = log_values(TASKS, [found])
    assert values["gate_weight/conversion/3"] == 0.9 and values["gate_argmax_share/conversion/3"] == 0.97
    assert values["gate_similarity/click/conversion"] == 0.5 and values["expert_similarity/1/4"] == 0.25
    assert "gate_weight/click/4" not in values and values["dead_units/2"] == 0
    (back,) = levels_in(values | {"epoch": 1.0, "auc_roc/click": 0.7})
    assert back.gates == TASKS and back.experts == ["1", "2", "3", "4"]
    assert back.get("gate_weight", "conversion", "3") == 0.9
    assert math.isnan(back.get("gate_weight", "click", "4"))


@pytest.mark.parametrize("count", [MAX_PAIRED, MAX_PAIRED + 1, 128])
def test_many_gates_are_paired_with_the_nearest(count):
    rng = np.random.default_rng(0)
    similarity = rng.random((count, count))
    similarity = (similarity + similarity.T) / 2
    similarity[5] = similarity[:, 5] = np.nan
    many = replace(
        level(gates=count), gate_similarity=similarity, expert_similarity=similarity, dead_units=np.zeros(count)
    )
    tasks = [f"task_{number}" for number in range(count)]
    values = log_values(tasks, [many])
    pairs = [key.split("/")[1:] for key in values if key.startswith("gate_similarity/")]
    if count <= MAX_PAIRED:
        assert len(pairs) == count * (count - 1) // 2
        return
    assert count / 2 <= len(pairs) <= count
    for a in set(range(count)) - {5}:
        nearest = max(set(range(count)) - {a, 5}, key=lambda b: similarity[a, b])
        assert [tasks[min(a, nearest)], tasks[max(a, nearest)]] in pairs
        assert f"expert_similarity/{min(a, nearest) + 1}/{max(a, nearest) + 1}" in values


def test_levels_have_their_own_keys():
    values = log_values(TASKS, [level(gates=3), leaning(0.9, 0.97)])
    assert values["gate_weight/level_2/conversion/3"] == 0.9 and "gate_entropy/level_1/shared" in values
    first, second = levels_in(values)
    assert first.gates == [*TASKS, "shared"] and second.gates == TASKS
    assert second.get("gate_argmax_share", "conversion", "3") == 0.97


def test_name_of_a_single_gate():
    assert gate_names(TASKS, 1) == ["all"]
    assert gate_names(["click"], 1) == ["click"]


def test_gate_keys_are_no_metrics():
    for key in log_values(TASKS, [level()]):
        assert is_gate_key(key)
        with pytest.raises(ValueError):
            metric_of(key)
    assert not any(map(is_gate_key, ("auc_roc", "loss_val/mean", "epoch", "loss")))


MODEL_TASKS = ("click", "buy")
MAPPING_ROWS = 400


def batch_of(start: int, end: int, pads: int = 0) -> Batch:
    """Rows start to end of one dataset, and padding with extreme values."""
    whole = make_batches(1, MAPPING_ROWS, tasks=2)[0]
    here = np.concatenate([np.arange(start, end), np.zeros(pads, int)])
    numerical = whole.numerical.numpy()[here]
    numerical[end - start :] = 1e6
    ids = unpadded(LAYOUT, whole.ids.numpy()[here])
    return Batch(
        onehot=ids.onehot,
        id_lists=ids.id_lists,
        number_lists=ids.number_lists,
        numerical=numerical,
        vectors=numerical[:, :0],
        labels=whole.labels.numpy()[here],
        weights=(np.arange(len(here)) < end - start).astype(np.float32),
        group=None,
        rows=np.where(np.arange(len(here)) < end - start, np.arange(start, start + len(here)), -1),
    )


def monitored(model: RankingModel, comm=None, ends: tuple[int, ...] = ()) -> tuple[ExpertMonitor, dict, list[str]]:
    comm = comm or SingleWorker()
    borders = (0, *ends, MAPPING_ROWS)
    monitor = monitor_of(model, MAPPING_ROWS, comm)
    monitor.see(batch_of(borders[comm.rank], borders[comm.rank + 1], pads=7))
    return monitor, *monitor.measure()


def test_models_without_gates_have_no_monitor():
    for name, flags in (("wide_deep", {}), ("shared_bottom", {}), ("aitm", {}), ("mmoe", {"num_experts": 1})):
        assert monitor_of(make_model(model=name, tasks=MODEL_TASKS, **flags), MAPPING_ROWS, SingleWorker()) is None


@pytest.mark.parametrize("model", ["omoe", "mmoe", "cgc", "ple"])
@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_weights_and_shares_sum_to_one(model, compute_dtype):
    _, values, warnings = monitored(make_model(model=model, tasks=MODEL_TASKS, compute_dtype=compute_dtype))
    gates = {key.removeprefix("gate_entropy") for key in values if key.startswith("gate_entropy")}
    assert len(gates) == {"omoe": 1, "mmoe": 2, "cgc": 2, "ple": 5}[model]
    for gate in gates:
        for name in ("gate_weight", "gate_argmax_share"):
            assert sum(value for key, value in values.items() if key.startswith(f"{name}{gate}/")) == pytest.approx(1)
    assert np.isfinite(list(values.values())).all() and not warnings


def test_workers_agree_and_padding_is_ignored():
    model = make_model(model="ple", tasks=MODEL_TASKS)
    _, alone, _ = monitored(model)
    for ends in ((150,), (0, 399)):
        for _, values, _ in run_workers(len(ends) + 1, lambda comm, ends=ends: monitored(model, comm, ends)):
            assert values.keys() == alone.keys()
            np.testing.assert_allclose(list(values.values()), list(alone.values()), rtol=1e-4, atol=1e-6)


def test_sample_is_evenly_spaced_and_fixed(monkeypatch):
    monkeypatch.setattr(expert_monitor, "ROWS", 100)
    monitor = ExpertMonitor(make_model(model="mmoe", tasks=MODEL_TASKS), MAPPING_ROWS, SingleWorker())
    monitor.see(batch_of(0, 250))
    monitor.see(batch_of(250, MAPPING_ROWS, pads=50))
    first, _ = monitor.measure()
    expected = batch_of(0, MAPPING_ROWS).numerical[::4]
    np.testing.assert_array_equal(monitor._numerical[0], expected)
    monitor.see(batch_of(0, 30))
    assert monitor.measure()[0] == first


def test_collapse_is_reported_once():
    model = make_model(model="mmoe", tasks=MODEL_TASKS)
    kernel = model.network.gates[0].linear.kernel
    monitor, _, warnings = monitored(model)
    assert not warnings
    # With one price for all rows, the weight of the price alone decides the second task's gate.
    monitor._numerical[0][:, -1] = 5.0
    kernel.assign(tf.tensor_scatter_nd_update(kernel, [[1, kernel.shape[1] - 1, 2]], [4.0]))
    values, warnings = monitor.measure()
    assert values["gate_argmax_share/buy/3"] == 1 and values["gate_entropy/buy"] < 0.01
    (warning,) = warnings
    assert "task 'buy'" in warning and "expert 3 of 4" in warning and "--expert_dropout" in warning
    assert monitor.measure()[1] == []


def test_equal_experts_are_reported():
    model = make_model(model="mmoe", tasks=MODEL_TASKS)
    for layer in model.network.experts[0].dense:
        layer.kernel.assign(tf.tile(layer.kernel[:1], [4, 1, 1]))
    _, values, warnings = monitored(model)
    similarities = [value for key, value in values.items() if key.startswith("expert_similarity")]
    np.testing.assert_allclose(similarities, [1] * 6, atol=1e-6)
    assert len(warnings) == 1 and "3 more pairs" in warnings[0]


def test_dead_experts_are_reported():
    model = make_model(model="mmoe", tasks=MODEL_TASKS)
    last = model.network.experts[0].dense[-1]
    last.bias.assign(tf.tensor_scatter_nd_update(last.bias, [[1, 0, unit] for unit in range(8)], [-1e3] * 8))
    _, values, warnings = monitored(model)
    assert values["dead_units/2"] == 1 and values["dead_units/1"] < 1
    assert len(warnings) == 1 and warnings[0].startswith("expert 2 of 4")


def test_entropy_term_cures_a_collapse():
    entropies = {}
    for weight in (0.0, 1.0):
        model = make_model(model="mmoe", tasks=MODEL_TASKS, gate_entropy_weight=weight)
        kernel = model.network.gates[0].linear.kernel
        kernel.assign(kernel * 5)
        step = make_step(model, global_batch_size=64)
        _, start, _ = monitored(model)
        for number, batch in enumerate(make_batches(100, 64, tasks=2), start=1):
            run(step, batch, number)
        entropies[weight] = monitored(model)[1]["gate_entropy/click"]
        assert start["gate_entropy/click"] < 0.6
    assert entropies[0.0] < 0.6 and entropies[1.0] > 0.75
