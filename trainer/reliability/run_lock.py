"""One training run per model folder."""

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
from typing import Self

from data.errors import DataError

LOCK_FILE = ".training.lock"
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}


class RunLock:
    """A lock on a model folder, for as long as this process lives at most: the kernel frees it however that ends.

    What counts is the kernel's lock (flock(2), which reaches over NFS to other hosts), not the file: the file of a
    killed run is taken over without a word. It says who holds the lock, for the message to those who come second.
    Where no lock is had nothing is changed: folders made for it go again.

    Args:
        model_dir: made where it is missing.
        warn: told where the file system knows no locks, which lets the run go on.
        patience: seconds for which a lock that is held is asked for again.

    Raises:
        DataError: another run trains into the folder, or no file can be made in it (on entering).
    """

    def __init__(self, model_dir: Path, warn: Callable[[str], None], patience: float = 0.0):
        self.model_dir, self._warn, self._patience = model_dir, warn, patience
        self._path = model_dir.absolute() / LOCK_FILE
        self._until = 0.0
        self._descriptor: int | None = None
        self._made: list[Path] = []

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
                f"--model_dir {self.model_dir}: cannot be written ({error.strerror}). "
                "Give a folder on a disk with room that you may write to."
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Frees the lock, and removes the file and the folders made for it that are still empty."""
        if self._descriptor is not None:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None
        self._remove_made()

    def _take(self) -> bool:
        """Whether that was it: a file that its holder removed meanwhile is nobody's, and has to be made anew."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            if not _is_lock_file(descriptor):
                raise OSError(errno.EEXIST, f"{LOCK_FILE} is not a file of this program")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not self._is_in_place(descriptor):
                os.close(descriptor)
                return False
            _write_holder(descriptor)
        except BlockingIOError:
            holder = _read_holder(descriptor)
            os.close(descriptor)
            if time.monotonic() < self._until:
                time.sleep(0.2)
                return False
            raise DataError(
                f"--model_dir {self.model_dir}: another run is training there: {holder}. "
                "Wait for its end, stop it, or give another --model_dir."
            ) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _NO_LOCKS:
                raise
            self._warn(
                f"--model_dir {self.model_dir}: this file system knows no locks ({error.strerror}), so that nothing "
                "keeps a second run from training there at the same time"
            )
            self._path.unlink(missing_ok=True)
            return True
        self._descriptor = descriptor
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
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "command": shlex.join([program, *sys.argv[1:]]),
    }
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, (json.dumps(holder) + "\n").encode(), 0)


def _read_holder(descriptor: int) -> str:
    """Who holds the lock, for a message. A moment may lie between taking it and saying so."""
    for _ in range(20):
        with suppress(OSError, ValueError, KeyError, TypeError):
            holder = json.loads(os.pread(descriptor, 1 << 20, 0))
            return f"process {holder['pid']} on {holder['host']}, since {holder['since']} ({holder['command']})"
        time.sleep(0.05)
    return "its lock does not say which"
