import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.metrics.evaluations import curves, cuts, evaluate, evaluated, make_rows, rows_of, small_rows
from tests.trainer.metrics.oracles import calibration_curve_bin_by_bin
from tests.trainer.metrics.workers import LocalWorkers
from trainer.tasks.binary import BinaryTask
from trainer.tasks.evaluation import Evaluation
from trainer.tasks.regression import RegressionTask

pytestmark = pytest.mark.filterwarnings("error")


def columns(curve: dict[str, list[float]]) -> list[list[float]]:
    return [list(line) for line in zip(curve["weight"], curve["prediction"], curve["label"], strict=True)]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_it_is_its_definition_however_rows_are_spread(data):
    rows = data.draw(small_rows())
    how = {"borders": data.draw(cuts(len(rows.logits))), "batch_size": data.draw(st.sampled_from([1, 7, None]))}
    expected = calibration_curve_bin_by_bin(*rows.counted[:3])
    actual = columns(curves(rows, **how)["calibration_curve"])
    assert len(actual) == len(expected)
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("distinct_scores", [1, 40, None])
def test_hundreds_of_rows_agree_with_the_definition(workers, distinct_scores):
    rows = make_rows(600, groups=5, distinct_scores=distinct_scores)
    expected = calibration_curve_bin_by_bin(*rows.counted[:3])
    actual = columns(curves(rows, workers=workers)["calibration_curve"])
    assert len(expected) == {1: 1, 40: len(expected), None: 20}[distinct_scores]
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.parametrize("thresholds", [0, 50])
def test_it_sums_up_to_the_calibration(thresholds):
    values, of_task = evaluated(make_rows(900, groups=5), workers=2, num_auc_thresholds=thresholds)
    weight, predicted, actual = (np.array(column) for column in of_task["calibration_curve"].values())
    assert weight @ predicted / (weight @ actual) == pytest.approx(values["calibration"], rel=1e-12)


def test_it_rises_and_without_rows_it_is_empty():
    assert np.all(np.diff(curves(make_rows(900, groups=5))["calibration_curve"]["prediction"]) > 0)
    assert curves(rows_of([], []), workers=2) == {"calibration_curve": {"weight": [], "prediction": [], "label": []}}


def test_only_binary_tasks_and_joint_events_have_one():
    rows = make_rows(200, groups=5)
    assert curves(rows._replace(labels=rows.logits), kind="regression") == {}
    assert "calibration_curve" not in evaluate(rows)
    tasks = [BinaryTask("click"), RegressionTask("minutes"), BinaryTask("buy", given=0)]
    evaluation = Evaluation(tasks, with_group=False)
    labels = np.stack([rows.labels, rows.logits, rows.labels], axis=1)
    evaluation.update(np.stack([rows.logits] * 3, axis=1), labels, rows.weights)
    (result,) = LocalWorkers(1).run(evaluation.result)
    names = ["click", "buy", "click+buy"]
    assert list(evaluation.curves) == [f"calibration_curve/{name}" for name in names]
    assert set(result) == set(evaluation.keys)
    weights = [evaluation.curves[f"calibration_curve/{name}"].weight.sum() for name in names]
    counted = rows.counted
    of_clicks = counted.weights[counted.labels == 1].sum()
    assert weights == pytest.approx([counted.weights.sum(), of_clicks, counted.weights.sum()])
