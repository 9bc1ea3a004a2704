"""Stores checkpoints, each a checksummed folder `<model_dir>/checkpoints/step-N/` of named arrays and a JSON state.

A differential checkpoint holds, of some arrays, only the rows that have changed since a full checkpoint, and is read
together with it (Eisenman et al., Check-N-Run, NSDI 2022). It refers to a full checkpoint and not to the differential
one before it, so that any two checkpoints are enough to resume, and damage to one does not spread to later ones.

At least one of them is intact at any time. This module knows nothing about models and optimizers.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from data.errors import DataError
from data.progress import Advance, unseen
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
from trainer.checkpoint import mirror
from trainer.logging.log import warn
from trainer.logging.progress import byte_progress

CHECKPOINTS = "checkpoints"

ArrayLayout: TypeAlias = tuple[tuple[int, ...], np.dtype]  # shape and dtype

_STEP_FOLDER = re.compile(rf"step-([0-9]{{1,18}})(?:{re.escape(REPLACED)})?")


# Key of a differential checkpoint's metadata.
_DIFFERENCE = "difference"


@dataclass(frozen=True)
class _Metadata:
    """The metadata in a checkpoint's manifest; see the attributes of Checkpoint."""

    step: int
    sequence: int
    best: bool
    state: dict[str, Any]


@dataclass(frozen=True)
class _Difference:
    """Further metadata of a differential checkpoint.

    Attributes:
        full: step of the full checkpoint that it refers to.
        content_sha256: checksum of the content of that checkpoint.
        row_numbers: array of which only some rows are saved -> array that has their numbers.
    """

    full: int
    content_sha256: str
    row_numbers: dict[str, str]


class NoCheckpointError(DataError):
    """No valid checkpoint was found where one is needed (exit code 4).

    The message says what was searched and what to do.
    """


class OrphanedError(DamagedError):
    """The full checkpoint that a differential one refers to has been replaced by another."""


class Checkpoint(ChecksummedDir):
    """A saved step: arrays by name (`arrays`, `read`, `blocks`) and a state.

    A differential checkpoint is read, verified and measured together with the full one that it refers to.

    Attributes:
        step: number of training steps done.
        state: the state passed to `save` or `amend`, as decoded from JSON.
        best: whether the checkpoint was the best so far when it was saved or amended.
        sequence: position of this save among all saves of the model folder, counted from 1.
        full: the full checkpoint that a differential one refers to; None if this one is full.

    Raises:
        DamagedError: the manifest is not that of a checkpoint of this step, or the full checkpoint is missing.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            rest = {key: value for key, value in self.metadata.items() if key != _DIFFERENCE}
            saved: _Metadata = read_typed(_Metadata, rest, "metadata")
            difference: _Difference | None = read_typed(
                _Difference | None, self.metadata.get(_DIFFERENCE), f"metadata.{_DIFFERENCE}"
            )
        except ValueError as error:
            raise DamagedError(f"{path / MANIFEST}: not the manifest of a checkpoint: {error}") from error
        self.step, self.sequence, self.best, self.state = saved.step, saved.sequence, saved.best, saved.state
        named = _STEP_FOLDER.fullmatch(path.name)
        if named and int(named.group(1)) != self.step:
            raise DamagedError(f"{path / MANIFEST}: has step {self.step}, but the folder has step {named.group(1)}")
        self.full = None if difference is None else self._open_full(difference)
        self._row_numbers = {} if difference is None else difference.row_numbers
        self._numbers: dict[str, np.ndarray] = {}  # content of the arrays of row numbers, once read
        if self.full is not None:
            self._merge_arrays(self.full)

    @property
    def nbytes(self) -> int:
        """Size in bytes of all files that `verify` reads."""
        return super().nbytes + (0 if self.full is None else self.full.nbytes)

    def verify(self, advance: Advance = unseen) -> None:
        """Verify every file, like ChecksummedDir, including those of the full checkpoint.

        Raises:
            DamagedError: a file differs.
        """
        super().verify(advance)
        if self.full is not None:
            self.full.verify(advance)
        for name in self._row_numbers:
            self._numbers_of(name)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read rows start to stop of array `name`, or all of it if it is a scalar."""
        if self.full is None or name not in self._row_numbers:
            return super().read_rows(name, start, stop)
        rows, numbers = self.full.read_rows(name, start, stop), self._numbers_of(name)
        first, end = np.searchsorted(numbers, [start, stop]).tolist()
        rows[numbers[first:end] - start] = super().read_rows(name, first, end)
        return rows

    def _open_full(self, difference: _Difference) -> "Checkpoint":
        where = f"{self.path / MANIFEST}: holds what has changed since step {difference.full}"
        if difference.full >= self.step:
            raise DamagedError(f"{where}, which is not before its own")
        try:
            full = Checkpoint(current_path(self.path.parent / f"step-{difference.full}"))
        except DamagedError as error:
            raise DamagedError(f"{where}, and is unusable without it: {error}") from error
        if full.full is not None or full.content_sha256 != difference.content_sha256:
            raise OrphanedError(f"{where}, but {full.path} has been replaced since")
        return full

    def _merge_arrays(self, full: "Checkpoint") -> None:
        """Give the arrays of which only some rows are saved the shape that they have in the full checkpoint."""
        for name, numbers in self._row_numbers.items():
            known = name in self.arrays and name in full.arrays and numbers in self.arrays
            if not known or not _are_rows(self.arrays[name], full.arrays[name], self.arrays[numbers]):
                raise DamagedError(f"{self.path / MANIFEST}: {name!r} does not have rows of this array in {full.path}")
        self.arrays |= {name: full.arrays[name] for name in self._row_numbers}
        for numbers in set(self._row_numbers.values()):
            del self.arrays[numbers]

    def _numbers_of(self, name: str) -> np.ndarray:
        """Return the numbers of the rows that are saved of an array: [n] int64, ascending."""
        numbers = self._row_numbers[name]
        if numbers not in self._numbers:
            saved = super().read_rows(numbers, 0, self._entry(numbers).shape[0])
            if (np.diff(saved) <= 0).any() or (saved < 0).any() or (saved >= self.arrays[name][0][0]).any():
                raise DamagedError(f"{self.path}: {numbers!r} does not have ascending numbers of rows of {name!r}")
            self._numbers[numbers] = saved
        return self._numbers[numbers]


class CheckpointStore:
    """The checkpoints of one model folder.

    Of a model folder in an object store, it works on the local mirror: a save is done once it is uploaded, and what is
    opened is downloaded first. `refresh` makes the mirror that of the store.

    The newest checkpoint is the one saved last, not the one with the highest step: a run that went back to an
    earlier checkpoint, or started over, resumes from its own. The order of saves and the best checkpoint are
    recorded in the checksummed manifests, so the rename that publishes a checkpoint updates them atomically.

    Args:
        model_dir: folder that contains `checkpoints`, which is created by the first save.
        keep: number of newest checkpoints and of newest full checkpoints to keep, at least 1. The best is kept in
            addition, and so is what kept differential checkpoints refer to.
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

    def save(
        self,
        step: int,
        arrays: Iterable[ArraySource],
        state: dict[str, Any],
        best: bool = False,
        full: int | None = None,
        row_numbers: Mapping[str, str] | None = None,
    ) -> Path:
        """Write `step-N`, replacing an earlier checkpoint of that step, then remove checkpoints no longer kept.

        Args:
            step: number of training steps done.
            arrays: the arrays, written block by block, several at a time, beginning in this order.
            state: JSON-serializable state; NumPy numbers are stored as Python numbers.
            best: whether this is the best checkpoint so far, which `open("best")` then returns.
            full: for a differential checkpoint, the step of the full one that it refers to.
            row_numbers: for a differential checkpoint, array of which only some rows are saved -> array that has their
                numbers, [n] int64, ascending.

        Returns:
            The checkpoint's folder.

        Raises:
            StorageError: the checkpoint could not be written, or the full one is missing; earlier ones are untouched.
            ValueError: the step, the arrays or the state cannot be stored.
        """
        path = self.folder / f"step-{step}"
        if not _STEP_FOLDER.fullmatch(path.name):
            raise ValueError(f"step is {step!r}, expected a count of steps")
        remove_leftovers(self.folder, "step-*")
        sequence = 1 + max((checkpoint.sequence for checkpoint in self._saved()[0]), default=0)
        metadata = {"step": step, "sequence": sequence, "best": best, "state": state}
        if full is not None:
            content = Checkpoint(self.folder / f"step-{full}").content_sha256
            metadata[_DIFFERENCE] = asdict(_Difference(full, content, dict(row_numbers or {})))
        arrays = list(arrays)
        with byte_progress(f"saving {path.name}", sum(source.nbytes for source in arrays)) as advance:
            write_checksummed(path, arrays=arrays, metadata=metadata, advance=advance)
        self._damaged.discard(path)
        self._remove_old()
        mirror.upload_checkpoints(self.folder)
        return path

    def amend(self, step: int, state: dict[str, Any], best: bool) -> Path:
        """Replace the state of a saved step atomically, then remove checkpoints no longer kept.

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
        mirror.upload_checkpoints(self.folder)
        return path

    def refresh(self, which: str = "last", *, locked: bool = False) -> None:
        """Read which checkpoints the object store has whose mirror this model folder is, if it is one.

        Args:
            which: a checkpoint, as in `open`; if it is a path, its folder is refreshed likewise.
            locked: whether this process holds the lock of the model folder.

        Raises:
            RemoteError: the store cannot be read.
        """
        mirror.refresh_checkpoints(self.folder, locked=locked)
        if which not in ("last", "best") and mirror.place(Path(which)) != which:
            other = _checkpoints_of(Path(which))
            if other != self.folder:
                mirror.refresh_checkpoints(other)

    @property
    def is_empty(self) -> bool:
        """Whether there is no folder of a checkpoint."""
        return not any(self.folder.glob("step-*"))

    def check_later(self, which: str) -> None:
        """Check that a run resuming from a checkpoint may overwrite this folder's checkpoints of later steps.

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
        """Return the saved steps with a valid manifest, oldest save first. Their arrays are not verified."""
        return [checkpoint.step for checkpoint in self._saved()[0]]

    def best(self) -> Checkpoint | None:
        """Return the best checkpoint with only its manifest verified; None if no checkpoint is marked as best."""
        return next((checkpoint for checkpoint in reversed(self._saved()[0]) if checkpoint.best), None)

    def open(self, which: str, *, verify: bool = True) -> Checkpoint:
        """Open a checkpoint and verify every byte of it.

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
        readable, unreadable = self._saved()
        problems = [str(error) for error in unreadable.values()]
        for problem in problems:
            self._warn(f"skipping a damaged checkpoint: {problem}")
        for checkpoint in reversed(readable):
            try:
                return self._checked(checkpoint, verify)
            except DamagedError as error:
                problems.append(str(error))
                self._warn(f"skipping a damaged checkpoint: {error}")
        if problems:
            raise NoCheckpointError(
                f"no checkpoint in {mirror.place(self.folder)} is intact:\n  " + "\n  ".join(problems)
            )
        raise NoCheckpointError(
            f"no checkpoint in {mirror.place(self.folder)}: expected folders named step-N, found none. "
            "Train first, or give the --model_dir of a run that has saved one."
        )

    def _open_best(self, verify: bool) -> Checkpoint:
        checkpoint = self.best()
        if checkpoint is None:
            last = self._open_last(verify)
            self._warn(
                f"no checkpoint in {mirror.place(self.folder)} is marked as the best, because no evaluation has "
                f"computed the metric that decides; the last one, step {last.step}, is used"
            )
            return last
        try:
            return self._checked(checkpoint, verify)
        except DamagedError as error:
            raise NoCheckpointError(
                f"the best checkpoint, {mirror.place(checkpoint.path)}, is damaged: {error}. "
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
                f"--checkpoint {mirror.place(path)} is not a valid checkpoint: {error}. "
                f"Expected last, best or the path of a folder named step-N; {self._available()}."
            ) from error

    def _checked(self, checkpoint: Checkpoint, verify: bool) -> Checkpoint:
        try:
            if verify:
                parts = [one for one in (checkpoint, checkpoint.full) if one is not None]
                with byte_progress(f"verifying {checkpoint.path.name}", checkpoint.nbytes) as advance:
                    mirror.verify(checkpoint, parts, advance)
        except DamagedError:
            self._damaged.add(checkpoint.path)
            raise
        return checkpoint

    def _available(self) -> str:
        return f"{mirror.place(self.folder)} has the steps {self.steps()}"

    def _saved(self) -> tuple[list[Checkpoint], dict[Path, DamagedError]]:
        """Return the checkpoints with a valid manifest, oldest save first, and the errors of the others by path."""
        readable, problems = [], {}
        for path in _step_folders(self.folder):
            try:
                readable.append(Checkpoint(path))
            except DamagedError as error:
                problems[path] = error
        return sorted(readable, key=lambda checkpoint: checkpoint.sequence), problems

    def _remove_old(self) -> None:
        """Remove all checkpoints but the newest and the best. Known damaged ones do not count towards `keep`.

        As many full checkpoints are kept as checkpoints, so that differential ones do not all depend on the same files.
        Differential ones whose full one has been replaced are removed, as nothing can read them. Other checkpoints
        whose manifest cannot be read are kept: it may be a transient I/O error, or they may be recovered by hand. So
        are those that contain a file of somebody else.
        """
        readable, unreadable = self._saved()
        intact = [checkpoint for checkpoint in readable if not self._is_damaged(checkpoint)]
        best = [checkpoint for checkpoint in intact if checkpoint.best]
        kept = [*self._newest(readable), *self._newest(intact), *best[-1:]]
        needed = {one.path for checkpoint in kept for one in (checkpoint, checkpoint.full) if one is not None}
        for path, error in unreadable.items():
            if isinstance(error, OrphanedError):
                self._remove(path)
        for checkpoint in reversed(readable):  # differential ones before the full ones that they refer to
            if checkpoint.path not in needed and not self._remove(checkpoint.path) and checkpoint.full is not None:
                needed.add(checkpoint.full.path)

    def _remove(self, path: Path) -> bool:
        """Remove a checkpoint and return True, or warn, once, that it contains a file of somebody else."""
        is_removed = discard(path)
        if not is_removed and path not in self._unremovable:
            self._unremovable.add(path)
            self._warn(f"{path} is kept: it contains a file that was not written by this program")
        return is_removed

    def _newest(self, checkpoints: list[Checkpoint]) -> list[Checkpoint]:
        full = [checkpoint for checkpoint in checkpoints if checkpoint.full is None]
        return [*checkpoints[-self.keep :], *full[-self.keep :]]

    def _is_damaged(self, checkpoint: Checkpoint) -> bool:
        """Return whether a checkpoint, or the full one that it refers to, is known to be damaged."""
        return checkpoint.path in self._damaged or (checkpoint.full is not None and self._is_damaged(checkpoint.full))


def _are_rows(saved: ArrayLayout, full: ArrayLayout, numbers: ArrayLayout) -> bool:
    """Return whether an array and its row numbers have the layout of some rows of another array."""
    count, dtype = numbers
    return dtype == np.int64 and len(count) == 1 and bool(full[0]) and saved == ((*count, *full[0][1:]), full[1])


def _checkpoints_of(path: Path) -> Path:
    """Return the folder of checkpoints that a path of a step folder, a `checkpoints` or a model folder names."""
    if _STEP_FOLDER.fullmatch(path.name):
        return path.parent
    return path if path.name == CHECKPOINTS else path / CHECKPOINTS


def probe(model_dir: Path) -> None:
    """Test, before the first step, that checkpoints can be saved in a folder, by saving a tiny one.

    Raises:
        DataError: the folder, or that of the store whose mirror it is, cannot be written; the message names it.
    """
    mirror.check_writable(Path(model_dir) / CHECKPOINTS)
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
    """Return the folders named step-N.

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
