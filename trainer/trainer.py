"""The Trainer: trains, evaluates, predicts and benchmarks a configured model."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from pathlib import Path

import numpy as np
import tensorflow as tf

from data.loading.batch import Batch
from data.loading.loader import ParquetLoader
from data.spec.features import Feature
from data.storage.checksummed_dir import StorageError
from trainer.benchmark import Plan, benchmark_evaluation, benchmark_training
from trainer.build import Training, make_model, make_training, start_at_base_rates
from trainer.checkpoint.fingerprints import check_state
from trainer.checkpoint.manager import CheckpointManager
from trainer.checkpoint.mirror import place
from trainer.checkpoint.rates import changed_rates
from trainer.checkpoint.run_state import EarlyStoppingState, Position
from trainer.checkpoint.state import TrainState
from trainer.checkpoint.store import probe
from trainer.comm import Comm
from trainer.config import Options
from trainer.early_stopping import EarlyStopping, main_metric
from trainer.embeddings.pretrained import fill_from_files
from trainer.embeddings.touched_rows import TouchedRows
from trainer.evaluate import Evaluator, Forward, describe, undefined_warnings
from trainer.expert_monitor import ExpertMonitor, monitor_of
from trainer.importance import (
    BLOCKS,
    SampleModel,
    batches_per_pass,
    choose_rows,
    draw_sample,
    input_features,
    measure_importance,
)
from trainer.importance_file import SCHEMA, Importance, write_importance
from trainer.inputs import Inputs
from trainer.lifecycle.errors import NotFinite, StoppedBySignal, how_to_stay_finite
from trainer.lifecycle.records import WorkerRecord
from trainer.lifecycle.signals import StopRequest
from trainer.lifecycle.step_control import Decision, StepControl
from trainer.lifecycle.watchdog import SLOW_SECONDS, Watchdog
from trainer.logging.profiling import StepProfiler, nvtx_range
from trainer.logging.progress import Progress
from trainer.logging.step_times import timed
from trainer.metrics.calibration import CalibrationError, as_records
from trainer.metrics.rows import GrowingArray, Rows
from trainer.optimizers.schedules import Plateau
from trainer.packing import Packed
from trainer.predictions import PredictionWriter
from trainer.process.device import on_gpu
from trainer.results import Results
from trainer.step import StepResult, step_input
from trainer.tasks.binary import logit_maps_of, with_logit_maps
from trainer.tasks.evaluation import Evaluation, metric_of
from trainer.tasks.logit_map import LogitMap, described
from trainer.tasks.score import Score
from trainer.tasks.shifts import label_of_kept_negatives, logit_among_kept, without_negative_factor
from trainer.tasks.task import logit_columns, tasks_of
from trainer.training_log import TrainingLog

# Evaluation batches between two collectives that ask whether any worker has received a stop signal.
BATCHES_BETWEEN_STOP_CHECKS = 8


@dataclass(frozen=True)
class Services:
    """The services of a dedicated process, such as main.py. An application that trains in its own process has none.

    Attributes:
        record: this worker's status file, through which the watchdog ends a process that hangs.
        stop: whether a signal has requested a stop.
    """

    record: WorkerRecord | None = None
    stop: StopRequest = field(default_factory=lambda: StopRequest(None))


class Trainer:
    """Trains, evaluates, predicts and benchmarks a model on one worker. All methods are collectives.

    Args:
        config: the resolved configuration.
        data: specification, embedding widths and loaders (see `open_inputs`).
        comm: collectives over the workers (see `start_worker`).
        services: status file and signals of the process; None inside an application.

    Raises:
        DataError: the log cannot be written.
    """

    def __init__(self, config: Options, data: Inputs, comm: Comm, services: Services | None = None):
        self.config, self.data, self.comm, self.services = config, data, comm, services or Services()
        self.results = Results(config, comm.rank)
        self.say = self.results.say
        maps = {label: LogitMap(shift) for label, shift in data.shifts.items()}
        self.tasks, self.score = with_logit_maps(tasks_of(data.spec), maps), Score.of(data.spec)
        self.model = make_model(config, data, comm)
        if not config.run.restores:
            for line in fill_from_files(self.model.embeddings, data.spec):
                self.say(line)
        # The table rows looked up since the last full checkpoint; None if all checkpoints are full.
        self._touched = TouchedRows(self.model.embeddings.groups) if config.run.saves_differences else None
        self.checkpoints = CheckpointManager(config, data.spec, data.schema, comm, data.training, maps, self._touched)
        self.watchdog = Watchdog(config.run.hang_seconds, self.services.record)
        self.control = StepControl(comm, self.services.stop, self.watchdog, config.run.save_interval)
        self._started: tuple[int, StepResult] | None = None  # a step that the device may still be working on
        self._checked_step = 0  # the last step after which all losses so far were known to be finite
        self.say(f"{config.model.model}: {self.model.parameters:,} parameters{self._describe_tables()}")
        if self.score is not None:
            self.say(f"score: {self.score.formula.text}")

    # Parts that only some runs need are built on first use.

    @cached_property
    def training(self) -> Training:
        """The training step, its learning rate schedule, and all variables that a checkpoint holds."""
        loader = self.data.train_loader
        return make_training(self.config, self.model, self.comm, loader.steps_per_epoch, loader.local_batch_size)

    @cached_property
    def evaluator(self) -> Evaluator:
        """Evaluates the model on the evaluation mapping."""
        run = self.config.run
        evaluation = Evaluation(
            self.tasks,
            with_group=self.data.with_group,
            num_auc_thresholds=run.num_auc_thresholds,
            ranking_metrics=run.ranking_metrics,
            slices=run.slice,
            slice_values=run.slice_values,
            score=self.score,
            score_label=run.score_label,
        )
        return Evaluator(self.model, self.data.eval_loader, evaluation, self.comm, xla=self.config.training.xla)

    @cached_property
    def best_by(self) -> str:
        """The key of the metric that decides which checkpoint is the best, and when training ends."""
        options, keys = self.config.training, self.evaluator.evaluation.keys
        # MAP@12 varies between epochs by more than it still improves: the loss chooses models with a better one, too.
        return main_metric(keys, options.early_stopping_metric, prefers_loss=options.recipe == "auto")

    @cached_property
    def stopping(self) -> EarlyStopping:
        """Early stopping, updated after each epoch."""
        return EarlyStopping(self.best_by, self.config.training.early_stopping_patience)

    @cached_property
    def expert_monitor(self) -> ExpertMonitor | None:
        """Monitors the gates in each evaluation; None for a model without gates."""
        return monitor_of(self.model, self.evaluator.loader.rows, self.comm)

    @cached_property
    def log(self) -> TrainingLog:
        """The log of training steps."""
        return TrainingLog(self.results, self.data.train_loader, self.tasks, self.config.training.num_epochs, self.comm)

    @cached_property
    def profiler(self) -> StepProfiler:
        """Traces the steps in --profile_steps."""
        return self.results.profiler()

    # Training

    def fit(self) -> dict[str, float]:
        """Train to the end of the run, saving and evaluating after each epoch.

        Returns:
            The metrics of the last evaluation.

        Raises:
            StoppedBySignal: a worker received a stop signal; all workers have stopped and a checkpoint is written.
            NotFinite: a loss, gradient or weight is NaN or infinite; the last checkpoint is valid.
            WorkersDiffer: the workers no longer hold the same weights.
            StorageError: the last save has failed.
        """
        position = self._restore_or_share()
        if self._is_complete(position):
            self.say(self._how_to_continue(position))
            with self.watchdog:
                self._finish_outputs()
            return self._conclude(self.checkpoints.last_metrics())
        metrics: dict[str, float] = {}
        with self.watchdog, self.profiler:
            self.services.stop.has_begun = True
            while not self._is_complete(position):
                if position.is_evaluated:
                    self._train_epoch(position)
                    position = Position(position.epoch + 1, is_evaluated=False)
                # Saved before it is evaluated: a run that dies in the evaluation resumes there, not an epoch earlier.
                self._save(position)
                metrics = self._evaluate_epoch(position)
                position = Position(position.epoch)
                self.stopping.update(metrics)
                self._reduce_rate()
                self.checkpoints.record_evaluation(position, self.stopping.state, metrics, self.best_by)
            self.checkpoints.finish()
            if position.epoch < self.config.training.num_epochs:
                self.log.progress.message(f"stopping: {self.stopping.reason}")
            self.log.progress.close()
            self._report_changed_ids(self.data.train_loader)
            self._report_caches()
            self._finish_outputs()
        return self._conclude(metrics)

    def _train_epoch(self, position: Position) -> None:
        """Train the remaining steps of the position's epoch, and move the position along."""
        loader, step, check_every = self.data.train_loader, self.training.step, self.config.run.fingerprint_every
        self.log.start(self._step(position))
        step.running_losses.set(position.losses)
        self._checked_step = self._step(position)
        inputs = loader.epoch(self.checkpoints.origin.epochs + position.epoch, position.steps, self._prepare)
        with closing(inputs) as batches:
            for (batch, rows), waited in timed(batches):
                position.steps += 1
                number = self._step(position)
                self.log.add_wait(waited)
                # The number is a tensor: a Python int would retrace the graph at every step.
                arguments = batch, tf.constant(number), self.control.control_flags()
                with self.profiler.step(number):
                    result = step.run(*arguments)  # not awaited: a GPU runs it in the background
                # Not as soon as they are looked up: a save must not clear marks of batches that are still ahead.
                if self._touched is not None:
                    self._touched.add(rows)
                self.results.board.graph_of(step.run, *arguments)
                self._after_start(position, (number, result))
                if check_every and number % check_every == 0:
                    check_state(self.training.state, number)
        self._after_start(position, None)
        position.losses = self._check_losses(self._step(position))
        step.weighting.end_epoch(position.mean_losses)

    def _prepare(self, batch: Batch) -> tuple[Packed, list[np.ndarray]]:
        """Return a step's input, and the rows of each group of tables that it looks up. This runs ahead of the step."""
        lookups, values = self.model.embeddings.lookups(batch.ids), self.model.layout.row_values(batch)
        inputs = step_input(batch, lookups, values, self.tasks)
        return self.training.step.packing.pack(inputs), [found.rows for found in lookups]

    def _after_start(self, position: Position, started: tuple[int, StepResult] | None) -> None:
        """Handle the result of the last step, and save or stop if the workers decided so in it.

        On a GPU this is the step before the one just started, so that the device always has one to work on while the
        host prepares the next batch. A CPU has nothing to overlap: the result is that of the step just started.

        Args:
            position: the position after the step just started.
            started: number and result of the step just started; None at the end of an epoch.
        """
        result, self._started = (self._started, started) if on_gpu() or started is None else (started, None)
        if result is None:
            return
        decision = self._handle_result(*result)
        is_epoch_done = position.steps == self.data.train_loader.steps_per_epoch  # which saves anyway
        if decision.stop or (decision.save and not is_epoch_done):
            # The weights are those after the step just started: its result is due before they are saved.
            if self._started is not None:
                self._handle_result(*self._started)
                self._started = None
            self._save(position)
            if decision.stop:
                self._stop_run(position)

    def _handle_result(self, number: int, result: StepResult) -> Decision:
        """Handle the result of a step, once it has ended, and return what the workers decided in it.

        Only the control flags are read in every step. Losses are read when they are logged.
        """
        run, steps_per_epoch = self.config.run, self.data.train_loader.steps_per_epoch
        done = number - self.checkpoints.origin.steps
        flags = result.control_flags.numpy()  # a synchronization point: waits until the step has ended
        self.log.add_step(number, float(result.waited))
        self.control.beat()
        if self.checkpoints.has_failed():
            self.control.failed()
        if number % run.log_every == 0 or done == 1 or done % steps_per_epoch == 0:
            rate = float(self.training.schedule(tf.constant(done)))
            self.log.record(number, result.losses.numpy(), rate)
            self._check_losses(number if self._started is None else self._started[0])
        return self.control.decide(flags, number)

    def _save(self, position: Position) -> None:
        """Save a checkpoint, after checking that the workers hold the same finite values."""
        self.control.beat(allow=SLOW_SECONDS)  # a save may take long: the watchdog must not take it for a hang
        step = self._step(position)
        losses = self._check_losses(step)
        position.losses = losses if position.steps else []  # none between epochs
        state = self.training.state
        chosen = self.checkpoints.rows_to_save(state, position)
        check_state(state, step, chosen)
        with nvtx_range("save"):
            self.checkpoints.save(state, position, self.stopping.state, chosen)
        self.control.saved()
        self.control.beat(allow=SLOW_SECONDS)
        self.log.restart_step()

    def _check_losses(self, step: int) -> list[float]:
        """Return the sums of each task's losses over the steps of the epoch so far.

        Args:
            step: number of the last step that has been started.

        Raises:
            NotFinite: since the last check, a step had a loss or a gradient that is NaN or infinite.
        """
        sums, is_finite = self.training.step.running_losses.read()
        if not is_finite:
            first = self._checked_step + 1
            steps = f"step {step}" if first >= step else f"one of the steps {first} to {step}"
            advice = how_to_stay_finite(is_float16=self.training.step.loss_scale.dynamic)
            raise NotFinite(
                f"the loss or its gradient is NaN or infinite in {steps}. No weight has changed since, and the "
                f"checkpoints of earlier steps are kept. {advice}"
            )
        self._checked_step = step
        return sums.tolist()

    def _stop_run(self, position: Position) -> None:
        self.checkpoints.finish()
        # Used as a barrier: a launcher kills all workers as soon as one exits, and rank 0 has been writing until now.
        self.control.any_stop_requested()
        total = self._step(Position(self.config.training.num_epochs))
        raise StoppedBySignal(
            f"stopped by a signal after step {self._step(position)} of {total}, which is saved; resume with "
            "--use_checkpoint"
        )

    def _evaluate_epoch(self, position: Position) -> dict[str, float]:
        """Evaluate the model after an epoch that has been saved, log the metrics and return them."""
        steps_done, epoch = self._step(position), position.epoch
        log, progress, monitor = self.results.log, self.log.progress, self.expert_monitor
        self.control.beat(allow=SLOW_SECONDS)
        started = time.perf_counter()

        def on_batch(batch: int) -> None:
            self.control.beat()
            progress.update(None, note=f"evaluating {batch}")
            if batch % BATCHES_BETWEEN_STOP_CHECKS == 0 and self.control.any_stop_requested():
                self._stop_run(position)

        with nvtx_range("evaluation"), self.training.step.optimizer.averaged(steps_done):
            metrics = self.evaluator.run(on_batch=on_batch, observe=None if monitor is None else monitor.see)
        rate = self.evaluator.loader.rows / (time.perf_counter() - started)
        log.log([steps_done], metrics | {"epoch": epoch, "validation_throughput": rate})
        if curves := as_records(self.evaluator.evaluation.curves):
            log.log([steps_done], curves | {"epoch": epoch})
        self.results.record_slices([steps_done], self.evaluator.evaluation.slices)
        progress.message(f"epoch {epoch}/{self.config.training.num_epochs}: {describe(metrics)}")
        self.log.warn(undefined_warnings(self.evaluator.evaluation.undefined))
        if math.isnan(metrics[self.best_by]):
            self.log.warn([f"without a value of {self.best_by} this epoch cannot be the best, nor count for patience"])
        if monitor is not None:
            values, warnings = monitor.measure()
            log.log([steps_done], values | {"epoch": epoch})
            self.results.board.histograms(steps_done, monitor.gate_weights())
            self.log.warn(warnings)
        return metrics

    # The beginning and the end of training

    def _restore_or_share(self) -> Position:
        """Restore the requested checkpoint, or give all workers rank 0's initial weights.

        Returns:
            The position to train from.
        """
        if self.comm.rank == 0:
            probe(self.config.data.model_dir)
        state, stopping = self.training.state, self.stopping
        self.training.step.forget_cached()
        self.say(f"the best checkpoint and the end of training are chosen by {self.best_by}, on {self.data.evaluated}")
        if not self.config.run.use_checkpoint:
            if self.comm.rank == 0 and self.config.training.output_bias == "base_rate":
                start_at_base_rates(self.config, self.model, self.data.spec)
            if self.config.run.warm_start is None:
                state.share()
                return Position()
            for line in self.checkpoints.warm_start(state, self.data.layout, set(self.model.weights_by_name)):
                self.say(line)
            self._set_origin()
            return Position()
        facts = self.checkpoints.resume(state)
        self._set_origin()
        if facts.stopping.metric == stopping.key:
            stopping.state = facts.stopping
        else:
            stopping.state = EarlyStoppingState(stopping.key, self.checkpoints.best_value(stopping.key))
            self.say(
                f"early stopping looked at {facts.stopping.metric} and looks at {stopping.key} now: patience starts "
                f"again, and the value to improve on is {stopping.state.best}"
            )
        steps_per_epoch = self.data.train_loader.steps_per_epoch
        done, total = self._step(facts.position), self._step(Position(self.config.training.num_epochs))
        self.say(f"resuming after step {done} of {total}")
        self._reduce_rate()
        if not self._is_complete(facts.position):
            for warning in changed_rates(
                facts.rates, self.config, steps_per_epoch, facts.position.step(steps_per_epoch)
            ):
                self.say(f"warning: {warning}")
        return facts.position

    def _set_origin(self) -> None:
        """Continue to count from what the model has been trained for before this run."""
        steps = self.checkpoints.origin.steps
        self.training.step.optimizer.origin.assign(steps)
        self.log.origin = steps

    def _reduce_rate(self) -> None:
        """Set the learning rate of a plateau schedule by the epochs that have not improved the metric."""
        if isinstance(self.training.schedule, Plateau):
            self.training.schedule.reduce(self.stopping.state.epochs_without_improvement)

    def _step(self, position: Position) -> int:
        """Return the number of steps that the model has been trained for, before this run and in it."""
        return self.checkpoints.step(position)

    def _is_complete(self, position: Position) -> bool:
        """Return whether all epochs are trained and evaluated, or early stopping has ended the run."""
        is_last = position.epoch >= self.config.training.num_epochs
        return position.is_evaluated and (is_last or (position.is_between_epochs and self.stopping.is_over))

    def _how_to_continue(self, position: Position) -> str:
        """Describe why there is nothing to train, and which flags would continue the run."""
        num_epochs, stopping = self.config.training.num_epochs, self.stopping
        flags = [f"--num_epochs above {num_epochs}"] if position.epoch >= num_epochs else []
        if stopping.is_over:
            flags.append(f"--early_stopping_patience above {stopping.state.epochs_since_best} (or none)")
        why = f" ({stopping.reason})" if stopping.is_over else ""
        return f"nothing to do: this run is complete{why}; to continue it, set {' and '.join(flags)}"

    def _conclude(self, metrics: dict[str, float]) -> dict[str, float]:
        """Write the model folder and the final metrics, also for a complete run that died before it wrote them."""
        folder = self.checkpoints.write_best_model(list(self.model.weights_by_name))
        self.say(f"model: {folder and place(folder)}")
        self.results.conclude(metrics)
        return metrics

    def _finish_outputs(self) -> None:
        """Fit what predictions of the best checkpoint apply to its logits, and record it and the score there.

        The model then has the weights of that checkpoint if anything was fitted.
        """
        kind = self.config.training.calibrate
        label = label_of_kept_negatives(self.data.spec, self.config.data.train_mapping)
        if kind is not None or label is not None:
            self.control.beat(allow=SLOW_SECONDS)  # to restore, read the first rows and compile the forward pass
            self.checkpoints.restore_weights(TrainState(self.model.weights_by_name, self.comm), "best")
        if label is not None:
            self._fit_intercept(label)
        if kind is not None:
            self._calibrate(kind)
        self.checkpoints.record_outputs(logit_maps_of(self.tasks))

    def _fit_intercept(self, label: Feature) -> None:
        """Refit the intercept of a label to training rows, of which a share of the negatives was kept."""
        from trainer.tasks.intercept import MAX_ROWS, fit_intercept  # SciPy's optimizers take a while to import

        rows = self._kept_rows(label, MAX_ROWS)
        self.control.beat(allow=SLOW_SECONDS)
        intercept = fit_intercept(rows, self.comm)
        before = logit_maps_of(self.tasks).get(label.name, LogitMap())
        self._set_logit_maps({label.name: replace(before, shift=before.shift + intercept)})
        number = self.comm.sum_array(np.array([len(rows.labels)], np.int64)).item()
        self.say(f"intercept of {label.name!r}, fitted to {number:,} training rows: logit {intercept:+.5f}")

    def _kept_rows(self, label: Feature, limit: int) -> Rows:
        """Return this worker's training rows for a label, with log-odds among the kept rows as logits. A collective.

        Args:
            label: the label of `label_of_kept_negatives`.
            limit: number of rows of all workers to read, rounded up to whole batches.
        """
        spec, loader, options = self.data.spec, self.data.train_loader, self.config.training
        index = [task.name for task in self.tasks].index(label.name)
        column, to_kept = logit_columns(self.tasks)[index].start, logit_among_kept(spec, label, options)
        take_factor_out = without_negative_factor(spec) if options.negatives == "weights" else None
        steps = min(loader.steps_per_epoch, math.ceil(limit / options.global_batch_size))
        found = GrowingArray(np.float32, 3)
        forward = Forward(self.model, loader.local_batch_size, xla=options.xla)
        with closing(forward.predicted(loader, steps)) as predicted:
            for batch, logits in predicted:
                if take_factor_out is not None:
                    take_factor_out(batch, 0)
                of_batch = np.stack([logits[:, column] + to_kept, batch.labels[:, index], batch.weights], axis=1)
                found.append(of_batch[(batch.weights > 0) & ~np.isnan(batch.labels[:, index])])
                self.control.beat()
        logits, labels, weights = found.rows.T
        return Rows(logits, labels, weights, None)

    def _calibrate(self, kind: str) -> None:
        """Fit the calibrators of --calibrate to the evaluated mapping."""
        from trainer.tasks.calibrators import CALIBRATORS  # SciPy's optimizers take a while to import

        evaluation, mapping = self.evaluator.evaluation, self.data.eval_mapping
        self.evaluator.collect(on_batch=lambda batch: self.control.beat())
        self.control.beat(allow=SLOW_SECONDS)
        fitted = {name: CALIBRATORS[kind](rows, self.comm) for name, rows in evaluation.binary_rows(self.comm)}
        maps = logit_maps_of(self.tasks)
        before = evaluation.result(self.comm, with_slices=False)
        self._set_logit_maps(
            {name: replace(maps.get(name, LogitMap()), calibrator=one) for name, one in fitted.items()}
        )
        after = evaluation.result(self.comm, with_slices=False)
        evaluation.reset()
        for key in after:
            if metric_of(key) is CalibrationError:
                self.say(f"{key} on {mapping!r}, before and after {kind}: {before[key]:.5f}, {after[key]:.5f}")
        self.results.log.log([], as_records(evaluation.curves))

    def _set_logit_maps(self, maps: Mapping[str, LogitMap]) -> None:
        """Replace what predictions apply to the logits of some labels."""
        self.tasks = with_logit_maps(self.tasks, logit_maps_of(self.tasks) | dict(maps))
        self.evaluator.evaluation.tasks = self.tasks

    # Evaluation, prediction and benchmarks

    def evaluate(self) -> dict[str, float]:
        """Evaluate a checkpoint and, with --predictions_file, write its predictions. Return the metrics."""
        checkpoint = self._restore_weights()
        evaluator, path = self.evaluator, self.config.run.predictions_file
        writer = None if path is None else self._prediction_writer(path)
        with self._watched_progress(evaluator.loader.steps_per_epoch) as on_batch:
            metrics = evaluator.run(on_batch=on_batch, predictions=writer)
        self._report_changed_ids(evaluator.loader)
        for reason in undefined_warnings(evaluator.evaluation.undefined):
            self.say(f"warning: {reason}")
        if writer is not None:
            self._write(writer)
            self.say(f"predictions: {path}")
        self.say(f"{checkpoint} on {self.data.evaluated}: {describe(metrics)}")
        self.results.log.log([], as_records(evaluator.evaluation.curves))
        self.results.record_slices([], evaluator.evaluation.slices)
        self.results.conclude(metrics)
        return metrics

    def predict(self, path: Path) -> None:
        """Write a checkpoint's predictions to a file without computing metrics."""
        checkpoint = self._restore_weights()
        evaluator, writer = self.evaluator, self._prediction_writer(path)
        with self._watched_progress(evaluator.loader.steps_per_epoch) as on_batch:
            evaluator.predict(writer, on_batch)
        self._write(writer)
        self.say(f"{checkpoint} on {self.data.evaluated}, {evaluator.loader.rows:,} rows: {path}")

    def measure_importance(self, path: Path) -> None:
        """Write how much the metrics of a checkpoint change when a feature is permuted, for every feature."""
        checkpoint, loader, seed = self._restore_weights(), self.data.eval_loader, self.config.training.seed
        chosen = choose_rows(loader.rows, self.config.run.importance_rows, seed)
        passes = 1 + len(input_features(self.data.layout))
        batches = loader.steps_per_epoch + passes * batches_per_pass(len(chosen), self.comm.size)
        with self._watched_progress(batches) as on_batch:
            numbers = count(1)

            def on_next() -> None:
                on_batch(next(numbers))

            sample = draw_sample(loader, chosen, self.comm, on_next)
            logits_of = SampleModel(self.model, sample, self.comm, xla=self.config.training.xla, on_batch=on_next)
            tasks, undefined = measure_importance(logits_of, sample, self.tasks, self.data.layout, seed)
        self._report_changed_ids(loader)
        for reason in undefined_warnings(undefined):
            self.say(f"warning: {reason}")
        if self.comm.rank == 0:
            rows, mapping = len(sample.weights), self.data.eval_mapping
            write_importance(Importance(SCHEMA, str(checkpoint), mapping, loader.rows, rows, BLOCKS, seed, tasks), path)
        self.say(f"importance: {path}")

    def benchmark(self) -> dict[str, float]:
        """Measure the throughput of training, or of evaluation with --evaluate. Return the figures by name."""
        run = self.config.run
        plan = Plan(run.benchmark_warmup_steps, run.benchmark_steps, run.benchmark_seconds)

        def on_step(number: int, rate: float) -> None:
            self.results.log.log([1, number], {"batch_samplesps": rate})

        if run.evaluate:
            result = benchmark_evaluation(self.evaluator, plan, on_step)
        else:
            self.training.state.share()
            result = benchmark_training(self.training.step, self.data.train_loader, plan, on_step)
        for name, value in result.items():
            self.say(f"{name:<24}{value:>16,.2f}")
        self.results.log.log([], result)
        return result

    def close(self) -> None:
        """Wait for a checkpoint that is being written in the background, then close the log."""
        with suppress(StorageError):
            self.checkpoints.finish()
        self.results.log.close()

    def _restore_weights(self) -> Path:
        """Restore a checkpoint's weights and the logit maps of its predictions, and return its folder."""
        restored = self.checkpoints.restore_weights(TrainState(self.model.weights_by_name, self.comm))
        self.tasks = with_logit_maps(self.tasks, restored.logit_maps)
        if text := described(restored.logit_maps):
            self.say(f"predictions: {text}")
        if restored.calibrate and all(one.calibrator is None for one in restored.logit_maps.values()):
            self.say(
                f"warning: {restored.path} has no calibrator; --calibrate {restored.calibrate} fits one for the best "
                "checkpoint, at the end of training"
            )
        return restored.path

    def _prediction_writer(self, path: Path) -> PredictionWriter:
        data = self.data
        return PredictionWriter(
            path,
            self.tasks,
            score=self.score,
            labelled=data.labelled,
            kept=data.kept,
            kept_names=data.kept_names,
        )

    def _write(self, writer: PredictionWriter) -> None:
        """Write a predictions file, and warn of undefined scores in it."""
        writer.write(self.comm)
        if writer.undefined_scores:
            self.say(
                f"warning: {writer.undefined_scores:,} of {self.data.eval_loader.rows:,} rows have no score: NaN, as "
                "of the logarithm or root of a negative number, or of 0 / 0"
            )

    @contextmanager
    def _watched_progress(self, batches: int) -> Iterator[Callable[[int], None]]:
        """Show an evaluation's progress and watch it for hangs; yield the callback to call after each batch."""
        progress = Progress(batches, enabled=self.comm.rank == 0)
        with self.watchdog:

            def on_batch(number: int) -> None:
                self.watchdog.beat()
                progress.update(number)

            yield on_batch
        progress.close()

    # Messages

    def _describe_tables(self) -> str:
        """Describe where tables are that are not all on the device of every worker."""
        embeddings, text = self.model.embeddings, ""
        tables = embeddings.tables()
        if embeddings.shards is not None:
            sharded = sum(table.is_sharded for table in tables.values())
            text += f"; {sharded} of {len(tables)} tables are sharded over {self.comm.size} worker(s)"
        if embeddings.host.groups:
            variables = (*embeddings.group_variables, *embeddings.frozen_groups)
            groups = [embeddings.groups[index] for index, _ in variables]
            on_host = sum(len(group.tables) for group in groups if embeddings.is_on_host(group))
            text += f"; {on_host} of {len(tables)} tables are in host memory"
        return text

    def _report_caches(self) -> None:
        """Report how many rows of tables in host memory were in this worker's caches."""
        uses = [table.use for table in self.training.step.optimizer.host_tables.values()]
        if rows := sum(use.rows for use in uses):
            hits = sum(use.hits for use in uses)
            self.say(f"tables in host memory: {hits / rows:.1%} of {rows:,} updated rows were in the device's cache")

    def _report_changed_ids(self, loader: ParquetLoader) -> None:
        """Report ids that were cut off or out of vocabulary in the loader's latest epoch."""
        names = [columns.name for columns in self.data.layout.categorical]
        own = np.array([loader.out_of_vocabulary[name] for name in names], np.int64)
        counts = self.comm.sum_array(own) if names else own
        for name, replaced in zip(names, counts.tolist(), strict=True):
            if cut := loader.truncated[name]:
                self.say(f"warning: {name}: {cut:,} lists were longer than max_hotness and were truncated")
            if replaced:
                self.say(f"warning: {name}: {replaced:,} ids outside of the table (--oov_policy {loader.oov_policy})")
