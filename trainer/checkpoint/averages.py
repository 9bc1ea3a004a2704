"""Reads the moving averages of a checkpoint's weights in place of the weights."""

import numpy as np

from trainer.checkpoint.run_state import RunState
from trainer.checkpoint.store import Checkpoint
from trainer.optimizers.moving_average import MovingAverage
from trainer.optimizers.optimizer import AVERAGE, LAST_STEP


def averaged(checkpoint: Checkpoint, facts: RunState) -> Checkpoint:
    """Return what predictions read of a checkpoint: the averages of its weights if its run keeps them, else itself.

    Args:
        checkpoint: a checkpoint, which has been verified.
        facts: its state.
    """
    momentum = facts.options.get("ema_momentum", 0.0)
    return _AveragedCheckpoint(checkpoint, MovingAverage(momentum)) if momentum and checkpoint.step else checkpoint


class _AveragedCheckpoint(Checkpoint):
    """A checkpoint in which every weight that has an average is read as this average."""

    def __init__(self, checkpoint: Checkpoint, average: MovingAverage):
        super().__init__(checkpoint.path)
        self._average = average

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read rows start to stop of array `name`, or all of it if it is a scalar."""
        weight = super().read_rows(name, start, stop)
        accumulator, last_step = f"{name}.{AVERAGE}", f"{name}.{LAST_STEP}"
        if accumulator not in self.arrays:
            return weight
        unchanged = self.step - super().read_rows(last_step, start, stop)
        if unchanged.ndim:
            unchanged = unchanged[:, np.newaxis]
        return self._average.value(super().read_rows(accumulator, start, stop), weight, unchanged, self.step).numpy()
