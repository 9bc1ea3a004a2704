"""Atomic creation of a dataset: it is written to a draft folder and moved, with the specification as the last file.

A dataset in a store is uploaded instead. A store has neither locks nor a rename of folders: an object with the names of
the files to come is uploaded first and removed last, so that the next run can tell what a killed one left.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from data.errors import DataError
from data.storage import remote
from data.storage.files import DRAFT_MARKER, is_draft, lock_folder, mark_draft, open_regular, remove_draft, sync
from data.storage.typed_json import read_typed
from data.storage.working_copy import working_copy

SPEC_FILE = "feature_spec.yaml"
UNFINISHED = ".unfinished-"
# Journal in a draft: the names of the entries being moved out of it.
MOVING_FILE = ".moving.json"
# Journal in a store: the names of the files being uploaded.
UPLOADING_FILE = ".uploading.json"
# Folder in the draft of a dataset in a store that holds just its files.
CONTENT = "content"


@contextmanager
def new_dataset(folder: Path, spec_file: str = SPEC_FILE, entries: Sequence[str] = ()) -> Iterator[Path]:
    """Yield an empty draft folder, whose content becomes the dataset in `folder` when the block ends.

    The specification is moved last: a folder without one is not a dataset. On any exception the draft is removed and
    `folder` is left as it was. Leftovers of a killed run are removed by the next run.

    Args:
        folder: folder of the new dataset, created if missing; a folder in a store is given as its local copy
            (`data.storage.remote.mirror_of`), and must hold no files.
        spec_file: name of the specification, which the caller must write to the draft.
        entries: other names that the draft will contain, so that conflicts are reported before any work is done.

    Raises:
        DataError: `folder` already holds a dataset or is not writable, or another run is writing to it.
        RemoteError: The store cannot be read or written.
    """
    folder = Path(folder)
    if (url := remote.url_of(folder)) is not None:
        with _new_in_store(url, spec_file) as content:
            yield content
        return
    if os.path.lexists(folder) and not folder.is_dir():
        kind = "file" if folder.exists() else "link to nothing"
        raise DataError(f"{folder}: is a {kind}, the output must be a folder; choose another name")
    _clear_drafts(folder, spec_file)
    _check_holds_no_dataset(folder, spec_file)
    _check_free(folder, entries)
    with _draft_in(folder) as draft:
        yield draft
        _publish(draft, folder, spec_file)


@contextmanager
def _draft_in(folder: Path) -> Iterator[Path]:
    """Yield a new, locked draft in a folder, which is created, and removed after an exception unless it has files."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder))
        mark_draft(draft)
    except OSError as error:
        raise DataError(f"{folder}: cannot write here ({error.strerror}); choose another output folder") from error
    lock = lock_folder(draft)
    try:
        yield draft
    except BaseException:
        remove_draft(draft)
        _remove_empty(made)
        raise
    finally:
        if lock is not None:
            os.close(lock)
    remove_draft(draft)


@contextmanager
def _new_in_store(url: str, spec_file: str) -> Iterator[Path]:
    """Yield an empty local folder, whose content is uploaded when the block ends, the specification last."""
    _clear_store(url, spec_file)
    place = remote.draft_of(url)
    _clear_drafts(place, spec_file)
    with _draft_in(place) as draft:
        content = draft / CONTENT
        content.mkdir()
        yield content
        if not (content / spec_file).is_file():
            raise DataError(f"{url}: the dataset lost its {spec_file} while it was written, and was removed")
        _clear_store(url, spec_file)
        names = [path.relative_to(content).as_posix() for path in sorted(content.rglob("*")) if path.is_file()]
        (content / UPLOADING_FILE).write_text(json.dumps(names))
        remote.put(content / UPLOADING_FILE, remote.join(url, UPLOADING_FILE))
        remote.push_folder(content, url, spec_file)
        remote.delete(remote.join(url, UPLOADING_FILE))
    _remove_empty([place])


def _clear_store(url: str, spec_file: str) -> None:
    """Remove what a killed run has uploaded to a folder; check that it then holds nothing."""
    names = [file.url.removeprefix(f"{url}/") for file in remote.list_files(url)]
    if spec_file in names:
        raise DataError(f"{url}: already contains a dataset ({spec_file}); choose another folder, or delete that one")
    if UPLOADING_FILE in names:
        uploaded = _uploaded(remote.join(url, UPLOADING_FILE))
        for name in names:
            if name in uploaded:
                remote.delete(remote.join(url, name))
        names = [name for name in names if name not in uploaded]
    if others := [name for name in names if name != UPLOADING_FILE]:
        raise DataError(
            f"{url}: already contains {len(others)} files ({others[0]}, ...), and a dataset needs a folder of its own; "
            "choose another folder, or delete them"
        )
    remote.delete(remote.join(url, UPLOADING_FILE))


def _uploaded(url: str) -> set[str]:
    """Return the names in the journal of a killed upload."""
    with working_copy(remote.mirror_of(url)) as copy:
        try:
            return set(read_typed(list[str], json.loads(_text(copy)), UPLOADING_FILE))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{url}: is damaged ({error}); remove the files of the folder") from error


def _clear_drafts(folder: Path, spec_file: str) -> None:
    """Remove the drafts of dead runs, and the entries these had already moved of an incomplete dataset."""
    for draft in sorted(path for path in folder.glob(f"{UNFINISHED}*") if is_draft(path)):
        lock = lock_folder(draft)
        if lock is None:
            raise DataError(
                f"{folder}: another run is writing here ({draft.name}); wait for it, or choose another folder"
            )
        try:
            if not (folder / spec_file).exists():
                for name in _moving(draft):
                    if not os.path.lexists(draft / name):  # already moved
                        _remove(folder / name)
            remove_draft(draft)
        except OSError as error:
            raise DataError(f"{draft}: is left from a killed run and cannot be removed ({error.strerror})") from error
        finally:
            os.close(lock)


def _moving(draft: Path) -> list[str]:
    """Return the names in a draft's journal, restricted to plain names: they are about to be deleted."""
    with suppress(OSError, ValueError, RecursionError):
        names: list[str] = read_typed(list[str], json.loads(_text(draft / MOVING_FILE)), MOVING_FILE)
        return [name for name in names if Path(name).name == name]
    return []


def _text(path: Path) -> str:
    with open_regular(path) as file:
        return file.read().decode()


def _check_holds_no_dataset(folder: Path, spec_file: str) -> None:
    if os.path.lexists(folder / spec_file):
        raise DataError(
            f"{folder}: already contains a dataset ({spec_file}); choose another folder, or delete that one"
        )
    parts = sorted(folder.glob("*.parquet"))
    if parts:
        raise DataError(
            f"{folder}: already contains {len(parts)} parquet files ({parts[0].name}, ...), and datasets are not "
            "mixed; choose another folder, or delete them"
        )


def _check_free(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        if os.path.lexists(folder / name):
            raise DataError(f"{folder / name}: already exists, and the dataset needs the name; delete it and run again")


def _publish(draft: Path, folder: Path, spec_file: str) -> None:
    """Move the content of a draft to `folder`, undoing the moves if one fails."""
    if not (draft / spec_file).is_file():
        raise DataError(f"{folder}: the dataset lost its {spec_file} while it was written, and was removed")
    entries = sorted(entry.name for entry in draft.iterdir() if entry.name not in (spec_file, DRAFT_MARKER))
    _check_free(folder, [*entries, spec_file])
    # Everything, the journal included, reaches the disk before the first move; the specification follows all others.
    (draft / MOVING_FILE).write_text(json.dumps(entries))
    for path in [draft, *draft.rglob("*")]:
        sync(path)
    moved: list[Path] = []
    try:
        for name in entries:
            os.rename(draft / name, folder / name)
            moved.append(folder / name)
        sync(folder)
        os.rename(draft / spec_file, folder / spec_file)
        moved.append(folder / spec_file)
        sync(folder)
    except BaseException:
        for target in reversed(moved):
            _remove(target)
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
