"""How far a training run is."""

from dataclasses import dataclass, field


@dataclass
class Position:
    """A place in a run, from which it can be gone on with as if it had never stopped.

    With the weights and the optimizers' state this is all: the order of rows is a function of seed and epoch, random
    numbers are functions of seed and step.

    Attributes:
        epoch: under way, counted from 0; after the last one, the number of epochs.
        steps: done in it.
        losses: each task's mean losses of those steps, summed.
        is_evaluated: off, the epoch before this one has been trained and not yet been evaluated.
    """

    epoch: int = 0
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    is_evaluated: bool = True

    def step(self, steps_per_epoch: int) -> int:
        """The number of steps done in the whole run."""
        return self.epoch * steps_per_epoch + self.steps

    def add(self, losses: list[float]) -> None:
        """Takes the losses of one more step."""
        sums = self.losses or [0.0] * len(losses)
        self.steps, self.losses = self.steps + 1, [one + more for one, more in zip(sums, losses, strict=True)]

    @property
    def is_between_epochs(self) -> bool:
        """Whether an epoch is evaluated, and the next one has not begun."""
        return self.epoch > 0 and self.steps == 0 and self.is_evaluated

    @property
    def mean_losses(self) -> list[float]:
        """Each task's mean loss over the epoch so far."""
        return [loss / max(1, self.steps) for loss in self.losses]
