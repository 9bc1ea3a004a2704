"""The numbers against their definitions, and over any number of workers."""

import numpy as np
import pytest

from tests.trainer.metrics.workers import LocalWorkers
from trainer.expert_monitor import LevelHealth, level_health

GATES, EXPERTS, ROWS, UNITS = 2, 4, 60, 5
READABLE = np.array([[True, True, True, False], [True, True, True, True]])


def states(rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    gates = np.exp(rng.normal(size=(GATES, rows, EXPERTS))) * READABLE[:, np.newaxis, :]
    experts = np.maximum(rng.normal(size=(EXPERTS, rows, UNITS)), 0)
    experts[1, :, 2:4] = 0
    return (gates / gates.sum(axis=2, keepdims=True)).astype(np.float32), experts.astype(np.float32)


def measured(gates: np.ndarray, experts: np.ndarray, ends: tuple[int, ...] = (), readable=READABLE) -> LevelHealth:
    """On as many workers as `ends` cuts the rows into; all of them must find the same."""
    borders = (0, *ends, gates.shape[1])

    def work(comm):
        here = slice(borders[comm.rank], borders[comm.rank + 1])
        return level_health(readable, gates[:, here], experts[:, here], comm)

    found = LocalWorkers(len(ends) + 1).run(work)
    for other in found[1:]:
        np.testing.assert_array_equal(other.expert_similarity, found[0].expert_similarity)
        np.testing.assert_array_equal(other.weight, found[0].weight)
    return found[0]


def naive_cka(x: np.ndarray, y: np.ndarray) -> float:
    """By its definition: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with Gram matrices of rows, centred by H."""
    rows = len(x)
    centre = np.eye(rows) - 1 / rows
    k, l = (centre @ (z @ z.T) @ centre for z in (x.astype(float), y.astype(float)))
    return np.sum(k * l) / np.sqrt(np.sum(k * k) * np.sum(l * l))


@pytest.mark.parametrize("ends", [(), (25,), (10, 10, 41)])
def test_every_number_is_what_its_definition_says(ends):
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


def test_experts_that_differ_by_rotation_scale_and_shift_are_alike():
    gates, experts = states()
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(UNITS, UNITS)))[0]
    experts[3] = 3 * experts[0] @ rotation + 7
    found = measured(gates, experts).expert_similarity
    assert found[0, 3] == pytest.approx(1, abs=1e-5)
    assert found[0, 2] < 0.9


def test_flat_and_collapsed_gates_have_entropy_one_and_zero():
    gates, experts = states()
    gates[0] = READABLE[0] / 3
    gates[1] = [0, 1, 0, 0]
    np.testing.assert_allclose(measured(gates, experts).entropy, [1, 0], atol=1e-6)


def test_a_unit_is_dead_only_where_no_worker_sees_it_move():
    gates, experts = states()
    experts[1, 50, 2] = 0.5
    assert measured(gates, experts, (30,)).dead_units[1] == pytest.approx(1 / UNITS)
    experts[1, :30, 2], experts[1, 30:, 2] = 0.25, 0.5
    assert measured(gates, experts, (30,)).dead_units[1] == pytest.approx(1 / UNITS)


def test_what_is_undefined_is_nan():
    gates, experts = states()
    experts[2] = 0
    single = np.array([[True, False, False, False], [True] * 4])
    found = measured(gates, experts, readable=single)
    assert np.isnan(found.entropy[0]) and np.isnan(found.expert_similarity[2]).all() and found.dead_units[2] == 1
    assert not np.isnan(found.expert_similarity[0, 1])
    nothing = measured(gates[:, :0], experts[:, :0], (0,))
    assert nothing.rows == 0
    assert np.isnan(nothing.weight).all() and np.isnan(nothing.dead_units).all()
