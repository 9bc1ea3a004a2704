"""When to stop before the last epoch."""

import math
from dataclasses import dataclass

from trainer.metrics import is_better


@dataclass
class Stopping:
    """What early stopping remembers between epochs, and a checkpoint keeps.

    Attributes:
        metric: the logged key; its own direction says what is better.
        best: its best value so far, None where there is none.
        epochs_since_best: epochs done since then in which the metric was defined.
    """

    metric: str
    best: float | None = None
    epochs_since_best: int = 0


class EarlyStopping:
    """Stops when a metric has not improved for some epochs.

    Args:
        key: of the metric, as it is logged.
        patience: epochs without a new best after which to stop; None never stops.
        state: what is remembered of earlier epochs.
    """

    def __init__(self, key: str, patience: int | None, state: Stopping | None = None):
        self.key, self.patience = key, patience
        self.state = state or Stopping(key)

    def update(self, metrics: dict[str, float]) -> None:
        """Takes the metrics of an epoch, which are the same on all workers. Undefined, it is no epoch that counts."""
        value = metrics[self.key]
        if math.isnan(value):
            return
        if is_better(self.key, value, self.state.best):
            self.state = Stopping(self.key, value)
        else:
            self.state.epochs_since_best += 1

    @property
    def reason(self) -> str:
        """Why it is over, in words."""
        return f"{self.key} has not improved on {self.state.best} for {self.state.epochs_since_best} epoch(s)"

    @property
    def is_over(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.state.epochs_since_best >= self.patience
