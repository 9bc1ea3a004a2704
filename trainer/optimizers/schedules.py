"""Learning rates as functions of the step."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

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
        """Return the rate, scalar float32; `step` counts from 1."""
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
        """Return the rate, scalar float32; `step` counts from 1."""
        now = tf.cast(step, tf.float32)
        middle = self.warmup_steps + (self.total_steps - self.warmup_steps) / 2
        factor = tf.where(
            now < self.warmup_steps,
            now / max(self.warmup_steps, 1.0),
            tf.where(now <= middle, 1 / 4, 1 / 8),
        )
        return self.base * factor


@dataclass(frozen=True)
class Plateau(Constant):
    """The constant schedule, times REDUCTION for each epoch that has not improved the metric of early stopping.

    Attributes:
        factor: the current factor, scalar float32 variable.
    """

    REDUCTION: ClassVar[float] = 0.1
    factor: tf.Variable = field(default_factory=lambda: tf.Variable(1.0, trainable=False), compare=False)

    def reduce(self, epochs: int) -> None:
        """Set the number of epochs so far that have not improved the metric."""
        self.factor.assign(self.REDUCTION**epochs)

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Return the rate, scalar float32; `step` counts from 1."""
        return Constant.__call__(self, step) * self.factor


@dataclass(frozen=True)
class Decay:
    """After a linear warm-up of W steps, a rate that falls smoothly to `last` times the base at the end of the run.

    With p, the share of the steps after the warm-up that are done:

    cosine         base * (last + (1 - last) (1 + cos(pi p)) / 2)       Loshchilov and Hutter, "SGDR", ICLR 2017, eq. 5
    exponential    base * last ** p

    Attributes:
        kind: cosine or exponential.
        base: the base rate.
        warmup_steps: length W of the warm-up.
        total_steps: number of steps of the whole run.
    """

    kind: str
    base: float
    warmup_steps: float
    total_steps: int
    last: ClassVar[float] = 0.01

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Return the rate, scalar float32; `step` counts from 1."""
        now = tf.cast(step, tf.float32)
        rise = tf.minimum(now / max(self.warmup_steps, 1.0), 1.0)
        share = (now - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1.0)
        share = tf.clip_by_value(share, 0.0, 1.0)
        if self.kind == "exponential":
            return self.base * rise * tf.pow(self.last, share)
        return self.base * rise * (self.last + (1 - self.last) * (1 + tf.cos(math.pi * share)) / 2)


def make_schedule(config: DeepOptimizer, steps_per_epoch: int, epochs: int) -> Schedule:
    """Create the schedule of --deep_schedule for a whole run."""
    warmup_steps, total_steps = config.warmup_epochs * steps_per_epoch, epochs * steps_per_epoch
    if config.schedule == "constant":
        return Constant(config.rate, warmup_steps)
    if config.schedule == "plateau":
        return Plateau(config.rate, warmup_steps)
    if config.schedule == "steps":
        return Steps(config.rate, warmup_steps, total_steps)
    return Decay(config.schedule, config.rate, warmup_steps, total_steps)
