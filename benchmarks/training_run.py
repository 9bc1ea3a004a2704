"""A model in training, built as main.py builds it, whose steps a benchmark can time in turn with something else."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import tensorflow as tf

from trainer.benchmark import endless_batches, measure_parts
from trainer.build import start_worker
from trainer.cli import parse
from trainer.comm import Comm
from trainer.inputs import open_inputs
from trainer.packing import Packed
from trainer.process.runtime import compute_dtype
from trainer.process.worker_env import read_worker_env
from trainer.step import TrainStep
from trainer.trainer import Trainer


class TrainingRun:
    """A training run of any number of steps, over and over the same rows.

    Args:
        dataset: a prepared dataset, which also holds the results.
        flags: flags of main.py.
        around: function that wraps the communicator of the workers.

    Attributes:
        trainer: the trainer.
        step: its training step.
        compute_dtype: dtype of the forward and backward pass.
    """

    def __init__(self, dataset: Path, *flags: str, around: Callable[[Comm], Comm] = lambda comm: comm):
        env = read_worker_env(os.environ)
        folders = ["--dataset_path", str(dataset), "--results_dir", str(dataset / "results"), "--recipe", "published"]
        config = parse([*folders, *flags], env.size)
        data = open_inputs(config, env)
        with contextlib.redirect_stdout(sys.stderr):  # a benchmark prints nothing but its results on stdout
            self.trainer = Trainer(config, data, around(start_worker(config, env)))
        self.compute_dtype = compute_dtype(config.training)
        self.step: TrainStep = self.trainer.training.step
        self._batches, self._steps_done = endless_batches(data.train_loader, self.step), 0

    def batches(self, number: int) -> list[Packed]:
        """Take so many batches from the loader."""
        return [next(self._batches) for _ in range(number)]

    def seconds(self, steps: int) -> float:
        """Return the seconds that some whole steps take: waiting for the loader, computing, exchanging, updating."""
        return self.seconds_of(islice(self._batches, steps))

    def seconds_of(self, batches: Iterable[Packed]) -> float:
        """Return the seconds that steps on some batches take, with the time that the batches take to come.

        As in main.py, results are read one step late, so that the host runs ahead of a GPU.
        """
        started = time.perf_counter()
        before = tf.constant(0.0)
        for batch in batches:
            loss = self.train(batch)
            before.numpy()
            before = loss
        before.numpy()
        tf.test.experimental.sync_devices()
        return time.perf_counter() - started

    def losses(self, steps: int) -> list[float]:
        """Return the loss of each of the next steps, the mean over the tasks."""
        return [float(tf.reduce_mean(self.train(batch))) for batch in islice(self._batches, steps)]

    def train(self, batch: Packed) -> tf.Tensor:
        """Start a step; return the losses, [tasks] float32."""
        self._steps_done += 1
        return self.step(batch, tf.constant(self._steps_done))

    def parts(self, steps: int) -> dict[str, float]:
        """Return the milliseconds per step of each part, run one after the other; in a whole step they may overlap."""
        parts = measure_parts(self.step, self._batches, self._steps_done, steps)
        return {name: round(milliseconds, 1) for name, milliseconds in parts.items()}
