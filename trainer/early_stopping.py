"""Early stopping: ends training when a metric no longer improves."""

import math
from dataclasses import dataclass

from trainer.tasks.evaluation import is_better


@dataclass
class Stopping:
    """The state of early stopping between epochs, which is part of a checkpoint.

    Attributes:
        metric: key of the metric in the log; the metric itself defines whether larger or smaller is better.
        best: best value so far; None if the metric has not been defined yet.
        epochs_since_best: number of epochs since the best value in which the metric was defined.
    """

    metric: str
    best: float | None = None
    epochs_since_best: int = 0


class EarlyStopping:
    """Decides to stop when a metric has not improved for a number of epochs.

    Args:
        key: key of the metric in the log.
        patience: number of epochs without improvement after which to stop; None never stops.
        state: state from earlier epochs; None to start afresh.
    """

    def __init__(self, key: str, patience: int | None, state: Stopping | None = None):
        self.key, self.patience = key, patience
        self.state = state or Stopping(key)

    def update(self, metrics: dict[str, float]) -> None:
        """Updates the state with the metrics of an epoch, which are the same on all workers.

        An epoch in which the metric is NaN does not count.
        """
        value = metrics[self.key]
        if math.isnan(value):
            return
        if is_better(self.key, value, self.state.best):
            self.state = Stopping(self.key, value)
        else:
            self.state.epochs_since_best += 1

    @property
    def reason(self) -> str:
        """A message that says why training stops."""
        return f"{self.key} has not improved on {self.state.best} for {self.state.epochs_since_best} epoch(s)"

    @property
    def is_over(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.state.epochs_since_best >= self.patience
