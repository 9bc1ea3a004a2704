import math

import pytest

from trainer.checkpoint.run_state import EarlyStoppingState
from trainer.early_stopping import EarlyStopping


@pytest.mark.parametrize(
    ("key", "values", "stops_after"),
    [
        ("auc_roc", [0.6, 0.7, 0.69, 0.7, 0.8], 4),
        ("loss_val/mean", [0.6, 0.7, 0.5, 0.5, 0.51, 0.4], 5),
        ("auc_roc/buy", [math.nan, 0.5, math.nan, 0.6, 0.5], None),
        ("calibration", [2.0, 0.9, 1.2, 0.5], 4),
        # An epoch without a value is neither better nor worse.
        ("auc_roc", [math.nan] * 9, None),
        ("auc_roc", [0.6, 0.5, math.nan, math.nan, 0.7], None),
        ("auc_roc", [0.6, 0.5, math.nan, 0.5], 4),
    ],
)
def test_stops_when_the_metric_no_longer_improves(key, values, stops_after):
    stopping, stops = EarlyStopping(key, patience=2), []
    for value in values:
        stopping.update({key: value})
        stops.append(stopping.is_over)
    assert (stops.index(True) + 1 if True in stops else None) == stops_after


def test_without_patience_training_never_stops():
    stopping = EarlyStopping("auc_roc", patience=None)
    for _ in range(50):
        stopping.update({"auc_roc": 0.5})
    assert not stopping.is_over


def test_resumed_run_keeps_counting():
    stopping = EarlyStopping("auc_roc", patience=3, state=EarlyStoppingState("auc_roc", best=0.8, epochs_since_best=2))
    stopping.update({"auc_roc": 0.7})
    assert stopping.is_over
