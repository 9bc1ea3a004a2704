"""What --benchmark measures: whole steps, loader included, and where their time goes."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

from data.loading.batch import Batch
from data.loading.loader import ParquetLoader
from trainer.distributed import Comm
from trainer.evaluate import Evaluator
from trainer.feeding import step_input
from trainer.observation.step_times import timed
from trainer.step import TrainStep
from trainer.tasks import Task

# Steps that are taken apart into computing, communicating and updating after the measurement.
BREAKDOWN_STEPS = 10
# Before that: in the first the parts are compiled, in the second and third once more for other numbers of rows.
WARMUP_STEPS = 3


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes:
        warmup_steps: not counted.
        steps: in all, warm-up included.
        seconds: ends the measurement early; half of it at most is warm-up, and at least one step is counted.
    """

    warmup_steps: int
    steps: int
    seconds: float | None


@dataclass
class Stopwatch:
    """Decides together with the other workers when warm-up and measurement are over, and times steps.

    Rank 0's clock decides. It is asked about twice a second, so that asking costs nothing.
    """

    plan: Plan
    comm: Comm
    step: int = 0
    step_seconds: list[float] = field(default_factory=list)
    _started: float = field(default_factory=time.perf_counter)
    _last: float = 0.0
    _warm: bool = False
    _ask_at: int = 1
    _elapsed: float = 0.0

    def lap(self) -> bool:
        """Ends a step; False when it was the last."""
        now = time.perf_counter()
        self.step += 1
        if self._warm:
            self.step_seconds.append(now - self._last)
        self._agree_on_time(now)
        limit = self.plan.seconds
        if not self._warm and (self.step >= self.plan.warmup_steps or (limit and self._elapsed >= limit / 2)):
            self._warm = True
        self._last = time.perf_counter()
        out_of_time = bool(limit and self._elapsed >= limit and self.step_seconds)
        return self.step < self.plan.steps and not out_of_time

    @property
    def counting(self) -> bool:
        """Whether the step under way is counted."""
        return self._warm

    def _agree_on_time(self, now: float) -> None:
        if self.plan.seconds is None or self.step < self._ask_at:
            return
        elapsed = now - self._started
        pace = self.step / max(elapsed, 1e-9)
        mine = np.array([elapsed, max(1.0, pace / 2)] if self.comm.rank == 0 else [0.0, 0.0])
        self._elapsed, wait = (float(value) for value in self.comm.sum_array(mine))
        self._ask_at = self.step + int(wait)


def benchmark_training(
    step: TrainStep,
    tasks: tuple[Task, ...],
    loader: ParquetLoader,
    comm: Comm,
    plan: Plan,
    on_step: Callable[[int, float], None],
) -> dict[str, float]:
    """Measures training; the dataset is repeated as often as needed.

    Args:
        on_step: called with (step, samples per second) for each counted step.

    Returns:
        train_throughput in samples per second over all workers, the spread over steps, and the milliseconds that
        a step waits for data, computes, communicates and updates. The last three are measured on steps taken
        apart, after the measurement: in a whole step they may overlap.
    """
    watch = Stopwatch(plan, comm)
    waits, samples = [], 0
    stream = _endless(loader)
    loss = tf.constant(0.0)
    for number, (batch, waited) in enumerate(timed(stream), start=1):
        counted, loss_before = watch.counting, loss
        loss = step(step_input(batch, tasks), tf.constant(number))
        loss_before.numpy()  # at most one step ahead of the device, as training is
        going_on = watch.lap()
        if counted:
            rows = loader.rows_until(number) - loader.rows_until(number - 1)
            samples += rows
            waits.append(waited)
            on_step(number, rows / watch.step_seconds[-1])
        if not going_on:
            break
    with closing(stream):
        parts = take_apart(step, tasks, stream, watch.step, BREAKDOWN_STEPS)
    result = {"train_throughput": samples / sum(watch.step_seconds)} | _spread(watch.step_seconds)
    return result | parts | {"wait_for_data_ms": 1000 * float(np.mean(waits))}


def benchmark_evaluation(
    evaluator: Evaluator, comm: Comm, plan: Plan, on_step: Callable[[int, float], None]
) -> dict[str, float]:
    """Measures evaluation, metrics included; the dataset is repeated as often as needed.

    Returns:
        validation_throughput in samples per second over all workers, and the spread over steps. The metrics of
        each pass over the data are computed, and their time is counted.
    """
    watch = Stopwatch(plan, comm)
    samples, metric_seconds, going_on = 0, 0.0, True
    while going_on:
        evaluator.evaluation.reset()
        counted_in_pass = False
        with closing(evaluator.predicted()) as predicted:
            for batch, logits in predicted:
                counted = watch.counting
                evaluator.count(batch, logits)
                going_on = watch.lap()
                if counted:
                    rows = int((batch.rows >= 0).sum())
                    samples, counted_in_pass = samples + rows, True
                    on_step(watch.step, rows * comm.size / watch.step_seconds[-1])
                if not going_on:
                    break
        started = time.perf_counter()
        evaluator.evaluation.result(comm)
        metric_seconds += (time.perf_counter() - started) if counted_in_pass else 0.0
    total = float(comm.sum_array(np.array([float(samples)]))[0])
    seconds = sum(watch.step_seconds) + metric_seconds
    return {"validation_throughput": total / seconds, "metrics_ms": 1000 * metric_seconds} | _spread(watch.step_seconds)


def _endless(loader: ParquetLoader) -> Generator[Batch]:
    epoch = 0
    while True:
        with closing(loader.epoch(epoch)) as batches:
            yield from batches
        epoch += 1


def take_apart(
    step: TrainStep, tasks: tuple[Task, ...], stream: Iterator[Batch], steps_done: int, steps: int
) -> dict[str, float]:
    """Milliseconds that the parts of a step take one after the other.

    Args:
        step: the training step.
        tasks: one per logit.
        stream: of batches.
        steps_done: before these.
        steps: whose mean it is; WARMUP_STEPS more, which compile, are not counted.

    Returns:
        wait_for_data_ms, compute_ms (forward and backward pass), communicate_ms, update_ms.
    """
    # How many rows a batch touches differs from step to step; without the relaxed shapes each step would compile anew.
    compute, exchange, update = (
        tf.function(part, reduce_retracing=True) for part in (step.compute, step.exchange, step.update)
    )
    seconds = np.zeros((WARMUP_STEPS + steps, 4))
    for index in range(WARMUP_STEPS + steps):
        marks = [_now()]
        batch, number = step_input(next(stream), tasks), tf.constant(steps_done + index + 1)
        marks.append(_now())
        gradients = compute(batch, number)
        marks.append(_now())
        gradients = exchange(gradients)
        marks.append(_now())
        update(gradients, number)
        marks.append(_now())
        seconds[index] = np.diff(marks)
    means = 1000 * seconds[WARMUP_STEPS:].mean(axis=0)
    names = ("wait_for_data_ms", "compute_ms", "communicate_ms", "update_ms")
    return dict(zip(names, means.tolist(), strict=True))


def _now() -> float:
    """The time once all devices have finished what they were given."""
    tf.test.experimental.sync_devices()
    return time.perf_counter()


def _spread(step_seconds: list[float]) -> dict[str, float]:
    milliseconds = 1000 * np.array(step_seconds)
    low, middle, high = np.percentile(milliseconds, [10, 50, 90])
    return {
        "step_ms_mean": float(milliseconds.mean()),
        "step_ms_std": float(milliseconds.std()),
        "step_ms_p10": float(low),
        "step_ms_p50": float(middle),
        "step_ms_p90": float(high),
        "measured_steps": float(milliseconds.size),
    }
