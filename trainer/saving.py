"""A run's checkpoints and model folder: what is saved, when it may be gone on from, and how it comes back."""

import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.memory import available_memory
from trainer.checkpoints import Checkpoint, CheckpointStore, print_warning
from trainer.distributed import Comm
from trainer.flags.model_flags import from_json
from trainer.flags.model_options import ModelOptions
from trainer.flags.options import Options
from trainer.inputs import Inputs
from trainer.metrics import is_better
from trainer.model_folder import (
    ARCHITECTURE,
    MODEL_FOLDER,
    SIZES,
    SPECIFICATION,
    Document,
    encoder_documents,
    write_model,
)
from trainer.observation.log import to_plain
from trainer.position import Position
from trainer.sealed.arrays import ArraySource
from trainer.sealed.errors import CheckpointError
from trainer.state import RunState

NAN = float("nan")
# Of the memory that is available before the first step, a copy of the state may take this much: steps take some, too.
LARGEST_SHARE = 0.75
# The first that there is decides which checkpoint is the best.
MAIN_METRICS = ("streaming_map_val", "auc_roc", "rmse")


def _done(write: Callable[[], Path]) -> Future[Path]:
    """What has been written by now, or why not, as a save in the background gives it."""
    future: Future[Path] = Future()
    try:
        future.set_result(write())
    except CheckpointError as error:
        future.set_exception(error)
    return future


def agreed_model_options(options: ModelOptions, comm: Comm) -> ModelOptions:
    """The first worker's model flags, on every worker."""
    values = comm.broadcast_bytes(json.dumps(vars(options)).encode())
    return ModelOptions(**from_json(json.loads(values)))


class Saver:
    """Saves and restores a run. The first worker reads and writes; the others get its values.

    Args:
        options: of the run.
        inputs: of the run.
        comm: the workers.
    """

    def __init__(self, options: Options, inputs: Inputs, comm: Comm):
        self._options, self._inputs, self._comm = options, inputs, comm
        self._store = CheckpointStore(options.data.model_dir, keep=options.run.keep_checkpoints)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[Path] | None = None
        self._copies = True

    def plan(self, state: RunState) -> str:
        """Decides, before the first step, whether a copy of the state fits into memory, as saves in background need it.

        Returns:
            A line for people where it does not fit; else nothing.
        """
        if self._comm.rank != 0 or state.sharded:
            return ""
        needed, available = state.nbytes, available_memory()
        self._copies = needed <= LARGEST_SHARE * available
        if self._copies:
            return ""
        return (
            f"checkpoints are written in the foreground, as a copy of the state takes {needed:,} bytes of memory "
            f"and {available:,} are available"
        )

    def save(self, state: RunState, position: Position, metrics: dict[str, float]) -> None:
        """Copies the state and writes it as a checkpoint in the background. A collective.

        The best so far, by the main metric, is kept besides the newest; without metrics it is not the best. A state
        whose copy does not fit into memory is written in blocks in the foreground, and so are sharded tables, which
        may not fit into one worker's memory.

        A save that fails is reported when the next one begins, or by `has_failed`; training can go on, as the
        checkpoint before it stands.

        Raises:
            CheckpointError: a save of sharded tables has failed, of which other workers have sent their parts.
        """
        if self._comm.rank != 0:
            state.take_part_in_save()
            return
        if self._writing is not None:
            self.has_failed(wait=True)
        value, best = NAN, self._store.best()
        if metrics:
            value = metrics[key := self.main_metric(tuple(metrics))]
        write = partial(
            self._store.save,
            position.step(self._inputs.train_loader.steps_per_epoch),
            state=self._facts(position, metrics),
            best=bool(metrics) and is_better(key, value, None if best is None else best.value),
            value=None if math.isnan(value) else value,
        )
        if state.sharded:
            write(state.sources())
        elif (copy := self._copy(state)) is not None:
            self._writing = self._writer.submit(write, copy)
        else:
            self._writing = _done(partial(write, state.sources()))

    def _copy(self, state: RunState) -> list[ArraySource] | None:
        """A copy of the state; None where there is no memory for it."""
        if not self._copies:
            return None
        with suppress(MemoryError):
            if state.nbytes <= available_memory():
                return state.snapshot()
        self._copies = False
        print_warning("there is no memory for a copy of the state: checkpoints are now written in the foreground")
        return None

    def has_failed(self, wait: bool = False) -> bool:
        """Whether a save has failed since the last question, which is reported as a warning."""
        if self._writing is None or not (wait or self._writing.done()):
            return False
        try:
            self.finish()
        except CheckpointError as error:
            print_warning(f"{error} Training goes on; the next save is tried as usual.")
            return True
        return False

    def finish(self) -> None:
        """Waits for the save in the background.

        Raises:
            CheckpointError: it has failed.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def resume(self, state: RunState) -> Position:
        """Restores a checkpoint of this very run on every worker.

        Returns:
            Where it goes on.

        Raises:
            NoCheckpointError: there is none that is whole.
            DataError: it is another model's, or its remaining steps would not see the samples that are left.
        """
        checkpoint, found = None, b""
        if self._comm.rank == 0:
            checkpoint = self._store.open(self._options.run.which_checkpoint)
            saved = checkpoint.state.get("identity", {})
            changed = [
                f"{name} was {saved.get(name)!r} and is {value!r}"
                for name, value in self._identity().items()
                if saved.get(name) != value
            ]
            if changed:
                raise DataError(
                    f"{checkpoint.path} cannot be gone on from: {'; '.join(changed)}. The remaining steps would not "
                    "see the samples that are left. Restore these, or start anew in another --model_dir."
                )
            found = json.dumps(asdict(self._position(checkpoint))).encode()
        state.restore(checkpoint)
        return Position.from_json(json.loads(self._comm.broadcast_bytes(found)))

    def restore_weights(self, weights: RunState) -> Path:
        """Restores the model's weights on every worker; returns the checkpoint's folder.

        Raises:
            NoCheckpointError: there is none that is whole.
            DataError: it is another model's.
        """
        checkpoint, found = None, b""
        if self._comm.rank == 0:
            checkpoint = self._store.open(self._options.run.which_checkpoint)
            found = str(checkpoint.path).encode()
        weights.restore(checkpoint)
        return Path(self._comm.broadcast_bytes(found).decode())

    def write_best_model(self, weights: Sequence[str]) -> Path | None:
        """Writes the best checkpoint's weights (the last one's, where no metric could tell) as the model folder.

        Args:
            weights: the names of the model's.

        Returns:
            The folder, on the first worker.
        """
        if self._comm.rank != 0:
            return None
        checkpoint = self._store.open("best" if self._store.best() else "last")
        spec, data = self._inputs.spec, self._options.data
        architecture = {
            "model": self._options.model.model,
            "tasks": [label.name for label in spec.labels],
            "options": to_plain(vars(self._options.model)),
            "step": checkpoint.step,
            "metrics": checkpoint.state.get("metrics", {}),
        }
        documents: dict[str, Document] = {
            ARCHITECTURE: architecture,
            SPECIFICATION: spec.to_yaml(),
            SIZES: {columns.name: columns.width for columns in self._inputs.layout.categorical},
        }
        try:
            documents |= encoder_documents(spec.folder, allow_outside_paths=data.allow_outside_paths)
        except DataError as error:  # they were whole before the first step
            raise CheckpointError(f"cannot write the model folder: {error}") from error
        folder = Path(data.model_dir) / MODEL_FOLDER
        write_model(folder, [checkpoint.source(name) for name in weights], documents)
        return folder

    def last_metrics(self) -> dict[str, float]:
        """The metrics of the last checkpoint, on the first worker; NaN for those that are none."""
        if self._comm.rank != 0:
            return {}
        metrics = self._store.open("last", verify=False).state.get("metrics", {})
        return {key: NAN if value is None else value for key, value in metrics.items()}

    def main_metric(self, keys: Sequence[str]) -> str:
        """The key that decides which checkpoint is the best.

        It is --early_stopping_metric; without it MAP@12 where there are groups, else ROC AUC, else RMSE.

        Args:
            keys: of the metrics that are computed.

        Raises:
            DataError: the flag names none of them.
        """
        asked = self._options.training.early_stopping_metric
        if asked is not None and asked not in keys:
            raise DataError(f"--early_stopping_metric {asked!r} is not one of {', '.join(keys)}")
        defaults = [key for name in MAIN_METRICS for key in (name, f"{name}/mean")]
        return asked or next(key for key in defaults if key in keys)

    def best_so_far(self) -> tuple[float, int] | None:
        """Value of the main metric and step of the best checkpoint, on every worker; None where there is none."""
        found = b""
        if self._comm.rank == 0:
            best = self._store.best()
            if best is not None and best.value is not None:
                found = json.dumps([best.value, best.step]).encode()
        found = self._comm.broadcast_bytes(found)
        return tuple(json.loads(found)) if found else None

    def _position(self, checkpoint: Checkpoint) -> Position:
        try:
            position = Position.from_json(checkpoint.state["position"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{checkpoint.path} says nothing of its place in the epoch ({error!r})") from error
        if position.step(self._inputs.train_loader.steps_per_epoch) != checkpoint.step:
            raise DataError(f"{checkpoint.path} is of step {checkpoint.step}, and its place in the epoch of another")
        return position

    def _facts(self, position: Position, metrics: dict[str, float]) -> dict[str, Any]:
        """What stands in a checkpoint besides arrays."""
        return {
            "identity": self._identity(),
            "position": asdict(position),
            "metrics": to_plain(metrics),
            "options": self._options.as_dict(),
        }

    def _identity(self) -> dict[str, Any]:
        """What decides which samples each step has."""
        training = self._options.training
        return json.loads(
            json.dumps(
                {
                    "seed": training.seed,
                    "global_batch_size": training.global_batch_size,
                    "train_mapping": self._options.data.train_mapping,
                    "training_data": self._inputs.train_loader.fingerprint,
                }
            )
        )
