"""A model in training, put together as main.py does, whose steps a benchmark can time in turn with something else."""

import os
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path

import tensorflow as tf

from data.loading.batch import Batch
from trainer.benchmark import take_apart
from trainer.cli import parse
from trainer.comm import Comm, connect
from trainer.evaluate import Evaluator
from trainer.inputs import open_inputs
from trainer.models import build_model
from trainer.process import runtime
from trainer.process.worker_env import read_worker_env
from trainer.step import step_input
from trainer.tasks.evaluation import Evaluation
from trainer.tasks.task import tasks_of
from trainer.training import make_training, shards_of


class TrainingRun:
    """A training run that takes as many steps as it is told to, over and over the same rows.

    Args:
        dataset: a prepared dataset.
        flags: of main.py.
        around: makes of the workers that the launcher started those that the run uses.

    Attributes:
        options, inputs, model, comm: as in main.py.
        compute_dtype: float32, float16 or bfloat16.
        state: weights and all else that a checkpoint holds.
        variables: those by name.
    """

    def __init__(self, dataset: Path, *flags: str, around: Callable[[Comm], Comm] = lambda comm: comm):
        launch = read_worker_env(os.environ)
        self.options = parse(["--dataset_path", str(dataset), *flags], launch.size)
        self.inputs = open_inputs(self.options, launch)
        training = self.options.training
        self.compute_dtype = runtime.prepare(launch, training).compute_dtype
        self.comm = around(connect(launch))
        self.tasks = tasks_of(self.inputs.spec)
        self.model = build_model(
            self.options.model,
            self.inputs.layout,
            self.tasks,
            compute_dtype=self.compute_dtype,
            seed=training.seed,
            shards=shards_of(training, self.comm),
        )
        self._step, _, self.state = make_training(
            self.model,
            self.options.training,
            self.options.deep_optimizer,
            steps_per_epoch=self.inputs.train_loader.steps_per_epoch,
            comm=self.comm,
            compute_dtype=self.compute_dtype,
        )
        self.variables = self.state.variables
        self._stream, self._steps_done = self._batches(), 0

    def seconds(self, steps: int) -> float:
        """Wall clock of so many whole steps: waiting for the loader, computing, exchanging, updating.

        As in main.py, the loss is read one step late, so that the host runs ahead of a GPU.
        """
        started = time.perf_counter()
        before = tf.constant(0.0)
        for _ in range(steps):
            loss = self._step(step_input(next(self._stream), self.tasks), self._next_number())
            before.numpy()
            before = loss
        before.numpy()
        _synchronise()
        return time.perf_counter() - started

    def parts(self, steps: int) -> dict[str, float]:
        """Milliseconds that a step taken apart spends in each of its parts; in a whole step they may overlap."""
        parts = take_apart(self._step, self.tasks, self._stream, self._steps_done, steps)
        return {name: round(milliseconds, 1) for name, milliseconds in parts.items()}

    def evaluator(self) -> Evaluator:
        """What evaluates this model on the dataset's test rows."""
        evaluation = Evaluation(self.tasks, with_group=self.inputs.with_group)
        return Evaluator(self.model, self.inputs.eval_loader, evaluation, self.comm, xla=self.options.training.xla)

    def _next_number(self) -> tf.Tensor:
        self._steps_done += 1
        return tf.constant(self._steps_done)

    def _batches(self) -> Generator[Batch]:
        epoch = 0
        while True:
            with closing(self.inputs.train_loader.epoch(epoch)) as batches:
                yield from batches
            epoch += 1


def _synchronise() -> float:
    """The time once all devices have finished what they were given."""
    tf.test.experimental.sync_devices()
    return time.perf_counter()
