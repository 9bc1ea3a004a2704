"""Checkpoints and models in an object store: what is exchanged with the local mirror of a URL in `--model_dir`.

A run works on the mirror (`data.storage.remote.mirror_of`) as on any local folder. The functions here fetch into it
what the run reads, and upload to the store what the run has written. They do nothing with a folder that is no mirror.

The store is the truth and the mirror a cache of it. A folder in the store exists once it has its manifest, which is
uploaded last and removed first; the manifest's checksums decide whether a file of the mirror is the store's. Only
rank 0 calls these functions.
"""

import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data.errors import DataError
from data.progress import Advance, unseen
from data.storage.checksummed_dir import MANIFEST, ChecksummedDir, DamagedError, FileEntry, StorageError, read_manifest
from data.storage.files import UNFINISHED, draft_beside, temporary_beside
from data.storage.remote import (
    RemoteNotFoundError,
    delete,
    delete_folder,
    fetch,
    join,
    list_files,
    push_folder,
    put,
    url_of,
)
from trainer.lifecycle.run_lock import MODEL_DIR, is_locked

_STEP = re.compile(r"step-[0-9]{1,18}")
# Age in seconds from which a partial download is known to be that of a killed process.
_ABANDONED = 3600.0


def place(path: Path) -> str:
    """Return the URL of which a path is the mirror, or the path itself, for messages."""
    return url_of(path) or str(path)


def refresh_checkpoints(folder: Path, *, locked: bool = False) -> None:
    """Make the checkpoints in a mirror those of the store, of which only the manifests are downloaded.

    Copies of arrays are kept where the store still has the same ones. While a run on this host trains into the folder,
    nothing is changed: its mirror is what the store has or is about to get.

    Args:
        folder: the folder `checkpoints` of a model folder.
        locked: whether this process holds the lock of the model folder, so that no other run trains there.

    Raises:
        RemoteError: the store cannot be read.
    """
    url = url_of(folder)
    if url is None or (not locked and is_locked(folder.parent, MODEL_DIR)):
        return
    with _alone(folder):
        stored = {name for name, files in _step_folders(url).items() if MANIFEST in files}
        for path in folder.iterdir():
            if path.name not in stored:
                _remove(path)
        for name in stored:
            _refresh(folder / name)


def refresh_model(folder: Path) -> None:
    """Make the manifest of a model folder in a mirror that of the store; its files are downloaded by `verify`.

    Raises:
        RemoteError: the store cannot be read.
    """
    if url_of(folder) is None:
        return
    with _alone(folder.parent):
        _refresh(folder)


def verify(folder: ChecksummedDir, parts: Collection[ChecksummedDir], advance: Advance = unseen) -> None:
    """Verify every file of a folder. In a mirror, those that are missing or not those of the store are downloaded.

    Args:
        folder: the folder.
        parts: all folders that it consists of: itself, and the full checkpoint that a differential one refers to.
        advance: called with the number of bytes verified since the last call.

    Raises:
        DamagedError: a file differs from what was saved, in the store as well.
        RemoteError: the store cannot be read.
    """
    fetched = {part.path / name for part in parts for name in _download(part, _is_missing)}
    try:
        folder.verify(advance)
    except DamagedError:
        # A copy of the right size may be damaged, or of an earlier upload. What has just been fetched is the store's.
        renewed = [_download(part, lambda path, size: path not in fetched) for part in parts]
        if not any(renewed):
            raise
        folder.verify()


def download(folder: ChecksummedDir, wanted: Callable[[str], bool]) -> None:
    """Download the wanted files that a mirror lacks.

    Raises:
        RemoteError: the store cannot be read.
    """
    _download(folder, lambda path, size: wanted(path.relative_to(folder.path).as_posix()) and _is_missing(path, size))


def upload_checkpoints(folder: Path) -> None:
    """Make the checkpoints in the store those of the mirror: upload new ones, then remove those no longer kept.

    What an earlier, failed or killed, upload has left undone is made up for.

    Raises:
        StorageError: a checkpoint cannot be uploaded; none was removed from the store. Or one cannot be removed.
    """
    url = url_of(folder)
    if url is None:
        return
    with _as_storage_error("the checkpoints are not all in the store"):
        here = sorted((path for path in folder.iterdir() if _STEP.fullmatch(path.name)), key=lambda path: _step(path))
        for path in here:  # full checkpoints come before the differential ones that refer to them
            _upload(path)
        for name in _step_folders(url).keys() - {path.name for path in here}:
            delete_folder(join(url, name), MANIFEST)


def upload_model(folder: Path) -> None:
    """Upload a model folder, replacing an earlier one.

    Raises:
        StorageError: the folder cannot be uploaded.
    """
    if url_of(folder) is not None:
        with _as_storage_error("the model is not in the store"):
            _upload(folder)


def check_writable(folder: Path) -> None:
    """Check that objects can be written to a folder of the store, by writing and removing a tiny one.

    Raises:
        RemoteError: they cannot.
    """
    url = url_of(folder)
    if url is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    tiny, name = temporary_beside(folder / "probe"), join(url, ".probe")
    tiny.write_bytes(b"\0")
    try:
        put(tiny, name)
        delete(name)
    finally:
        tiny.unlink(missing_ok=True)


def _step_folders(url: str) -> dict[str, set[str]]:
    """Return the folders named step-N in the store, complete or not, with the names of their files."""
    found: dict[str, set[str]] = {}
    for file in list_files(url):
        name, _, rest = file.url[len(url) + 1 :].partition("/")
        if _STEP.fullmatch(name) and rest:
            found.setdefault(name, set()).add(rest)
    return found


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _refresh(folder: Path) -> None:
    """Replace the manifest of a mirrored folder by that of the store, and remove files that are not of it."""
    with _stored_manifest(folder) as stored:
        if stored is None:
            _remove(folder)
            return
        if _files(folder) != _files(stored):
            _remove(folder)
        folder.mkdir(parents=True, exist_ok=True)
        os.replace(stored / MANIFEST, folder / MANIFEST)
        _remove_abandoned(folder)


@contextmanager
def _stored_manifest(folder: Path) -> Iterator[Path | None]:
    """Yield a temporary folder with the manifest that the store has of a folder; None if the store has none."""
    with draft_beside(folder) as draft:
        found: Path | None = draft
        try:
            fetch(join(str(url_of(folder)), MANIFEST), draft / MANIFEST)
        except RemoteNotFoundError:
            found = None
        yield found


def _files(folder: Path) -> dict[str, FileEntry] | None:
    """Return the files that a folder's manifest lists, with their checksums; None if it cannot be read."""
    with suppress(DamagedError):
        return read_manifest(folder).files
    return None


def _remove_abandoned(folder: Path) -> None:
    for path in folder.rglob(f".*{UNFINISHED}"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_missing(path: Path, size: int) -> bool:
    return not path.is_file() or path.stat().st_size != size


def _download(folder: ChecksummedDir, needed: Callable[[Path, int], bool]) -> list[str]:
    """Download the needed files of a folder; return the names of those that the store has."""
    url, fetched = url_of(folder.path), []
    for name, entry in folder.entries.items() if url is not None else ():
        if needed(folder.path / name, entry.bytes):
            with suppress(RemoteNotFoundError):  # which verifying reports
                fetch(join(str(url), name), folder.path / name)
                fetched.append(name)
    return fetched


def _upload(folder: Path) -> None:
    """Upload a folder, or its manifest alone if the store has the same files; nothing if the store has it.

    A folder without some of its files was never downloaded as a whole: the store has it, or has lost it.
    """
    url, files = str(url_of(folder)), _files(folder)
    with _stored_manifest(folder) as stored:
        if stored is not None and (stored / MANIFEST).read_bytes() == (folder / MANIFEST).read_bytes():
            return
        is_amended = stored is not None and _files(stored) == files
    if files is None or (not is_amended and any(_is_missing(folder / name, files[name].bytes) for name in files)):
        return
    if is_amended:
        put(folder / MANIFEST, join(url, MANIFEST))
    else:
        push_folder(folder, url, MANIFEST)


@contextmanager
def _as_storage_error(consequence: str) -> Iterator[None]:
    try:
        yield
    except (DataError, OSError) as error:
        raise StorageError(f"{error}; {consequence}.") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes of this host from refreshing the same mirror meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
