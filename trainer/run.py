"""Puts a run together: model, optimizers, evaluation, checkpoints; then trains, evaluates or measures."""

import json
import os
from dataclasses import replace
from pathlib import Path

from data.errors import DataError
from data.loading.loader import ParquetLoader
from trainer import runtime
from trainer.affinity import set_affinity
from trainer.benchmark import Plan, benchmark_evaluation, benchmark_training
from trainer.checkpoints import probe
from trainer.device import on_gpu
from trainer.distributed import Comm, connect
from trainer.early_stopping import EarlyStopping
from trainer.evaluate import Evaluator
from trainer.health.keys import PARTS as HEALTH
from trainer.health.monitor import monitor_of
from trainer.inputs import Inputs
from trainer.launcher import Launch
from trainer.log import NullLog, RunLog, to_plain
from trainer.loop import TrainingLoop, describe
from trainer.metrics import METRICS_OF_KIND
from trainer.metrics.evaluation import Evaluation
from trainer.models import build_model
from trainer.options import Options
from trainer.predictions import PredictionWriter
from trainer.progress import NullProgress, Progress
from trainer.reliability.records import WorkerRecord
from trainer.report.runs import read_run
from trainer.saving import Saver, agreed_model_options
from trainer.state import RunState
from trainer.step import named
from trainer.tasks import tasks_of
from trainer.training import Training, make_training, shards_of

METRIC_UNITS = {
    "loss": None,
    **dict.fromkeys(name for metrics in METRICS_OF_KIND.values() for name in metrics),
    **dict.fromkeys(HEALTH),
    "train_throughput": "samples/s",
    "validation_throughput": "samples/s",
    "batch_samplesps": "samples/s",
}


class Run:
    """One run of main.py on one worker.

    Args:
        options: the resolved configuration.
        inputs: specification, widths and loaders.
        launch: this process among its workers.
        record: of this worker, for whoever ends the process from another thread.
    """

    def __init__(self, options: Options, inputs: Inputs, launch: Launch, record: WorkerRecord):
        self.options, self.inputs, self.record = options, inputs, record
        training = options.training
        bound = set_affinity(training.affinity, launch.local_rank, launch.local_size)
        self.runtime = runtime.prepare(launch, training)
        if training.xla and options.model.batch_norm and launch.size > 1 and on_gpu():
            raise DataError(
                f"--batch_norm over {launch.size} workers sums moments in the middle of what --xla compiles on a GPU, "
                "which XLA cannot; leave one of the two flags out"
            )
        self.comm: Comm = connect(launch)
        if options.run.restores:
            # Only the first worker has read the checkpoint's flags.
            options = self.options = replace(options, model=agreed_model_options(options.model, self.comm))
        self.tasks = tasks_of(inputs.spec)
        self.saver = Saver(options, inputs, self.comm)
        self.log = self._open_log()
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

    def say(self, text: str) -> None:
        """Prints a line on the first worker."""
        if self.comm.rank == 0:
            print(text, flush=True)

    def _told_of_shards(self) -> str:
        embeddings = self.model.embeddings
        if embeddings.shards is None:
            return ""
        return f"; {len(embeddings.sharded)} of {len(embeddings.tables)} tables are dealt to {self.comm.size} worker(s)"

    def train(self) -> None:
        """Trains to the end, evaluating and saving after each epoch."""
        if self.comm.rank == 0:
            probe(self.options.data.model_dir)
        step, schedule, state = self._training()
        loader, epochs = self.inputs.train_loader, self.options.training.num_epochs
        evaluator = self._evaluator()
        stopping = EarlyStopping(
            self.saver.main_metric(evaluator.evaluation.keys), self.options.training.early_stopping_patience
        )
        loop = TrainingLoop(
            step=step,
            tasks=self.tasks,
            loader=loader,
            evaluator=evaluator,
            stopping=stopping,
            save=lambda steps_done, metrics: self.saver.save(state, steps_done, metrics),
            schedule=schedule,
            num_epochs=epochs,
            log_every=self.options.run.log_every,
            log=self.log,
            progress=self._progress(loader.steps_per_epoch * epochs),
            health=monitor_of(self.model, evaluator.loader.rows, self.comm),
        )
        steps_done = 0
        if self.options.run.use_checkpoint:
            steps_done = self.saver.resume(state)
            if (best := self.saver.best_so_far()) is not None and best[1] <= steps_done:
                stopping.best, stopping.epochs_since_best = best[0], (steps_done - best[1]) // loader.steps_per_epoch
            self.say(f"going on after step {steps_done} of {loop.total_steps}")
        else:
            state.share()
        if steps_done >= loop.total_steps:
            self.say("nothing to do: this run is finished; more --num_epochs would go on with it")
            return
        metrics = loop.run(steps_done)
        loop.progress.close()
        self._tell_truncated(loader)
        self._conclude(metrics)
        self.say(f"model: {self.saver.write_best_model(list(named(self.model.variables)))}")
        if loop.health is not None and self.comm.rank == 0:
            self._draw_gates()

    def evaluate(self) -> None:
        """Evaluates a checkpoint, and writes its predictions where they are asked for."""
        checkpoint = self.saver.restore_weights(self._weights())
        evaluator, path = self._evaluator(), self.options.run.predictions_file
        writer = None if path is None else self._writer(path)
        progress = self._progress(evaluator.loader.steps_per_epoch)
        metrics = evaluator.run(on_batch=progress.update, predictions=writer)
        progress.close()
        if writer is not None:
            writer.write(self.comm)
            self.say(f"predictions: {path}")
        self.say(f"{checkpoint} on mapping {self.inputs.eval_mapping!r}: {describe(metrics)}")
        self._conclude(metrics)

    def predict(self, path: Path) -> None:
        """Writes a checkpoint's predictions to a file, without metrics."""
        checkpoint = self.saver.restore_weights(self._weights())
        evaluator, writer = self._evaluator(), self._writer(path)
        progress = self._progress(evaluator.loader.steps_per_epoch)
        evaluator.predict(writer, progress.update)
        progress.close()
        writer.write(self.comm)
        self.say(f"{checkpoint} on mapping {self.inputs.eval_mapping!r}, {evaluator.loader.rows:,} rows: {path}")

    def benchmark(self) -> None:
        """Measures training, or evaluation with --evaluate."""
        run = self.options.run
        plan = Plan(run.benchmark_warmup_steps, run.benchmark_steps, run.benchmark_seconds)

        def on_step(number: int, rate: float) -> None:
            self.log.log([1, number], {"batch_samplesps": rate})

        if run.evaluate:
            result = benchmark_evaluation(self._evaluator(), self.comm, plan, on_step)
        else:
            step, _, state = self._training()
            state.share()
            result = benchmark_training(step, self.tasks, self.inputs.train_loader, self.comm, plan, on_step)
        for name, value in result.items():
            self.say(f"{name:<24}{value:>16,.2f}")
        self.log.log([], result)

    def _weights(self) -> RunState:
        return RunState(named(self.model.variables), self.comm, self.model.embeddings.sharded)

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

    def _draw_gates(self) -> None:
        """Draws the gates of all epochs in the log; a picture that fails is no reason to lose a trained model."""
        # Imported late: matplotlib takes a second, which no other worker and no other model needs.
        from trainer.report.gates import draw_gates

        data = self.options.data
        try:
            for path in draw_gates(read_run(data.results_dir, "", data.log_filename), data.results_dir):
                self.say(f"gates: {path}")
        except (DataError, OSError) as error:
            self.say(f"warning: the gates could not be drawn: {error}")

    def _progress(self, total: int) -> Progress | NullProgress:
        return Progress(total) if self.comm.rank == 0 else NullProgress()

    def _open_log(self) -> RunLog | NullLog:
        if self.comm.rank != 0:
            return NullLog()
        data, values = self.options.data, self.options.as_dict()
        goes_on = self.options.run.use_checkpoint or not self.options.run.trains
        log = RunLog(data.results_dir / data.log_filename, append=goes_on)
        self._write_json("args.json", values)
        log.parameters(values)
        for metric, unit in METRIC_UNITS.items():
            log.metadata(metric, {"unit": unit})
        return log

    def _conclude(self, metrics: dict[str, float]) -> None:
        """Records the last metrics."""
        self.log.log([], metrics)
        if self.comm.rank == 0:
            self._write_json("metrics.json", to_plain(metrics))

    def _write_json(self, name: str, values: dict[str, object]) -> None:
        path = self.options.data.results_dir / name
        temporary = path.with_name(f".{name}.{os.getpid()}")
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)

    def _tell_truncated(self, loader: ParquetLoader) -> None:
        for name, count in loader.truncated.items():
            if count:
                self.say(f"warning: {name}: {count:,} lists were longer than max_hotness and were cut")


def execute(options: Options, inputs: Inputs, launch: Launch, record: WorkerRecord) -> None:
    """Does what the options ask for."""
    run = Run(options, inputs, launch, record)
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
        run.log.close()
