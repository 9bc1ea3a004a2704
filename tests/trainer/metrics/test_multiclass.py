import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.metrics import oracles
from tests.trainer.metrics.evaluations import TestRows, cuts, evaluate, make_rows, rows_of, small_rows
from tests.trainer.metrics.workers import LocalWorkers
from trainer.tasks.evaluation import Evaluation
from trainer.tasks.multiclass import MulticlassTask

pytestmark = pytest.mark.filterwarnings("error")


def measured(rows: TestRows, **how) -> dict[str, float]:
    return evaluate(rows, kind="multiclass", **how)


def exact(rows: TestRows) -> dict[str, float]:
    counted = rows.counted[:3]
    loss, one_class = oracles.softmax_loss_row_by_row(*counted), len(set(counted[1].tolist())) < 2
    return {
        "loss_val": loss,
        "auc_roc": oracles.auc_class_by_class(*counted),
        "accuracy": oracles.accuracy_row_by_row(*counted),
        "normalized_entropy": math.nan if one_class else loss / oracles.entropy_of_classes(*counted[1:]),
    }


def three_classes(count: int, *, distinct: int | None = None) -> TestRows:
    random, rows = np.random.default_rng(8), make_rows(count, groups=4)
    logits = random.standard_normal((count, 3)) if distinct is None else random.integers(0, distinct, (count, 3)) / 4
    classes = random.choice(3, count, p=[0.7, 0.2, 0.1])
    return rows._replace(logits=logits.astype(np.float32), labels=classes.astype(np.float32))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_they_are_their_definitions_however_rows_are_spread(data):
    rows = data.draw(small_rows(kind="multiclass"))
    batch_size = data.draw(st.sampled_from([1, 7, None]))
    actual = measured(rows, borders=data.draw(cuts(len(rows.logits))), batch_size=batch_size)
    assert actual == pytest.approx(exact(rows), rel=1e-12, abs=0, nan_ok=True)


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("distinct", [1, 3, None])
def test_hundreds_of_rows_agree_with_the_definitions(workers, distinct):
    rows = three_classes(300, distinct=distinct)
    assert measured(rows, workers=workers) == pytest.approx(exact(rows), rel=1e-12, abs=0)


def test_several_blocks_of_rows():
    rows = three_classes(200_000).counted
    result = measured(rows)
    assert result["loss_val"] == pytest.approx(oracles.softmax_loss_row_by_row(*rows[:3]), rel=1e-12)
    assert result["accuracy"] == pytest.approx(oracles.accuracy_row_by_row(*rows[:3]), rel=1e-12)


def test_shifting_the_logits_of_a_row_changes_nothing():
    rows = three_classes(300, distinct=9)
    shifts = np.random.default_rng(1).integers(-8, 8, (300, 1))
    shifted = rows._replace(logits=rows.logits + shifts.astype(np.float32))
    assert measured(shifted) == pytest.approx(measured(rows), rel=1e-12)


def test_two_classes_are_measured_as_a_binary_label_is():
    rows = make_rows(300, groups=4, distinct_scores=20)
    binary = evaluate(rows)
    evaluation = Evaluation([MulticlassTask("click", num_classes=2)], with_group=False)
    logits = np.stack([np.zeros(300), rows.logits], axis=1)
    evaluation.update(logits, rows.labels[:, None], rows.weights)
    (result,) = LocalWorkers(1).run(evaluation.result)
    for key in ("loss_val", "auc_roc", "normalized_entropy"):
        assert result[key] == pytest.approx(binary[key], rel=1e-12), key


def test_a_class_that_is_absent_has_no_say_in_the_auc():
    rows = rows_of([[1, 0, 0], [0, 1, 0], [0, 0, 5], [1, 0, 0]], [0, 1, 1, 0])
    assert measured(rows) == pytest.approx(exact(rows), rel=1e-12)
    assert measured(rows)["auc_roc"] == (1 + 0.5) / 2


def test_rows_of_one_class():
    result = measured(rows_of([[1, 0, 0], [0, 1, 0]], [1, 1]))
    assert np.isnan([result["auc_roc"], result["normalized_entropy"]]).all()
    assert result["accuracy"] == 0.5 and result["loss_val"] > 0


def test_a_tie_for_the_highest_logit_counts_its_share():
    assert measured(rows_of([[2, 2, 0], [1, 1, 1], [0, 1, 0]], [0, 2, 0]))["accuracy"] == pytest.approx(5 / 18)


def test_extreme_logits_do_not_overflow():
    result = measured(rows_of([[3e38, -3e38, 0], [0, 1000, -1000]], [1, 0]))
    assert result["loss_val"] == pytest.approx((2 * float(np.float32(3e38)) + 1000) / 2)
    assert all(map(math.isfinite, result.values()))


def test_they_are_nan_without_a_row():
    assert all(map(math.isnan, measured(rows_of(np.zeros((0, 3)), []), workers=2).values()))


def test_thresholds_approximate_each_classs_auc():
    rows = three_classes(2000)
    approximate, result = measured(rows, num_auc_thresholds=4000)["auc_roc"], measured(rows)["auc_roc"]
    assert approximate != result
    assert approximate == pytest.approx(result, abs=1e-3)
