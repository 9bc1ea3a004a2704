"""Stores checkpoints, each a checksummed folder `<model_dir>/checkpoints/step-N/` of named arrays and a JSON state.

At least one of them is intact at any time. This module knows nothing about models and optimizers.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import DataError
from data.storage.arrays import ArraySource
from data.storage.checksummed_dir import (
    MANIFEST,
    REPLACED,
    ChecksummedDir,
    DamagedError,
    StorageError,
    check_replaceable,
    current_path,
    discard,
    remove_leftovers,
    replace_metadata,
    write_checksummed,
)
from data.storage.files import temporary_folder
from data.storage.typed_json import read_typed
from trainer.logging.log import warn
from trainer.logging.progress import byte_progress

CHECKPOINTS = "checkpoints"

_STEP_FOLDER = re.compile(rf"step-([0-9]{{1,18}})(?:{re.escape(REPLACED)})?")


@dataclass(frozen=True)
class _Metadata:
    """The metadata in a checkpoint's manifest; see the attributes of Checkpoint."""

    step: int
    sequence: int
    best: bool
    state: dict[str, Any]


class NoCheckpointError(DataError):
    """No valid checkpoint was found where one is needed (exit code 4).

    The message says what was searched and what to do.
    """


class Checkpoint(ChecksummedDir):
    """A saved step: arrays by name (`arrays`, `read`, `blocks`) and a state.

    Attributes:
        step: number of training steps done.
        state: the state passed to `save` or `amend`, as decoded from JSON.
        best: whether the checkpoint was the best so far when it was saved or amended.
        sequence: position of this save among all saves of the model folder, counted from 1.

    Raises:
        DamagedError: the manifest is not that of a checkpoint of this step.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            saved: _Metadata = read_typed(_Metadata, self.metadata, "metadata")
        except ValueError as error:
            raise DamagedError(f"{path / MANIFEST}: not the manifest of a checkpoint: {error}") from error
        self.step, self.sequence, self.best, self.state = saved.step, saved.sequence, saved.best, saved.state
        named = _STEP_FOLDER.fullmatch(path.name)
        if named and int(named.group(1)) != self.step:
            raise DamagedError(f"{path / MANIFEST}: has step {self.step}, but the folder has step {named.group(1)}")


class CheckpointStore:
    """The checkpoints of one model folder.

    The newest checkpoint is the one saved last, not the one with the highest step: a run that went back to an
    earlier checkpoint, or started over, resumes from its own. The order of saves and the best checkpoint are
    recorded in the checksummed manifests, so the rename that publishes a checkpoint updates them atomically.

    Args:
        model_dir: folder that contains `checkpoints`, which is created by the first save.
        keep: number of newest checkpoints to keep, at least 1. The best is kept in addition.
        warn: called with a message for each damaged checkpoint that is skipped.
    """

    def __init__(self, model_dir: Path, keep: int = 2, warn: Callable[[str], None] = warn) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}, expected at least 1 checkpoint to keep")
        self.folder = Path(model_dir) / CHECKPOINTS
        self.keep = keep
        self._warn = warn
        self._damaged: set[Path] = set()
        self._unremovable: set[Path] = set()

    def save(self, step: int, arrays: Iterable[ArraySource], state: dict[str, Any], best: bool = False) -> Path:
        """Writes `step-N`, replacing an earlier checkpoint of that step, then removes checkpoints no longer kept.

        Args:
            step: number of training steps done.
            arrays: the arrays, written block by block, several at a time, beginning in this order.
            state: JSON-serializable state; NumPy numbers are stored as Python numbers.
            best: whether this is the best checkpoint so far, which `open("best")` then returns.

        Returns:
            The checkpoint's folder.

        Raises:
            StorageError: the checkpoint could not be written; earlier ones are untouched.
            ValueError: the step, the arrays or the state cannot be stored.
        """
        path = self.folder / f"step-{step}"
        if not _STEP_FOLDER.fullmatch(path.name):
            raise ValueError(f"step is {step!r}, expected a count of steps")
        remove_leftovers(self.folder, "step-*")
        sequence = 1 + max((checkpoint.sequence for checkpoint in self._saved()[0]), default=0)
        metadata = {"step": step, "sequence": sequence, "best": best, "state": state}
        arrays = list(arrays)
        with byte_progress(f"saving {path.name}", sum(source.nbytes for source in arrays)) as advance:
            write_checksummed(path, arrays=arrays, metadata=metadata, advance=advance)
        self._damaged.discard(path)
        self._remove_old()
        return path

    def amend(self, step: int, state: dict[str, Any], best: bool) -> Path:
        """Replaces the state of a saved step atomically, then removes checkpoints no longer kept.

        Args:
            step: number of training steps of the checkpoint.
            state: the new JSON-serializable state.
            best: whether this is the best checkpoint so far.

        Returns:
            The checkpoint's folder.

        Raises:
            StorageError: the checkpoint is missing, damaged or cannot be written; it is left unchanged.
        """
        path = self.folder / f"step-{step}"
        replace_metadata(path, Checkpoint(path).metadata | {"best": best, "state": state})
        self._remove_old()
        return path

    def check_later(self, which: str) -> None:
        """Checks that a run resuming from a checkpoint may overwrite this folder's checkpoints of later steps.

        Args:
            which: the checkpoint to resume from, as in `open`.

        Raises:
            NoCheckpointError: there is no such checkpoint.
            DataError: a later step's folder contains a file of somebody else; the message names it.
        """
        step = self.open(which, verify=False).step
        for path in _step_folders(self.folder):
            named = _STEP_FOLDER.fullmatch(path.name)
            if named and int(named.group(1)) > step:
                check_replaceable(path.with_name(path.name.removesuffix(REPLACED)))

    def steps(self) -> list[int]:
        """Returns the saved steps with a valid manifest, oldest save first. Their arrays are not verified."""
        return [checkpoint.step for checkpoint in self._saved()[0]]

    def best(self) -> Checkpoint | None:
        """Returns the best checkpoint with only its manifest verified; None if no checkpoint is marked as best."""
        return next((checkpoint for checkpoint in reversed(self._saved()[0]) if checkpoint.best), None)

    def open(self, which: str, *, verify: bool = True) -> Checkpoint:
        """Opens a checkpoint and verifies every byte of it.

        Args:
            which: "last" for the newest intact checkpoint, with a warning for each damaged one that is skipped; "best"
                for the best one, which must be intact, or for the last one, with a warning, if none is marked as
                best; or the path of a step folder, or of a `checkpoints` or model folder for its last checkpoint. A
                folder that is itself named last or best is written `./last`.
            verify: if False, read only the manifest, which is enough for the state.

        Raises:
            NoCheckpointError: there is no such checkpoint, or it is damaged.
        """
        try:
            if which == "last":
                return self._open_last(verify)
            if which == "best":
                return self._open_best(verify)
            return self._open_path(current_path(Path(which)), verify)
        except (OSError, StorageError) as error:
            raise NoCheckpointError(f"no checkpoint {which!r} can be read: {error}") from error

    def _open_last(self, verify: bool) -> Checkpoint:
        readable, problems = self._saved()
        for problem in problems:
            self._warn(f"skipping a damaged checkpoint: {problem}")
        for checkpoint in reversed(readable):
            try:
                return self._checked(checkpoint, verify)
            except DamagedError as error:
                problems.append(str(error))
                self._warn(f"skipping a damaged checkpoint: {error}")
        if problems:
            raise NoCheckpointError(f"no checkpoint in {self.folder} is intact:\n  " + "\n  ".join(problems))
        raise NoCheckpointError(
            f"no checkpoint in {self.folder}: expected folders named step-N, found none. "
            "Train first, or give the --model_dir of a run that has saved one."
        )

    def _open_best(self, verify: bool) -> Checkpoint:
        checkpoint = self.best()
        if checkpoint is None:
            last = self._open_last(verify)
            self._warn(
                f"no checkpoint in {self.folder} is marked as the best, because no evaluation has computed the metric "
                f"that decides; the last one, step {last.step}, is used"
            )
            return last
        try:
            return self._checked(checkpoint, verify)
        except DamagedError as error:
            raise NoCheckpointError(
                f"the best checkpoint, {checkpoint.path}, is damaged: {error}. "
                f"Pass --checkpoint last or a path; {self._available()}."
            ) from error

    def _open_path(self, path: Path, verify: bool) -> Checkpoint:
        if (path / CHECKPOINTS).is_dir():
            return CheckpointStore(path, warn=self._warn)._open_last(verify)
        if _step_folders(path):
            store = CheckpointStore(path.parent, warn=self._warn)
            store.folder = path  # which need not be named `checkpoints`
            return store._open_last(verify)
        try:
            return self._checked(Checkpoint(path), verify)
        except DamagedError as error:
            raise NoCheckpointError(
                f"--checkpoint {path} is not a valid checkpoint: {error}. "
                f"Expected last, best or the path of a folder named step-N; {self._available()}."
            ) from error

    def _checked(self, checkpoint: Checkpoint, verify: bool) -> Checkpoint:
        try:
            if verify:
                with byte_progress(f"verifying {checkpoint.path.name}", checkpoint.nbytes) as advance:
                    checkpoint.verify(advance)
        except DamagedError:
            self._damaged.add(checkpoint.path)
            raise
        return checkpoint

    def _available(self) -> str:
        return f"{self.folder} has the steps {self.steps()}"

    def _saved(self) -> tuple[list[Checkpoint], list[str]]:
        """Returns the checkpoints with a valid manifest, oldest save first, and the errors of the others."""
        readable, problems = [], []
        for path in _step_folders(self.folder):
            try:
                readable.append(Checkpoint(path))
            except DamagedError as error:
                problems.append(str(error))
        return sorted(readable, key=lambda checkpoint: checkpoint.sequence), problems

    def _remove_old(self) -> None:
        """Removes all checkpoints but the newest and the best. Known damaged ones do not count towards `keep`.

        A checkpoint whose manifest cannot be read is kept: it may be a transient I/O error, or be recovered by hand. So
        is one that contains a file of somebody else.
        """
        readable, _ = self._saved()
        intact = [checkpoint for checkpoint in readable if checkpoint.path not in self._damaged]
        best = [checkpoint for checkpoint in intact if checkpoint.best]
        kept = {checkpoint.path for checkpoint in (*readable[-self.keep :], *intact[-self.keep :], *best[-1:])}
        for checkpoint in readable:
            path = checkpoint.path
            if path not in kept and not discard(path) and path not in self._unremovable:
                self._unremovable.add(path)
                self._warn(f"{path} is kept: it contains a file that was not written by this program")


def probe(model_dir: Path) -> None:
    """Tests, before the first step, that checkpoints can be saved in a folder, by saving a tiny one.

    Raises:
        DataError: the folder cannot be written; the message names it.
    """
    folder = temporary_folder(Path(model_dir) / CHECKPOINTS / "step-probe")
    try:
        write_checksummed(folder, arrays=[ArraySource.from_array("probe", np.zeros(1, np.uint8))])
    except StorageError as error:
        raise DataError(
            f"--model_dir {model_dir}: checkpoints cannot be saved there ({error.__cause__}). "
            "Give a writable folder on a disk with free space."
        ) from error
    discard(folder)


def _step_folders(folder: Path) -> list[Path]:
    """Returns the folders named step-N.

    If a save that replaces a checkpoint died between its two renames, the folder moved aside is returned instead.
    """
    try:
        names = {path.name for path in folder.iterdir() if _STEP_FOLDER.fullmatch(path.name)}
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StorageError(f"{folder} cannot be read: {error.strerror}") from error
    moved_aside = {name + REPLACED for name in names}
    return [folder / name for name in sorted(names - moved_aside)]
