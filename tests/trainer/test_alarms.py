"""What is told of gates and experts, and what is not."""

import math
from dataclasses import replace

import numpy as np
import pytest

from trainer.expert_monitor import MIN_ROWS, MOST_PAIRED, LevelHealth, alarms, flat, gate_names, is_health, levels_in
from trainer.tasks.evaluation import metric_of

TASKS = ["click", "conversion"]


def level(gates: int = 2, experts: int = 4, **values: object) -> LevelHealth:
    """A level in perfect health, but for `values`."""
    healthy = LevelHealth(
        rows=1000,
        readable=np.ones((gates, experts), bool),
        weight=np.full((gates, experts), 1 / experts),
        argmax_share=np.full((gates, experts), 1 / experts),
        entropy=np.full(gates, 0.9),
        gate_similarity=np.eye(gates) + 0.5 * (1 - np.eye(gates)),
        expert_similarity=np.eye(experts) + 0.25 * (1 - np.eye(experts)),
        dead_units=np.zeros(experts),
    )
    return replace(healthy, **values)


def leaning(weight: float, share: float, gates: int = 2, experts: int = 4, gate: int = 1) -> LevelHealth:
    """A level of which one gate leans on expert 3."""
    found = level(gates, experts)
    for array, value in ((found.weight, weight), (found.argmax_share, share)):
        array[gate] = (1 - value) / (experts - 1)
        array[gate, 2] = value
    return found


def test_healthy_gates_and_experts_are_not_talked_about():
    assert alarms(TASKS, [level()]) == {}


@pytest.mark.parametrize(
    ("weight", "share", "told"),
    [(0.70, 0.97, True), (0.96, 0.94, True), (0.70, 0.94, False), (0.30, 1.00, False), (0.94, 0.95, False)],
)
def test_a_collapse_is_a_lead_in_nearly_all_rows_and_by_far(weight, share, told):
    assert bool(alarms(TASKS, [leaning(weight, share)])) == told


def test_a_collapse_names_the_task_the_expert_and_the_cures():
    (text,) = alarms(TASKS, [leaning(0.9, 0.97)]).values()
    assert "task 'conversion'" in text and "expert 3 of 4" in text and "97%" in text and "click" not in text
    for flag in ("--expert_dropout", "--gate_entropy_weight", "--gate_temperature"):
        assert flag in text


def test_gates_that_are_not_a_tasks_own_are_named_too():
    (text,) = alarms(TASKS, [leaning(0.9, 0.97, gates=1, gate=0)]).values()
    assert "the gate of all tasks has" in text
    (text,) = alarms(TASKS, [leaning(0.9, 0.97, gates=3, gate=2), level()]).values()
    assert "the gate of the shared experts of level 1 has" in text


def test_a_gate_without_a_choice_has_not_collapsed():
    found = leaning(1.0, 1.0)
    found.readable[1] = [False, False, True, False]
    assert alarms(TASKS, [found]) == {}


def test_experts_that_coincide_are_named():
    found = level()
    found.expert_similarity[0, 2] = found.expert_similarity[2, 0] = 0.9995
    (text,) = alarms(TASKS, [found]).values()
    assert "of the 4 experts, 1 and 3 give the same output" in text and "--num_experts" in text
    (text,) = alarms(TASKS, [level(expert_similarity=np.ones((4, 4)))]).values()
    assert "1 and 2, 1 and 3, 1 and 4 and 3 more pairs" in text


def test_a_dead_expert_is_named_and_a_half_dead_one_is_not():
    (text,) = alarms(TASKS, [level(dead_units=np.array([0.0, 1.0, 0.5, 0.0]))]).values()
    assert text.startswith("expert 2 of 4") and "--deep_learning_rate" in text


def test_a_handful_of_rows_proves_nothing():
    few = replace(leaning(0.9, 0.97), rows=MIN_ROWS - 1)
    assert alarms(TASKS, [few]) == {}


def test_keys_name_task_and_expert_and_come_back_as_they_were():
    found = leaning(0.9, 0.97)
    found.readable[0, 3] = False
    values = flat(TASKS, [found])
    assert values["gate_weight/conversion/3"] == 0.9 and values["gate_argmax_share/conversion/3"] == 0.97
    assert values["gate_similarity/click/conversion"] == 0.5 and values["expert_similarity/1/4"] == 0.25
    assert "gate_weight/click/4" not in values and values["dead_units/2"] == 0
    (back,) = levels_in(values | {"epoch": 1.0, "auc_roc/click": 0.7})
    assert back.gates == TASKS and back.experts == ["1", "2", "3", "4"]
    assert back.get("gate_weight", "conversion", "3") == 0.9
    assert math.isnan(back.get("gate_weight", "click", "4"))


@pytest.mark.parametrize("count", [MOST_PAIRED, MOST_PAIRED + 1, 128])
def test_of_many_gates_each_is_paired_with_the_nearest(count):
    rng = np.random.default_rng(0)
    similarity = rng.random((count, count))
    similarity = (similarity + similarity.T) / 2
    similarity[5] = similarity[:, 5] = np.nan
    many = replace(
        level(gates=count), gate_similarity=similarity, expert_similarity=similarity, dead_units=np.zeros(count)
    )
    tasks = [f"task_{number}" for number in range(count)]
    values = flat(tasks, [many])
    pairs = [key.split("/")[1:] for key in values if key.startswith("gate_similarity/")]
    if count <= MOST_PAIRED:
        assert len(pairs) == count * (count - 1) // 2
        return
    assert count / 2 <= len(pairs) <= count
    for a in set(range(count)) - {5}:
        nearest = max(set(range(count)) - {a, 5}, key=lambda b: similarity[a, b])
        assert [tasks[min(a, nearest)], tasks[max(a, nearest)]] in pairs
        assert f"expert_similarity/{min(a, nearest) + 1}/{max(a, nearest) + 1}" in values


def test_levels_are_told_apart():
    values = flat(TASKS, [level(gates=3), leaning(0.9, 0.97)])
    assert values["gate_weight/level_2/conversion/3"] == 0.9 and "gate_entropy/level_1/shared" in values
    first, second = levels_in(values)
    assert first.gates == [*TASKS, "shared"] and second.gates == TASKS
    assert second.get("gate_argmax_share", "conversion", "3") == 0.97


def test_one_gate_is_all_tasks_or_the_only_one():
    assert gate_names(TASKS, 1) == ["all"]
    assert gate_names(["click"], 1) == ["click"]


def test_no_metric_is_taken_for_health_nor_health_for_a_metric():
    for key in flat(TASKS, [level()]):
        assert is_health(key)
        with pytest.raises(ValueError):
            metric_of(key)
    assert not any(map(is_health, ("auc_roc", "loss_val/mean", "epoch", "loss")))
