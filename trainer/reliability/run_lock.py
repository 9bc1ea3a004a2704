"""One training run per model folder, and one supervisor per results folder."""

import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from data.errors import DataError
from trainer.reliability.processes import start_time

_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}


class FolderInUse(RuntimeError):
    """Another run holds the lock of a folder. Nothing is wrong with the arguments: the same command may work later."""


class LockedFolder(NamedTuple):
    """What a lock is for.

    Attributes:
        file: name of the lock's file in the folder.
        flag: by which the folder is given.
        others: what somebody who holds the lock is doing there, for messages.
    """

    file: str
    flag: str
    others: str


MODEL_DIR = LockedFolder(".training.lock", "--model_dir", "another run is training there")
RESULTS_DIR = LockedFolder(".supervisor.lock", "--results_dir", "another supervisor is at work there")


class RunLock:
    """A lock on a folder, held until this process ends at the latest: the kernel frees it however that happens.

    What counts is the kernel's lock (flock(2), which reaches over NFS to other hosts), not the file: the file of a
    killed run is taken over without a word. It says who holds the lock, for the message to those who come second.
    Where no lock is had nothing is changed: folders made for it go again.

    Args:
        folder: made where it is missing.
        warn: called with a message where the file system knows no locks, in which case the run continues without.
        patience: seconds to keep trying while the lock is held by a process that is not known to be alive: it may
            be dying, or run on another host.
        kind: which of a run's folders it is.

    Attributes:
        descriptor: of the file; None where there is no lock. A child that inherits it holds the lock as well.

    Raises:
        FolderInUse: another run holds the lock (on entering).
        DataError: no file can be made in the folder (on entering).
    """

    def __init__(
        self, folder: Path, warn: Callable[[str], None], patience: float = 0.0, kind: LockedFolder = MODEL_DIR
    ):
        self._name, self._others = f"{kind.flag} {folder}", kind.others
        self._instead = f"give another {kind.flag}"
        self._path = folder.absolute() / kind.file
        self._warn, self._patience = warn, patience
        self._until = 0.0
        self._made: list[Path] = []
        self.descriptor: int | None = None

    def __enter__(self) -> Self:
        """Takes the lock."""
        folder, self._until = self._path.parent, time.monotonic() + self._patience
        try:
            self._made = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            while not self._take():
                pass
        except OSError as error:
            self._remove_made()
            raise DataError(
                f"{self._name}: cannot be written ({error.strerror}). "
                "Give a folder on a disk with room that you may write to."
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Frees the lock, and removes the file and the folders made for it that are still empty."""
        if self.descriptor is not None:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
            os.close(self.descriptor)
            self.descriptor = None
        self._remove_made()

    def _take(self) -> bool:
        """Whether that was it: a file that its holder removed meanwhile is nobody's, and has to be made anew."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            if not _is_lock_file(descriptor):
                raise OSError(errno.EEXIST, f"{self._path.name} is not a file of this program")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not self._is_in_place(descriptor):
                os.close(descriptor)
                return False
            _write_holder(descriptor)
        except BlockingIOError:
            holder = _read_holder(descriptor)
            os.close(descriptor)
            if time.monotonic() < self._until and not _is_alive_here(holder):
                time.sleep(0.2)
                return False
            raise FolderInUse(
                f"{self._name}: {self._others}: {_described(holder)}. Wait for it to end, stop it, or {self._instead}."
            ) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _NO_LOCKS:
                raise
            self._warn(
                f"{self._name}: this file system knows no locks ({error.strerror}), so that nothing "
                "keeps a second run from working there at the same time"
            )
            self._path.unlink(missing_ok=True)
            return True
        self.descriptor = descriptor
        return True

    def _is_in_place(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _remove_made(self) -> None:
        with suppress(OSError):
            for folder in self._made:
                folder.rmdir()  # not one that holds anything


def _is_lock_file(descriptor: int) -> bool:
    """Whether it is an empty file, or begins as `_write_holder` begins it: another file must not be overwritten."""
    start = b'{"host":'
    return os.pread(descriptor, len(start), 0) in (b"", start)


def _write_holder(descriptor: int) -> None:
    """Says who this is; on a full disk the lock holds all the same."""
    program = Path(sys.argv[0]).name
    holder = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": start_time(os.getpid()),
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "command": shlex.join([program, *sys.argv[1:]]),
    }
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, (json.dumps(holder) + "\n").encode(), 0)


def _read_holder(descriptor: int) -> dict[str, Any]:
    """Who holds the lock, as `_write_holder` wrote it; {} where that cannot be read.

    A moment may pass between taking the lock and writing.
    """
    for _ in range(20):
        with suppress(OSError, ValueError):
            holder = json.loads(os.pread(descriptor, 1 << 20, 0))
            if isinstance(holder, dict) and isinstance(holder.get("pid"), int):
                return holder
        time.sleep(0.05)
    return {}


def _is_alive_here(holder: dict[str, Any]) -> bool:
    return holder.get("host") == socket.gethostname() and start_time(holder["pid"]) == holder.get("started")


def _described(holder: dict[str, Any]) -> str:
    if not holder:
        return "its lock does not say which"
    return f"process {holder['pid']} on {holder.get('host')}, since {holder.get('since')} ({holder.get('command')})"
