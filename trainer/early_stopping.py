"""Early stopping: ends training when a metric no longer improves."""

import math
from collections.abc import Sequence
from dataclasses import replace

from data.errors import DataError
from trainer.checkpoint.run_state import EarlyStoppingState
from trainer.metrics.losses import LOSS
from trainer.tasks.evaluation import headline_metrics, is_better


class EarlyStopping:
    """Decides to stop when a metric has not improved for a number of epochs.

    Args:
        key: key of the metric in the log.
        patience: number of epochs without improvement after which to stop; None never stops.
        state: state from earlier epochs; None for a new run.
    """

    def __init__(self, key: str, patience: int | None, state: EarlyStoppingState | None = None):
        self.key, self.patience = key, patience
        self.state = state or EarlyStoppingState(key)

    def update(self, metrics: dict[str, float]) -> None:
        """Update the state with the metrics of an epoch, which are the same on all workers.

        An epoch in which the metric is NaN does not count.
        """
        value = metrics[self.key]
        if math.isnan(value):
            return
        if is_better(self.key, value, self.state.best):
            self.state = replace(self.state, best=value, epochs_since_best=0)
        else:
            self.state.epochs_since_best += 1
            self.state.epochs_without_improvement += 1

    @property
    def reason(self) -> str:
        """A message that says why training stops."""
        return f"{self.key} has not improved on {self.state.best:.5g} for {self.state.epochs_since_best} epoch(s)"

    @property
    def is_over(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.state.epochs_since_best >= self.patience


def main_metric(keys: Sequence[str], chosen: str | None = None, *, prefers_loss: bool = False) -> str:
    """Return the key of the metric that decides which checkpoint is the best.

    Args:
        keys: keys of the metrics that are computed.
        chosen: value of --early_stopping_metric. By default MAP@12 if there are groups, else ROC AUC, else RMSE.
        prefers_loss: whether the default is the loss instead.

    Raises:
        DataError: `chosen` is not one of the keys.
    """
    if chosen is not None and chosen not in keys:
        raise DataError(f"--early_stopping_metric {chosen!r} is not one of {', '.join(keys)}")
    # Each metric's own key with one task, the mean over tasks with several.
    names = [LOSS] if prefers_loss else headline_metrics()
    return chosen or next(key for name in names for key in (name, f"{name}/mean") if key in keys)
