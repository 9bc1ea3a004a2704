"""The position in a training run from which it can resume."""

from dataclasses import dataclass, field


@dataclass
class Position:
    """A position in a run, from which it can resume as if it had never stopped.

    Together with the weights and the optimizers' state this is all that is needed: the order of rows is a function of
    seed and epoch, and random numbers are functions of seed and step.

    Attributes:
        epoch: current epoch, counted from 0; after the last epoch, the number of epochs.
        steps: number of steps done in this epoch.
        losses: sum over these steps of each task's mean loss.
        is_evaluated: False if the previous epoch has been trained but not yet evaluated.
    """

    epoch: int = 0
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    is_evaluated: bool = True

    def step(self, steps_per_epoch: int) -> int:
        """Returns the number of steps done in the whole run."""
        return self.epoch * steps_per_epoch + self.steps

    def add(self, losses: list[float]) -> None:
        """Adds the losses of one more step."""
        sums = self.losses or [0.0] * len(losses)
        self.steps, self.losses = self.steps + 1, [one + more for one, more in zip(sums, losses, strict=True)]

    @property
    def is_between_epochs(self) -> bool:
        """Whether an epoch has been evaluated and the next one has not begun."""
        return self.epoch > 0 and self.steps == 0 and self.is_evaluated

    @property
    def mean_losses(self) -> list[float]:
        """Each task's mean loss over the epoch so far."""
        return [loss / max(1, self.steps) for loss in self.losses]
