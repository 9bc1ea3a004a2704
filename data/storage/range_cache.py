"""Parts of remote objects on the local disk: a cache of bounded size that all processes of a host share.

A part is a local file as long as the object. It holds some byte ranges of it at their own offsets, and holes elsewhere,
so that whatever reads the object can read the part. Its name is derived from the identity of the object and from the
ranges: a replaced object has other parts. The parts lie in the folder `row_groups` of `cache_dir`.

The blocks of a part are allocated before it is downloaded, under a lock of the folder, so that all parts together,
unfinished ones included, never take more than `cache_limit` bytes of disk. The parts that were not opened for the
longest time are removed to make room, except for those that a process holds open. Whoever downloads a part holds a lock
on its draft: others that need it wait, and a draft without a lock is that of a dead process.
"""

import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from data.errors import DataError, LostInputError
from data.storage.files import UNFINISHED, is_of_system
from data.storage.remote import RemoteFile, cache_dir, read_range

CACHE_LIMIT_VARIABLE = "RECIPE_CACHE_LIMIT"
DEFAULT_LIMIT = 20 * 2**30
FOLDER = "row_groups"  # no scheme has an underscore, so that no mirror has this name
REQUEST_BYTES = 8 * 2**20
DISK_BLOCK = 4096
# Seconds to wait for room while all parts are in use, and between two looks.
ROOM_PATIENCE, ROOM_PAUSE = 300.0, 0.02

Range = tuple[int, int]
_UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE = re.compile(rf"([0-9]{{1,15}})\s*({'|'.join(_UNITS)})")


def parse_size(text: str) -> int:
    """Return the bytes that a text such as 20GiB, 500MiB or 1000000 states.

    Raises:
        DataError: It is no such text.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None or not int(found[1]):
        raise DataError(
            f"the cache limit {text!r} is no size; write a whole number of bytes, or such as 500MiB or 20GiB"
        )
    return int(found[1]) * _UNITS[found[2]]


def enforced_limit() -> int:
    """Return the bytes of disk that all parts may take, and remove what an earlier, higher limit has left beyond it.

    It is $RECIPE_CACHE_LIMIT, else 20 GiB or, where this is less, half of the free disk.

    Raises:
        DataError: The variable states no size.
    """
    folder = _folder()
    if not folder.exists():
        return _limit(0)
    with _locked(folder):
        return _make_room(0, folder).limit


def open_ranges(file: RemoteFile, ranges: Sequence[Range]) -> BinaryIO:
    """Open a local file as long as an object, with some of its bytes; download them unless the cache has them.

    The file stays in the cache at least until it is closed.

    Args:
        file: the object.
        ranges: the bytes [start, stop) to hold, within the object.

    Raises:
        RemoteChangedError: The object is no longer the one that `file` describes.
        RemoteError: The store cannot be read.
        DataError: The ranges take more than the limit of the cache.
        LostInputError: The cache cannot be written, or has had no room for minutes.
    """
    path = _path(file, ranges)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        while True:
            opened = _open_complete(path) or _download(file, ranges, path)
            if opened is not None:
                return opened
    except OSError as error:
        if not is_of_system(error):
            raise
        raise LostInputError(
            f"{path.parent}: the cache of {file.url} cannot be written ({error.strerror}); free space there, or choose "
            "another disk with --cache_dir"
        ) from error


def forget_ranges(file: RemoteFile, ranges: Sequence[Range]) -> None:
    """Remove what the cache has of `ranges`, such as a damaged copy."""
    _path(file, ranges).unlink(missing_ok=True)


class _Part(NamedTuple):
    """A file in the cache: when it was last opened (ns), and the bytes of disk that it takes."""

    used_ns: int
    taken: int
    path: Path


def _folder() -> Path:
    return cache_dir() / FOLDER


def _path(file: RemoteFile, ranges: Sequence[Range]) -> Path:
    identity = (file.url, file.size, file.tag or file.modified_ns, [*map(tuple, ranges)])
    return _folder() / hashlib.sha256(repr(identity).encode()).hexdigest()[:40]


def _open_complete(path: Path) -> BinaryIO | None:
    """Open a part and mark it as in use; None if there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with _closed_on_error(descriptor):
        return _in_use(descriptor)


def _in_use(descriptor: int) -> BinaryIO | None:
    """Hold a part against its removal; None, with the descriptor closed, if it was removed just before."""
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    if os.fstat(descriptor).st_nlink:
        os.utime(descriptor)
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    return None


def _download(file: RemoteFile, ranges: Sequence[Range], path: Path) -> BinaryIO | None:
    """Download a part and open it; None if another process or thread has done so meanwhile, or it is gone again."""
    draft = path.with_name(f".{path.name}{UNFINISHED}")
    descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with _closed_on_error(descriptor):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists() or not _is_at(descriptor, draft):
            if _is_at(descriptor, draft):
                draft.unlink(missing_ok=True)
            os.close(descriptor)
            return None
        try:
            _reserve(descriptor, file, ranges, path.parent)
            _fill(descriptor, file, ranges)
            # A part must not be a file of zeros after a power loss.
            os.fdatasync(descriptor)
            with _locked(path.parent):  # whoever counts the files sees it once
                os.replace(draft, path)
        except BaseException:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise
        return _in_use(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


class _Room(NamedTuple):
    """The limit of the cache, and the bytes of it that are free, negative if parts in use exceed the limit."""

    limit: int
    free: int


def _reserve(descriptor: int, file: RemoteFile, ranges: Sequence[Range], folder: Path) -> None:
    """Allocate the blocks of a part as soon as the limit leaves room for them."""
    needed = sum(-(-stop // DISK_BLOCK) - start // DISK_BLOCK for start, stop in ranges) * DISK_BLOCK
    end = time.monotonic() + ROOM_PATIENCE
    while True:
        with _locked(folder):
            room = _make_room(needed, folder)
            if needed > room.limit:
                raise DataError(
                    f"{file.url}: a row group takes {needed:,} bytes, and the cache in {folder} may take "
                    f"{room.limit:,}; raise --cache_limit, or write the file again with smaller row groups"
                )
            if needed <= room.free:
                os.ftruncate(descriptor, file.size)
                for start, stop in ranges:
                    os.posix_fallocate(descriptor, start, stop - start)
                return
        if time.monotonic() > end:
            raise LostInputError(
                f"{folder}: has had no room for {needed:,} bytes of {file.url} for {ROOM_PATIENCE:g} s, since all of "
                "it is in use; raise --cache_limit, or end the processes that use it"
            )
        time.sleep(ROOM_PAUSE)


def _make_room(needed: int, folder: Path) -> _Room:
    """Remove parts, those used longest ago first, until there is room or all others are in use."""
    parts = sorted(_parts(folder))
    used = sum(part.taken for part in parts)
    limit = _limit(used)
    for part in parts:
        if used + needed <= limit:
            break
        if _remove(part.path):
            used -= part.taken
    return _Room(limit, limit - used)


def _limit(used: int) -> int:
    if stated := os.environ.get(CACHE_LIMIT_VARIABLE):
        return parse_size(stated)
    existing = next(folder for folder in (_folder(), *_folder().parents) if folder.exists())
    return min(DEFAULT_LIMIT, (shutil.disk_usage(existing).free + used) // 2)


def _parts(folder: Path) -> Iterator[_Part]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                yield _Part(status.st_mtime_ns, status.st_blocks * 512, Path(entry.path))


def _remove(path: Path) -> bool:
    """Remove a part that nobody uses, or the draft of a dead process; return whether it did."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _fill(descriptor: int, file: RemoteFile, ranges: Sequence[Range]) -> None:
    for start, stop in ranges:
        for offset in range(start, stop, REQUEST_BYTES):
            left = memoryview(read_range(file, offset, min(REQUEST_BYTES, stop - offset)))
            while left:
                done = os.pwrite(descriptor, left, offset)
                left, offset = left[done:], offset + done


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _closed_on_error(descriptor: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        os.close(descriptor)
        raise
