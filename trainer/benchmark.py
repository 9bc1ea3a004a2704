"""The measurements of --benchmark: throughput of whole steps, loader included, and the time of their parts."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from data.loading.batch import Batch
from data.loading.loader import ParquetLoader
from trainer.comm import Comm
from trainer.evaluate import Evaluator
from trainer.logging.step_times import timed
from trainer.packing import Packed
from trainer.step import Gradients, TrainStep, step_input

# Steps run in separate parts (compute, exchange, update) after the measurement.
BREAKDOWN_STEPS = 10
# Uncounted steps before them: the first compiles the parts, the second and third again for other numbers of rows.
WARMUP_STEPS = 3


@dataclass(frozen=True)
class Plan:
    """The length of a measurement.

    Attributes:
        warmup_steps: number of steps at the beginning that are not counted.
        steps: number of steps in total, including the warm-up.
        seconds: time after which to end the measurement early; None for no limit. At most half of it is warm-up, and
            at least one step is counted.
    """

    warmup_steps: int
    steps: int
    seconds: float | None


class Stopwatch:
    """Times steps and decides, for all workers together, when warm-up and measurement end.

    Rank 0's clock decides. The workers ask for it only about twice a second, at negligible cost.

    Args:
        plan: length of the measurement.
        comm: collectives over the workers.

    Attributes:
        step: number of steps done, including the warm-up.
        step_seconds: duration of each counted step in seconds.
        is_counting: whether the current step is counted.
    """

    def __init__(self, plan: Plan, comm: Comm):
        self._plan, self._comm = plan, comm
        self.step, self.is_counting = 0, False
        self.step_seconds: list[float] = []
        self._started = self._last = time.perf_counter()
        self._elapsed, self._next_exchange = 0.0, 1

    def lap(self) -> bool:
        """End a step and return whether there is another one. May be a collective."""
        now = time.perf_counter()
        self.step += 1
        if self.is_counting:
            self.step_seconds.append(now - self._last)
        self._agree_on_time(now)
        limit = self._plan.seconds
        if self.step >= self._plan.warmup_steps or (limit and self._elapsed >= limit / 2):
            self.is_counting = True
        self._last = time.perf_counter()
        out_of_time = bool(limit and self._elapsed >= limit and self.step_seconds)
        return self.step < self._plan.steps and not out_of_time

    def _agree_on_time(self, now: float) -> None:
        if self._plan.seconds is None or self.step < self._next_exchange:
            return
        elapsed = now - self._started
        pace = self.step / max(elapsed, 1e-9)
        # Elapsed seconds, and steps per half second until the next exchange; a sum with zeros broadcasts rank 0's.
        mine = np.array([elapsed, max(1.0, pace / 2)] if self._comm.rank == 0 else [0.0, 0.0])
        self._elapsed, wait = (float(value) for value in self._comm.sum_array(mine))
        self._next_exchange = self.step + int(wait)


def benchmark_training(
    step: TrainStep, loader: ParquetLoader, plan: Plan, on_step: Callable[[int, float], None]
) -> dict[str, float]:
    """Measure training, repeating the dataset as often as needed. A collective.

    Args:
        step: the training step.
        loader: loader of the training mapping.
        plan: length of the measurement.
        on_step: called with (step, samples per second) for each counted step.

    Returns:
        train_throughput in samples per second over all workers, the spread of step times, and the milliseconds per
        step spent waiting for data, computing, communicating and updating. The last three are measured afterwards, on
        steps run in separate parts: within a whole step they may overlap.
    """
    watch = Stopwatch(plan, step.comm)
    waits, samples = [], 0
    stream = endless_batches(loader, step)
    loss = tf.constant(0.0)
    for number, (batch, waited) in enumerate(timed(stream), start=1):
        counted, loss_before = watch.is_counting, loss
        loss = step(batch, tf.constant(number))
        loss_before.numpy()  # at most one step ahead of the device, as in training
        goes_on = watch.lap()
        if counted:
            rows = loader.rows_until(number) - loader.rows_until(number - 1)
            samples += rows
            waits.append(waited)
            on_step(number, rows / watch.step_seconds[-1])
        if not goes_on:
            break
    with closing(stream):
        parts = measure_parts(step, stream, watch.step, BREAKDOWN_STEPS)
    result = {"train_throughput": samples / sum(watch.step_seconds)} | _spread(watch.step_seconds)
    return result | parts | {"wait_for_data_ms": 1000 * float(np.mean(waits))}


def benchmark_evaluation(evaluator: Evaluator, plan: Plan, on_step: Callable[[int, float], None]) -> dict[str, float]:
    """Measure evaluation, repeating the dataset as often as needed. A collective.

    Args:
        evaluator: evaluates the model.
        plan: length of the measurement.
        on_step: called with (step, samples per second) for each counted step.

    Returns:
        validation_throughput in samples per second over all workers, the time of the metrics in milliseconds, and the
        spread of step times. The metrics of each pass are computed, and their time counts towards the throughput.
    """
    comm = evaluator.comm
    watch = Stopwatch(plan, comm)
    samples, metric_seconds, goes_on = 0, 0.0, True
    while goes_on:
        evaluator.evaluation.reset()
        counted_in_pass = False
        with closing(evaluator.predicted()) as predicted:
            for batch, logits in predicted:
                counted = watch.is_counting
                evaluator.count(batch, logits)
                goes_on = watch.lap()
                if counted:
                    rows = int((batch.rows >= 0).sum())
                    samples, counted_in_pass = samples + rows, True
                    on_step(watch.step, rows * comm.size / watch.step_seconds[-1])  # assumes as many on every worker
                if not goes_on:
                    break
        started = time.perf_counter()
        evaluator.evaluation.result(comm)
        metric_seconds += (time.perf_counter() - started) if counted_in_pass else 0.0
    total = float(comm.sum_array(np.array([float(samples)]))[0])
    seconds = sum(watch.step_seconds) + metric_seconds
    return {"validation_throughput": total / seconds, "metrics_ms": 1000 * metric_seconds} | _spread(watch.step_seconds)


def endless_batches(loader: ParquetLoader, step: TrainStep) -> Generator[Packed]:
    """Yield the packed inputs of training steps, one epoch after the other, without end."""
    model = step.model

    def prepare(batch: Batch) -> Packed:
        lookups, values = model.embeddings.lookups(batch.ids), model.layout.row_values(batch)
        return step.packing.pack(step_input(batch, lookups, values, model.tasks))

    epoch = 0
    while True:
        with closing(loader.epoch(epoch, prepare=prepare)) as batches:
            yield from batches
        epoch += 1


def measure_parts(step: TrainStep, stream: Iterator[Packed], steps_done: int, steps: int) -> dict[str, float]:
    """Measure the parts of a step, run one after the other. A collective.

    Args:
        step: the training step.
        stream: stream of batches.
        steps_done: number of training steps done before.
        steps: number of steps to average over; WARMUP_STEPS more, which compile, are run first and not counted.

    Returns:
        Mean milliseconds by name: wait_for_data_ms, compute_ms (forward and backward pass), communicate_ms, update_ms.
    """

    def forward_backward(packed: Packed, number: tf.Tensor) -> Gradients:
        batch = step.packing.unpack(packed)
        [row_counts] = step.comm.sum_tensors([step.row_counts(batch)])
        return step.forward_backward(batch, number, row_counts)

    # The number of rows that a batch looks up varies; without relaxed shapes each step would be traced again.
    compute, exchange, update = (
        tf.function(part, reduce_retracing=True, autograph=False)
        for part in (forward_backward, step.exchange, step.update)
    )
    seconds = np.zeros((WARMUP_STEPS + steps, 4))
    for index in range(WARMUP_STEPS + steps):
        marks = [_now()]
        batch, number = next(stream), tf.constant(steps_done + index + 1)
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
    """Return the time in seconds once all devices have finished their pending work."""
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
