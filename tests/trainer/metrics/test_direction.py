import math

import pytest

from trainer.metrics import METRICS_OF_KIND, direction_of, is_better

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


@pytest.mark.parametrize("key", sorted({name for metrics in METRICS_OF_KIND.values() for name in metrics}))
def test_nan_is_never_better_and_anything_else_is_better_than_nan_or_nothing(key):
    assert not is_better(key, NAN, 0.5)
    assert not is_better(key, NAN, NAN)
    assert not is_better(key, NAN, None)
    assert is_better(key, 0.5, NAN)
    assert is_better(key, 0.5, None)


def test_metrics_of_one_name_have_one_direction():
    for metrics in METRICS_OF_KIND.values():
        for name, metric in metrics.items():
            assert metric.direction is direction_of(name), name


@pytest.mark.parametrize("key", ["loss", "auc", "click/auc_roc", ""])
def test_an_unknown_key_is_refused_with_the_known_ones(key):
    with pytest.raises(ValueError, match="no metric.*loss_val, auc_roc"):
        is_better(key, 1, 2)
