"""Checkpoints: named arrays and a state, kept so that at any moment at least one is whole.

They stand in `<model_dir>/checkpoints/step-N/`. What a model or an optimizer is, nobody knows here.
"""

import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import DataError
from data.typed_json import read_typed
from trainer.sealed.arrays import ArraySource
from trainer.sealed.errors import CheckpointError, DamagedError
from trainer.sealed.manifest import MANIFEST
from trainer.sealed.reader import SealedFolder
from trainer.sealed.writer import (
    REPLACED,
    check_replaceable,
    discard,
    remove_leftovers,
    replace_facts,
    standing,
    temporary_name,
    write_sealed,
)

CHECKPOINTS = "checkpoints"

_STEP_FOLDER = re.compile(rf"step-([0-9]{{1,18}})(?:{re.escape(REPLACED)})?")


@dataclass(frozen=True)
class _Facts:
    """What a checkpoint's manifest says: see Checkpoint."""

    step: int
    sequence: int
    best: bool
    state: dict[str, Any]


class NoCheckpointError(DataError):
    """There is no valid checkpoint where one was asked for (exit code 4). Says what was looked for and what to do."""


class Checkpoint(SealedFolder):
    """A saved step: arrays by name (`arrays`, `read`, `blocks`) and a state.

    Attributes:
        step: the number of steps done.
        state: what `save` was given, as JSON gives it back.
        best: whether it was the best so far when it was saved.
        sequence: counts the saves of the model folder.

    Raises:
        DamagedError: the manifest is not the one of this checkpoint.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            facts: _Facts = read_typed(_Facts, self.facts, "facts")
        except ValueError as error:
            raise DamagedError(f"{path / MANIFEST}: not a checkpoint's: {error}") from error
        self.step, self.sequence, self.best, self.state = facts.step, facts.sequence, facts.best, facts.state
        named = _STEP_FOLDER.fullmatch(path.name)
        if named and int(named.group(1)) != self.step:
            raise DamagedError(f"{path / MANIFEST}: is of step {self.step}, the folder is of step {named.group(1)}")


def print_warning(message: str) -> None:
    """One line on stderr."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


class CheckpointStore:
    """The checkpoints of one model folder.

    The newest is the one saved last, not the one of the highest step: a run that went back to an
    earlier checkpoint, or started anew, goes on with its own. The order of saves, and which was the
    best, stand in the sealed manifests, so the one rename that puts a checkpoint there settles them.

    Args:
        model_dir: holds the folder `checkpoints`, which is made at the first save.
        keep: how many of the newest are kept, at least 1. The best is kept besides.
        warn: told about checkpoints that are damaged and passed over.
    """

    def __init__(self, model_dir: Path, keep: int = 2, warn: Callable[[str], None] = print_warning) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}, expected at least 1 checkpoint to keep")
        self.folder = Path(model_dir) / CHECKPOINTS
        self.keep = keep
        self._warn = warn
        self._damaged: set[Path] = set()
        self._unremovable: set[Path] = set()

    def save(
        self,
        step: int,
        arrays: Iterable[ArraySource],
        state: dict[str, Any],
        best: bool = False,
    ) -> Path:
        """Writes `step-N`, replacing one of that step, and then removes what need not be kept.

        Args:
            step: the number of steps done.
            arrays: written in this order, block by block.
            state: JSON; NumPy's numbers are taken as Python's.
            best: whether this is the best so far; it is then what "best" opens.

        Returns:
            The folder.

        Raises:
            CheckpointError: it could not be written; what was saved before is untouched.
            ValueError: a step, arrays or a state that cannot be stored.
        """
        path = self.folder / f"step-{step}"
        if not _STEP_FOLDER.fullmatch(path.name):
            raise ValueError(f"step is {step!r}, expected a count of steps")
        remove_leftovers(self.folder, "step-*")
        sequence = 1 + max((checkpoint.sequence for checkpoint in self._saved()[0]), default=0)
        facts = {"step": step, "sequence": sequence, "best": best, "state": state}
        write_sealed(path, arrays, {}, facts)
        self._damaged.discard(path)
        self._remove_old()
        return path

    def amend(self, step: int, state: dict[str, Any], best: bool) -> Path:
        """Gives a saved step another state, all at once, and then removes what need not be kept.

        Args:
            step, state, best: see `save`.

        Returns:
            The folder.

        Raises:
            CheckpointError: it is gone, damaged or cannot be written; it stays as it was.
        """
        path = self.folder / f"step-{step}"
        facts = Checkpoint(path).facts | {"best": best, "state": state}
        replace_facts(path, facts)
        self._remove_old()
        return path

    def check_later(self, which: str) -> None:
        """Checks that a run that resumes from a checkpoint of this folder may replace those of later steps.

        Args:
            which: see `open`.

        Raises:
            NoCheckpointError: there is no such checkpoint.
            DataError: something lies there that no save has written. Names it.
        """
        step = self.open(which, verify=False).step
        for path in _step_folders(self.folder):
            named = _STEP_FOLDER.fullmatch(path.name)
            if named and int(named.group(1)) > step:
                check_replaceable(path.with_name(path.name.removesuffix(REPLACED)))

    def steps(self) -> list[int]:
        """The saved steps, oldest save first. Their manifests are good; the arrays are not looked at."""
        return [checkpoint.step for checkpoint in self._saved()[0]]

    def best(self) -> Checkpoint | None:
        """The best so far, not verified beyond its manifest; None where no save was called the best."""
        return next((checkpoint for checkpoint in reversed(self._saved()[0]) if checkpoint.best), None)

    def open(self, which: str, *, verify: bool = True) -> Checkpoint:
        """A checkpoint whose every byte has been verified.

        Args:
            which: "last" (where the newest is damaged the one before, with a warning), "best" (the last one, with a
                warning, where none was called the best; a damaged one is an error), or the path of a step folder, of
                a `checkpoints` folder or of a model folder (their last one). A folder that is itself called last or
                best is written `./last`.
            verify: off, only its manifest is read: enough for its state.

        Raises:
            NoCheckpointError: there is none, or none that is whole.
        """
        try:
            if which == "last":
                return self._open_last(verify)
            if which == "best":
                return self._open_best(verify)
            return self._open_path(standing(Path(which)), verify)
        except (OSError, CheckpointError) as error:
            raise NoCheckpointError(f"no checkpoint {which!r} can be read: {error}") from error

    def _open_last(self, verify: bool) -> Checkpoint:
        readable, problems = self._saved()
        for problem in problems:
            self._warn(f"a damaged checkpoint is passed over: {problem}")
        for checkpoint in reversed(readable):
            try:
                return self._verified(checkpoint) if verify else checkpoint
            except DamagedError as error:
                problems.append(str(error))
                self._warn(f"a damaged checkpoint is passed over: {error}")
        if problems:
            raise NoCheckpointError(f"no checkpoint in {self.folder} is whole:\n  " + "\n  ".join(problems))
        raise NoCheckpointError(
            f"no checkpoint in {self.folder}: looked for folders named step-N and found none. "
            "Train first, or give the --model_dir of a run that has saved one."
        )

    def _open_best(self, verify: bool) -> Checkpoint:
        checkpoint = self.best()
        if checkpoint is None:
            last = self._open_last(verify)
            self._warn(
                f"no checkpoint in {self.folder} is the best, as no evaluation has given the metric that decides it a "
                f"value; the last one, step {last.step}, is used"
            )
            return last
        try:
            return self._verified(checkpoint) if verify else checkpoint
        except DamagedError as error:
            raise NoCheckpointError(
                f"the best checkpoint, {checkpoint.path}, is damaged: {error}. "
                f"Pass --checkpoint last or a path; {self._what_there_is()}."
            ) from error

    def _open_path(self, path: Path, verify: bool) -> Checkpoint:
        if (path / CHECKPOINTS).is_dir():
            return CheckpointStore(path, warn=self._warn)._open_last(verify)
        if _step_folders(path):
            store = CheckpointStore(path.parent, warn=self._warn)
            store.folder = path
            return store._open_last(verify)
        try:
            return self._verified(Checkpoint(path)) if verify else Checkpoint(path)
        except DamagedError as error:
            raise NoCheckpointError(
                f"--checkpoint {path} is no valid checkpoint: {error}. "
                f"Expected last, best or the path of a folder named step-N; {self._what_there_is()}."
            ) from error

    def _verified(self, checkpoint: Checkpoint) -> Checkpoint:
        try:
            checkpoint.verify()
        except DamagedError:
            self._damaged.add(checkpoint.path)
            raise
        return checkpoint

    def _what_there_is(self) -> str:
        return f"in {self.folder} there are the steps {self.steps()}"

    def _saved(self) -> tuple[list[Checkpoint], list[str]]:
        """The checkpoints with a good manifest, oldest save first, and what is wrong with the others."""
        readable, problems = [], []
        for path in _step_folders(self.folder):
            try:
                readable.append(Checkpoint(path))
            except DamagedError as error:
                problems.append(str(error))
        return sorted(readable, key=lambda checkpoint: checkpoint.sequence), problems

    def _remove_old(self) -> None:
        """Removes all but the newest and the best. Those known to be damaged do not count towards `keep`.

        One whose manifest cannot be read stays: the disk may have failed to read it this once, and a person may still
        recover it. So does one that holds a file that no save has written.
        """
        readable, _ = self._saved()
        whole = [checkpoint for checkpoint in readable if checkpoint.path not in self._damaged]
        best = [checkpoint for checkpoint in whole if checkpoint.best]
        kept = {checkpoint.path for checkpoint in (*readable[-self.keep :], *whole[-self.keep :], *best[-1:])}
        for checkpoint in readable:
            path = checkpoint.path
            if path not in kept and not discard(path) and path not in self._unremovable:
                self._unremovable.add(path)
                self._warn(f"{path} is kept: it holds a file that no save has written")


def probe(model_dir: Path) -> None:
    """Tries a tiny save, before the first step, in the place where checkpoints will go.

    Raises:
        DataError: it cannot be written there; the message names the folder.
    """
    folder = temporary_name(Path(model_dir) / CHECKPOINTS / "step-probe")
    try:
        write_sealed(folder, [ArraySource.from_array("probe", np.zeros(1, np.uint8))], {}, {})
    except CheckpointError as error:
        raise DataError(
            f"--model_dir {model_dir}: checkpoints cannot be saved there ({error.__cause__}). "
            "Give a folder on a disk with room that you may write to."
        ) from error
    discard(folder)


def _step_folders(folder: Path) -> list[Path]:
    """Folders named step-N, and those that a save moved aside and died before it could put its own there."""
    try:
        names = {path.name for path in folder.iterdir() if _STEP_FOLDER.fullmatch(path.name)}
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}") from error
    moved_aside = {name + REPLACED for name in names}
    return [folder / name for name in sorted(names - moved_aside)]
