import math
from decimal import Decimal, localcontext
from itertools import product

import numpy as np
import pytest

from tests.trainer.metrics import oracles
from tests.trainer.metrics.evaluations import evaluate, rows_of
from tests.trainer.metrics.workers import LocalWorkers
from trainer.tasks.binary import BinaryTask
from trainer.tasks.evaluation import Evaluation, metric_of
from trainer.tasks.joint import joint_logits
from trainer.tasks.multiclass import MulticlassTask
from trainer.tasks.regression import RegressionTask

pytestmark = pytest.mark.filterwarnings("error")

CHAIN = (
    BinaryTask("click"),
    MulticlassTask("kind", given=0, num_classes=3),
    BinaryTask("return", given=3),
    BinaryTask("buy", given=0),
    RegressionTask("spend", given=3),
)
LOGITS = {"click": 0, "return": 4, "buy": 5}  # columns; the task of three classes has columns 1 to 3
LABELS = {"click": 0, "return": 2, "buy": 3}
METRICS = {metric.name for metric in BinaryTask.metrics}
TOGETHER = {"click+buy": ("click", "buy"), "click+buy+return": ("click", "buy", "return")}


def product_logit(logits: tuple[float, ...]) -> float:
    """log(p / (1 - p)) of the product p of probabilities, with 100 digits."""
    with localcontext() as context:
        context.prec = 100
        p = math.prod((1 / (1 + (-Decimal(logit)).exp()) for logit in logits), start=Decimal(1))
        return float((p / (1 - p)).ln())


@pytest.mark.parametrize("length", [2, 3])
def test_the_logit_of_a_product_is_exact_for_any_logits(length):
    grid = list(product([-80.0, -20.0, -1.0, 0.0, 0.5, 17.0, 40.0, 90.0], repeat=length))
    expected = [product_logit(logits) for logits in grid]
    np.testing.assert_allclose(joint_logits(np.array(grid, np.float32)), expected, rtol=1e-7, atol=1e-40)


def test_the_logit_of_a_product_is_finite_for_extreme_ones():
    largest = np.finfo(np.float32).max
    found = joint_logits(np.float32([[-largest, -largest], [largest, largest], [largest, -1]]))
    np.testing.assert_array_equal(found, np.float32([-largest, largest, -1]))


def funnel(count: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Logits, labels with some of each task's unknown, weights and groups."""
    random = np.random.default_rng(4)
    logits = (random.integers(-12, 13, (count, 7)) / 4).astype(np.float32)
    click = random.random(count) < 0.5
    buy = click & (random.random(count) < 0.5)
    labels = np.column_stack(
        [click, random.integers(0, 3, count), buy & (random.random(count) < 0.5), buy, random.normal(size=count)]
    ).astype(np.float32)
    labels[random.random(labels.shape) < 0.1] = np.nan
    return logits, labels, random.choice(np.float32([0, 1, 2]), count), random.integers(0, 60, count)


def measured(workers: int = 1) -> dict[str, float]:
    columns = funnel()

    def work(comm):
        evaluation = Evaluation(CHAIN, with_group=True)
        rows = slice(comm.rank * 400 // workers, (comm.rank + 1) * 400 // workers)
        evaluation.update(*(column[rows] for column in columns))
        assert evaluation.keys == tuple(evaluation.result(comm))
        return evaluation.result(comm)

    results = LocalWorkers(workers).run(work)
    for result in results:
        np.testing.assert_equal(result, results[0])
    return results[0]


def joint_label(labels: list[float]) -> float:
    """1 if all are 1, 0 from the first 0 on, unknown from the first unknown one on."""
    for label in labels:
        if label != 1:
            return label
    return 1.0


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("name", TOGETHER)
def test_joint_events_are_measured_on_all_rows(name, workers):
    logits, labels, weights, group = funnel()
    tasks = TOGETHER[name]
    own_logits = [product_logit(tuple(row)) for row in logits[:, [LOGITS[task] for task in tasks]].tolist()]
    own_labels = [joint_label(row) for row in labels[:, [LABELS[task] for task in tasks]].tolist()]
    rows = rows_of(own_logits, own_labels, weights, group).counted
    assert len(rows.logits) > 200 and 0 < rows.labels.mean() < 0.4
    result = measured(workers)
    expected = {
        "loss_val": oracles.log_loss_row_by_row(*rows[:3]),
        "auc_roc": oracles.auc_over_all_pairs(*rows[:3]),
        "pr_auc": oracles.average_precision_score_by_score(*rows[:3]),
        "gauc": oracles.auc_group_by_group(*rows),
        "calibration": oracles.calibration_row_by_row(*rows[:3]),
        "calibration_error": oracles.calibration_error_bin_by_bin(*rows[:3]),
        "streaming_map_val": oracles.map_over_all_placements(rows.logits, rows.labels, rows.group),
    }
    expected["normalized_entropy"] = expected["loss_val"] / oracles.entropy_of_labels(rows.labels, rows.weights)
    assert expected.keys() == METRICS
    for key, value in expected.items():
        assert result[f"{key}/{name}"] == pytest.approx(value, rel=1e-7), key


def test_conditional_tasks_keep_their_sample_space():
    logits, labels, weights, group = funnel()
    bought = labels[:, 3] == 1
    alone = evaluate(rows_of(logits[bought, 4], labels[bought, 2], weights[bought], group[bought]))
    result = measured()
    for key, value in alone.items():
        assert result[f"{key}/return"] == pytest.approx(value, rel=1e-12), key
    tasks = [task.name for task in CHAIN if f"auc_roc/{task.name}" in result]
    assert tasks == ["click", "kind", "return", "buy"]
    assert result["auc_roc/mean"] == pytest.approx(np.mean([result[f"auc_roc/{task}"] for task in tasks]), rel=1e-12)


def test_only_conditional_binary_tasks_are_joint():
    keys = Evaluation(CHAIN, with_group=True).keys
    assert {key.split("/")[1] for key in keys if "+" in key} == set(TOGETHER)
    for name in TOGETHER:
        assert {key.split("/")[0] for key in keys if key.endswith(f"/{name}")} == METRICS
    assert all(metric_of(key) is metric_of(key.split("/")[0]) for key in keys)
    assert not any("+" in key for key in Evaluation([BinaryTask("click"), BinaryTask("buy")], with_group=True).keys)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_joint_logits_must_be_finite(wrong):
    evaluation = Evaluation([BinaryTask("click"), BinaryTask("buy", given=0)], with_group=False)
    evaluation.update(np.float32([[0, wrong], [0, 0]]), np.float32([[0, 0], [1, 1]]), np.ones(2))
    with pytest.raises(FloatingPointError, match=r"'click\+buy': 1 of 2 logits"):
        LocalWorkers(1).run(evaluation.result)
