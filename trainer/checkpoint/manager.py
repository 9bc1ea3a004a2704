"""Saves a run's checkpoints and model folder, checks whether a checkpoint may be resumed, and restores it."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.encoding.workflow_folder import workflow_files
from data.errors import DataError
from data.loading.loader import ParquetLoader
from data.spec.feature_spec import FeatureSpec
from data.storage.checksummed_dir import Content, StorageError
from data.storage.typed_json import read_typed
from trainer.checkpoint.averages import averaged
from trainer.checkpoint.background_writer import COPIED_BYTES, Handover
from trainer.checkpoint.mirror import place
from trainer.checkpoint.model_folder import (
    ARCHITECTURE,
    MODEL_FOLDER,
    SIZES,
    SPECIFICATION,
    Architecture,
    write_model,
)
from trainer.checkpoint.run_state import EarlyStoppingState, Identity, Origin, Position, RunState
from trainer.checkpoint.schema import MAX_HOTNESS, ModelSchema
from trainer.checkpoint.starting_model import open_starting_model
from trainer.checkpoint.state import ChosenRows, TrainState
from trainer.checkpoint.store import Checkpoint, CheckpointStore, NoCheckpointError
from trainer.checkpoint.warm_start import WarmSource
from trainer.comm import Comm
from trainer.config import Options
from trainer.embeddings.touched_rows import TouchedRows
from trainer.layout import InputSchema
from trainer.logging.log import to_plain, warn
from trainer.tasks.evaluation import is_better
from trainer.tasks.logit_map import LogitMap

NAN = float("nan")
# By how many bytes, besides half, a differential checkpoint has to be smaller than a full one: training does not wait
# for a full one that is copied as a whole.
LEAST_SAVING = COPIED_BYTES


class Restored(NamedTuple):
    """What was restored besides the weights.

    Attributes:
        path: folder of the checkpoint.
        logit_maps: what predictions apply to the network's logits, by label.
        calibrate: the flag --calibrate of the run that saved it.
    """

    path: Path
    logit_maps: dict[str, LogitMap]
    calibrate: str | None


class CheckpointManager:
    """Saves and restores a run. Rank 0 reads and writes all files; the other workers exchange values with it.

    Args:
        config: the resolved configuration.
        spec: the feature specification, in the order of the model's inputs and outputs.
        schema: features and tasks of the model.
        comm: collectives over the workers.
        loader: loader of the training mapping; None if the run does not train.
        logit_maps: what predictions of this run's model apply to its logits, by label.
        touched: the table rows that training has looked up since the last full checkpoint; None if all are full.

    Attributes:
        origin: what the model has been trained for before this run, known once it is resumed or warm-started.
    """

    def __init__(
        self,
        config: Options,
        spec: FeatureSpec,
        schema: ModelSchema,
        comm: Comm,
        loader: ParquetLoader | None,
        logit_maps: Mapping[str, LogitMap],
        touched: TouchedRows | None = None,
    ):
        self._config, self._spec, self._schema, self._comm, self._loader = config, spec, schema, comm, loader
        self._logit_maps = dict(logit_maps)
        self._widths = {entry.name: entry.width for entry in schema.features if entry.width is not None}
        self._store = CheckpointStore(config.data.model_dir, keep=config.run.keep_checkpoints)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[Path] | None = None
        self._touched = touched
        self.origin = Origin()
        self._full_step: int | None = None  # of the last full checkpoint of this process, unless a save failed since
        self._saves = 0  # since then, including itself

    def rows_to_save(self, state: TrainState, position: Position) -> ChosenRows | None:
        """Decide whether the next checkpoint is full or differential. A collective.

        Checkpoints within an epoch hold, of the tables, only the rows that training has looked up since the last full
        one. The first checkpoint of a process, each --full_checkpoint_every-th one, those between epochs and those that
        would not be much smaller are full.

        Args:
            state: the variables to save.
            position: the position in the run from which the checkpoint resumes.

        Returns:
            The rows that a differential checkpoint holds of each table; None for a full checkpoint.
        """
        # Only the latest save is tracked, so a failure of the previous one is reported first.
        if self._writing is not None:
            self.has_failed(wait=True)
        if self._touched is None:
            return None
        must_be_full = (
            position.steps == 0 or self._full_step is None or self._saves >= self._config.run.full_checkpoint_every
        )
        # Only rank 0 knows of failed saves.
        if self._comm.sum_array(np.array([must_be_full], np.int64))[0]:
            return None
        chosen = self._touched.of_all_workers(self._comm)
        whole, part = (sum(source.nbytes for source in state.sources(rows)) for rows in (None, chosen))
        return chosen if 2 * part <= whole and whole - part >= LEAST_SAVING else None

    def save(
        self, state: TrainState, position: Position, stopping: EarlyStoppingState, chosen: ChosenRows | None = None
    ) -> None:
        """Write a checkpoint in a background thread. A collective.

        Return once all but the smallest variables are written and these are copied, so the memory that a save needs
        does not grow with the state, and the variables may be changed again.

        A failed save is reported when the next one begins, or by `has_failed`. Training can continue: the previous
        checkpoint is untouched.

        Args:
            state: the variables to save.
            position: the position in the run from which the checkpoint resumes.
            stopping: the state of early stopping.
            chosen: the rows to save of each table, as decided by `rows_to_save`; None for a full checkpoint.
        """
        step, self._saves = self.step(position), self._saves + 1
        if chosen is None:
            self._full_step, self._saves = step, 1
            if self._touched is not None:
                self._touched.clear()
        if self._comm.rank != 0:
            state.take_part_in_save(chosen)
            return
        write = partial(self._store.save, step, state=self._facts(position, stopping, {}))
        if chosen is not None:
            write = partial(write, full=self._full_step, row_numbers=state.row_numbers)
        handover = Handover(state.sources(chosen), collective=state.sharded)
        self._writing = self._writer.submit(handover.save, write)
        handover.fill()

    def record_evaluation(
        self, position: Position, stopping: EarlyStoppingState, metrics: dict[str, float], best_by: str
    ) -> None:
        """Record an epoch's evaluation in its checkpoint, in the background and after the save has ended.

        The best checkpoint so far is kept in addition to the newest ones. A run
        that dies before the evaluation is recorded repeats it when it is resumed.

        Args:
            position: the checkpoint's position, now marked as evaluated.
            stopping: the state of early stopping after this evaluation.
            metrics: the metrics of the evaluation.
            best_by: key of the metric that decides which checkpoint is the best.
        """
        if self._comm.rank == 0:
            amend = partial(self._store.amend, self.step(position), state=self._facts(position, stopping, metrics))
            self._writing = self._writer.submit(self._amend, self._writing, amend, best_by, metrics[best_by])

    def _amend(self, saving: Future[Path] | None, amend: Callable[..., Path], key: str, value: float) -> Path:
        if saving is not None:
            saving.result()  # raises the error of a failed save, whose checkpoint cannot be amended
        return amend(best=is_better(key, value, self._best_value(key)))

    def has_failed(self, wait: bool = False) -> bool:
        """Return whether a save has failed since the last call, and print its error as a warning.

        Args:
            wait: whether to wait for a save in progress instead of ignoring it.
        """
        if self._writing is None or not (wait or self._writing.done()):
            return False
        try:
            self.finish()
        except StorageError as error:
            warn(f"{error} Training continues; the next save is made as scheduled.")
            self._full_step = None  # this may have been the full checkpoint, or it cannot be read any more
            return True
        return False

    def finish(self) -> None:
        """Wait for the save in the background, if there is one.

        Raises:
            StorageError: the save has failed.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def resume(self, state: TrainState) -> RunState:
        """Restore a checkpoint from which this run can resume, on every worker. A collective.

        Returns:
            The checkpoint's state, including the position from which training resumes.

        Raises:
            NoCheckpointError: there is no intact checkpoint.
            DataError: the checkpoint belongs to another model, or to a run with another order of samples, so that the
                remaining steps would not see the remaining samples.
        """
        checkpoint, found = None, b""
        if self._comm.rank == 0:
            checkpoint, facts = self._open(self._config.run.which_checkpoint)
            self._check_identity(checkpoint, facts.identity)
            step = facts.origin.steps + facts.position.step(self._train_loader.steps_per_epoch)
            if step != checkpoint.step:
                raise NoCheckpointError(
                    f"{checkpoint.path} has step {checkpoint.step}, but its position in the epoch belongs to another"
                )
            found = json.dumps(asdict(facts)).encode()
        state.restore(checkpoint)
        resumed: RunState = read_typed(RunState, json.loads(self._comm.broadcast_bytes(found)), "state")
        self.origin = resumed.origin
        return resumed

    def warm_start(self, state: TrainState, layout: InputSchema, weights: Collection[str]) -> list[str]:
        """Overwrite the initial state of a new run with what an earlier model knows, on every worker. A collective.

        Args:
            state: the state, with initial values.
            layout: layout of the model's inputs.
            weights: names of the model's weights.

        Returns:
            Lines about what is matched and what starts cold; none on other workers than rank 0.

        Raises:
            NoCheckpointError: there is no intact model.
            DataError: it has no feature in common with this run's.
        """
        source, found, run = None, b"", self._config.run
        if self._comm.rank == 0 and run.warm_start is not None:
            model = open_starting_model(run.warm_start, run.warm_start_from, verify=True)
            shapes = {name: tuple(variable.shape) for name, variable in state.variables.items()}
            source = WarmSource(model, self._config, self._spec, layout, shapes, weights)
            found = json.dumps(asdict(model.origin)).encode()
        state.start_from(source)
        self.origin = read_typed(Origin, json.loads(self._comm.broadcast_bytes(found)), "origin")
        return [] if source is None else source.report

    def restore_weights(self, weights: TrainState, which: str | None = None) -> Restored:
        """Restore the model's weights on every worker. A collective.

        Args:
            weights: the weights.
            which: the checkpoint, as for `CheckpointStore.open`; None for the one that the flags ask for.

        Raises:
            NoCheckpointError: there is no intact checkpoint.
            DataError: the checkpoint belongs to another model.
        """
        checkpoint, found = None, b""
        if self._comm.rank == 0:
            checkpoint, facts = self._open(which or self._config.run.which_checkpoint)
            maps = {label: asdict(one) for label, one in facts.logit_maps.items()}
            found = json.dumps([str(checkpoint.path), maps, facts.options.get("calibrate")]).encode()
        weights.restore(None if checkpoint is None else averaged(checkpoint, facts))
        path, maps, calibrate = json.loads(self._comm.broadcast_bytes(found))
        return Restored(Path(path), read_typed(dict[str, LogitMap], maps, "state.logit_maps"), calibrate)

    def record_outputs(self, maps: Mapping[str, LogitMap]) -> None:
        """Record in the best checkpoint what its predictions apply to the logits, by label, and the run's score.

        Raises:
            StorageError: the checkpoint cannot be written; it is left unchanged.
        """
        if self._comm.rank == 0:
            checkpoint = self._store.best() or self._store.open("last", verify=False)
            facts, score = RunState.of(checkpoint), self._spec.score
            if (facts.logit_maps, facts.score) != (maps, score):
                state = {"logit_maps": {label: asdict(one) for label, one in maps.items()}, "score": score}
                self._store.amend(checkpoint.step, checkpoint.state | state, checkpoint.best)

    def write_best_model(self, weights: Sequence[str]) -> Path | None:
        """Write the model folder with the weights of the best checkpoint, or of the last one if none is the best.

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
        facts = RunState.of(checkpoint)
        architecture = Architecture(
            model=self._config.model.model,
            tasks=tuple(label.name for label in self._spec.labels),
            options=to_plain(vars(self._config.model)),
            step=checkpoint.step,
            metrics=facts.metrics,
            logit_maps=facts.logit_maps,
        )
        files: dict[str, Content] = {
            ARCHITECTURE: asdict(architecture),
            SPECIFICATION: self._spec.to_yaml(),
            SIZES: self._widths,
        }
        try:
            outside = self._config.data.allow_outside_paths
            files |= workflow_files(self._spec.folder, allow_outside_paths=outside)
        except DataError as error:  # checked before the first step, so the inputs are not to blame
            raise StorageError(f"cannot write the model folder: {error}") from error
        folder = self._config.data.model_dir / MODEL_FOLDER
        source = averaged(checkpoint, facts)
        write_model(folder, [source.source(name) for name in weights], files)
        return folder

    def last_metrics(self) -> dict[str, float]:
        """Return the metrics of the last checkpoint on rank 0, NaN where undefined; an empty dict elsewhere."""
        if self._comm.rank != 0:
            return {}
        metrics = RunState.of(self._store.open("last", verify=False)).metrics
        return {key: NAN if value is None else value for key, value in metrics.items()}

    def best_value(self, key: str) -> float | None:
        """Return the best checkpoint's value of a metric on every worker, None if unknown. A collective."""
        value = self._best_value(key) if self._comm.rank == 0 else None
        return json.loads(self._comm.broadcast_bytes(json.dumps(value).encode()))

    def _best_value(self, key: str) -> float | None:
        """Return `best_value` on rank 0: this metric's value, whichever metric made the checkpoint the best."""
        best = self._store.best()
        try:
            return None if best is None else RunState.of(best).metrics.get(key)
        except NoCheckpointError as error:
            warn(f"{error} It is ignored.")
            return None

    def _open(self, which: str) -> tuple[Checkpoint, RunState]:
        """Open a checkpoint and check that it has the model's features and tasks in the same order."""
        checkpoint = self._store.open(which)
        facts = RunState.of(checkpoint)
        # No weight depends on max_hotness, but the ids that training sees do.
        ignoring = () if self._config.run.trains else (MAX_HOTNESS,)
        arranged = facts.schema.arrange(self._spec, self._widths, str(checkpoint.path), "the specification", ignoring)
        if arranged.channels != self._spec.channels:
            raise DataError(
                f"{checkpoint.path} has its features in another order than the checkpoint that this run started from; "
                f"add --checkpoint {checkpoint.path}"
            )
        return checkpoint, facts

    def _facts(self, position: Position, stopping: EarlyStoppingState, metrics: dict[str, float]) -> dict[str, Any]:
        """Return the JSON state of a checkpoint: everything besides its arrays."""
        facts = RunState(
            identity=self._identity(),
            position=position,
            stopping=stopping,
            schema=self._schema,
            options=self._config.as_dict(),
            metrics=to_plain(metrics),
            logit_maps=self._logit_maps,
            origin=self.origin,
            score=self._spec.score,
        )
        return asdict(facts) | {"stopping": to_plain(vars(stopping))}

    def _identity(self) -> Identity:
        training = self._config.training
        return Identity(
            seed=training.seed,
            global_batch_size=training.global_batch_size,
            train_mapping=self._config.data.train_mapping,
            training_data=self._train_loader.identity,
            negatives=training.negatives,
        )

    def _check_identity(self, checkpoint: Checkpoint, saved: Identity) -> None:
        """Raise a DataError if the remaining steps of a run would not see the samples that are left."""
        now = self._identity()
        before, present = saved.training_data, now.training_data
        if not before.is_same(present):
            raise DataError(
                f"{place(checkpoint.path)} was trained on other rows than those of mapping {now.train_mapping!r} in "
                f"{place(self._spec.folder)}: {before.describe()} then, {present.describe()} now. "
                "Restore the files of that run to resume it; or train its model further on these rows in a new run, "
                f"with --warm_start {place(self._config.data.model_dir)} and another --model_dir."
            )
        changed = [
            f"{item.name} was {getattr(saved, item.name)!r} and is {getattr(now, item.name)!r}"
            for item in fields(Identity)
            if item.name != "training_data" and getattr(saved, item.name) != getattr(now, item.name)
        ]
        if changed:
            raise DataError(
                f"{checkpoint.path} cannot be resumed: {'; '.join(changed)}. The remaining steps would not "
                "see the samples that are left. Restore these, or start again in another --model_dir."
            )

    @property
    def _train_loader(self) -> ParquetLoader:
        if self._loader is None:
            raise ValueError("this run does not train")
        return self._loader

    def step(self, position: Position) -> int:
        """Return the number of steps that the model has been trained for at a position of the run."""
        return self.origin.steps + position.step(self._train_loader.steps_per_epoch)
