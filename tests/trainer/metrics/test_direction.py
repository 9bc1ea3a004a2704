import math

import pytest

from data.spec.task_types import TASK_TYPES
from trainer.tasks.evaluation import headline_metrics, is_better, metric_of, metrics_by_name
from trainer.tasks.task import task_type

NAN = math.nan


@pytest.mark.parametrize(
    ("key", "better", "worse"),
    [
        ("auc_roc", 0.7, 0.6),
        ("auc_roc/click", 0.7, 0.6),
        ("streaming_map_val/mean", 0.7, 0.6),
        ("loss_val", 0.6, 0.7),
        ("rmse/minutes", 1, 2),
        ("calibration_error/a/b", 0, 0.1),
        ("calibration", 1.1, 1.2),
        ("calibration/mean", 0.9, 1.2),
        ("calibration", 1.9, 0.5),
        ("calibration", 0.5, 0),
        ("calibration", 1, 0.99),
    ],
)
def test_one_of_two_values_is_better(key, better, worse):
    assert is_better(key, better, worse)
    assert not is_better(key, worse, better)


@pytest.mark.parametrize("key", ["auc_roc", "loss_val", "calibration"])
def test_nothing_is_better_than_itself(key):
    assert not is_better(key, 0.5, 0.5)


@pytest.mark.parametrize("key", sorted(metrics_by_name()))
def test_nan_is_never_better(key):
    assert not is_better(key, NAN, 0.5)
    assert not is_better(key, NAN, NAN)
    assert not is_better(key, NAN, None)
    assert is_better(key, 0.5, NAN)
    assert is_better(key, 0.5, None)


def test_metrics_of_one_name_agree():
    for name in TASK_TYPES:
        for metric in task_type(name).metrics:
            known = metric_of(metric.name)
            for attribute in ("title", "direction", "unit", "headline"):
                assert getattr(metric, attribute) == getattr(known, attribute), (metric, attribute)


def test_headline_metrics_by_importance():
    assert headline_metrics() == ["streaming_map_val", "auc_roc", "rmse", "accuracy", "loss_val"]


@pytest.mark.parametrize("key", ["loss", "auc", "click/auc_roc", ""])
def test_an_unknown_key_is_rejected_with_the_known_ones(key):
    with pytest.raises(ValueError, match="unknown metric.*loss_val, auc_roc"):
        is_better(key, 1, 2)
