"""Damage to bytes and to command lines, and how a program handles it."""

import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

SECONDS = 1.0
HANGS_AFTER = 20.0
# A slow try is repeated: a collection of garbage or a busy core may cost a second once, slow code does every time.
REPEATS = 3


class Hang(BaseException):
    """Raised if a try takes more than HANGS_AFTER seconds of CPU time."""


@dataclass
class Tries:
    """The outcomes of many tries.

    Attributes:
        clean: exception that a try may raise.
        seconds: CPU time of each try in its own thread; of a slow one, the least of REPEATS.
        slowest: seconds and input of the slowest try.
        failed: input and exception of the tries that failed.
    """

    clean: type[Exception]
    seconds: list[float] = field(default_factory=list)
    slowest: tuple[float, object] = (0.0, None)
    failed: list[tuple[object, BaseException]] = field(default_factory=list)
    rejected: int = 0

    def attempt(self, given: object, job: Callable[[], object]) -> None:
        """Runs a job; only `clean` may be raised."""
        seconds, error = _timed(job)
        for _ in range(REPEATS - 1):
            if seconds > SECONDS and not isinstance(error, Hang):
                seconds = min(seconds, _timed(job)[0])
        if isinstance(error, self.clean):
            self.rejected += 1
        elif error is not None:
            self.failed.append((given, error))
        self.seconds.append(seconds)
        if seconds > self.slowest[0]:
            self.slowest = seconds, given

    @property
    def survived(self) -> int:
        """Number of tries that succeeded within SECONDS."""
        return len(self.seconds) - len(self.failed) - sum(seconds > SECONDS for seconds in self.seconds)

    def check(self) -> None:
        """Fails the test if a try failed, or if none or all were rejected."""
        assert not self.failed, f"{len(self.failed)} of {len(self.seconds)}: {self.failed[:3]!r}"
        assert max(self.seconds) < SECONDS, f"the slowest took CPU time of (seconds, input) {self.slowest!r}"
        assert 0 < self.rejected < len(self.seconds)


def _timed(job: Callable[[], object]) -> tuple[float, BaseException | None]:
    """Returns the CPU seconds that a job took, and what it raised."""
    start, error = time.thread_time(), None
    try:
        with _limited():
            job()
    except (Exception, SystemExit, Hang) as raised:
        error = raised
    return time.thread_time() - start, error


@contextmanager
def _limited() -> Iterator[None]:
    def stop(signal_number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, HANGS_AFTER)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def damaged_bytes(dice: random.Random, content: bytes, odd: Sequence[bytes]) -> bytes:
    """Content with one to four pieces changed: bits, bytes, lines, cuts, copies, and odd pieces inserted."""
    for _ in range(dice.randint(1, 4)):
        start = dice.randint(0, len(content))
        end = min(len(content), start + dice.choice([0, 1, 1, 4, 30]))
        kind = dice.choice(["odd", "odd", "bit", "bytes", "drop", "copy", "cut", "lines"])
        if kind == "cut":
            content = content[:start]
            continue
        if kind == "lines":
            lines = content.split(b"\n")
            lines[dice.randrange(len(lines))] = dice.choice(lines)
            content = b"\n".join(lines)
            continue
        content = content[:start] + _piece(dice, kind, content[start:end], odd) + content[end:]
    return content


def _piece(dice: random.Random, kind: str, piece: bytes, odd: Sequence[bytes]) -> bytes:
    if kind == "odd":
        return dice.choice(odd)
    if kind == "bit":
        return bytes(byte ^ 1 << dice.randrange(8) for byte in piece)
    if kind == "bytes":
        return dice.randbytes(len(piece))
    return piece * dice.choice([2, 3, 50]) if kind == "copy" else b""


# Values that no flag expects.
ODD_VALUES = [
    *("", " ", "-", "--", "---", "=", "{}", "[]", "none", "true", "\0", "a\0b", "\n", "\r\n", "\x1b[2J", "\udcff"),
    *("é", "大きさ", "\U0001f600", "x" * 10_000, "9" * 5000, "-1", "-0", "0", "1", "2", "+1", "1_0", "0x10", "1e3"),
    *("1.5", "nan", "-nan", "inf", "-inf", "1e400", "-1e400", "1e-400", "2147483648", "9223372036854775808", "٣"),
    *(
        "/",
        "/dev/null",
        "/dev/full",
        "/proc/self/mem",
        "..",
        "../..",
        "~",
        "*",
        "%s",
        "{0}",
        "${HOME}",
        "$(id)",
        "last",
    ),
    *("best", "/" * 300, "a/" * 3000, "no.yaml", "no.json", "p.parquet", "feature_spec.yaml", ".", "train", "tset"),
]


def damaged_arguments(dice: random.Random, valid: Sequence[str], flags: Sequence[str]) -> list[str]:
    """A command line with one to three words changed, dropped, repeated or inserted."""
    words = list(valid)
    for _ in range(dice.randint(1, 3)):
        index = dice.randint(0, len(words))
        kind = dice.choice(["flag", "flag", "value", "drop", "repeat", "misspell", "split"])
        if kind == "flag":
            values = [dice.choice(ODD_VALUES) for _ in range(dice.choice([0, 1, 1, 1, 2]))]
            words[index:index] = [dice.choice(flags), *values]
        elif kind == "repeat":
            words += words[index : index + 2]
        elif kind == "split":
            words.insert(index, f"{dice.choice(flags)}={dice.choice(ODD_VALUES)}")
        elif index < len(words):
            changed = {"value": [dice.choice(ODD_VALUES)], "drop": [], "misspell": [_misspelled(dice, words[index])]}
            words[index : index + 1] = changed[kind]
    return words


def _misspelled(dice: random.Random, word: str) -> str:
    index = dice.randint(0, len(word))
    return word[:index] + dice.choice(["", "x", "-", "_", " ", "\u0301", "\udc80"]) + word[index + dice.randint(0, 1) :]
