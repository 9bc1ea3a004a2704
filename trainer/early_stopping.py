"""When to stop before the last epoch."""

from trainer.metrics import is_better


class EarlyStopping:
    """Stops when a metric has not become better for some epochs.

    Args:
        key: of the metric, as it is logged; its own direction says what is better.
        patience: epochs without a new best after which to stop; None never stops.
        best: the best value so far, None where there is none.
        epochs_since_best: epochs done since then.
    """

    def __init__(self, key: str, patience: int | None, best: float | None = None, epochs_since_best: int = 0):
        self.key, self.patience = key, patience
        self.best, self.epochs_since_best = best, epochs_since_best

    def should_stop(self, metrics: dict[str, float]) -> bool:
        """Takes the metrics of an epoch, which are the same on all workers."""
        if is_better(self.key, metrics[self.key], self.best):
            self.best, self.epochs_since_best = metrics[self.key], 0
        else:
            self.epochs_since_best += 1
        return self.is_over

    @property
    def is_over(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.epochs_since_best >= self.patience
