"""Learning rates as functions of the step."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import tensorflow as tf

from trainer.checkpoint.facts import SavedRates
from trainer.config import DeepOptimizer, Options


@dataclass(frozen=True)
class Constant:
    """The same learning rate at every step."""

    rate: float

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the rate, scalar float32; `step` counts from 1."""
        return tf.constant(self.rate, tf.float32)


@dataclass(frozen=True)
class WarmupThenConstant:
    """base * min(1, step / W): the base rate after a linear warm-up of W steps."""

    base: float
    warmup_steps: float

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the rate, scalar float32; `step` counts from 1."""
        return self.base * tf.minimum(tf.cast(step, tf.float32) / max(self.warmup_steps, 1.0), 1.0)


@dataclass(frozen=True)
class WarmupThenSteps:
    """The public recipe's schedule of the deep learning rate.

    base * step / W           while step < W  (the warm-up)
    base / 4                  from W to the midpoint of the remaining steps, both included
    base / 8                  afterwards

    The public recipe sets the rate after its update, so that its first update runs at the full base rate; here the
    first update has step 1 and rate base / W.

    Args:
        base: base rate.
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
        share = tf.where(
            now < self.warmup_steps,
            now / max(self.warmup_steps, 1.0),
            tf.where(now <= middle, 1 / 4, 1 / 8),
        )
        return self.base * share


def make_schedule(options: DeepOptimizer, steps_per_epoch: int, epochs: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """Creates the schedule that the options select, for a whole run."""
    warmup = options.warmup_epochs * steps_per_epoch
    if options.schedule == "constant":
        return WarmupThenConstant(options.rate, warmup)
    return WarmupThenSteps(options.rate, warmup, epochs * steps_per_epoch)


def changed_rates(saved: SavedRates, options: Options, steps_per_epoch: int, done: int) -> list[str]:
    """Describes how the learning rates of a checkpoint differ from those of the run that resumes it.

    A schedule depends on the flags of the run in progress: raising the number of epochs stretches it.

    Args:
        saved: learning-rate flags of the checkpoint.
        options: options of this run.
        steps_per_epoch: steps per epoch, the same in both runs.
        done: number of steps that the checkpoint has trained.
    """
    now, training = options.as_dict(), options.training
    before = DeepOptimizer(
        rule="",
        rate=saved.deep_learning_rate,
        schedule=saved.deep_schedule,
        warmup_epochs=saved.deep_warmup_epochs,
        weight_decay=0.0,
    )
    old = make_schedule(before, steps_per_epoch, saved.num_epochs)
    new = make_schedule(options.deep_optimizer, steps_per_epoch, training.num_epochs)
    flags = [(name, value, now[name]) for name, value in asdict(saved).items() if name != "linear_learning_rate"]
    changed = [f"--{name} was {_shown(then)} and is {_shown(value)}" for name, then, value in flags if then != value]
    rates = [float(schedule(tf.constant(done + 1))) for schedule in (old, new)]
    told = []
    if old != new:
        told.append(
            f"the schedule of the deep learning rate has changed: {rates[0]:.4g} before and {rates[1]:.4g} now at step "
            f"{done + 1} ({'; '.join(changed)}). --deep_schedule constant with --deep_learning_rate keeps one rate."
        )
    if saved.linear_learning_rate != training.linear_learning_rate:
        told.append(
            f"the linear learning rate was {saved.linear_learning_rate:.4g} and is {training.linear_learning_rate:.4g}"
        )
    return told


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
