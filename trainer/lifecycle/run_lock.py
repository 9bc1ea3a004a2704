"""Locks that admit one training run per model folder and one supervisor per results folder."""

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

from data.errors import DataError, printable
from trainer.lifecycle.processes import start_time

_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}


class FolderInUse(RuntimeError):
    """Another run holds the lock of a folder. The arguments are valid; the same command may succeed later.

    Converted to text it is a single line of printable characters, whatever the lock file contains.
    """

    def __str__(self) -> str:
        return printable(super().__str__().replace("\n", "\\n"))


class LockedFolder(NamedTuple):
    """A kind of folder that can be locked.

    Attributes:
        file: name of the lock file in the folder.
        flag: command line flag that sets the folder.
        others: what the holder of the lock is doing in the folder, for messages.
    """

    file: str
    flag: str
    others: str


MODEL_DIR = LockedFolder(".training.lock", "--model_dir", "another run is training there")
RESULTS_DIR = LockedFolder(".supervisor.lock", "--results_dir", "another supervisor is running there")


class RunLock:
    """A lock on a folder, used as a context manager. The kernel releases it when the process dies for any reason.

    The lock is the kernel's (flock(2), which also works across hosts over NFS), not the existence of the lock file: a
    file left by a killed run is reused silently. The file names the holder, for the error message of other runs. If the
    lock cannot be acquired, folders created for it are removed again.

    Args:
        folder: the folder to lock, created if it does not exist.
        warn: called with a message if the file system does not support locks; the run then continues without one.
        patience: seconds to keep trying while the lock is held by a process that is not known to be alive: it may be
            exiting, or run on another host.
        kind: which of a run's folders is locked.

    Attributes:
        descriptor: file descriptor of the lock file; None without a lock. A child process that inherits the descriptor
            holds the lock as well.

    Raises:
        FolderInUse: on entering, if another run holds the lock.
        DataError: on entering, if no file can be created in the folder.
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
        """Acquire the lock."""
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
                "Choose a writable folder on a disk with free space."
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the lock and remove its file, along with folders created for it that are still empty."""
        if self.descriptor is not None:
            # Removed while the lock is still held: afterwards the file may belong to another run.
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
            os.close(self.descriptor)
            self.descriptor = None
        self._remove_made()

    def _take(self) -> bool:
        """Try once to acquire the lock.

        Returns:
            True if the lock is held (or the file system has no locks); False if the caller should try again.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            if not _is_lock_file(descriptor):
                raise OSError(errno.EEXIST, f"{self._path.name} is not a file of this program")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous holder may have removed the file between open and flock. A lock on a removed file excludes
            # nobody, so a new file has to be created.
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
                f"{self._name}: this file system does not support locks ({error.strerror}), so nothing "
                "prevents a second run there at the same time"
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
                folder.rmdir()  # fails on a folder that is not empty


def is_locked(folder: Path, kind: LockedFolder = MODEL_DIR) -> bool:
    """Return whether a process holds the lock of a folder, as far as the file system tells."""
    try:
        descriptor = os.open(folder / kind.file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _is_lock_file(descriptor: int) -> bool:
    """Return whether the file is empty or was written by `_write_holder`; other files must not be overwritten."""
    start = b'{"host":'
    return os.pread(descriptor, len(start), 0) in (b"", start)


def _write_holder(descriptor: int) -> None:
    """Write this process's identity to the lock file. Failures, as on a full disk, do not affect the lock."""
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
    """Read the holder of the lock as written by `_write_holder`; {} if it cannot be read.

    Reading is retried, since the holder writes its identity shortly after it acquires the lock.
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
