"""One run of main.py: builds model, optimizers, evaluation and checkpoints, then trains, evaluates or benchmarks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.errors import DataError
from data.loading.loader import ParquetLoader
from data.storage.checksummed_dir import StorageError
from trainer.benchmark import Plan, benchmark_evaluation, benchmark_training
from trainer.checkpoint.facts import Position
from trainer.checkpoint.manager import Saver, agreed_model_options, agreed_schema
from trainer.checkpoint.rates import changed_rates
from trainer.checkpoint.state import TrainState
from trainer.checkpoint.store import probe
from trainer.comm import Comm, connect
from trainer.config import Options, TrainingOptions
from trainer.early_stopping import EarlyStopping, Stopping
from trainer.evaluate import Evaluator
from trainer.expert_monitor import monitor_of
from trainer.inputs import Inputs, check_labels, lints_labels, open_inputs
from trainer.lifecycle.errors import RejectedByAll
from trainer.lifecycle.records import WorkerRecord
from trainer.lifecycle.signals import StopRequest
from trainer.lifecycle.step_control import StepControl
from trainer.lifecycle.stragglers import Stragglers
from trainer.lifecycle.watchdog import Watchdog
from trainer.logging.log import warn
from trainer.logging.profiling import start_timeline
from trainer.logging.progress import Progress
from trainer.loop import TrainingLoop, describe, told_of_undefined
from trainer.metrics.calibration import as_records
from trainer.models import build_model
from trainer.models.weights import named
from trainer.predictions import PredictionWriter
from trainer.process import runtime
from trainer.process.affinity import set_affinity
from trainer.process.device import on_gpu
from trainer.process.worker_env import WorkerEnv
from trainer.results import Results
from trainer.tasks.evaluation import Evaluation
from trainer.tasks.task import tasks_of
from trainer.training import Training, make_training, shards_of


class Run:
    """One run of main.py on one worker.

    Args:
        options: the resolved configuration.
        inputs: specification, embedding widths and loaders.
        launch: rank and size of this process as its launcher announced them.
        record: this worker's status file; None inside an application, whose process no watchdog may end.
        stop: flag set by a stop signal; None inside an application, which handles its own signals.

    Raises:
        DataError: the options do not work together or with the launcher, or the labels or files are invalid.
    """

    def __init__(
        self,
        options: Options,
        inputs: Inputs,
        launch: WorkerEnv,
        record: WorkerRecord | None,
        stop: StopRequest | None,
    ):
        self.options, self.inputs, self._record = options, inputs, record
        self._stop = stop or StopRequest(None)
        training = options.training
        # Before `prepare`, which sizes TensorFlow's thread pools by the CPUs that this worker is bound to.
        bound = set_affinity(training.affinity, launch.local_rank, launch.local_size)
        self.runtime = runtime.prepare(launch, training)
        if training.xla and options.model.batch_norm and launch.size > 1 and on_gpu():
            raise DataError(
                f"--batch_norm over {launch.size} workers sums moments in the middle of what --xla compiles on a GPU, "
                "which XLA cannot; leave one of the two flags out"
            )
        start_timeline(options.run.horovod_timeline, launch)  # read by Horovod when it is initialized
        self.comm: Comm = connect(launch)
        if launch.size > 1 and lints_labels(options):
            _check_labels_for_all(options, inputs, self.comm)
        if options.run.restores:
            # Only rank 0 has read the checkpoint: the others take its model flags and feature and task order.
            options = self.options = replace(options, model=agreed_model_options(options.model, self.comm))
            schema = agreed_schema(inputs.schema, self.comm)
            if schema != inputs.schema:
                inputs = self.inputs = open_inputs(options, launch, schema)
        self.tasks = tasks_of(inputs.spec)
        self.saver = Saver(options, inputs, self.comm)
        self.results = Results(options, self.comm.rank)
        self.say = self.results.say
        self.say(f"{self.comm.size} worker(s) on {self.runtime.device}, {self.runtime.compute_dtype}; {bound}")
        self.model = build_model(
            options.model,
            inputs.layout,
            self.tasks,
            compute_dtype=self.runtime.compute_dtype,
            seed=training.seed,
            shards=shards_of(training, self.comm),
        )
        self.say(f"{options.model.model}: {self.model.parameters:,} parameters{self._told_of_shards()}")

    def _told_of_shards(self) -> str:
        embeddings = self.model.embeddings
        if embeddings.shards is None:
            return ""
        return f"; {len(embeddings.sharded)} of {len(embeddings.tables)} tables are dealt to {self.comm.size} worker(s)"

    def train(self) -> None:
        """Trains to the end of the run, saving and evaluating after each epoch."""
        if self.comm.rank == 0:
            probe(self.options.data.model_dir)
        step, schedule, state = self._training()
        loader, training, run = self.inputs.train_loader, self.options.training, self.options.run
        evaluator = self._evaluator()
        stopping = EarlyStopping(self.saver.main_metric(evaluator.evaluation.keys), training.early_stopping_patience)
        position, warnings = self._start(state, stopping)
        is_over = position.epoch >= training.num_epochs or (position.is_between_epochs and stopping.is_over)
        if is_over and position.is_evaluated:
            self.say(_told_of_end(position, training, stopping))
            self._finish(self.saver.last_metrics())
            return
        for warning in warnings:
            self.say(f"warning: {warning}")
        with Watchdog(run.hang_seconds, self._record) as watchdog, self.results.profiler() as profiler:
            loop = TrainingLoop(
                step=step,
                tasks=self.tasks,
                loader=loader,
                evaluator=evaluator,
                state=state,
                saver=self.saver,
                guard=StepControl(self.comm, self._stop, watchdog, run.save_interval),
                check_every=run.fingerprint_every,
                stragglers=Stragglers(self.comm),
                stopping=stopping,
                schedule=schedule,
                num_epochs=training.num_epochs,
                log_every=run.log_every,
                log=self.results.log,
                board=self.results.board,
                profiler=profiler,
                progress=self._progress(loader.steps_per_epoch * training.num_epochs),
                behind=1 if on_gpu() else 0,  # a CPU has nothing to overlap the host's work with
                expert_monitor=monitor_of(self.model, evaluator.loader.rows, self.comm),
            )
            self._stop.has_begun = True
            metrics = loop.run(position)
            self.saver.finish()
        loop.progress.close()
        self._tell_counts(loader)
        self._finish(metrics)

    def _finish(self, metrics: dict[str, float]) -> None:
        """Writes the model folder and the final metrics, also for a completed run that died before it wrote them."""
        self.say(f"model: {self.saver.write_best_model(list(named(self.model.variables)))}")
        self.results.conclude(metrics)

    def _start(self, state: TrainState, stopping: EarlyStopping) -> tuple[Position, list[str]]:
        """Restores the requested checkpoint, or gives all workers rank 0's initial weights. A collective.

        Returns:
            The position to train from, and how the learning rates from there on differ from the checkpoint's.
        """
        if not self.options.run.use_checkpoint:
            state.share()
            return Position(), []
        facts = self.saver.resume(state)
        if facts.stopping.metric == stopping.key:
            stopping.state = facts.stopping
        else:
            stopping.state = Stopping(stopping.key, self.saver.best_value(stopping.key))
            self.say(
                f"early stopping looked at {facts.stopping.metric} and looks at {stopping.key} now: patience starts "
                f"again, and the value to improve on is {stopping.state.best}"
            )
        steps_per_epoch, training = self.inputs.train_loader.steps_per_epoch, self.options.training
        done, total = facts.position.step(steps_per_epoch), steps_per_epoch * training.num_epochs
        self.say(f"resuming after step {done} of {total}")
        return facts.position, changed_rates(facts.rates, self.options, steps_per_epoch, done)

    def evaluate(self) -> None:
        """Evaluates a checkpoint and, with --predictions_file, writes its predictions."""
        checkpoint = self.saver.restore_weights(self._weights())
        evaluator, path = self._evaluator(), self.options.run.predictions_file
        writer = None if path is None else self._writer(path)
        with self._watched_progress(evaluator.loader.steps_per_epoch) as on_batch:
            metrics = evaluator.run(on_batch=on_batch, predictions=writer)
        self._tell_counts(evaluator.loader)
        for reason in told_of_undefined(evaluator.evaluation.undefined):
            self.say(f"warning: {reason}")
        if writer is not None:
            writer.write(self.comm)
            self.say(f"predictions: {path}")
        self.say(f"{checkpoint} on mapping {self.inputs.eval_mapping!r}: {describe(metrics)}")
        self.results.log.log([], as_records(evaluator.evaluation.curves))
        self.results.conclude(metrics)

    def predict(self, path: Path) -> None:
        """Writes a checkpoint's predictions to a file without computing metrics.

        Args:
            path: the parquet file to write.
        """
        checkpoint = self.saver.restore_weights(self._weights())
        evaluator, writer = self._evaluator(), self._writer(path)
        with self._watched_progress(evaluator.loader.steps_per_epoch) as on_batch:
            evaluator.predict(writer, on_batch)
        writer.write(self.comm)
        self.say(f"{checkpoint} on mapping {self.inputs.eval_mapping!r}, {evaluator.loader.rows:,} rows: {path}")

    def benchmark(self) -> None:
        """Measures the throughput of training, or of evaluation with --evaluate."""
        run = self.options.run
        plan = Plan(run.benchmark_warmup_steps, run.benchmark_steps, run.benchmark_seconds)

        def on_step(number: int, rate: float) -> None:
            self.results.log.log([1, number], {"batch_samplesps": rate})

        if run.evaluate:
            result = benchmark_evaluation(self._evaluator(), self.comm, plan, on_step)
        else:
            step, _, state = self._training()
            state.share()
            result = benchmark_training(step, self.tasks, self.inputs.train_loader, self.comm, plan, on_step)
        for name, value in result.items():
            self.say(f"{name:<24}{value:>16,.2f}")
        self.results.log.log([], result)

    def _weights(self) -> TrainState:
        return TrainState(named(self.model.variables), self.comm, self.model.embeddings.sharded)

    def _training(self) -> Training:
        return make_training(
            self.model,
            self.options.training,
            self.options.deep_optimizer,
            steps_per_epoch=self.inputs.train_loader.steps_per_epoch,
            comm=self.comm,
            compute_dtype=self.runtime.compute_dtype,
        )

    def _evaluator(self) -> Evaluator:
        inputs = self.inputs
        evaluation = Evaluation(
            self.tasks, with_group=inputs.with_group, num_auc_thresholds=self.options.run.num_auc_thresholds
        )
        return Evaluator(self.model, inputs.eval_loader, evaluation, self.comm, xla=self.options.training.xla)

    def _writer(self, path: Path) -> PredictionWriter:
        return PredictionWriter(path, self.tasks, labelled=self.inputs.labelled, kept=self.inputs.kept)

    def _progress(self, total: int) -> Progress:
        return Progress(total, enabled=self.comm.rank == 0)

    def close(self) -> None:
        """Waits for a checkpoint that is being written in the background, then closes the log."""
        with suppress(StorageError):
            self.saver.finish()
        self.results.log.close()

    @contextmanager
    def _watched_progress(self, batches: int) -> Iterator[Callable[[int], None]]:
        """Shows an evaluation's progress and watches it for hangs; yields the callback to call after each batch."""
        progress = self._progress(batches)
        with Watchdog(self.options.run.hang_seconds, self._record) as watchdog:

            def on_batch(number: int) -> None:
                watchdog.beat()
                progress.update(number)

            yield on_batch
        progress.close()

    def _tell_counts(self, loader: ParquetLoader) -> None:
        """Reports ids that were cut off or out of vocabulary in the loader's latest epoch. A collective."""
        names = [columns.name for columns in self.inputs.layout.categorical]
        own = np.array([loader.out_of_vocabulary[name] for name in names], np.int64)
        counts = self.comm.sum_array(own) if names else own
        for name, replaced in zip(names, counts.tolist(), strict=True):
            if cut := loader.truncated[name]:
                self.say(f"warning: {name}: {cut:,} lists were longer than max_hotness and were cut")
            if replaced:
                policy = self.options.data.oov_policy
                self.say(f"warning: {name}: {replaced:,} ids outside of the table (--oov_policy {policy})")


def _told_of_end(position: Position, training: TrainingOptions, stopping: EarlyStopping) -> str:
    """Describe why there is nothing to train, and which flags would continue the run."""
    raises = [f"--num_epochs above {training.num_epochs}"] if position.epoch >= training.num_epochs else []
    if stopping.is_over:
        raises.append(f"--early_stopping_patience above {stopping.state.epochs_since_best} (or none)")
    why = f" ({stopping.reason})" if stopping.is_over else ""
    return f"nothing to do: this run is finished{why}; it would continue with {' and '.join(raises)}"


def _check_labels_for_all(options: Options, inputs: Inputs, comm: Comm) -> None:
    """Check the labels on rank 0 while the other workers wait, then continue or fail on all of them. A collective.

    Raises:
        RejectedByAll: nothing can be learned from the labels, or the files cannot be read.
    """
    if comm.local_rank == 0:
        print(f"worker 0 of {comm.size} checks the labels; the others wait for it", flush=True)
    problem = ""
    if comm.rank == 0:
        try:
            for text in check_labels(options, inputs.spec):
                warn(text)
        except DataError as error:
            problem = str(error)
    problem = comm.broadcast_bytes(problem.encode()).decode()
    if problem:
        raise RejectedByAll(problem)


def execute(
    options: Options,
    inputs: Inputs,
    launch: WorkerEnv,
    record: WorkerRecord | None = None,
    stop: StopRequest | None = None,
) -> None:
    """Train, evaluate, predict or benchmark as the options request.

    Args:
        options: the resolved configuration.
        inputs: specification, embedding widths and loaders.
        launch: rank and size of this process as its launcher announced them.
        record: this worker's status file; None inside an application, whose process no watchdog may end.
        stop: flag set by a stop signal; None inside an application, which handles its own signals.
    """
    run = Run(options, inputs, launch, record, stop)
    try:
        if options.run.benchmark:
            run.benchmark()
        elif options.run.predict is not None:
            run.predict(options.run.predict)
        elif options.run.evaluate:
            run.evaluate()
        else:
            run.train()
    finally:
        run.close()
