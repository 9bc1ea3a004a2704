"""The training loop: epochs of steps, each followed by an evaluation and a checkpoint."""

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

from data.loading.loader import ParquetLoader
from trainer.early_stopping import EarlyStopping
from trainer.evaluate import Evaluator
from trainer.feeding import step_input
from trainer.health.monitor import HealthMonitor
from trainer.log import NullLog, RunLog
from trainer.optimizers.optimizer import Schedule
from trainer.progress import NullProgress, Progress
from trainer.step import TrainStep
from trainer.tasks import Task

TOLD = ("loss_val", "auc_roc", "streaming_map_val", "accuracy", "rmse")


class LossError(RuntimeError):
    """The loss is no longer a number; every worker sees the same loss and raises it at the same step."""


@dataclass
class TrainingLoop:
    """Trains from a step to the last one.

    Attributes:
        step: one training step.
        tasks: one per logit.
        loader: of the training mapping.
        evaluator: of the evaluation mapping.
        save: called after each epoch with (steps done, metrics).
        stopping: asked after each epoch.
        schedule: the deep rate, for the log.
        num_epochs: of the whole run.
        log_every: steps between two records.
        log, progress: of this worker.
        health: looks at the gates after each evaluation; None for a model without gates.
    """

    step: TrainStep
    tasks: tuple[Task, ...]
    loader: ParquetLoader
    evaluator: Evaluator
    save: Callable[[int, dict[str, float]], None]
    stopping: EarlyStopping
    schedule: Schedule
    num_epochs: int
    log_every: int
    log: RunLog | NullLog
    progress: Progress | NullProgress
    health: HealthMonitor | None = None
    _mark: tuple[int, float] = field(default=(0, 0.0), init=False)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.loader.steps_per_epoch * self.num_epochs

    def run(self, steps_done: int) -> dict[str, float]:
        """Trains all steps after `steps_done`; returns the last metrics."""
        metrics: dict[str, float] = {}
        first_epoch, done_in_epoch = divmod(steps_done, self.loader.steps_per_epoch)
        for epoch in range(first_epoch, self.num_epochs):
            self._train_epoch(epoch, done_in_epoch if epoch == first_epoch else 0)
            steps_done = (epoch + 1) * self.loader.steps_per_epoch
            started = time.perf_counter()
            metrics = self.evaluator.run(
                on_batch=lambda batch: self.progress.update(None, note=f"evaluating {batch}"),
                see=self.health.see if self.health else None,
            )
            seconds = time.perf_counter() - started
            rate = self.evaluator.loader.rows / seconds
            self.log.log([steps_done], metrics | {"epoch": epoch + 1, "validation_throughput": rate})
            self.progress.message(f"epoch {epoch + 1}/{self.num_epochs}: {describe(metrics)}")
            if self.health is not None:
                self._look_at(self.health, steps_done)
            self.save(steps_done, metrics)
            if self.stopping.should_stop(metrics) and epoch + 1 < self.num_epochs:
                key, epochs = self.stopping.key, self.stopping.epochs_since_best
                self.progress.message(f"stopping: {key} has not become better for {epochs} epoch(s)")
                break
        return metrics

    def _look_at(self, health: HealthMonitor, steps_done: int) -> None:
        """Logs the health of the gates and tells what is wrong with them."""
        values, warnings = health.measure()
        self.log.log([steps_done], values | {"epoch": steps_done // self.loader.steps_per_epoch})
        for warning in warnings:
            self.progress.message(f"warning: {warning}")

    def _train_epoch(self, epoch: int, first_step: int) -> None:
        """Trains the steps of an epoch after the first `first_step` of them."""
        steps_per_epoch = self.loader.steps_per_epoch
        step = epoch * steps_per_epoch + first_step
        self._mark = (step, time.perf_counter())
        total, steps = tf.zeros(len(self.tasks)), 0
        with closing(self.loader.epoch(epoch, first_step)) as batches:
            for batch in batches:
                step += 1
                losses = self.step(step_input(batch, self.tasks), tf.constant(step))
                total, steps = total + losses, steps + 1
                if step % self.log_every == 0 or step == 1 or step % steps_per_epoch == 0:
                    self._record(step, losses.numpy())
                else:
                    self.progress.update(step)
        self.step.weighting.end_epoch((total.numpy() / max(steps, 1)).tolist())

    def _record(self, step: int, losses: np.ndarray) -> None:
        """Logs the losses of a step. Reading them waits for the device, which other steps do not."""
        value = float(sum(task.loss_weight * loss for task, loss in zip(self.tasks, losses, strict=True)))
        single = {f"loss/{task.name}": float(loss) for task, loss in zip(self.tasks, losses, strict=True)}
        now, (last_step, last_time) = time.perf_counter(), self._mark
        rate = (step - last_step) * self.step.global_batch_size / max(now - last_time, 1e-9)
        self._mark = (step, now)
        self.log.log(
            [step, self.total_steps],
            {
                "loss": value,
                **(single if len(single) > 1 else {}),
                "learning_rate": float(self.schedule(tf.constant(step))),
                "samples_per_second": rate,
                "epoch": step / self.loader.steps_per_epoch,
            },
        )
        self.progress.update(step, loss=value, rate=rate)
        if not math.isfinite(value):
            raise LossError(
                f"the loss is {value} at step {step}. Checkpoints of earlier epochs are kept. Lower "
                "--deep_learning_rate or --linear_learning_rate, or look for extreme numerical values "
                "(check_dataset.py shows them)."
            )


def describe(metrics: dict[str, float]) -> str:
    """The main metrics in one line for people; the log has all of them."""
    told = {key: value for key, value in metrics.items() if key.split("/")[0] in TOLD}
    return "  ".join(f"{key} {value:.5f}" for key, value in told.items())
