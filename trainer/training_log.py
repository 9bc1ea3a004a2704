"""The log of training: losses, throughput, step times and slow workers, on disk and on the terminal."""

import time

import numpy as np

from data.loading.loader import ParquetLoader
from trainer.comm import Comm
from trainer.lifecycle.stragglers import Stragglers
from trainer.logging.progress import Progress
from trainer.logging.step_times import StepTimes
from trainer.results import Results
from trainer.tasks.task import Task


class TrainingLog:
    """Measures training steps, writes log records and shows progress.

    Args:
        results: the results folder of the run.
        loader: loader of the training mapping.
        tasks: the tasks, one per label.
        num_epochs: number of epochs of the whole run.
        comm: collectives over the workers.

    Attributes:
        progress: the progress display of this worker.
        origin: number of steps that the model has been trained for before the run.
    """

    def __init__(self, results: Results, loader: ParquetLoader, tasks: tuple[Task, ...], num_epochs: int, comm: Comm):
        self._results, self._loader, self._tasks = results, loader, tasks
        self._run_steps, self.origin = loader.steps_per_epoch * num_epochs, 0
        self.progress = Progress(self._run_steps, enabled=comm.rank == 0)
        self._stragglers = Stragglers(comm)
        self._times = StepTimes()
        self._step_ended_at = time.perf_counter()
        self._last_record = (0, self._step_ended_at)  # step, time

    def start(self, step: int) -> None:
        """Start measuring, at the beginning of an epoch, after this many steps of the model."""
        self.restart_step()
        self._last_record = (step, self._step_ended_at)

    def restart_step(self) -> None:
        """Exclude the time since the last step, such as that of a save, from the next step's."""
        self._step_ended_at = time.perf_counter()

    def add_wait(self, seconds: float) -> None:
        """Add the seconds that a step has waited for its batch."""
        self._times.wait(seconds)

    def add_step(self, step: int, in_collectives: float) -> None:
        """Add a step that has just ended, of whose time it has spent some seconds in collectives."""
        now = time.perf_counter()
        seconds, self._step_ended_at = now - self._step_ended_at, now
        self._stragglers.add(seconds, in_collectives)
        self._times.add(seconds, in_collectives)
        self.progress.update(step - self.origin)

    def record(self, step: int, losses: np.ndarray, learning_rate: float) -> None:
        """Log a step's losses, and the throughput and times since the last record. A collective.

        Args:
            step: number of the step, counted from 1 over all that the model has been trained for.
            losses: mean loss of each task, [tasks] float32.
            learning_rate: learning rate of the deep part in this step.
        """
        loss = float(sum(task.loss_weight * loss for task, loss in zip(self._tasks, losses, strict=True)))
        by_task = {f"loss/{task.name}": float(loss) for task, loss in zip(self._tasks, losses, strict=True)}
        now, (last_step, last_time) = time.perf_counter(), self._last_record
        rows = self._loader.rows_until(step - self.origin) - self._loader.rows_until(last_step - self.origin)
        rate = rows / max(now - last_time, 1e-9)
        self._last_record = (step, now)
        slowest, warnings = self._stragglers.compare()
        self._results.log.log(
            [step, self.origin + self._run_steps],
            {
                "loss": loss,
                **(by_task if len(by_task) > 1 else {}),
                "learning_rate": learning_rate,
                "samples_per_second": rate,
                "epoch": (step - self.origin) / self._loader.steps_per_epoch,
                **self._times.take(),
                **slowest,
            },
        )
        self.progress.update(step - self.origin, loss=loss, rate=rate)
        self.warn(warnings)

    def warn(self, warnings: list[str]) -> None:
        """Show warnings above the progress display."""
        for warning in warnings:
            self.progress.message(f"warning: {warning}")
