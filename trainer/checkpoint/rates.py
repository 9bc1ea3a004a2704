"""Comparison of the learning rates of a checkpoint with those of the run that resumes it."""

from dataclasses import asdict

import tensorflow as tf

from trainer.checkpoint.run_state import SavedRates
from trainer.config import DeepOptimizer, Options
from trainer.optimizers.schedules import make_schedule


def changed_rates(saved: SavedRates, options: Options, steps_per_epoch: int, done: int) -> list[str]:
    """Describe how the learning rates of a checkpoint differ from those of the run that resumes it.

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
    changed = [f"--{name} was {_format(then)} and is {_format(value)}" for name, then, value in flags if then != value]
    rates = [float(schedule(tf.constant(done + 1))) for schedule in (old, new)]
    messages = []
    if old != new:
        messages.append(
            f"the schedule of the deep learning rate has changed: {rates[0]:.4g} before and {rates[1]:.4g} now at step "
            f"{done + 1} ({'; '.join(changed)}). --deep_schedule constant with --deep_learning_rate keeps one rate."
        )
    if saved.linear_learning_rate != training.linear_learning_rate:
        messages.append(
            f"the linear learning rate was {saved.linear_learning_rate:.4g} and is {training.linear_learning_rate:.4g}"
        )
    return messages


def _format(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
