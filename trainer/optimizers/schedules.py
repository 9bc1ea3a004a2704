"""Learning rates as functions of the step."""

from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf

from trainer.flags.options import DeepOptimizer


@dataclass(frozen=True)
class Constant:
    """The same rate at every step."""

    rate: float

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Scalar float32; `step` counts from 1."""
        return tf.constant(self.rate, tf.float32)


@dataclass(frozen=True)
class WarmupThenConstant:
    """base * min(1, step / W): the base rate after a warm-up of W steps."""

    base: float
    warmup_steps: float

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Scalar float32; `step` counts from 1."""
        return self.base * tf.minimum(tf.cast(step, tf.float32) / max(self.warmup_steps, 1.0), 1.0)


@dataclass(frozen=True)
class WarmupThenSteps:
    """The public recipe's schedule of the deep rate.

    base * step / W           while step < W  (the warm-up)
    base / 4                  from W to the middle of what is left, both included
    base / 8                  afterwards

    The public recipe sets the rate after its update, so that its very first update runs at the full base rate; here
    the first update has step 1 and the rate base / W.

    Args:
        base: the peak rate.
        warmup_steps: W.
        total_steps: steps of the whole run.
    """

    base: float
    warmup_steps: float
    total_steps: int

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Scalar float32; `step` counts from 1."""
        now = tf.cast(step, tf.float32)
        middle = self.warmup_steps + (self.total_steps - self.warmup_steps) / 2
        share = tf.where(
            now < self.warmup_steps,
            now / max(self.warmup_steps, 1.0),
            tf.where(now <= middle, 1 / 4, 1 / 8),
        )
        return self.base * share


def make_schedule(options: DeepOptimizer, steps_per_epoch: int, epochs: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """The schedule that options ask for, over a whole run."""
    warmup = options.warmup_epochs * steps_per_epoch
    if options.schedule == "constant":
        return WarmupThenConstant(options.rate, warmup)
    return WarmupThenSteps(options.rate, warmup, epochs * steps_per_epoch)
