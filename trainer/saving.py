"""A run's checkpoints and model folder: what is saved, when it may be gone on from, and how it comes back."""

import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from data.errors import DataError
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
from trainer.sealed.errors import CheckpointError
from trainer.sealed.handover import Handover
from trainer.state import RunState

NAN = float("nan")
# The first that there is decides which checkpoint is the best.
MAIN_METRICS = ("streaming_map_val", "auc_roc", "rmse")


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

    def save(self, state: RunState, position: Position) -> None:
        """Hands the state over to a checkpoint that is written in the background. A collective.

        It returns once all but a few blocks of the state are written, and those are copied: the memory that a save
        takes does not grow with the state.

        A save that fails is reported when the next one begins, or by `has_failed`; training can go on, as the
        checkpoint before it stands.
        """
        if self._comm.rank != 0:
            state.take_part_in_save()
            return
        if self._writing is not None:
            self.has_failed(wait=True)
        step = position.step(self._inputs.train_loader.steps_per_epoch)
        write = partial(self._store.save, step, state=self._facts(position, {}))
        handover = Handover(state.sources())
        self._writing = self._writer.submit(handover.save, write)
        handover.fill()

    def evaluated(self, position: Position, metrics: dict[str, float]) -> None:
        """Records in an epoch's checkpoint what its evaluation gave, in the background and after its save.

        The best so far, by the main metric, is kept besides the newest. A run that dies before this is recorded
        evaluates the epoch again when it is resumed.

        Args:
            position: of the checkpoint, now evaluated.
            metrics: of the evaluation.
        """
        if self._comm.rank == 0:
            value = metrics[key := self.main_metric(tuple(metrics))]
            amend = partial(
                self._store.amend,
                position.step(self._inputs.train_loader.steps_per_epoch),
                state=self._facts(position, metrics),
                value=None if math.isnan(value) else value,
            )
            self._writing = self._writer.submit(self._record, self._writing, amend, key, value)

    def _record(self, saving: Future[Path] | None, amend: Callable[..., Path], key: str, value: float) -> Path:
        if saving is not None:
            saving.result()
        best = self._store.best()
        return amend(best=is_better(key, value, None if best is None else best.value))

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
