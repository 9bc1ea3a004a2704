"""A model in training, built as main.py builds it, whose steps a benchmark can time in turn with something else."""

import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from trainer.benchmark import endless_batches, measure_parts
from trainer.build import start_worker
from trainer.cli import parse
from trainer.comm import Comm
from trainer.inputs import open_inputs
from trainer.process.runtime import compute_dtype
from trainer.process.worker_env import read_worker_env
from trainer.trainer import Trainer


class TrainingRun:
    """A training run of any number of steps, over and over the same rows.

    Args:
        dataset: a prepared dataset, which also holds the results.
        flags: flags of main.py.
        around: function that wraps the communicator of the workers.

    Attributes:
        trainer: the trainer.
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
        self._step = self.trainer.training.step
        self._batches, self._steps_done = endless_batches(data.train_loader, self._step), 0

    def seconds(self, steps: int) -> float:
        """Returns the seconds that some whole steps take: waiting for the loader, computing, exchanging, updating.

        As in main.py, results are read one step late, so that the host runs ahead of a GPU.
        """
        started = time.perf_counter()
        before = tf.constant(0.0)
        for _ in range(steps):
            self._steps_done += 1
            loss = self._step(next(self._batches), tf.constant(self._steps_done))
            before.numpy()
            before = loss
        before.numpy()
        tf.test.experimental.sync_devices()
        return time.perf_counter() - started

    def parts(self, steps: int) -> dict[str, float]:
        """Returns the milliseconds per step of each part, run one after the other; in a whole step they may overlap."""
        parts = measure_parts(self._step, self._batches, self._steps_done, steps)
        return {name: round(milliseconds, 1) for name, milliseconds in parts.items()}
