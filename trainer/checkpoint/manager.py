"""Saves a run's checkpoints and model folder, checks whether a checkpoint may be resumed, and restores it."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.storage.checksummed_dir import StorageError
from data.storage.typed_json import read_typed
from trainer.checkpoint.background_writer import Handover
from trainer.checkpoint.facts import MAX_HOTNESS, Identity, Position, RunFacts, Schema
from trainer.checkpoint.model_folder import (
    ARCHITECTURE,
    MODEL_FOLDER,
    SIZES,
    SPECIFICATION,
    Architecture,
    Document,
    encoder_documents,
    write_model,
)
from trainer.checkpoint.saved_config import from_json
from trainer.checkpoint.state import TrainState
from trainer.checkpoint.store import Checkpoint, CheckpointStore, NoCheckpointError
from trainer.comm import Comm
from trainer.config import ModelOptions, Options
from trainer.early_stopping import Stopping
from trainer.inputs import Inputs
from trainer.logging.log import to_plain, warn
from trainer.models import model_options
from trainer.tasks.evaluation import headline_metrics, is_better

NAN = float("nan")


def agreed_model_options(options: ModelOptions, comm: Comm) -> ModelOptions:
    """Return rank 0's model flags on every worker. A collective."""
    values = comm.broadcast_bytes(json.dumps(vars(options)).encode())
    return model_options(**from_json(json.loads(values)))


def agreed_schema(schema: Schema, comm: Comm) -> Schema:
    """Return rank 0's schema on every worker. A collective."""
    values = comm.broadcast_bytes(json.dumps(asdict(schema)).encode())
    return read_typed(Schema, json.loads(values), "schema")


class Saver:
    """Saves and restores a run. Rank 0 reads and writes all files; the other workers exchange values with it.

    Args:
        options: the resolved configuration.
        inputs: specification, embedding widths and loaders.
        comm: collectives over the workers.
    """

    def __init__(self, options: Options, inputs: Inputs, comm: Comm):
        self._options, self._inputs, self._comm = options, inputs, comm
        self._store = CheckpointStore(options.data.model_dir, keep=options.run.keep_checkpoints)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[Path] | None = None

    def save(self, state: TrainState, position: Position, stopping: Stopping) -> None:
        """Writes a checkpoint in a background thread. A collective.

        Returns once all but a few blocks of the state are written and the rest is copied, so the memory that a save
        needs does not grow with the state, and the variables may be changed again.

        A failed save is reported when the next one begins, or by `has_failed`. Training can continue: the previous
        checkpoint is untouched.

        Args:
            state: the variables to save.
            position: the position in the run from which the checkpoint resumes.
            stopping: the state of early stopping.
        """
        if self._comm.rank != 0:
            state.take_part_in_save()
            return
        # Only the latest save is tracked, so a failure of the previous one is reported first.
        if self._writing is not None:
            self.has_failed(wait=True)
        step = position.step(self._inputs.train_loader.steps_per_epoch)
        write = partial(self._store.save, step, state=self._facts(position, stopping, {}))
        # The blocks are read in this thread, since reading those of sharded variables is a collective.
        handover = Handover(state.sources())
        self._writing = self._writer.submit(handover.save, write)
        handover.fill()

    def evaluated(self, position: Position, stopping: Stopping, metrics: dict[str, float]) -> None:
        """Records an epoch's evaluation in its checkpoint, in the background and after the save has ended.

        The best checkpoint so far, by the metric of early stopping, is kept in addition to the newest ones. A run
        that dies before the evaluation is recorded repeats it when it is resumed.

        Args:
            position: the checkpoint's position, now marked as evaluated.
            stopping: the state of early stopping after this evaluation.
            metrics: the metrics of the evaluation.
        """
        if self._comm.rank == 0:
            key = stopping.metric
            step = position.step(self._inputs.train_loader.steps_per_epoch)
            amend = partial(self._store.amend, step, state=self._facts(position, stopping, metrics))
            self._writing = self._writer.submit(self._record, self._writing, amend, key, metrics[key])

    def _record(self, saving: Future[Path] | None, amend: Callable[..., Path], key: str, value: float) -> Path:
        if saving is not None:
            saving.result()  # raises the error of a failed save, whose checkpoint cannot be amended
        return amend(best=is_better(key, value, self._best_value(key)))

    def has_failed(self, wait: bool = False) -> bool:
        """Returns whether a save has failed since the last call, and prints its error as a warning.

        Args:
            wait: whether to wait for a save in progress instead of ignoring it.
        """
        if self._writing is None or not (wait or self._writing.done()):
            return False
        try:
            self.finish()
        except StorageError as error:
            warn(f"{error} Training goes on; the next save is tried as usual.")
            return True
        return False

    def finish(self) -> None:
        """Waits for the save in the background, if there is one.

        Raises:
            StorageError: the save has failed.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def resume(self, state: TrainState) -> RunFacts:
        """Restores a checkpoint from which this run can resume, on every worker. A collective.

        Returns:
            The checkpoint's facts, including the position from which training resumes.

        Raises:
            NoCheckpointError: there is no intact checkpoint.
            DataError: the checkpoint belongs to another model, or to a run with another order of samples, so that the
                remaining steps would not see the remaining samples.
        """
        checkpoint, found = None, b""
        if self._comm.rank == 0:
            checkpoint, facts = self._open()
            saved = vars(facts.identity)
            changed = [
                f"{name} was {saved[name]!r} and is {value!r}"
                for name, value in vars(self._identity()).items()
                if saved[name] != value
            ]
            if changed:
                raise DataError(
                    f"{checkpoint.path} cannot be resumed: {'; '.join(changed)}. The remaining steps would not "
                    "see the samples that are left. Restore these, or start again in another --model_dir."
                )
            if facts.position.step(self._inputs.train_loader.steps_per_epoch) != checkpoint.step:
                raise NoCheckpointError(
                    f"{checkpoint.path} is of step {checkpoint.step}, and its place in the epoch of another"
                )
            found = json.dumps(asdict(facts)).encode()
        state.restore(checkpoint)
        return read_typed(RunFacts, json.loads(self._comm.broadcast_bytes(found)), "state")

    def restore_weights(self, weights: TrainState) -> Path:
        """Restores the model's weights on every worker and returns the checkpoint's folder. A collective.

        Raises:
            NoCheckpointError: there is no intact checkpoint.
            DataError: the checkpoint belongs to another model.
        """
        checkpoint, found = None, b""
        if self._comm.rank == 0:
            checkpoint, _ = self._open()
            found = str(checkpoint.path).encode()
        weights.restore(checkpoint)
        return Path(self._comm.broadcast_bytes(found).decode())

    def write_best_model(self, weights: Sequence[str]) -> Path | None:
        """Writes the model folder with the weights of the best checkpoint, or of the last one if none is the best.

        Args:
            weights: names of the model's weights.

        Returns:
            The folder on rank 0, None on the other workers.

        Raises:
            StorageError: the folder cannot be written.
        """
        if self._comm.rank != 0:
            return None
        checkpoint = self._store.open("best")
        spec, data = self._inputs.spec, self._options.data
        architecture = Architecture(
            model=self._options.model.model,
            tasks=tuple(label.name for label in spec.labels),
            options=to_plain(vars(self._options.model)),
            step=checkpoint.step,
            metrics=RunFacts.of(checkpoint).metrics,
        )
        documents: dict[str, Document] = {
            ARCHITECTURE: asdict(architecture),
            SPECIFICATION: spec.to_yaml(),
            SIZES: {columns.name: columns.width for columns in self._inputs.layout.categorical},
        }
        try:
            documents |= encoder_documents(spec.folder, allow_outside_paths=data.allow_outside_paths)
        except DataError as error:  # checked before the first step, so this is no mistake in the inputs
            raise StorageError(f"cannot write the model folder: {error}") from error
        folder = Path(data.model_dir) / MODEL_FOLDER
        write_model(folder, [checkpoint.source(name) for name in weights], documents)
        return folder

    def last_metrics(self) -> dict[str, float]:
        """Returns the metrics of the last checkpoint on rank 0, NaN where undefined; an empty dict elsewhere."""
        if self._comm.rank != 0:
            return {}
        metrics = RunFacts.of(self._store.open("last", verify=False)).metrics
        return {key: NAN if value is None else value for key, value in metrics.items()}

    def main_metric(self, keys: Sequence[str]) -> str:
        """Returns the key of the metric that decides which checkpoint is the best.

        This is --early_stopping_metric; by default MAP@12 if there are groups, else ROC AUC, else RMSE.

        Args:
            keys: keys of the metrics that are computed.

        Raises:
            DataError: --early_stopping_metric is not one of the keys.
        """
        asked = self._options.training.early_stopping_metric
        if asked is not None and asked not in keys:
            raise DataError(f"--early_stopping_metric {asked!r} is not one of {', '.join(keys)}")
        # Each metric's own key with one task, the mean over tasks with several.
        defaults = [key for name in headline_metrics() for key in (name, f"{name}/mean")]
        return asked or next(key for key in defaults if key in keys)

    def best_value(self, key: str) -> float | None:
        """Returns the best checkpoint's value of a metric on every worker, None if unknown. A collective."""
        value = self._best_value(key) if self._comm.rank == 0 else None
        return json.loads(self._comm.broadcast_bytes(json.dumps(value).encode()))

    def _best_value(self, key: str) -> float | None:
        """Returns `best_value` on rank 0: this metric's value, whichever metric made the checkpoint the best."""
        best = self._store.best()
        try:
            return None if best is None else RunFacts.of(best).metrics.get(key)
        except NoCheckpointError as error:
            warn(f"{error} It is not compared with.")
            return None

    def _open(self) -> tuple[Checkpoint, RunFacts]:
        """Opens the requested checkpoint and checks that it has the model's features and tasks in the same order."""
        checkpoint = self._store.open(self._options.run.which_checkpoint)
        facts, inputs = RunFacts.of(checkpoint), self._inputs
        widths = {columns.name: columns.width for columns in inputs.layout.categorical}
        # No weight depends on max_hotness, but the ids that training sees do.
        ignoring = () if self._options.run.trains else (MAX_HOTNESS,)
        arranged = facts.schema.arrange(inputs.spec, widths, str(checkpoint.path), "the specification", ignoring)
        if arranged.channels != inputs.spec.channels:
            raise DataError(
                f"{checkpoint.path} has its features in another order than the checkpoint that this run began with; "
                f"add --checkpoint {checkpoint.path}"
            )
        return checkpoint, facts

    def _facts(self, position: Position, stopping: Stopping, metrics: dict[str, float]) -> dict[str, Any]:
        """Returns the JSON state of a checkpoint: everything besides its arrays."""
        facts = RunFacts(
            identity=self._identity(),
            position=position,
            stopping=stopping,
            schema=self._inputs.schema,
            options=self._options.as_dict(),
            metrics=to_plain(metrics),
        )
        return asdict(facts) | {"stopping": to_plain(vars(stopping))}

    def _identity(self) -> Identity:
        training = self._options.training
        return Identity(
            seed=training.seed,
            global_batch_size=training.global_batch_size,
            train_mapping=self._options.data.train_mapping,
            training_data=self._inputs.train_loader.fingerprint,
        )
