"""The training loop: epochs of steps, each epoch followed by a checkpoint and an evaluation."""

import math
import time
from collections import deque
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

from data.loading.loader import ParquetLoader
from trainer.checkpoint.facts import Position
from trainer.checkpoint.fingerprints import check_state
from trainer.checkpoint.manager import Saver
from trainer.checkpoint.state import TrainState
from trainer.early_stopping import EarlyStopping
from trainer.evaluate import Evaluator
from trainer.expert_monitor import ExpertMonitor
from trainer.lifecycle.errors import NotFinite, StoppedBySignal, how_to_stay_finite
from trainer.lifecycle.step_control import Decision, StepControl
from trainer.lifecycle.stragglers import Stragglers
from trainer.lifecycle.watchdog import SLOW_SECONDS
from trainer.logging.log import RunLog
from trainer.logging.profiling import StepProfiler, nvtx_range
from trainer.logging.progress import Progress
from trainer.logging.step_times import StepTimes, timed
from trainer.logging.tensorboard import TensorBoard
from trainer.metrics.calibration import as_records
from trainer.metrics.metric import Direction
from trainer.optimizers.schedules import Schedule
from trainer.step import StepResult, TrainStep, step_input
from trainer.tasks.evaluation import MEAN, headline_metrics, metric_of
from trainer.tasks.task import Task

TASKS_TOLD, ENDS_TOLD = 8, 3
REASONS_SHOWN = 5
# Evaluation batches between two collectives that ask whether any worker has been told to stop.
BATCHES_BETWEEN_QUESTIONS = 8


@dataclass(kw_only=True)
class TrainingLoop:
    """Trains from a position to the end of the run.

    Attributes:
        step: the training step.
        tasks: the tasks, one per label.
        loader: loader of the training mapping.
        evaluator: evaluates the model on the evaluation mapping.
        state: all variables that a checkpoint holds.
        saver: writes checkpoints.
        guard: decides, together with the other workers, when to stop and when to save.
        check_every: steps between two comparisons of the workers' states; 0 compares them only before each save.
        stragglers: finds slow workers by the times of their steps.
        stopping: early stopping, updated after each epoch.
        schedule: learning rate of the deep part, for the log.
        num_epochs: number of epochs of the whole run.
        log_every: steps between two log records.
        log, board, profiler, progress: this worker's log, TensorBoard writer, profiler and progress display.
        behind: number of steps that may be in flight when a result is read. It is 1 on a GPU, which would otherwise
            be idle between steps while it waits for this process.
        expert_monitor: monitors the gates after each evaluation; None for a model without gates.
    """

    step: TrainStep
    tasks: tuple[Task, ...]
    loader: ParquetLoader
    evaluator: Evaluator
    state: TrainState
    saver: Saver
    guard: StepControl
    check_every: int
    stragglers: Stragglers
    stopping: EarlyStopping
    schedule: Schedule
    num_epochs: int
    log_every: int
    log: RunLog
    board: TensorBoard
    profiler: StepProfiler
    progress: Progress
    behind: int = 0
    expert_monitor: ExpertMonitor | None = None
    _mark: tuple[int, float] = field(default=(0, 0.0), init=False)
    _seen_at: float = field(default=0.0, init=False)
    _times: StepTimes = field(default_factory=StepTimes, init=False)

    @property
    def total_steps(self) -> int:
        """The number of steps of the whole run."""
        return self.loader.steps_per_epoch * self.num_epochs

    def run(self, position: Position) -> dict[str, float]:
        """Trains from the position to the end of the run and returns the last evaluation's metrics.

        Raises:
            StoppedBySignal: a worker received a stop signal; all workers have stopped and a checkpoint is written.
            NotFinite: a loss or a weight is NaN or infinite; the last checkpoint is valid.
            WorkersDiffer: the workers no longer hold the same weights.
            StorageError: the last save has failed.
        """
        metrics: dict[str, float] = {}
        while position.epoch < self.num_epochs or not position.is_evaluated:
            if position.is_evaluated:
                self._train_epoch(position)
                position = Position(position.epoch + 1, is_evaluated=False)
            # Saved before it is evaluated: a run that dies during the evaluation resumes there, not an epoch earlier.
            self._save(position)
            metrics = self._evaluate(position)
            position = Position(position.epoch)
            self.stopping.update(metrics)
            self.saver.evaluated(position, self.stopping.state, metrics)
            if self.stopping.is_over and position.epoch < self.num_epochs:
                self.progress.message(f"stopping: {self.stopping.reason}")
                break
        return metrics

    def _train_epoch(self, position: Position) -> None:
        """Trains the remaining steps of the position's epoch."""
        steps_per_epoch = self.loader.steps_per_epoch
        done = position.step(steps_per_epoch)
        self._mark, self._seen_at = (done, time.perf_counter()), time.perf_counter()
        unseen: deque[StepResult] = deque()
        if position.steps < steps_per_epoch:
            with closing(self.loader.epoch(position.epoch, position.steps)) as batches:
                for number, (batch, waited) in enumerate(timed(batches), start=done + 1):
                    self._times.wait(waited)
                    # `number` is a tensor: a Python int would retrace the graph at every step.
                    arguments = step_input(batch, self.tasks), tf.constant(number), self.guard.control_flags()
                    with self.profiler.step(number):
                        unseen.append(self.step.run(*arguments))  # not awaited: a GPU runs it in the background
                    self.board.graph_of(self.step.run, *arguments)
                    if len(unseen) > self.behind:
                        self._act(position, unseen)
                    if self.check_every and number % self.check_every == 0:
                        check_state(self.state, number)
                while unseen:
                    self._act(position, unseen)
        self.step.weighting.end_epoch(position.mean_losses)

    def _act(self, position: Position, unseen: deque[StepResult]) -> None:
        """Processes the oldest pending result and saves or stops if that step's control flags ask for it."""
        decision = self._see(position, unseen.popleft())
        # The end of an epoch saves anyway.
        is_epoch_done = position.steps + len(unseen) == self.loader.steps_per_epoch
        if not decision.stop and (is_epoch_done or not decision.save):
            return
        # The weights are already those of the last step started, so the position has to catch up before a save.
        while unseen:
            self._see(position, unseen.popleft())
        self._save(position)
        if decision.stop:
            self._stop(position)

    def _see(self, position: Position, result: StepResult) -> Decision:
        """Processes the result of a step: times, losses and log. Returns what the workers decided in it.

        Raises:
            NotFinite: the loss is NaN or infinite.
        """
        losses = result.losses.numpy()  # a synchronization point: waits until the step has ended
        now = time.perf_counter()
        seconds, in_collectives = now - self._seen_at, float(result.waited)
        self.stragglers.add(seconds, in_collectives)
        self._times.add(seconds, in_collectives)
        self._seen_at = now
        self.guard.beat()
        if self.saver.has_failed():
            self.guard.failed()
        position.add(losses.tolist())
        step = position.step(self.loader.steps_per_epoch)
        value = float(sum(task.loss_weight * loss for task, loss in zip(self.tasks, losses, strict=True)))
        if step % self.log_every == 0 or step == 1 or position.steps == self.loader.steps_per_epoch:
            self._record(step, value, losses)
        else:
            self.progress.update(step)
        if not math.isfinite(value):
            raise NotFinite(
                f"the loss is {value} at step {step}. Checkpoints of earlier steps are kept. "
                + how_to_stay_finite(is_float16=self.step.loss_scale.dynamic)
            )
        return self.guard.decide(result.control_flags.numpy(), step)

    def _save(self, position: Position) -> None:
        """Saves a checkpoint, after checking that the workers hold the same finite values. A collective."""
        self.guard.beat(allow=SLOW_SECONDS)  # a save may take long: the watchdog must not take it for a hang
        check_state(self.state, position.step(self.loader.steps_per_epoch))
        with nvtx_range("save"):
            self.saver.save(self.state, position, self.stopping.state)
        self.guard.saved()
        self.guard.beat(allow=SLOW_SECONDS)
        self._seen_at = time.perf_counter()

    def _stop(self, position: Position) -> None:
        self.saver.finish()
        # Used as a barrier: a launcher kills all workers as soon as one exits, and rank 0 has been writing until now.
        self.guard.any_stop_requested()
        step = position.step(self.loader.steps_per_epoch)
        raise StoppedBySignal(
            f"stopped by a signal after step {step} of {self.total_steps}, which is saved; --use_checkpoint goes on"
        )

    def _evaluate(self, position: Position) -> dict[str, float]:
        """Evaluates the model after an epoch that has been saved, logs the metrics and returns them."""
        steps_done = position.step(self.loader.steps_per_epoch)
        self.guard.beat(allow=SLOW_SECONDS)
        started = time.perf_counter()

        def on_batch(batch: int) -> None:
            self.guard.beat()
            self.progress.update(None, note=f"evaluating {batch}")
            if batch % BATCHES_BETWEEN_QUESTIONS == 0 and self.guard.any_stop_requested():
                self._stop(position)

        with nvtx_range("evaluation"):
            metrics = self.evaluator.run(
                on_batch=on_batch, see=self.expert_monitor.see if self.expert_monitor else None
            )
        rate = self.evaluator.loader.rows / (time.perf_counter() - started)
        epoch = position.epoch
        self.log.log([steps_done], metrics | {"epoch": epoch, "validation_throughput": rate})
        if curves := as_records(self.evaluator.evaluation.curves):
            self.log.log([steps_done], curves | {"epoch": epoch})
        self.progress.message(f"epoch {epoch}/{self.num_epochs}: {describe(metrics)}")
        self._warn(told_of_undefined(self.evaluator.evaluation.undefined))
        if math.isnan(metrics[self.stopping.key]):
            self._warn(
                [f"without a value of {self.stopping.key} this epoch cannot be the best, nor count for patience"]
            )
        if self.expert_monitor is not None:
            values, warnings = self.expert_monitor.measure()
            self.log.log([steps_done], values | {"epoch": epoch})
            self.board.histograms(steps_done, self.expert_monitor.gate_weights())
            self._warn(warnings)
        return metrics

    def _record(self, step: int, value: float, losses: np.ndarray) -> None:
        """Logs a step's losses, and the throughput and times since the last record. A collective.

        Args:
            step: number of the step, counted from 1.
            value: sum of the losses weighted by `loss_weight`.
            losses: mean loss of each task, [tasks] float32.
        """
        single = {f"loss/{task.name}": float(loss) for task, loss in zip(self.tasks, losses, strict=True)}
        now, (last_step, last_time) = time.perf_counter(), self._mark
        rows = self.loader.rows_until(step) - self.loader.rows_until(last_step)
        rate = rows / max(now - last_time, 1e-9)
        self._mark = (step, now)
        slowest, warnings = self.stragglers.look()
        self.log.log(
            [step, self.total_steps],
            {
                "loss": value,
                **(single if len(single) > 1 else {}),
                "learning_rate": float(self.schedule(tf.constant(step))),
                "samples_per_second": rate,
                "epoch": step / self.loader.steps_per_epoch,
                **self._times.take(),
                **slowest,
            },
        )
        self.progress.update(step, loss=value, rate=rate)
        self._warn(warnings)

    def _warn(self, warnings: list[str]) -> None:
        for warning in warnings:
            self.progress.message(f"warning: {warning}")


def told_of_undefined(reasons: list[str]) -> list[str]:
    """Return the first reasons why metrics are undefined, and how many more there are."""
    more = [f"... and {len(reasons) - REASONS_SHOWN} more labels"] if len(reasons) > REASONS_SHOWN else []
    return [*reasons[:REASONS_SHOWN], *more]


def describe(metrics: dict[str, float]) -> str:
    """Format the main metrics as one readable line; the log has all of them.

    For a metric of more than TASKS_TOLD tasks, the line shows its mean and the best and worst tasks.
    """
    parts = []
    for name in dict.fromkeys(key.split("/")[0] for key in metrics):
        if name in headline_metrics():
            values = {key: value for key, value in metrics.items() if key.split("/")[0] == name}
            means = {key: value for key, value in values.items() if key == f"{name}/{MEAN}"}
            tasks = {key: value for key, value in values.items() if key not in means}
            shown = values if len(tasks) <= TASKS_TOLD else means
            parts += [f"{key} {value:.5f}" for key, value in shown.items()]
            if shown is means:
                parts.append(_ends(name, tasks))
    return "  ".join(parts)


def _ends(name: str, tasks: dict[str, float]) -> str:
    """Format the best and worst tasks of a metric, in parentheses."""
    known = {key.partition("/")[2]: value for key, value in tasks.items() if not math.isnan(value)}
    ranked = sorted(known, key=lambda task: known[task], reverse=metric_of(name).direction is Direction.LARGER)
    best, worst = (
        ", ".join(f"{task} {known[task]:.5f}" for task in chosen)
        for chosen in (ranked[:ENDS_TOLD], ranked[::-1][:ENDS_TOLD])
    )
    return f"({len(known)} of {len(tasks)} tasks known; best {best}; worst {worst})" if known else "(no task known)"
