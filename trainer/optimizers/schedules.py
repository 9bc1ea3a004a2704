"""Learning rates as functions of the step."""

from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf

from trainer.config import DeepOptimizer

Schedule = Callable[[tf.Tensor], tf.Tensor]


@dataclass(frozen=True)
class Constant:
    """base * min(1, step / W): the base rate after a linear warm-up of W steps.

    Attributes:
        base: the base rate.
        warmup_steps: length W of the warm-up.
    """

    base: float
    warmup_steps: float = 0

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the rate, scalar float32; `step` counts from 1."""
        return self.base * tf.minimum(tf.cast(step, tf.float32) / max(self.warmup_steps, 1.0), 1.0)


@dataclass(frozen=True)
class Steps:
    """The public recipe's schedule of the deep learning rate.

    base * step / W           while step < W  (the warm-up)
    base / 4                  from W to the midpoint of the remaining steps, both included
    base / 8                  afterwards

    The public recipe sets the rate after its update, so that its first update runs at the full base rate; here the
    first update has step 1 and rate base / W.

    Attributes:
        base: the base rate.
        warmup_steps: length W of the warm-up.
        total_steps: number of steps of the whole run.
    """

    base: float
    warmup_steps: float
    total_steps: int

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the rate, scalar float32; `step` counts from 1."""
        now = tf.cast(step, tf.float32)
        middle = self.warmup_steps + (self.total_steps - self.warmup_steps) / 2
        factor = tf.where(
            now < self.warmup_steps,
            now / max(self.warmup_steps, 1.0),
            tf.where(now <= middle, 1 / 4, 1 / 8),
        )
        return self.base * factor


def make_schedule(config: DeepOptimizer, steps_per_epoch: int, epochs: int) -> Schedule:
    """Creates the schedule of --deep_schedule for a whole run."""
    warmup_steps = config.warmup_epochs * steps_per_epoch
    if config.schedule == "constant":
        return Constant(config.rate, warmup_steps)
    return Steps(config.rate, warmup_steps, epochs * steps_per_epoch)
